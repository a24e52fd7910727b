"""LPIPS on AlexNet (Zhang et al., CVPR 2018, https://arxiv.org/abs/1801.03924), version 0.1, without torchvision.

torchmetrics has the same measure and holds its calibrated weights, but builds AlexNet with torchvision. Here the five
layers are written out. Their weights are those of torchvision, which are fetched once and checked.
"""

import hashlib
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTS_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
WEIGHTS_SHA256 = "7be5be79"  # first digits, which torch puts into the name
CALIBRATED_SHA256 = "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"  # alex.pth of LPIPS 0.1

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# Number in torchvision's `features`, channels in and out, kernel, stride, padding, and whether pooling comes before.
_LAYERS = (
    (0, 3, 64, 11, 4, 2, False),
    (3, 64, 192, 5, 1, 2, True),
    (6, 192, 384, 3, 1, 1, True),
    (8, 384, 256, 3, 1, 1, False),
    (10, 256, 256, 3, 1, 1, False),
)
_SMALLEST = 31  # side of a picture: below, the second pooling has nothing left


class Lpips(nn.Module):
    """The network: five layers of AlexNet, and a weight for each channel of each.

    Example:
        >>> network = Lpips()
        >>> picture = torch.rand(2, 3, 64, 64)
        >>> network(picture, picture)
        tensor([0., 0.])
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(given, made, kernel, stride, padding) for _, given, made, kernel, stride, padding, _ in _LAYERS
        )
        self.weights = nn.ParameterList(torch.ones(made) for _, _, made, *_ in _LAYERS)
        self.requires_grad_(False).eval()

    def forward(self, pictures: Tensor, reference: Tensor) -> Tensor:
        """Return the distance of each picture, [B], of pictures [B, 3, H, W] in [0, 1]."""
        total = torch.zeros(len(pictures), device=pictures.device)
        for weight, one, other in zip(self.weights, self._features(pictures), self._features(reference), strict=True):
            difference = (_unit(one) - _unit(other)).square()
            total = total + (difference * weight[:, None, None]).sum(1).mean((1, 2))
        return total

    def _features(self, pictures: Tensor) -> list[Tensor]:
        shift, scale = (torch.tensor(values).to(pictures)[:, None, None] for values in (_SHIFT, _SCALE))
        found, hidden = [], (2 * pictures - 1 - shift) / scale
        for layer, (*_, pooled) in zip(self.layers, _LAYERS, strict=True):
            if pooled:
                hidden = F.max_pool2d(hidden, 3, 2)
            hidden = F.relu(layer(hidden))
            found.append(hidden)
        return found


def _unit(features: Tensor) -> Tensor:
    return features / (1e-8 + features.square().sum(1, keepdim=True)).sqrt()


def lpips(pictures: Tensor, reference: Tensor, *, weights: Path | None = None) -> Tensor:
    """Return the LPIPS distance of each picture: 0 for equal pictures, about 0.1 where a difference is seen.

    Args:
        pictures: Pictures, [B, 3, H, W] in [0, 1], at least 31 x 31.
        reference: Pictures to compare with, of the same shape.
        weights: torchvision's AlexNet; `None` looks in torch's cache.

    Raises:
        ValueError: If the weights are missing or not those of AlexNet, or the pictures do not fit.

    Example:
        >>> lpips(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64), weights=Path("absent.pth"))
        Traceback (most recent call last):
        ...
        ValueError: LPIPS weights absent.pth: no such file; fetch https://download.pytorch.org/models/...
    """
    if pictures.shape != reference.shape or pictures.ndim != 4 or pictures.shape[1] != 3:
        raise ValueError(
            f"pictures of shape {tuple(pictures.shape)} and {tuple(reference.shape)} must have one shape, [B, 3, H, W]."
        )
    if min(pictures.shape[-2:]) < _SMALLEST:
        raise ValueError(f"pictures must be at least {_SMALLEST}x{_SMALLEST} pixels for LPIPS; compare larger ones.")
    network = load_lpips(find_weights() if weights is None else weights)
    with torch.inference_mode():
        distances: Tensor = network(pictures.float().cpu(), reference.float().cpu())
    return distances


def find_weights() -> Path:
    """Return torchvision's AlexNet in torch's cache.

    Raises:
        ValueError: If it is not there; the message says where to get it.

    Example:
        >>> find_weights()  # doctest: +SKIP
        PosixPath('/home/me/.cache/torch/hub/checkpoints/alexnet-owt-7be5be79.pth')
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_URL.rpartition("/")[2]
    if not path.is_file():
        raise ValueError(f"LPIPS weights {path}: no such file; {_how_to_get()}")
    return path


@cache
def load_lpips(path: Path) -> Lpips:
    """Load the network from torchvision's AlexNet and from the weights of LPIPS 0.1 that torchmetrics holds.

    Args:
        path: The file alexnet-owt-7be5be79.pth.

    Raises:
        ValueError: If a file is missing, damaged, or of another network.

    Example:
        >>> load_lpips(find_weights())  # doctest: +SKIP
        Lpips(...)
    """
    if not path.is_file():
        raise ValueError(f"LPIPS weights {path}: no such file; {_how_to_get()}")
    features = _checked(path, WEIGHTS_SHA256)
    calibrated = _checked(_calibrated_file(), CALIBRATED_SHA256)
    network = Lpips()
    try:
        for number, (place, *_) in enumerate(_LAYERS):
            layer = {name: features[f"features.{place}.{name}"] for name in ("weight", "bias")}
            network.layers[number].load_state_dict(layer)
            network.weights[number].copy_(calibrated[f"lin{number}.model.1.weight"].flatten())
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"LPIPS weights {path}: not the layout of AlexNet ({error}); {_how_to_get()}") from error
    return network


def _calibrated_file() -> Path:
    import torchmetrics

    return Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / "alex.pth"


def _checked(path: Path, sha256: str) -> dict[str, Tensor]:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(sha256):
        raise ValueError(f"LPIPS weights {path}: SHA-256 is {found}, not {sha256}...; {_how_to_get()}")
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _how_to_get() -> str:
    return (
        f"fetch {WEIGHTS_URL} (its SHA-256 begins with {WEIGHTS_SHA256}) into the folder checkpoints of torch's cache, "
        "for example with torch.hub.load_state_dict_from_url."
    )
