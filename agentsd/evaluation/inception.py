"""The FID network: Inception of 2015-12-05 with the weights that pytorch-fid and torch-fidelity share.

It is not torchvision's Inception v3: average pooling leaves the padding out, the last block pools by maximum, and
pixels enter as `(x - 128) / 128`. Distances over other networks, weights or resizing are not comparable.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from agentsd.evaluation.options import RESIZES as RESIZES

SIDE = 299  # pixels
DIMENSION = 2048


class _Unit(NamedTuple):
    """Convolution, batch norm, ReLU; padded to keep the size, except where the stride is 2."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


_Stage = tuple[_Unit, ...]  # units side by side, whose outputs are joined
_Branch = tuple[_Stage, ...]


class _Pool(NamedTuple):
    kind: Literal["average", "maximum", "halve"]
    width: int = 0


def _chain(name: str, *units: tuple[int, int, int] | tuple[int, int, int, int]) -> _Branch:
    """Units one after the other, called name_1, name_2, ...; each is (width, kernel height, kernel width, stride)."""
    numbered = len(units) > 1
    return tuple(
        (_Unit(f"{name}_{i}" if numbered else name, unit[0], unit[1:3], unit[3] if len(unit) == 4 else 1),)
        for i, unit in enumerate(units, 1)
    )


def _fork(name: str, number: int) -> _Stage:
    return (_Unit(f"{name}_{number}a", 384, (1, 3)), _Unit(f"{name}_{number}b", 384, (3, 1)))


def _block_35(pooled: int) -> tuple[tuple[_Branch, ...], _Pool]:
    branches = (
        _chain("branch1x1", (64, 1, 1)),
        _chain("branch5x5", (48, 1, 1), (64, 5, 5)),
        _chain("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3)),
    )
    return branches, _Pool("average", pooled)


def _block_17(inner: int) -> tuple[tuple[_Branch, ...], _Pool]:
    row, column = (inner, 1, 7), (inner, 7, 1)
    branches = (
        _chain("branch1x1", (192, 1, 1)),
        _chain("branch7x7", (inner, 1, 1), row, (192, 7, 1)),
        _chain("branch7x7dbl", (inner, 1, 1), column, row, column, (192, 1, 7)),
    )
    return branches, _Pool("average", 192)


def _block_8(pool: Literal["average", "maximum"]) -> tuple[tuple[_Branch, ...], _Pool]:
    branches: tuple[_Branch, ...] = (
        _chain("branch1x1", (320, 1, 1)),
        ((_Unit("branch3x3_1", 384),), _fork("branch3x3", 2)),
        (*_chain("branch3x3dbl", (448, 1, 1), (384, 3, 3)), _fork("branch3x3dbl", 3)),
    )
    return branches, _Pool(pool, 192)


_TO_17 = (
    _chain("branch3x3", (384, 3, 3, 2)),
    _chain("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3, 2)),
)
_TO_8 = (
    _chain("branch3x3", (192, 1, 1), (320, 3, 3, 2)),
    _chain("branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3, 2)),
)
_MIXED: tuple[tuple[str, tuple[_Branch, ...], _Pool], ...] = (
    ("Mixed_5b", *_block_35(32)),
    ("Mixed_5c", *_block_35(64)),
    ("Mixed_5d", *_block_35(64)),
    ("Mixed_6a", _TO_17, _Pool("halve")),
    ("Mixed_6b", *_block_17(128)),
    ("Mixed_6c", *_block_17(160)),
    ("Mixed_6d", *_block_17(160)),
    ("Mixed_6e", *_block_17(192)),
    ("Mixed_7a", _TO_8, _Pool("halve")),
    ("Mixed_7b", *_block_8("average")),
    ("Mixed_7c", *_block_8("maximum")),
)


class _Convolution(nn.Module):
    def __init__(self, inputs: int, width: int, kernel: tuple[int, int], stride: int = 1, padded: bool = True) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(inputs, width, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=1e-3)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(inputs)))


class _Mixed(nn.Module):
    """Branches side by side over one input, and a pooled one; outputs joined in that order."""

    def __init__(self, inputs: int, branches: Sequence[_Branch], pool: _Pool) -> None:
        super().__init__()
        self.branches, self.pool = branches, pool
        self.width = pool.width or inputs
        for branch in branches:
            width = inputs
            for stage in branch:
                for unit in stage:
                    self.add_module(unit.name, _Convolution(width, *unit[1:]))
                width = sum(unit.width for unit in stage)
            self.width += width
        if pool.width:
            self.branch_pool = _Convolution(inputs, pool.width, (1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([*self._convolved(inputs), self._pooled(inputs)], dim=1)

    def _convolved(self, inputs: Tensor) -> Iterator[Tensor]:
        for branch in self.branches:
            result = inputs
            for stage in branch:
                result = torch.cat([self.get_submodule(unit.name)(result) for unit in stage], dim=1)
            yield result

    def _pooled(self, inputs: Tensor) -> Tensor:
        if self.pool.kind == "halve":
            return F.max_pool2d(inputs, 3, stride=2)
        if self.pool.kind == "maximum":
            pooled = F.max_pool2d(inputs, 3, stride=1, padding=1)
        else:
            pooled = F.avg_pool2d(inputs, 3, stride=1, padding=1, count_include_pad=False)
        result: Tensor = self.branch_pool(pooled)
        return result


class FidInception(nn.Module):
    """The FID network up to its 2048 pooled features, in evaluation mode, with random weights until some are loaded.

    Names and shapes of its state are those of the `.pth` of pytorch-fid and torch-fidelity. The classifier `fc` is held
    because the file has it; features do not use it.

    Example:
        >>> sum(value.numel() for value in FidInception().parameters())
        23850960
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, (3, 3), stride=2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, (3, 3), padded=False)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = _Convolution(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = _Convolution(80, 192, (3, 3), padded=False)
        width = 192
        for name, branches, pool in _MIXED:
            block = _Mixed(width, branches, pool)
            self.add_module(name, block)
            width = block.width
        self.fc = nn.Linear(width, 1008)
        self.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return features, [n, 2048], of pictures, [n, 3, 299, 299], in 0 to 255."""
        result = (pictures - 128) / 128
        result = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(result)))
        result = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(result, 3, stride=2)))
        result = F.max_pool2d(result, 3, stride=2)
        for name, _, _ in _MIXED:
            result = self.get_submodule(name)(result)
        return result.mean(dim=(2, 3))


def resize(pictures: npt.NDArray[np.uint8], mode: str) -> Tensor:
    """Bring pictures to the network's 299 x 299 pixels.

    `clean` is Pillow's antialiased bicubic filter on each channel as floats, clipped to 0 to 255 (clean-fid, Parmar et
    al. 2022). `legacy` is TensorFlow 1's bilinear interpolation: pixel `i` reads at `i * size / 299`, without
    antialiasing (Heusel et al. 2017, torch-fidelity).

    Args:
        pictures: Pictures, [n, h, w, 3], uint8.
        mode: `clean` or `legacy`.

    Returns:
        Pictures, [n, 3, 299, 299], float32, in 0 to 255.

    Raises:
        ValueError: If `mode` is unknown or the pictures are not [n, h, w, 3] uint8.

    Example:
        >>> resize(np.full((1, 8, 8, 3), 7, dtype=np.uint8), "legacy").unique()
        tensor([7.])
    """
    check_pictures(pictures)
    if mode not in RESIZES:
        raise ValueError(f"resize={mode!r} is unknown; choose one of {', '.join(RESIZES)}.")
    if mode == "legacy":
        return _bilinear(_bilinear(torch.from_numpy(pictures).permute(0, 3, 1, 2).float(), dim=3), dim=2)
    resized = np.empty((len(pictures), 3, SIDE, SIDE), dtype=np.float32)
    for i, picture in enumerate(pictures.astype(np.float32)):
        for channel in range(3):
            plane = Image.fromarray(picture[:, :, channel])
            resized[i, channel] = np.asarray(plane.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return torch.from_numpy(resized.clip(0, 255))


def _bilinear(pictures: Tensor, dim: int) -> Tensor:
    size = pictures.shape[dim]
    # float32 throughout, as TensorFlow computes it: in float64 some pixels would read from the next neighbour.
    places = torch.arange(SIDE, dtype=torch.float32) * torch.tensor(size / SIDE, dtype=torch.float32)
    low = places.long().clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    share = (places - low).view([-1 if axis == dim else 1 for axis in range(4)])
    below, above = pictures.index_select(dim, low), pictures.index_select(dim, high)
    return below + (above - below) * share


def check_pictures(pictures: npt.NDArray[Any]) -> None:
    """Refuse what is not pictures, [n, h, w, 3], uint8.

    Raises:
        ValueError: If shape or type differ.

    Example:
        >>> check_pictures(np.zeros((1, 8, 8, 3), dtype=np.uint8))
    """
    if pictures.ndim != 4 or pictures.shape[3] != 3 or 0 in pictures.shape or pictures.dtype != np.uint8:
        raise ValueError(
            f"pictures of shape {pictures.shape} and type {pictures.dtype}; they must be [n, h, w, 3] uint8, "
            "as decoded from the PNG files: convert them."
        )
