"""What each arm costs, timed apart from the pictures: end to end, UNet alone, patching, memory."""

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from agentsd.bench.intervals import spread_of
from agentsd.bench.ratios import speedup
from agentsd.evaluation.arms import EvaluationArm
from agentsd.system.timing import environment, interleave, peak_memory, peak_reserved
from agentsd.unet.traits import is_compiled

logger = logging.getLogger(__name__)

LAYOUT = 2  # of what `time_arms` returns
_WARMUP = 2
_PATCHINGS = 3

# Draws one batch of pictures for prompts at the places given: (arm, places).
DrawArm = Callable[[EvaluationArm, Sequence[int]], object]


@dataclass(frozen=True)
class TimingPlan:
    """How long to time: `prompts` batches of `batch` pictures, each generated twice by every arm in the order ABBA."""

    prompts: int = 8
    batch: int = 1
    warmup: int = _WARMUP


def time_arms(pipe: Any, arms: Sequence[EvaluationArm], draw: DrawArm, plan: TimingPlan) -> dict[str, Any]:
    """Time every arm against the first, interleaved; entering and leaving an arm is not part of its time.

    Every batch is generated A B C, C B A: slow drift cancels within it; the ratio of a batch is the geometric
    mean of its two, the speed-up the median over the batches. The UNet is timed in a pass of its own, because the
    synchronisation around its calls would slow a GPU.

    Args:
        pipe: The pipeline.
        arms: The arms, stock first.
        draw: Draws pictures with the pipeline as it is.
        plan: How long to time.

    Returns:
        Plain data: environment (on CUDA with the enabled backends of fused attention), and for each arm seconds,
        speed-up with 95% interval (of fewer than 6 batches their range), attention processors, and peak memory in
        bytes; for stock of equal time also its time over that of the arms it stands for.

    Raises:
        ValueError: If the plan has no prompt.
    """
    if plan.prompts < 1 or plan.batch < 1:
        raise ValueError(f"timing_prompts={plan.prompts} and batch={plan.batch} must be at least 1.")
    device = torch.device(pipe.device)
    by_name = {arm.name: arm for arm in arms}
    entries = {name: partial(arm.enter, pipe) for name, arm in by_name.items()}
    whole = _abba(lambda name, places: draw(by_name[name], places), entries, plan, device)

    parts: dict[str, list[float]] = {name: [] for name in by_name}

    @contextmanager
    def clocked(name: str) -> Iterator[None]:
        with entries[name](), unet_clock(pipe) as clock:
            yield
        parts[name].append(clock.seconds())

    short = TimingPlan(prompts=max(1, math.ceil(plan.prompts / 2)), batch=plan.batch, warmup=1)
    _abba(
        lambda name, places: draw(by_name[name], places),
        {name: partial(clocked, name) for name in by_name},
        short,
        device,
    )
    unet = {name: times[short.warmup :] for name, times in parts.items()}
    first = arms[0].name
    places = range(plan.batch)
    rows: dict[str, Any] = {}
    for name, arm in by_name.items():
        with entries[name]():
            peak = peak_memory(partial(draw, arm, places), device=device)
            attention, compiled = _attention(pipe.unet), is_compiled(pipe.unet)
        rows[name] = {
            "steps": arm.steps,
            "seconds": whole[name],
            "seconds_median": statistics.median(whole[name]) / plan.batch,
            "speedup": _ratio(_per_batch(whole[first]), _per_batch(whole[name])),
            "unet_seconds": unet[name],
            "unet_speedup": _ratio(_per_batch(unet[first]), _per_batch(unet[name])),
            "peak_bytes": peak,
            "peak_reserved_bytes": peak_reserved(device),
            "patching_seconds": statistics.median(_patching(entries[name]) for _ in range(_PATCHINGS)),
            "attention": attention,
            "compiled": compiled,
        }
        if arm.equals:
            rows[name]["time_ratio"] = {
                other: _ratio(_per_batch(whole[name]), _per_batch(whole[other])) for other in arm.equals
            }
    return {
        "order": "ABBA",
        "prompts": plan.prompts,
        "batch": plan.batch,
        "warmup": plan.warmup,
        "environment": environment(device) | {"dtype": str(pipe.unet.dtype).removeprefix("torch.")} | _sdpa(device),
        "arms": rows,
    }


def equal_time_steps(pipe: Any, arms: Sequence[EvaluationArm], draw: DrawArm, batch: int = 1) -> dict[str, int]:
    """Return for each arm how many steps stock makes in its time, from a warm-up and two ABBA batches.

    Stock is timed at its own steps and at a third of them. The line through both, `a + b n`, separates the cost of
    steps from the cost of a call without any (text encoder, VAE), which fewer steps do not save.

    Args:
        pipe: The pipeline.
        arms: The arms, stock first.
        draw: Draws pictures with the pipeline as it is.
        batch: Pictures generated at a time.

    Returns:
        Steps by name of the arms but for stock, from 1 to stock's own.
    """
    stock = arms[0]
    fewer = replace(stock, name=f"{stock.name}, fewer", steps=max(1, round(stock.steps / 3)))
    by_name = {arm.name: arm for arm in [*arms, fewer]}
    entries = {name: partial(arm.enter, pipe) for name, arm in by_name.items()}
    plan = TimingPlan(prompts=2, warmup=1, batch=batch)
    taken = _abba(lambda name, places: draw(by_name[name], places), entries, plan, torch.device(pipe.device))
    seconds = {name: statistics.median(times) for name, times in taken.items()}
    two = (stock.steps, seconds[stock.name]), (fewer.steps, seconds[fewer.name])
    return {arm.name: steps_of_time(*two, seconds[arm.name]) for arm in arms[1:]}


def steps_of_time(whole: tuple[int, float], fewer: tuple[int, float], seconds: float) -> int:
    """Return the steps that take a time, by the line through two measured times.

    Args:
        whole: Stock's steps, and the seconds they take.
        fewer: Fewer steps, and their seconds.
        seconds: The time.

    Returns:
        Steps, from 1 to stock's.

    Example:
        >>> steps_of_time((50, 11.0), (20, 5.0), seconds=6.0)  # a second, and a fifth of one for every step
        25
    """
    if whole[0] == fewer[0]:
        return whole[0]
    step = (whole[1] - fewer[1]) / (whole[0] - fewer[0])
    if step <= 0:
        logger.warning(
            "%d steps took %.3f s and %d took %.3f s: the clock is too noisy to measure a step; steps of equal "
            "time are taken in proportion to the time",
            *whole, *fewer,
        )  # fmt: skip
        step = whole[1] / whole[0]
    return max(1, min(whole[0], round(whole[0] - (whole[1] - seconds) / step)))


class UnetClock:
    """Adds up the time between the beginnings and the ends of a module's calls."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[Any] = []

    def mark(self, *args: object) -> None:
        """Note a beginning or an end; both in turn."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> float:
        """Return the time between beginnings and ends so far."""
        pairs = list(zip(self._marks[::2], self._marks[1::2], strict=True))
        if self._cuda:
            torch.cuda.synchronize()
            return sum(float(start.elapsed_time(end)) for start, end in pairs) / 1000
        return float(sum(end - start for start, end in pairs))


@contextmanager
def unet_clock(pipe: Any) -> Iterator[UnetClock]:
    """Time the calls of a pipeline's UNet, hooks of others included, while the context lasts.

    Example:
        >>> with unet_clock(pipe) as clock:
        ...     images = pipe("a red ring", num_inference_steps=2, output_type="latent")
        >>> clock.seconds() > 0
        True
    """
    clock = UnetClock(torch.device(pipe.device))
    handles = [
        pipe.unet.register_forward_pre_hook(clock.mark, prepend=True),
        pipe.unet.register_forward_hook(clock.mark),
    ]
    try:
        yield clock
    finally:
        for handle in handles:
            handle.remove()


def _abba(
    draw: Callable[[str, Sequence[int]], object],
    entries: Mapping[str, Callable[[], AbstractContextManager[Any]]],
    plan: TimingPlan,
    device: torch.device,
) -> dict[str, list[float]]:
    runs = dict.fromkeys(entries, -plan.warmup)

    def run(name: str) -> None:
        number = max(0, runs[name] // 2)  # warm-up draws the first batch
        runs[name] += 1
        draw(name, range(number * plan.batch, (number + 1) * plan.batch))

    return interleave(run, entries, rounds=2 * plan.prompts, warmup=plan.warmup, device=device)


def _per_batch(seconds: Sequence[float]) -> list[float]:
    return [math.sqrt(one * other) for one, other in zip(seconds[::2], seconds[1::2], strict=True)]


def _ratio(baseline: Sequence[float], arm: Sequence[float]) -> dict[str, Any]:
    gain = speedup(baseline, arm)
    logs = [math.log(one / other) for one, other in zip(baseline, arm, strict=True)]
    quarters = statistics.quantiles(logs, n=4, method="inclusive") if len(logs) > 1 else [logs[0]] * 3
    return {
        "median": gain.median,
        "low": gain.low,  # of fewer than 6 the bootstrap's ends are the least and the greatest themselves
        "high": gain.high,
        "n": gain.pairs,
        "method": f"median of paired ratios, {spread_of(gain.pairs)}",
        "log_iqr": quarters[2] - quarters[0],
    }


def _sdpa(device: torch.device) -> dict[str, list[str]]:
    """Return which backends of fused attention torch may choose from on CUDA; elsewhere there is no choice."""
    if device.type != "cuda":
        return {}
    names = ("flash", "mem_efficient", "math", "cudnn")
    asked = {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled", None) for name in names}  # cudnn: torch 2.5
    return {"sdpa": [name for name, enabled in asked.items() if enabled is not None and enabled()]}


def _attention(unet: Any) -> list[str]:
    """Names of the classes that compute attention; empty where the UNet does not state them."""
    return sorted({type(processor).__name__ for processor in getattr(unet, "attn_processors", {}).values()})


def _patching(entry: Callable[[], AbstractContextManager[Any]]) -> float:
    start = time.perf_counter()
    with entry():
        pass
    return time.perf_counter() - start
