"""What the generated pictures are compared with: rendered scenes, a folder of photographs, or statistics."""

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from agentsd.bench.store import read_arrays
from agentsd.evaluation.captions import Prompt
from agentsd.pictures.settings import DEMO

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

logger = logging.getLogger(__name__)

_SYMMETRY = 1e-5  # of the largest entry: what float32 leaves
_NEGATIVE = 1e-4  # of the largest eigenvalue: what float32 leaves where there were fewer samples than features
_SHOWN = 5  # image ids in a message

Pictures = npt.NDArray[np.uint8]
_UNREADABLE = (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a reference's features, as pytorch-fid keeps them."""

    mean: npt.NDArray[np.float64]
    covariance: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """Reference pictures by index, or moments alone.

    Attributes:
        kind: `"demo"`, `"folder"` or `"moments"`.
        number: How many pictures; 0 for moments.
        paired: Whether picture `i` belongs to prompt `i`.
        config: What decides the reference, as plain data.
        moments: Mean and covariance, for the kind `"moments"`.
    """

    kind: str
    number: int
    paired: bool
    config: dict[str, Any]
    moments: Moments | None = None
    _scenes: list[Any] = field(default_factory=list, repr=False)
    _files: list[Path] = field(default_factory=list, repr=False)
    _size: tuple[int, int] = (0, 0)
    _crop: str = "center"

    def pictures(self, indices: Sequence[int]) -> Pictures:
        """Return reference pictures [N, H, W, 3], uint8, in the size of the generated ones.

        Raises:
            ValueError: If a file cannot be read.
        """
        if self.kind == DEMO:
            from agentsd.demo.render import render_batch

            return render_batch([self._scenes[index] for index in indices], self._size[0])
        return np.stack([fitted(self._files[index], self._size, self._crop) for index in indices])


def check_source(source: str) -> None:
    """Refuse a reference that cannot be one, without reading its pictures.

    Args:
        source: See `make_reference`.

    Raises:
        ValueError: If it is missing or holds fewer than two pictures.

    Example:
        >>> check_source("/no/such/folder")
        Traceback (most recent call last):
        ...
        ValueError: reference='/no/such/folder' does not exist; give 'demo', a folder of pictures, or a .npz file.
    """
    path = Path(source).expanduser()
    if source == DEMO or (path.suffix == ".npz" and path.is_file()):
        return
    if not path.exists():
        raise ValueError(f"reference={source!r} does not exist; give 'demo', a folder of pictures, or a .npz file.")
    if not path.is_dir():
        raise ValueError(
            f"reference={source!r} must be 'demo', a folder of pictures, or a .npz file with mu and sigma."
        )
    _picture_files(path)


def make_reference(
    source: str, prompts: Sequence[Prompt], size: tuple[int, int], *, crop: str = "center", seed: int = 0
) -> Reference:
    """Return the reference that `source` names.

    Args:
        source: `"demo"`, a folder of pictures (those in its sub-folders too), or a .npz file with `mu` and `sigma`.
        prompts: The prompts of the run.
        size: Width and height of the generated pictures, in pixels.
        crop: How pictures of another shape are fitted, see `fitted`.
        seed: Seed of the demo prompts.

    Returns:
        The reference.

    Raises:
        ValueError: If the source or one of its pictures cannot be read, two pictures could belong to one prompt, or the
            source does not belong to the prompts.

    Example:
        >>> from agentsd.evaluation.captions import demo_prompts
        >>> make_reference("demo", demo_prompts(2, 0), (32, 32)).pictures([1]).shape
        (1, 32, 32, 3)
    """
    if source == DEMO:
        return _demo(prompts, size, seed)
    path = Path(source).expanduser()
    if path.suffix == ".npz":
        return _moments(path)
    check_source(source)
    return _folder(path, prompts, size, crop)


def fitted(path: Path, size: tuple[int, int], crop: str) -> Pictures:
    """Return a picture in a given size: cut to its shape around the middle (`"center"`) or distorted (`"stretch"`).

    Raises:
        ValueError: If the file is no picture.
    """
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    width, height = picture.size
    box = (0.0, 0.0, float(width), float(height))
    if crop == "center":
        scale = min(width / size[0], height / size[1])
        left, top = (width - scale * size[0]) / 2, (height - scale * size[1]) / 2
        box = (left, top, left + scale * size[0], top + scale * size[1])
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC, box=box))


def _check_picture(path: Path) -> None:
    """Refuse a damaged picture now: when it is needed, hours of drawing are over."""
    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (1, 1))  # JPEG files are read to their end, but to an eighth of the pixels
            picture.load()
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"reference={str(path)!r} is no picture that can be read: {error}; replace or remove it.")


def _demo(prompts: Sequence[Prompt], size: tuple[int, int], seed: int) -> Reference:
    from agentsd.demo.captions import held_out_scenes

    if size[0] != size[1]:
        raise ValueError(f"reference='demo' renders squares; {size[0]}x{size[1]} is none, make height and width equal.")
    pairs = held_out_scenes(len(prompts), seed)
    if [text for text, _ in pairs] != [prompt.text for prompt in prompts]:
        raise ValueError(
            "reference='demo' belongs to captions='demo' alone; give a folder or .npz file for other captions."
        )
    config = {"kind": DEMO, "number": len(prompts), "seed": seed, "size": list(size)}
    return Reference(DEMO, len(prompts), True, config, _scenes=[scene for _, scene in pairs], _size=size)


def _moments(path: Path) -> Reference:
    arrays = read_arrays(path) or {}
    try:
        mean, covariance = (np.asarray(arrays[name], dtype=np.float64) for name in ("mu", "sigma"))
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"reference={str(path)!r} must be a .npz file with the arrays mu and sigma, as pytorch-fid writes."
        ) from error
    if mean.ndim != 1 or not mean.size or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"reference={str(path)!r} holds mu {mean.shape} and sigma {covariance.shape}: must be (d,), (d, d)."
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"reference={str(path)!r} holds values that are not finite; compute mu and sigma anew.")
    apart = float(np.abs(covariance - covariance.T).max())
    if apart > _SYMMETRY * float(np.abs(covariance).max()):
        raise ValueError(
            f"reference={str(path)!r} holds a sigma that differs from its transpose by up to {apart:.3g}; it must "
            "be the covariance of mu's features, which is symmetric."
        )
    spread = np.linalg.eigvalsh(covariance)
    if spread[0] < -_NEGATIVE * abs(spread[-1]):
        raise ValueError(
            f"reference={str(path)!r} holds a sigma with an eigenvalue of {spread[0]:.3g}; a covariance has none below "
            "0: compute mu and sigma anew."
        )
    config = {"kind": "moments", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return Reference("moments", 0, False, config, moments=Moments(mean, covariance))


def _picture_files(path: Path) -> list[Path]:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
    if len(files) < 2:
        raise ValueError(
            f"reference={str(path)!r} holds {len(files)} pictures ({', '.join(_SUFFIXES)}), sub-folders included; "
            "give two or more."
        )
    return files


def _folder(path: Path, prompts: Sequence[Prompt], size: tuple[int, int], crop: str) -> Reference:
    files = _picture_files(path)
    by_id: dict[str, list[Path]] = {}
    for file in files:
        by_id.setdefault(_identity(file.stem), []).append(file)
    mine = {prompt.image_id: by_id.get(_identity(str(prompt.image_id)), []) for prompt in prompts}
    lacking = [str(image_id) for image_id, found in mine.items() if not found]
    if lacking:
        logger.warning(
            "reference not paired: %d of %d prompts have no picture named by their image id in %s (%s%s)",
            len(lacking), len(prompts), path, ", ".join(lacking[:_SHOWN]), ", ..." * (len(lacking) > _SHOWN),
        )  # fmt: skip
    else:
        for image_id, found in mine.items():
            if len(found) > 1:
                names = " and ".join(file.relative_to(path).as_posix() for file in found[:2])
                raise ValueError(
                    f"reference={str(path)!r}: {names} could both be the picture of image_id={image_id!r}; "
                    "keep one of them."
                )
    chosen = files if lacking else [found[0] for found in mine.values()]
    hasher = hashlib.sha256()
    for file in chosen:
        name = file.relative_to(path).as_posix()
        _check_picture(file)
        hasher.update(os.fsencode(name) + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    config = {"kind": "folder", "number": len(chosen), "sha256": hasher.hexdigest(), "crop": crop, "size": list(size)}
    return Reference("folder", len(chosen), not lacking, config, _files=chosen, _size=size, _crop=crop)


def _identity(name: str) -> str:
    """COCO writes image 397133 as 000000397133 and COCO_val2014_000000397133."""
    tail = name.rpartition("_")[2]
    return tail.lstrip("0") or "0" if tail.isdigit() else name
