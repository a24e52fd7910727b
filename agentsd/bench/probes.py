"""What a clock does not show: time of the host, synchronisations, UNet calls that ran in full, kernels of a step."""

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from agentsd.bench.arm import Arm
from agentsd.bench.rows import Row
from agentsd.system.timing import synchronize

_SYNC = "called a synchronizing CUDA operation"


@dataclass
class UNetCalls:
    """What the calls of a UNet in one run did.

    Attributes:
        full: For each call, whether its deepest block ran.
        waits: For each call, how often the host waited for the device; empty off CUDA.
        host_seconds: For each call, how long the host was busy with it.
    """

    full: list[bool] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)
    host_seconds: list[float] = field(default_factory=list)


@contextmanager
def watched(unet: Any, *, forbid: frozenset[int] = frozenset()) -> Iterator[UNetCalls]:
    """Watch the calls of a UNet.

    Args:
        unet: The UNet, patched or not.
        forbid: Calls in which a synchronisation is an error, by their numbers.

    Yields:
        What the calls do, filled as they run.
    """
    calls, device = UNetCalls(), next(unet.parameters()).device
    on_cuda = _is_cuda(device)
    began = [0.0]
    caught: list[warnings.WarningMessage] = []

    def enter(*_: Any) -> None:
        calls.full.append(False)
        caught.clear()
        if on_cuda:
            torch.cuda.set_sync_debug_mode("error" if len(calls.full) - 1 in forbid else "warn")
        began[0] = time.perf_counter()

    def leave(*_: Any) -> None:
        calls.host_seconds.append(time.perf_counter() - began[0])
        if on_cuda:
            torch.cuda.set_sync_debug_mode("default")
            calls.waits.append(sum(_SYNC in str(warning.message) for warning in caught))

    def deep(*_: Any) -> None:
        if calls.full:
            calls.full[-1] = True

    handles = [
        unet.register_forward_pre_hook(enter, prepend=True),
        unet.register_forward_hook(leave),
        # A part of the deepest block: DeepCache leaves the block's own call in place.
        unet.mid_block.resnets[0].register_forward_pre_hook(deep),
    ]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield calls
    finally:
        if on_cuda:
            torch.cuda.set_sync_debug_mode("default")
        for handle in handles:
            handle.remove()


def probe(unet: Any, run: Callable[[], object]) -> Row:
    """Return what two more runs show, as fields of a row.

    In the second run a synchronisation in a skipped step is an error.

    Args:
        unet: The UNet that runs.
        run: One run, the same each time.

    Returns:
        `unet_calls`, `full_calls`, `host_seconds` of the median full call, and on CUDA `waits_full`, `waits_skipped`
        (most in one call) and `skipped_without_wait`.
    """
    device = next(unet.parameters()).device
    synchronize(device)
    with watched(unet) as calls:
        run()
    synchronize(device)
    pairs = list(zip(calls.host_seconds, calls.full, strict=True))
    row: Row = {"unet_calls": len(calls.full), "full_calls": sum(calls.full)}
    for name, wanted in (("host_seconds", True), ("host_seconds_skipped", False)):
        found = [seconds for seconds, full in pairs if full == wanted]
        row[name] = round(statistics.median(found), 6) if found else None
    if _is_cuda(device):
        waits = list(zip(calls.waits, calls.full, strict=True))
        row["waits_full"] = max((number for number, full in waits if full), default=0)
        row["waits_skipped"] = max((number for number, full in waits if not full), default=0)
        row["skipped_without_wait"] = _without_wait(unet, run, calls)
    return row


def probe_arm(arm: Arm, unet: Any, run: Callable[[], object]) -> Row:
    """Return what `probe` shows of an arm in force; nothing of a compiled one: a hook would compile it anew."""
    if "compile" in arm.settings:
        return {}
    with torch.inference_mode():
        return probe(unet, run)


def _is_cuda(device: torch.device) -> bool:
    return device.type == "cuda"


def _without_wait(unet: Any, run: Callable[[], object], calls: UNetCalls) -> bool | None:
    """Return whether the skipped steps run where a synchronisation is an error; `None` without skipped steps."""
    skipped = frozenset(number for number, full in enumerate(calls.full) if not full)
    if not skipped:
        return None
    try:
        with watched(unet, forbid=skipped):
            run()
    except RuntimeError as error:
        if _SYNC not in str(error):
            raise
        return False
    return True


def kernels(run: Callable[[], object], device: str, most: int = 20) -> list[dict[str, Any]]:
    """Return the kernels that take the longest in a run, by the profiler of torch.

    Args:
        run: What is profiled.
        device: Where it runs.
        most: How many kernels.

    Returns:
        Name, number of calls and milliseconds, the longest first.
    """
    from torch.profiler import ProfilerActivity, profile

    on_cuda = _is_cuda(torch.device(device))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities) as made:
        run()
        synchronize(device)
    found = []
    for event in made.key_averages():
        own = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        if own > 0:
            found.append({"name": event.key[:160], "calls": event.count, "ms": round(own / 1000, 4)})
    return sorted(found, key=lambda one: -float(one["ms"]))[:most]
