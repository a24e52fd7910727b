"""Fair timing: arms interleaved in one process after warm-up, paired ratios with intervals, peak memory."""

import gc
import math
import os
import platform
import random
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_BOOTSTRAP_DRAWS = 2000
Entry = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Speedup:
    """How many times faster than the baseline: median of paired ratios, 95% bootstrap interval, number of pairs."""

    median: float
    low: float
    high: float
    pairs: int


def interleave(
    run: Callable[[str], object],
    arms: Mapping[str, Entry],
    *,
    rounds: int,
    warmup: int = 1,
    device: torch.device | str = "cpu",
) -> dict[str, list[float]]:
    """Time `run(name)` under every arm, in order A B C, C B A, A B C, ... so that slow drift cancels (ABBA).

    Args:
        run: What is timed, given the name of the arm.
        arms: Name to a function that returns a context manager; entering and leaving it is not timed.
        rounds: Timed rounds; each times every arm once.
        warmup: Untimed rounds before.
        device: Device to synchronise with at both ends.

    Returns:
        Seconds by arm, one a round; entry `i` of two arms belongs to the same round.

    Raises:
        ValueError: If there is no arm or no round.

    Example:
        >>> from contextlib import nullcontext
        >>> len(interleave(lambda name: None, {"a": nullcontext, "b": nullcontext}, rounds=4)["b"])
        4
    """
    if not arms or rounds < 1:
        raise ValueError(f"rounds={rounds} and arms={list(arms)}: give at least one of each.")
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(-warmup, rounds):
        for name in list(arms)[:: 1 if number % 2 == 0 else -1]:
            with arms[name]():
                _synchronize(device)
                start = time.perf_counter()
                run(name)
                _synchronize(device)
                elapsed = time.perf_counter() - start
            if number >= 0:
                seconds[name].append(elapsed)
    return seconds


def speedup(baseline: Sequence[float], arm: Sequence[float], *, seed: int = 0) -> Speedup:
    """Return the paired speed-up `median(baseline_i / arm_i)` with a bootstrap interval over the pairs.

    Args:
        baseline: Seconds of the baseline, by round.
        arm: Seconds of the arm in the same rounds.
        seed: Seed of the bootstrap.

    Returns:
        The speed-up; above 1 is faster than the baseline.

    Raises:
        ValueError: If the two differ in length or are empty.

    Example:
        >>> speedup([2.0, 2.2, 2.0], [1.0, 1.1, 1.0]).median
        2.0
    """
    if not baseline or len(baseline) != len(arm):
        raise ValueError(f"baseline has {len(baseline)} times and arm {len(arm)}: both need the same rounds.")
    logs = [math.log(a / b) for a, b in zip(baseline, arm, strict=True)]
    draw = random.Random(seed)
    medians = sorted(statistics.median(draw.choices(logs, k=len(logs))) for _ in range(_BOOTSTRAP_DRAWS))
    low, high = (medians[int(share * _BOOTSTRAP_DRAWS)] for share in (0.025, 0.975))
    return Speedup(math.exp(statistics.median(logs)), math.exp(low), math.exp(high), len(logs))


def power_law(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the exponent `p` of `cost ~ size^p`: the slope of the least-squares line of `log cost` over `log size`.

    Args:
        sizes: At least two different sizes, above 0.
        costs: What each costs, above 0.

    Returns:
        The exponent.

    Raises:
        ValueError: If the two differ in length, or fewer than two sizes are different.

    Example:
        >>> round(power_law([1, 2, 4], [3.0, 12.0, 48.0]), 6)
        2.0
    """
    if len(sizes) != len(costs) or len(set(sizes)) < 2:
        raise ValueError(f"sizes={list(sizes)} and costs={list(costs)}: give as many of each, at two sizes or more.")
    logs = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    return statistics.linear_regression(*logs).slope


def peak_memory(run: Callable[[], object], *, device: torch.device | str = "cpu") -> int | None:
    """Return the peak bytes in use while `run()` runs: allocated on a CUDA device, resident in Linux's main memory.

    Args:
        run: What is measured.
        device: Where it runs.

    Returns:
        Bytes, or `None` where the system cannot tell.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()  # else what earlier runs reserved counts in `peak_reserved`
        torch.cuda.reset_peak_memory_stats(device)
        run()
        _synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        return None
    clear.write_text("5")  # resets VmHWM, the high-water mark of resident memory
    run()
    marks = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(marks[0].split()[1]) * 1024 if marks else None


def peak_reserved(device: torch.device | str = "cpu") -> int | None:
    """Return the most bytes that the allocator held on a CUDA device since `peak_memory` began; elsewhere `None`."""
    return torch.cuda.max_memory_reserved(device) if torch.device(device).type == "cuda" else None


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return what a time means nothing without: hardware, threads and versions; on CUDA those below torch as well.

    Example:
        >>> environment()["torch"] == torch.__version__
        True
    """
    import diffusers

    kind = torch.device(device).type
    return {
        "device": torch.cuda.get_device_name(device) if kind == "cuda" else _processor(),
        "device_type": kind,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
        **(_cuda() if kind == "cuda" else {}),
    }


def _cuda() -> dict[str, Any]:
    """Return the versions that decide which kernels of a CUDA device run."""
    path = Path("/proc/driver/nvidia/version")
    driver = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", path.read_text()) if path.exists() else None
    return {
        "driver": driver[1] if driver else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    fields = dict(
        line.split(":", 1) for line in (path.read_text().splitlines() if path.exists() else []) if line.count(":") == 1
    )
    named = {key.strip(): value.strip() for key, value in fields.items()}
    name = named.get("model name") or platform.processor() or platform.machine()
    features = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in named.get("flags", "")]
    return f"{name} ({', '.join(features)})" if features else name


def _synchronize(device: torch.device | str) -> None:
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()
