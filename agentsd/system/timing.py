"""Fair timing: what is compared takes turns in one process after a warm-up; peak memory; what a time depends on."""

import gc
import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

Entry = Callable[[], AbstractContextManager[Any]]


def interleave(
    run: Callable[[str], object],
    arms: Mapping[str, Entry],
    *,
    rounds: int,
    warmup: int = 1,
    device: torch.device | str = "cpu",
) -> dict[str, list[float]]:
    """Time `run(name)` under every arm, in the order A B C, C B A, A B C, ...: slow drift cancels (ABBA).

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
                synchronize(device)
                start = time.perf_counter()
                run(name)
                synchronize(device)
                elapsed = time.perf_counter() - start
            if number >= 0:
                seconds[name].append(elapsed)
    return seconds


def peak_memory(run: Callable[[], object], *, device: torch.device | str = "cpu") -> int | None:
    """Return the peak bytes in use while `run()` runs: allocated on a CUDA device, resident in Linux's main memory.

    Args:
        run: What is measured.
        device: Where it runs.

    Returns:
        Bytes, or `None` where the system does not say.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()  # else what earlier runs reserved counts in `peak_reserved`
        torch.cuda.reset_peak_memory_stats(device)
        run()
        synchronize(device)
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


def synchronize(device: torch.device | str) -> None:
    """Wait until a device has done all that it was given."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()
