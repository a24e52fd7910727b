"""Who calls the denoiser: the scheduler of a pipeline that `apply` does not know, and its `eta`.

A timestep is a view of its scheduler's timesteps, but the tensor does not name the scheduler. One of the running
functions iterates over these timesteps and holds it. These functions are searched once a run.
"""

import inspect
import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from agentsd.unet.steps import shares_memory

_DEEPEST = 60  # functions that are searched
_OURS = str(Path(__file__).parent.parent)
_TORCH = str(Path(torch.__file__).parent)


def calling_scheduler(timestep: Tensor) -> Any:
    """Return the scheduler that owns the memory of a timestep, found in the functions that are running.

    Example:
        >>> pipe.scheduler.set_timesteps(4)
        >>> calling_scheduler(pipe.scheduler.timesteps[0]) is pipe.scheduler
        True
    """
    for names in _frames():
        for value in names.values():
            for scheduler in _schedulers(value):
                if _steps_of(scheduler, timestep):
                    return scheduler
    return None


def calling_eta(timestep: Tensor, scheduler: Any) -> float:
    """Return the `eta` of the function that iterates over a scheduler's timesteps; 0 if it names none."""
    for names in _frames():
        if not any(one is scheduler for value in names.values() for one in _schedulers(value)):
            continue
        extra = names.get("extra_step_kwargs")
        eta = extra.get("eta") if isinstance(extra, dict) else None
        eta = names.get("eta", 0.0) if eta is None else eta
        if isinstance(eta, int | float) and eta:
            return float(eta)
    return 0.0


def calling_step(known: Iterable[Any]) -> tuple[Tensor, Any] | None:
    """Return the step that a running loop over a scheduler's timesteps is at, and the scheduler.

    Pipelines of transformers scale the timestep, so what the denoiser gets is no view of the scheduler's timesteps
    any more. The loop's own variable still is one. Finding it does not wait for the device.

    Args:
        known: Schedulers that are looked at before those that the running functions hold.

    Example:
        >>> pipe.scheduler.set_timesteps(4)
        >>> t = pipe.scheduler.timesteps[1]
        >>> calling_step([])[1] is pipe.scheduler
        True
    """
    known = list(known)
    for names in _frames():
        steps = [value for value in (names.get("t"), *names.values()) if isinstance(value, Tensor) and value.ndim == 0]
        if not steps:
            continue
        held = (one for value in names.values() for one in _schedulers(value))
        for scheduler in itertools.chain(known, held):
            for step in steps:
                if _steps_of(scheduler, step):
                    return step, scheduler
    return None


def calling_guidance(scheduler: Any) -> float | None:
    """Return the guidance scale of the function that iterates over a scheduler's timesteps; `None` if it names none.

    Some pipelines keep it in local variables alone. A scale that the denoiser takes as an argument guides nothing.

    Example:
        >>> do_true_cfg, true_cfg_scale = True, 4.0
        >>> calling_guidance(pipe.scheduler)
        4.0
    """
    for names in _frames():
        if not any(one is scheduler for value in names.values() for one in _schedulers(value)):
            continue
        for guides, scale in (("do_true_cfg", "true_cfg_scale"), ("do_classifier_free_guidance", "guidance_scale")):
            if isinstance(names.get(guides), bool) and isinstance(names.get(scale), int | float):
                return float(names[scale]) if names[guides] else 1.0
    return None


def steps_left_out(scheduler: Any) -> int:
    """Return how many of a scheduler's last steps the running loop leaves out, as SDXL's `denoising_end` does.

    Example:
        >>> pipe.scheduler.set_timesteps(10)
        >>> timesteps = pipe.scheduler.timesteps[:8]
        >>> steps_left_out(pipe.scheduler)
        2
    """
    whole = getattr(scheduler, "timesteps", None)
    for names in _frames():
        looped = names.get("timesteps")
        if not isinstance(whole, Tensor) or not isinstance(looped, Tensor) or looped.ndim != 1:
            continue
        # DiT's pipeline gives this name to one timestep, expanded to a batch.
        if looped.shape[0] > 1 and looped.stride(0) and shares_memory(looped, whole):
            end = whole.storage_offset() + whole.shape[0]
            return max(int(end - looped.storage_offset()) - looped.shape[0], 0)
    return 0


def is_ours_or_torch(frame: FrameType) -> bool:
    """Return whether a running function belongs to agentsd or torch.

    Example:
        >>> is_ours_or_torch(sys._getframe())
        False
    """
    return frame.f_code.co_filename.startswith((_OURS, _TORCH))


def _frames() -> Iterator[dict[str, Any]]:
    """Yield the local variables of the running functions, from the innermost outwards."""
    frame: FrameType | None = sys._getframe(2)
    for _ in range(_DEEPEST):
        if frame is None:
            return
        if not is_ours_or_torch(frame):
            yield _locals(frame)
        frame = frame.f_back


def _locals(frame: FrameType) -> dict[str, Any]:
    held = frame.f_locals
    names = dict(held)
    if isinstance(held, dict) and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        held.clear()  # before Python 3.13 the function would keep this copy, and all that it holds, until it returns
    return names


def _schedulers(value: Any) -> Iterator[Any]:
    """Yield the schedulers that a local variable holds: itself, or those of a pipeline or another object."""
    from diffusers import SchedulerMixin

    if isinstance(value, SchedulerMixin):
        yield value
    elif not isinstance(value, type) and type(value).__module__ != "builtins":
        # From the dictionary: asking foreign objects for attributes may run their code.
        held = getattr(value, "__dict__", None)
        if isinstance(held, dict):
            yield from (one for one in list(held.values()) if isinstance(one, SchedulerMixin))


def _steps_of(scheduler: Any, timestep: Tensor) -> bool:
    timesteps = getattr(scheduler, "timesteps", None)
    return isinstance(timesteps, Tensor) and shares_memory(timesteps, timestep)
