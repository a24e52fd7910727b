"""Another schedule for a block of code: what a patch can follow without being applied anew."""

from typing import Any

from torch import nn

from agentsd.planning.plans import Plan
from agentsd.presets import as_schedule, with_tolerance
from agentsd.schedule import Schedule
from agentsd.unet.inforce import InForce
from agentsd.unet.record import LastRun
from agentsd.unet.report import Report
from agentsd.unet.runtime import Runtime
from agentsd.unet.skipping import fit_skipping
from agentsd.unet.status import report_of, why_inactive


class Using:
    """What the runs of one `using` block come to, also after it.

    Example:
        >>> with agentsd.apply(pipe) as patch, patch.using("fast") as used:
        ...     image = pipe("a red circle", num_inference_steps=12, output_type="pt").images
        >>> used.schedule.skipping.tolerance
        0.06
    """

    def __init__(self, denoiser: nn.Module, runtime: Runtime, in_force: InForce) -> None:
        self._denoiser = denoiser
        self._runtime = runtime
        self._in_force = in_force

    @property
    def schedule(self) -> Schedule:
        """The schedule of the block."""
        return self._in_force.schedule

    @property
    def last_run(self) -> LastRun | None:
        """What the last run in the block did; `None` before the first."""
        return self._in_force.record.last_run

    @property
    def last_steps(self) -> tuple[str, ...]:
        """What each step of the last run was: "full", "skipped", "forced" or "partial".

        A forced step is full, though the schedule skips it. A partial one is full for some pictures of the batch.

        Example:
            >>> with agentsd.apply(pipe) as patch, patch.using(agentsd.Schedule.constant(None, 2)) as used:
            ...     image = pipe("a red circle", num_inference_steps=4, output_type="pt").images
            >>> used.last_steps
            ('full', 'skipped', 'full', 'full')
        """
        return self._in_force.record.last_steps

    def report(self) -> Report:
        """Return the report of the block: its schedule, its last run and why steps were full."""
        return report_of(self._denoiser, self._runtime, self._in_force)


def resolve(denoiser: nn.Module, runtime: Runtime, schedule: Any, tolerance: float | None) -> InForce:
    """Return what is in force in a block that asks for a schedule.

    Args:
        denoiser: What is patched.
        runtime: The patch.
        schedule: A preset, a schedule or settings of self-attention; `None` is the schedule in force.
        tolerance: The tolerance that replaces the schedule's.

    Raises:
        ValueError: If the patch is not in force, or cannot follow the schedule.

    Example:
        >>> with agentsd.apply(unet):
        ...     resolve(unet, unet._agentsd, None, 0.1).schedule.skipping.tolerance
        0.1
    """
    inactive = why_inactive(denoiser, runtime)
    if inactive is not None:
        raise ValueError(f"this patch is not in force ({inactive}); take the one that the last agentsd.apply returned.")
    if isinstance(schedule, Plan):
        raise ValueError(
            "schedule is a Plan, and a plan is checked against the UNet when it is applied: call agentsd.apply(pipe, "
            "plan) once, or use plan.schedule here."
        )
    chosen = runtime.schedule if schedule is None else as_schedule(schedule)
    if tolerance is not None:
        chosen = with_tolerance(chosen if schedule is None else schedule, chosen, tolerance, None)
    chosen, refused = fit_skipping(denoiser, chosen, asked=not isinstance(schedule, str))
    depth = chosen.skipping.depth if chosen.skips_steps else 0
    if depth not in (0, runtime.depth):
        kept = f"of depth {runtime.depth}" if runtime.depth else "of none"
        raise ValueError(
            f"schedule has depth={depth}, and this patch caches the feature {kept}: call agentsd.apply with a schedule "
            f"of fixed full steps and depth={depth} once, or use a tolerance or depth=0."
        )
    return InForce(chosen, skipping_problem=refused)
