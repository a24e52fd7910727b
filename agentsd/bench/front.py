"""Speed against quality over many arms and prompts, kept on disk: it can be interrupted, resumed and extended."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agentsd.bench.arms import RunArm, stock
from agentsd.bench.metrics import psnr, relative_l2, ssim
from agentsd.bench.ratios import speedup
from agentsd.bench.rows import Row
from agentsd.system.timing import interleave
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


def drawer(pipe: Any, *, steps: int, guidance_scale: float, seed: int) -> Callable[..., Tensor]:
    """Return what draws a chunk: a function of an arm, a chunk and, for a warm-up, another number of `steps`.

    Every picture has a generator of its own, so that it does not depend on its batch.

    Args:
        pipe: The pipeline.
        steps: Steps of a stock run.
        guidance_scale: Guidance of the pipeline call.
        seed: Seed of all pictures.

    Returns:
        The function; it returns latents, [B, C, h, w], float32, in main memory.

    Example:
        >>> draw = drawer(pipe, steps=2, guidance_scale=4.0, seed=0)
        >>> draw(RunArm(stock), Chunk(0, ("a red ring",))).shape
        torch.Size([1, 4, 16, 16])
    """

    def draw(arm: RunArm, chunk: Chunk, steps: int = steps) -> Tensor:
        noise = [torch.Generator().manual_seed(seed * 100_003 + chunk.start + i) for i in range(len(chunk.prompts))]
        settings = {"guidance_scale": guidance_scale, "generator": noise, "output_type": "latent"}
        made: Tensor = arm.run(pipe, list(chunk.prompts), num_inference_steps=steps, **settings).images
        return made.float().cpu()  # which also waits for the device

    return draw


@dataclass(frozen=True)
class Visit:
    """Arms that are to run on a chunk, beside stock; `forwards` is the order."""

    chunk: Chunk
    arms: tuple[str, ...]
    forwards: bool


def visits(
    store: Store, arms: Mapping[str, RunArm], parts: Sequence[Chunk], group: int, *, timed: bool = True
) -> Iterator[Visit]:
    """Yield what is missing, group of arms by group, so that one arm after the other becomes complete.

    The order within a visit turns from chunk to chunk (ABBA), so that slow drift cancels in the medians of an arm.

    Args:
        store: Where results are kept.
        arms: The arms but stock.
        parts: The chunks.
        group: Arms that share the stock run of a visit: 1 gives the closest pairs, more the less work.
        timed: Whether what was kept without a pair of times is missing.

    Yields:
        Visits; a visit without arms makes the stock reference alone.
    """
    names = list(arms)
    for first in range(0, max(len(names), 1), group):
        for number, chunk in enumerate(parts):
            missing = tuple(
                name
                for name in names[first : first + group]
                if not store.has(identity(name, arms[name]), chunk, timed=timed)
            )
            if missing or not store.has(STOCK, chunk, timed=timed):
                yield Visit(chunk, missing, number % 2 == 0)


def measure(
    pipe: Any,
    draw: Callable[[RunArm, Chunk], Tensor],
    arms: Mapping[str, RunArm],
    store: Store,
    parts: Sequence[Chunk],
    *,
    group: int = 3,
    timed: bool = True,
    limit_seconds: float = math.inf,
    warm_up: Callable[[RunArm, Chunk], object] | None = None,
    tell: Callable[[str], object] = lambda text: None,
) -> bool:
    """Run what is missing in the store, beside stock.

    Args:
        pipe: What the arms are entered with.
        draw: Returns the latents of an arm for a chunk; called inside the arm.
        arms: The arms but stock.
        store: Where results go, visit by visit.
        parts: The chunks of prompts.
        group: See `visits`.
        timed: Run stock again in every visit, for the pairs of times; otherwise only where its latents are missing.
        limit_seconds: Start no further visit after so many seconds.
        warm_up: Called inside an arm before its first timed run in this process.
        tell: Takes lines of progress.

    Returns:
        Whether everything is there now. An arm that fails is told and left out; it does not stop the others.
    """
    started = time.monotonic()
    everything = {STOCK: RunArm(stock), **arms}
    todo = list(visits(store, arms, parts, group, timed=timed))
    warm: set[str] = set()
    failed: set[str] = set()

    def leave_out(name: str, error: Exception) -> None:
        if name == STOCK:
            raise error
        tell(f"{name}: left out, {type(error).__name__}: {error}")
        failed.add(name)

    for number, visit in enumerate(todo):
        if time.monotonic() - started >= limit_seconds:
            tell(f"stopped by the limit: {len(todo) - number} of {len(todo)} visits are left")
            return False
        lacks_stock = not store.has(STOCK, visit.chunk, timed=timed)
        first = timed or lacks_stock
        names = [name for name in ([STOCK] if first else []) + list(visit.arms) if name not in failed]
        for name in [name for name in names if name not in warm]:
            try:
                with everything[name].enter(pipe):
                    if warm_up is not None:
                        warm_up(everything[name], visit.chunk)
            except Exception as error:
                leave_out(name, error)
                names.remove(name)
            warm.add(name)
        if not names or (names == [STOCK] and not lacks_stock):
            continue
        drawn: dict[str, Tensor] = {}

        def run(name: str, chunk: Chunk = visit.chunk, drawn: dict[str, Tensor] = drawn) -> None:
            try:
                drawn[name] = draw(everything[name], chunk)
            except Exception as error:
                leave_out(name, error)

        entries = {name: partial(everything[name].enter, pipe) for name in names[:: 1 if visit.forwards else -1]}
        seconds = {name: times[0] for name, times in interleave(run, entries, rounds=1, warmup=0).items()}
        pair = seconds.get(STOCK, math.nan) if timed else math.nan
        if lacks_stock:
            store.put(STOCK, visit.chunk, Sample(drawn[STOCK], seconds[STOCK], pair))
        for name in drawn:
            if name != STOCK:
                store.put(identity(name, arms[name]), visit.chunk, Sample(drawn[name], seconds[name], pair))
        tell(f"visit {number + 1} of {len(todo)}: prompts from {visit.chunk.start}, {', '.join(drawn)}")
    return not failed


def collect(store: Store, arms: Mapping[str, RunArm], parts: Sequence[Chunk]) -> dict[str, list[Sample]]:
    """Return the samples of every arm that is complete, stock first (empty if stock is not complete)."""
    kept = {name: [store.get(identity(name, arm), chunk) for chunk in parts] for name, arm in arms.items()}
    kept = {STOCK: [store.get(STOCK, chunk) for chunk in parts], **kept}
    complete = {
        name: [sample for sample in samples if sample is not None]
        for name, samples in kept.items()
        if all(sample is not None for sample in samples)
    }
    return complete if STOCK in complete else {}


def pairs(samples: Sequence[Sample]) -> Row:
    """Return the paired speed-up of an arm as fields of a row, with the times of every chunk that has a pair.

    Example:
        >>> pairs([Sample(torch.zeros(1), 1.0, 2.0), Sample(torch.zeros(1), 2.0, 4.0)])["speedup"]
        2.0
    """
    timed = [sample for sample in samples if not math.isnan(sample.stock_seconds)]
    baseline, own = [sample.stock_seconds for sample in timed], [sample.seconds for sample in timed]
    gain = speedup(baseline, own)
    return {
        "speedup": round(gain.median, 4),
        "speedup_95": [round(gain.low, 4), round(gain.high, 4)],
        "rounds": gain.pairs,
        "seconds": [round(second, 4) for second in own],
        "stock_seconds": [round(second, 4) for second in baseline],
    }


@torch.inference_mode()
def decode(pipe: Any, latents: Tensor) -> Tensor:
    """Return the pictures of latents, [B, 3, H, W] in [0, 1], eight at a time.

    Args:
        pipe: A pipeline with a VAE.
        latents: Latents, [B, C, h, w].
    """
    vae, parts = pipe.vae, []
    for part in latents.split(8):
        scaled = part.to(vae.device, vae.dtype) / vae.config.scaling_factor
        parts.append((vae.decode(scaled).sample.float().cpu() / 2 + 0.5).clamp(0, 1))
    return torch.cat(parts)


def likeness(pictures: Tensor, reference: Tensor, latents: Tensor, reference_latents: Tensor) -> Row:
    """Return how near pictures and latents are to the stock ones of the same seeds, as fields of a row.

    Args:
        pictures: Pictures, [B, 3, H, W] in [0, 1].
        reference: The stock pictures.
        latents: Their latents.
        reference_latents: The stock latents.

    Returns:
        Medians, and the 5% quantile of PSNR; `None` stands for the infinite PSNR of equal pictures.
    """
    decibels, similarity = psnr(pictures, reference), ssim(pictures, reference)
    return {
        "psnr_db_median": _finite(decibels.median().item()),
        "psnr_db_p5": _finite(decibels.sort().values[int(0.05 * len(decibels))].item()),
        "ssim_median": round(similarity.median().item(), 4),
        "latent_l2_median": round(relative_l2(latents, reference_latents).median().item(), 4),
        "psnr_db": [_finite(value) for value in decibels.tolist()],
        "ssim": [round(value, 4) for value in similarity.tolist()],
    }


def _finite(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None


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
