"""Skipping by noise levels: the policy that asks a controller, and guidance applied to its errors."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from agentsd.schedule import Skipping
from agentsd.unet.controller import FEWEST_CALLS, MOST_SKIPPED, Controller
from agentsd.unet.decisions import Decision, Step
from agentsd.unet.guidance import is_twice
from agentsd.unet.listed import ListedController
from agentsd.unet.noise_levels import noise_levels

_OTHER_RUN = (
    "full steps are listed for {listed} calls from noise level {highest:.3g}, but this run has {calls} calls from "
    "{first:.3g}: use the solver and the number of steps that they were made for, or call agentsd.calibrate again"
)
_NO_PIPELINE = "no pipeline is known whose scheduler says how noisy each step is: call agentsd.apply on the pipeline"


class WithinTolerance:
    """Chooses full steps at run time, within a tolerance, or takes them from a list; holds two or three predictions.

    Args:
        skipping: Settings with a tolerance or listed full steps.

    Example:
        >>> import torch
        >>> from agentsd.unet.steps import Position
        >>> policy = WithinTolerance(Skipping(tolerance=0.03))
        >>> policy.decide(Step(Position(0, 20), torch.zeros(1, 4, 8, 8))).why
        'no pipeline is known whose scheduler says how noisy each step is: call agentsd.apply on the pipeline'
    """

    keeps = True

    def __init__(self, skipping: Skipping) -> None:
        self.skipping = skipping
        self.controller: Controller | str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the predictions that are held."""
        return self.controller.nbytes if isinstance(self.controller, Controller) else 0

    def decide(self, step: Step) -> Decision:
        """Return whether the controller needs a full step, or why it cannot skip any."""
        controller = self.controller
        if controller is None or (isinstance(controller, Controller) and not controller.fits(step.sample)):
            controller = self.controller = self._start(step)
        if isinstance(controller, str):
            return Decision(True, controller, forced=True)
        full = controller.needs_full(self._index(controller, step))
        if self.skipping.listed is not None:
            return Decision(full, "a full step of the list" if full else "the list skips it")
        return Decision(full, "the tolerance needs a full step" if full else "the forecast is within the tolerance")

    def forecast(self, step: Step) -> Tensor:
        """Return the prediction that a skipped step uses, and count the step."""
        if not isinstance(self.controller, Controller):
            raise ValueError(f"no step can be skipped: {self.controller}.")
        return self.controller.forecast(self._index(self.controller, step), step.sample)

    def observe(self, step: Step, feature: Tensor) -> None:
        """Take in the prediction of a full step."""
        if isinstance(self.controller, Controller):
            guide = guidance_of(step.pipes, step.sample, step.twice) if step.guided else None
            self.controller.observe(self._index(self.controller, step), step.sample, feature, guide=guide)

    @staticmethod
    def _index(controller: Controller, step: Step) -> int:
        return controller.calls - step.position.total + step.position.index

    def _start(self, step: Step) -> Controller | str:
        if step.scheduler is None or not step.pipes:
            return _NO_PIPELINE
        listed = self.skipping.listed
        left = step.position.total - step.position.index
        if listed is None and left < FEWEST_CALLS:
            return f"the run has {left} steps, and agentsd skips none below {FEWEST_CALLS}"
        levels = noise_levels(step.scheduler)
        if isinstance(levels, str):
            return levels
        if listed is not None:
            if listed.fits(levels.sigmas):
                return ListedController(levels, listed, noisy=step.noisy)
            highest, first = listed.sigmas[0], levels.sigmas[0]
            return _OTHER_RUN.format(listed=listed.calls, highest=highest, calls=len(levels.sigmas) - 1, first=first)
        return Controller(
            levels,
            tolerance=self.skipping.tolerance or 0.0,
            max_skipped=MOST_SKIPPED if self.skipping.max_skipped is None else self.skipping.max_skipped,
            noisy=step.noisy,
        )


def guidance_of(pipes: Iterable[Any], sample: Tensor, twice: dict[int, bool]) -> Callable[[Tensor], Tensor] | None:
    """Return how a pipeline's guidance combines the samples of a call, `None` without guidance.

    `u + g (c - u)`, with the unconditional half `u`, the conditional half `c` and the guidance scale `g`. A call
    without such halves uses the bound `g` times each sample.

    Args:
        pipes: Pipelines that may be making the call.
        sample: What enters the UNet, [B, C, h, w].
        twice: By batch, whether the second half repeats the first. Filled here once: looking waits for the device.

    Example:
        >>> import torch
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
