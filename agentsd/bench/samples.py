"""What a front keeps on disk: latents and times by arm and chunk of prompts."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agentsd.bench.arm import RunArm
from agentsd.bench.store import read_arrays, write_arrays, write_json

STOCK = "stock"
_LATENTS, _SECONDS = "latents", "seconds"


@dataclass(frozen=True)
class Sample:
    """What an arm made of a chunk of prompts.

    Args:
        latents: The final latents, [B, C, h, w], float32.
        seconds: What the call took.
        stock_seconds: What the stock call of the same visit took, the other half of the pair; NaN if untimed.
    """

    latents: Tensor
    seconds: float
    stock_seconds: float


@dataclass(frozen=True)
class Chunk:
    """Prompts of one call; `start` is the first one's place among all, from which the seeds follow."""

    start: int
    prompts: tuple[str, ...]


class Store:
    """Samples by arm and chunk in a folder, one file each, written as a whole.

    Everything that changes a result but the arm and the chunk belongs into `setup`: another set-up is another
    folder, so that nothing is mixed and nothing has to be deleted.

    Example:
        >>> import tempfile
        >>> store, chunk = Store(Path(tempfile.mkdtemp()), {"steps": 2}), Chunk(0, ("a red ring",))
        >>> store.put("stock", chunk, Sample(torch.zeros(1, 4, 2, 2), 2.0, 2.0))
        >>> store.get("stock", chunk).seconds
        2.0
    """

    def __init__(self, folder: Path, setup: Mapping[str, Any]) -> None:
        self.folder = folder / _digest(json.dumps(setup, sort_keys=True))
        write_json(self.folder / "setup.json", setup)

    def get(self, arm: str, chunk: Chunk) -> Sample | None:
        """Return what is kept; `None` if nothing is, or if it is damaged."""
        kept = read_arrays(self._path(arm, chunk))
        if kept is None or not {_LATENTS, _SECONDS} <= kept.keys():
            return None
        seconds, stock_seconds = kept[_SECONDS].tolist()
        return Sample(torch.from_numpy(kept[_LATENTS]), seconds, stock_seconds)

    def has(self, arm: str, chunk: Chunk, *, timed: bool = False) -> bool:
        """Return whether something is kept, and if asked, with a pair of times."""
        kept = self.get(arm, chunk)
        return kept is not None and not (timed and math.isnan(kept.stock_seconds))

    def put(self, arm: str, chunk: Chunk, sample: Sample) -> None:
        """Keep a sample."""
        latents = sample.latents.float().cpu().contiguous().numpy()
        seconds = np.array([sample.seconds, sample.stock_seconds], dtype=np.float64)
        write_arrays(self._path(arm, chunk), **{_LATENTS: latents, _SECONDS: seconds})

    def _path(self, arm: str, chunk: Chunk) -> Path:
        text = json.dumps([chunk.start, *chunk.prompts])
        return self.folder / _digest(arm) / f"{chunk.start:05d}-{_digest(text)}.npz"


def chunks(prompts: Sequence[str], size: int) -> list[Chunk]:
    """Return the prompts in calls of `size`.

    Example:
        >>> [chunk.start for chunk in chunks(["a", "b", "c"], 2)]
        [0, 2]
    """
    return [Chunk(start, tuple(prompts[start : start + size])) for start in range(0, len(prompts), size)]


def identity(name: str, arm: RunArm) -> str:
    """Return the name under which results of an arm are kept: it changes with the arm's settings."""
    return f"{name} | {arm.settings} | {arm.fewer_steps:g}"


def digest_of(folder: Path) -> str:
    """Return a digest of all files of a model folder: results of other weights are not mixed with it.

    Args:
        folder: The folder, without downloads in progress.

    Returns:
        16 hexadecimal digits.
    """
    state = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".safetensors", ".json"):
            state.update(f"{path.relative_to(folder)}\n".encode())
            state.update(hashlib.sha256(path.read_bytes()).digest())
    return state.hexdigest()[:16]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
