"""What a front keeps on disk: latents and times by arm and chunk of prompts."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from agentsd.bench.arm import RunArm
from agentsd.system.writing import write_whole

STOCK = "stock"
_LATENTS = "latents"


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
        text = json.dumps(setup, sort_keys=True)
        self.folder = folder / _digest(text)
        write_whole(self.folder / "setup.json", text.encode())

    def get(self, arm: str, chunk: Chunk) -> Sample | None:
        """Return what is kept; `None` if nothing is."""
        from safetensors import safe_open

        path = self._path(arm, chunk)
        if not path.exists():
            return None
        with safe_open(path, "pt") as file:
            facts = file.metadata()
            latents = file.get_tensor(_LATENTS)
        return Sample(latents, float(facts["seconds"]), float(facts["stock_seconds"]))

    def has(self, arm: str, chunk: Chunk, *, timed: bool = False) -> bool:
        """Return whether something is kept, and if asked, with a pair of times."""
        if not timed:
            return self._path(arm, chunk).exists()
        kept = self.get(arm, chunk)
        return kept is not None and not math.isnan(kept.stock_seconds)

    def put(self, arm: str, chunk: Chunk, sample: Sample) -> None:
        """Keep a sample."""
        from safetensors.torch import save

        facts = {"arm": arm, "seconds": repr(sample.seconds), "stock_seconds": repr(sample.stock_seconds)}
        path = self._path(arm, chunk)
        write_whole(path, save({_LATENTS: sample.latents.float().cpu().contiguous()}, facts))

    def _path(self, arm: str, chunk: Chunk) -> Path:
        text = json.dumps([chunk.start, *chunk.prompts])
        return self.folder / _digest(arm) / f"{chunk.start:05d}-{_digest(text)}.safetensors"


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
