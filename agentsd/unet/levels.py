"""What a step does at each level of the latent grid."""

from typing import TYPE_CHECKING

from torch import Tensor

from agentsd.attention.cells import grid_at
from agentsd.attention.settings import PooledAgents
from agentsd.attention.tokens import CellPattern
from agentsd.planning.plans import Plan
from agentsd.unet.processor import LevelPlan, level_plan
from agentsd.unet.steps import Position

if TYPE_CHECKING:
    from agentsd.unet.runtime import Runtime


def step_levels(runtime: "Runtime", position: Position, sample: Tensor) -> dict[int, LevelPlan]:
    """Return what a step does at each level of the grid; levels that stay stock are missing."""
    attention = runtime.schedule.at(position.index, position.total)
    levels: dict[int, LevelPlan] = {}
    if attention is None:
        return levels
    random = not isinstance(attention, PooledAgents) and attention.randomize
    index = position.index if random else None

    def pattern(height: int, width: int, stride: int) -> CellPattern:
        return runtime.choices.pattern(index, height, width, stride, sample.device)

    def sample_of(height: int, width: int, stride: int) -> Tensor:
        return runtime.choices.sampled(index, height, width, stride, sample.device)

    stages = sorted({site.level for site in runtime.sites})
    runtime.choices.make_room(position.total, len(stages))
    for level in stages:
        downsample = 2 ** (level - runtime.finest)
        if downsample > attention.max_downsample or level in runtime.left_stock(attention):
            continue
        height, width = grid_at(level, sample.shape[-2], sample.shape[-1])
        here = attention.at_downsample(downsample)
        made = level_plan(height, width, here, sample.device, pattern=pattern, sample=sample_of)
        if made is not None:
            levels[level] = made
    return levels


def plan_mismatches(plan: Plan | None, sample: Tensor) -> list[str]:
    """Return how a call differs from the calls that a plan was measured for.

    Example:
        >>> plan_mismatches(None, torch.zeros(1, 4, 8, 8))
        []
    """
    found = []
    if plan is not None and tuple(sample.shape[-2:]) != plan.latent:
        height, width = plan.latent
        found.append(
            f"agentsd runs a plan measured on {height}x{width} latents on {sample.shape[-2]}x{sample.shape[-1]}; "
            "the fastest settings may differ. Make a plan for this size."
        )
    if plan is not None and sample.shape[0] != plan.batch:
        found.append(
            f"agentsd runs a plan measured with {plan.batch} samples a UNet call on {sample.shape[0]} (pictures, "
            "doubled by guidance); the fastest settings may differ. Make a plan with this batch."
        )
    return found
