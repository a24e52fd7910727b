"""What the generated pictures are compared with: rendered scenes, a folder of photographs, or statistics."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from agentsd.evaluation.captions import Prompt
from agentsd.evaluation.store import read_arrays
from agentsd.generate import DEMO

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

Pictures = npt.NDArray[np.uint8]


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


def make_reference(
    source: str, prompts: Sequence[Prompt], size: tuple[int, int], *, crop: str = "center", seed: int = 0
) -> Reference:
    """Return the reference that `source` names.

    Args:
        source: `"demo"`, a folder of pictures, or a .npz file with `mu` and `sigma`.
        prompts: The prompts of the run.
        size: Width and height of the generated pictures, in pixels.
        crop: How pictures of another shape are fitted, see `fitted`.
        seed: Seed of the demo prompts.

    Returns:
        The reference.

    Raises:
        ValueError: If the source cannot be read, or does not belong to the prompts.

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
    if path.is_dir():
        return _folder(path, prompts, size, crop)
    raise ValueError(f"reference={source!r} must be 'demo', a folder of pictures, or a .npz file with mu and sigma.")


def fitted(path: Path, size: tuple[int, int], crop: str) -> Pictures:
    """Return a picture in a given size: cut to its shape around the middle (`"center"`) or distorted (`"stretch"`).

    Raises:
        ValueError: If the file is no picture.
    """
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"reference={str(path)!r} is no picture that can be read: {error}.") from error
    width, height = picture.size
    box = (0.0, 0.0, float(width), float(height))
    if crop == "center":
        scale = min(width / size[0], height / size[1])
        left, top = (width - scale * size[0]) / 2, (height - scale * size[1]) / 2
        box = (left, top, left + scale * size[0], top + scale * size[1])
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC, box=box))


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
    arrays = read_arrays(path)
    if arrays is None or not {"mu", "sigma"} <= arrays.keys():
        raise ValueError(
            f"reference={str(path)!r} must be a .npz file with the arrays mu and sigma, as pytorch-fid writes."
        )
    mean, covariance = (np.asarray(arrays[name], dtype=np.float64) for name in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"reference={str(path)!r} holds mu {mean.shape} and sigma {covariance.shape}: must be (d,), (d, d)."
        )
    config = {"kind": "moments", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return Reference("moments", 0, False, config, moments=Moments(mean, covariance))


def _folder(path: Path, prompts: Sequence[Prompt], size: tuple[int, int], crop: str) -> Reference:
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
    if len(files) < 2:
        raise ValueError(
            f"reference={str(path)!r} holds {len(files)} pictures ({', '.join(_SUFFIXES)}); give two or more."
        )
    by_id = {_identity(file.stem): file for file in files}
    mine = [by_id.get(_identity(str(prompt.image_id))) for prompt in prompts]
    pairs = [file for file in mine if file is not None]
    paired = len(pairs) == len(prompts)
    chosen = pairs if paired else files
    hasher = hashlib.sha256()
    for file in chosen:
        hasher.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    config = {"kind": "folder", "number": len(chosen), "sha256": hasher.hexdigest(), "crop": crop, "size": list(size)}
    return Reference("folder", len(chosen), paired, config, _files=chosen, _size=size, _crop=crop)


def _identity(name: str) -> str:
    """COCO writes image 397133 as 000000397133 and COCO_val2014_000000397133."""
    tail = name.rpartition("_")[2]
    return tail.lstrip("0") or "0" if tail.isdigit() else name
