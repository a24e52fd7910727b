"""How many layers run at a skipped step, and whether the scheduler adds fresh noise, which no forecast can know."""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from agentsd.unet.callers import calling_eta
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
