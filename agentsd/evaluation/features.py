"""Feature extractors: what turns pictures into the rows that distances are computed on."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from agentsd.evaluation import inception, inception_weights

Pictures = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.float32]

_BATCH = 16  # pictures that go through the FID network together: about 1 GB


class FeatureExtractor(Protocol):
    """What turns pictures into features; distances are comparable only where all its attributes are equal.

    Attributes:
        name: Which features these are.
        dimension: Features a picture, d.
        distance: What a Fréchet distance over them is called in a report: `fid` for the FID network alone.
        resize: How pictures are brought to the network's size.
        sha256: Hash of the weights file.
    """

    name: str
    dimension: int
    distance: str
    resize: str
    sha256: str

    def __call__(self, pictures: Pictures) -> Rows:
        """Return features, [n, d], float32, of pictures, [n, h, w, 3], uint8."""
        ...


@dataclass
class Extractor:
    """A function of pictures with the names that a report needs; see `FeatureExtractor`.

    Raises:
        ValueError: When called, if the pictures are not [n, h, w, 3] uint8 or the features not [n, d] and finite.

    Example:
        >>> def mean(pictures):
        ...     return pictures.mean(axis=(1, 2))
        >>> extractor = Extractor("mean-colour", 3, "fd_mean", "none", "", mean)
        >>> extractor(np.ones((2, 4, 4, 3), dtype=np.uint8)).shape
        (2, 3)
    """

    name: str
    dimension: int
    distance: str
    resize: str
    sha256: str
    function: Callable[[Pictures], Rows]

    def __call__(self, pictures: Pictures) -> Rows:
        """Return features, [n, d], float32, of pictures, [n, h, w, 3], uint8."""
        inception.check_pictures(pictures)
        rows = np.asarray(self.function(pictures), dtype=np.float32)
        if rows.shape != (len(pictures), self.dimension) or not np.isfinite(rows).all():
            raise ValueError(
                f"{self.name} gave features of shape {rows.shape} with {int((~np.isfinite(rows)).sum())} not finite; "
                f"({len(pictures)}, {self.dimension}) finite ones are needed: check its weights."
            )
        return rows


def demo_extractor() -> Extractor:
    """Return the features of the demo model's attribute classifier: 128, averaged over places before its last layer.

    It was trained on rendered scenes alone and distinguishes pictures of the demo model only. A distance over
    it is reported as `fd_demo`, never as FID.

    Returns:
        The extractor, for square pictures whose side is a multiple of 64 pixels (averaged down to 64).

    Raises:
        ValueError: When called, if the pictures have another shape.

    Example:
        >>> extractor = demo_extractor()
        >>> extractor.distance, extractor(np.zeros((2, 64, 64, 3), dtype=np.uint8)).shape
        ('fd_demo', (2, 128))
    """
    from agentsd.demo import MODEL_PATH
    from agentsd.demo.attributes import FOLDER, load_classifier, picture_features

    classifier = load_classifier()
    return Extractor(
        name="agentsd-demo",
        dimension=classifier.head.in_channels,
        distance="fd_demo",
        resize="area-64",
        sha256=inception_weights.file_sha256(MODEL_PATH / FOLDER / "model.safetensors"),
        function=lambda pictures: picture_features(classifier, pictures),
    )


def inception_extractor(
    weights: Path | None = None, resize: str = "clean", *, device: torch.device | str = "cpu"
) -> Extractor:
    """Return the 2048 pooled features of the FID network, on the project's own graph.

    Args:
        weights: The `.pth` that `inception_weights.load_inception` accepts. With `None`, the one in torch's cache;
            where it is missing but torch-fidelity is installed, torchmetrics is asked to download it there.
        resize: `clean` or `legacy`, see `inception.resize`.
        device: Where the network runs.

    Returns:
        The extractor, for pictures of any size.

    Raises:
        ValueError: If `resize` is unknown, or the weights are absent or wrong; the message says where to get them.

    Example:
        >>> inception_extractor(resize="nearest")
        Traceback (most recent call last):
        ...
        ValueError: resize='nearest' is unknown; choose one of clean, legacy.
    """
    if resize not in inception.RESIZES:
        raise ValueError(f"resize={resize!r} is unknown; choose one of {', '.join(inception.RESIZES)}.")
    path = _weights_of_torchmetrics() if weights is None else Path(weights)
    network = inception_weights.load_inception(path).to(device)

    @torch.inference_mode()
    def extract(pictures: Pictures) -> Rows:
        batches = (pictures[start : start + _BATCH] for start in range(0, len(pictures), _BATCH))
        rows = [network(inception.resize(batch, resize).to(device)).cpu().numpy() for batch in batches]
        return np.concatenate(rows)

    return Extractor(
        name=f"inception-{inception.DIMENSION}",
        dimension=inception.DIMENSION,
        distance="fid",
        resize=resize,
        sha256=inception_weights.file_sha256(path),
        function=extract,
    )


def _weights_of_torchmetrics() -> Path:
    try:
        return inception_weights.find_weights()
    except ValueError:
        if find_spec("torch_fidelity") is None:
            raise
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        NoTrainInceptionV3(name="inception-v3-compat", features_list=[str(inception.DIMENSION)])
    except (OSError, ImportError) as error:
        raise ValueError(
            f"inception weights=None: torchmetrics could not download them ({error}); "
            f"fetch {inception_weights.WEIGHTS_URL} and give its path as --inception-weights."
        ) from error
    return inception_weights.find_weights()
