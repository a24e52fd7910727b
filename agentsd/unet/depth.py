"""What a run asks of skipped steps: how many layers run, whether the scheduler adds noise, how strongly it guides."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from agentsd.unet.callers import calling_eta, calling_guidance, steps_left_out
from agentsd.unet.noise import noise_source, takes_eta
from agentsd.unet.runs import Run
from agentsd.unet.shallow import depth_under_noise

if TYPE_CHECKING:
    from agentsd.unet.runtime import Runtime


def skipped_depth(runtime: "Runtime", denoiser: nn.Module, timestep: object) -> int:
    """Return how many layers run at a skipped step: one instead of none where the scheduler adds fresh noise."""
    asked = runtime.schedule.skipping.depth
    problem = None if asked or runtime.local.run is None else fresh_noise(runtime, timestep)
    if problem is None:
        return asked
    depth = depth_under_noise(denoiser, asked)
    if depth == 0 or depth != runtime.depth:  # no layer can run alone, or the one it needs is not cached
        return 0
    runtime.noise_problem = problem
    runtime.warn_once(
        f"agentsd runs the last layer at skipped steps: {problem}. "
        "Skipping(depth=1) does the same without this warning."
    )
    return depth


def fresh_noise(runtime: "Runtime", timestep: object) -> str | None:
    """Return why the steps of the run add fresh noise, or may add it; `None` if they do not."""
    run: Run | None = runtime.local.run
    scheduler = runtime.progress().scheduler()
    if run is None or scheduler is None or not isinstance(timestep, Tensor):
        return noise_source(scheduler)
    if run.eta is None:
        run.eta = calling_eta(timestep, scheduler) if takes_eta(scheduler) else 0.0
    return noise_source(scheduler, run.eta)


def guidance_scale(runtime: "Runtime", pipes: tuple[Any, ...]) -> float:
    """Return the guidance scale of a run whose pipelines do not say it themselves; 1 if it is not known."""
    run: Run | None = runtime.local.run
    if run is None or any(hasattr(pipe, "do_classifier_free_guidance") for pipe in pipes):
        return 1.0
    if run.guidance is None:  # once in a run
        found = calling_guidance(runtime.progress().scheduler())
        run.guidance = 1.0 if found is None else found
    return run.guidance


def left_out(runtime: "Runtime") -> int:
    """Return how many steps at the end of the scheduler's list the run leaves out."""
    run: Run | None = runtime.local.run
    if run is None:
        return 0
    if run.left_out is None:  # once in a run
        run.left_out = steps_left_out(runtime.progress().scheduler())
    return run.left_out
