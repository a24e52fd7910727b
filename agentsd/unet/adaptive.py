"""Skipping under a tolerance: how a controller starts for a run, what it does at a call, how its errors are guided."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor

from agentsd.schedule import Skipping
from agentsd.unet.controller import FEWEST_CALLS, MOST_SKIPPED, Controller
from agentsd.unet.guidance import is_twice
from agentsd.unet.noise import draws_noise
from agentsd.unet.noise_levels import noise_levels
from agentsd.unet.runs import Run
from agentsd.unet.steps import Position


def start(pipes: "list[Any]", position: Position, skipping: Skipping) -> Controller | str:
    """Return the controller of a run that starts, or why its steps are not skipped.

    Args:
        pipes: Pipelines that may be making the call.
        position: Where the run starts.
        skipping: Settings with a tolerance.

    Example:
        >>> start([], Position(0, 20), Skipping(tolerance=0.03))
        'no pipeline is known whose scheduler says how noisy each step is: call agentsd.apply on the pipeline'
    """
    schedulers = {id(pipe.scheduler): pipe.scheduler for pipe in pipes if getattr(pipe, "scheduler", None) is not None}
    if not schedulers:
        return "no pipeline is known whose scheduler says how noisy each step is: call agentsd.apply on the pipeline"
    if len(schedulers) > 1:
        return "several pipelines on this UNet have schedulers of their own, and the call comes from none of them"
    scheduler = next(iter(schedulers.values()))
    if position.total - position.index < FEWEST_CALLS:
        return f"the run has {position.total - position.index} steps, and agentsd skips none below {FEWEST_CALLS}"
    levels = noise_levels(scheduler)
    if isinstance(levels, str):
        return levels
    return Controller(
        levels,
        tolerance=skipping.tolerance or 0.0,
        max_skipped=MOST_SKIPPED if skipping.max_skipped is None else skipping.max_skipped,
        noisy=draws_noise(scheduler),
    )


def adapt(
    run: Run, pipes: "list[Any]", position: Position, sample: Tensor, skipping: Skipping, *, guided: bool
) -> tuple[Tensor | None, Callable[[Tensor], None] | None, str | None]:
    """Return what a call does: a forecast that replaces it, else what takes in its prediction, and why it cannot skip.

    Args:
        run: The run of the call, after `run.enter`.
        pipes: Pipelines that may be making the call.
        position: Where the call stands in its run.
        sample: What enters the UNet, [B, C, h, w].
        skipping: Settings with a tolerance.
        guided: Whether the call holds both halves of guidance, where there are any.
    """
    controller = run.controllers.get(run.call)
    if controller is None or (isinstance(controller, Controller) and not controller.fits(sample)):
        controller = start(pipes, position, skipping)
        run.controllers[run.call] = controller
    if isinstance(controller, str):
        return None, None, controller
    index = controller.calls - position.total + position.index
    if not controller.needs_full(index):
        return controller.forecast(index, sample), None, None
    guide = guidance_of(pipes, sample, run.twice) if guided else None
    return None, partial(controller.observe, index, sample, guide=guide), None


def guidance_of(pipes: Iterable[Any], sample: Tensor, twice: dict[int, bool]) -> Callable[[Tensor], Tensor] | None:
    """Return how a pipeline's guidance combines the samples of a call, `None` without guidance.

    With `u` and `c` the unconditional and conditional halves and the guidance scale `g`: `u + g (c - u)`. Where a call
    holds other samples than two halves, `g` times each is the bound that is used.

    Args:
        pipes: Pipelines that may be making the call.
        sample: What enters the UNet, [B, C, h, w].
        twice: By batch, whether the second half repeats the first; filled here, since looking waits for the device.

    Example:
        >>> guidance_of([], torch.zeros(2, 4, 8, 8), {}) is None
        True
    """
    scales = [
        float(getattr(pipe, "guidance_scale", 1.0))
        for pipe in pipes
        if getattr(pipe, "do_classifier_free_guidance", False)
    ]
    if not scales:
        return None
    scale, batch = max(scales), sample.shape[0]
    if batch not in twice:
        twice[batch] = batch % 2 == 0 and is_twice(sample)
    if not twice[batch]:
        return lambda error: scale * error
    half = batch // 2
    return lambda error: error[:half] + scale * (error[half:] - error[:half])
