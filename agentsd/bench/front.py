"""Speed against quality over many arms and prompts: it can be interrupted, resumed and extended."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from agentsd.bench.arm import RunArm
from agentsd.bench.baselines import stock
from agentsd.bench.samples import STOCK, Chunk, Sample, Store, identity
from agentsd.system.timing import interleave


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
