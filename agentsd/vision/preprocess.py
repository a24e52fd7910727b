"""The published evaluation transform: squash to a square, crop its middle, normalise."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agentsd.vision.configs import find_config
from agentsd.vision.functional import Grid

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for every family
CROP = 224 / 256
_UNCROPPED = ("agent_swin_small_288", "agent_swin_base_384")


def crop_fraction(name: str) -> float:
    """Return the part of the squashed picture's side that the published evaluation keeps.

    Args:
        name: A model.

    Returns:
        0.875, or 1 for the two models that are evaluated without a crop.

    Raises:
        ValueError: If the model is unknown.

    Example:
        >>> crop_fraction("agent_deit_t"), crop_fraction("agent_swin_b_384")
        (0.875, 1.0)
    """
    return 1.0 if find_config(name)[0] in _UNCROPPED else CROP


def evaluation_transform(picture: Any, image_size: int | Grid = 224, *, crop: float = CROP) -> Tensor:
    """Turn a picture into what the published models are evaluated on.

    The picture is squashed to `image_size / crop`, bicubically and without keeping its proportions, and the middle is
    cut out. (timm calls this `crop_mode="squash"`.)

    Args:
        picture: A PIL picture, in any mode.
        image_size: Side, or (height, width), of the result.
        crop: Part of the side that is kept, above 0 and at most 1; `crop_fraction` gives it for a model.

    Returns:
        The image, [3, H, W], float32, with ImageNet's mean and deviation taken out.

    Raises:
        ValueError: If `crop` is out of range.

    Example:
        >>> from PIL import Image
        >>> evaluation_transform(Image.new("RGB", (300, 200))).shape
        torch.Size([3, 224, 224])
    """
    if not 0 < crop <= 1:
        raise ValueError(f"crop={crop} is not in (0, 1]; use 0.875, as published, or 1 for no crop.")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    from PIL import Image

    squashed = (math.floor(width / crop), math.floor(height / crop))
    pixels = np.asarray(picture.convert("RGB").resize(squashed, Image.Resampling.BICUBIC))
    top, left = round((squashed[1] - height) / 2), round((squashed[0] - width) / 2)
    image = torch.tensor(pixels[top : top + height, left : left + width]).permute(2, 0, 1).float() / 255
    return (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
