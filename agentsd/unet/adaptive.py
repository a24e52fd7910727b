"""Skipping by noise levels: the policy that asks a controller, and guidance applied to its errors."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from agentsd.schedule import Skipping
from agentsd.unet.controller import FEWEST_CALLS, MOST_SKIPPED, Controller
from agentsd.unet.decisions import Decision, Step
from agentsd.unet.denoisers import latent_part
from agentsd.unet.guidance import is_twice
from agentsd.unet.listed import ListedController
from agentsd.unet.noise_levels import noise_levels
from agentsd.unet.steps import Position

_OTHER_RUN = (
    "full steps are listed for {listed} calls from noise level {highest:.3g}, but this run has {calls} calls from "
    "{first:.3g}: use the solver and the number of steps that they were made for, or call agentsd.calibrate again"
)
_NO_PIPELINE = "no pipeline is known whose scheduler says how noisy each step is: call agentsd.apply on the pipeline"


class WithinTolerance:
    """Chooses full steps at run time, within a tolerance, or takes them from a list; holds at most three predictions.

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
        full = controller.needs_full(self._index(controller, step.position))
        if self.skipping.listed is not None:
            return Decision(full, "a full step of the list" if full else "the list skips it")
        return Decision(full, "the tolerance needs a full step" if full else "the forecast is within the tolerance")

    def will_skip(self, position: Position) -> bool:
        """Return whether the step at a position will be skipped, unless something changes before its call."""
        controller = self.controller
        return isinstance(controller, Controller) and not controller.needs_full(self._index(controller, position))

    def forecast(self, step: Step) -> Tensor:
        """Return the prediction that a skipped step uses, and count the step."""
        if not isinstance(self.controller, Controller):
            raise ValueError(f"no step can be skipped: {self.controller}.")
        return self.controller.forecast(self._index(self.controller, step.position), step.sample)

    def observe(self, step: Step, feature: Tensor) -> None:
        """Take in the prediction of a full step."""
        if isinstance(self.controller, Controller):
            latent = latent_part(step.sample, feature)[0]  # pictures beside it need not be the same for both halves
            guide = None
            if step.guided:
                guide = guidance_of(
                    step.pipes, latent, step.twice, scale=step.guidance, conditional_first=step.conditional_first
                )
            self.controller.observe(self._index(self.controller, step.position), step.sample, feature, guide=guide)

    def _index(self, controller: Controller, position: Position) -> int:
        return controller.calls - position.total + position.index

    def _start(self, step: Step) -> Controller | str:
        if step.scheduler is None or not step.pipes:
            return _NO_PIPELINE
        listed = self.skipping.listed
        left = step.position.total - step.left_out - step.position.index
        if listed is None and left < FEWEST_CALLS:
            return f"the run has {left} steps, and agentsd skips none below {FEWEST_CALLS}"
        levels = noise_levels(step.scheduler)
        if isinstance(levels, str):
            return levels
        if listed is not None:
            if listed.fits(levels.sigmas):
                return ListedController(levels, listed, noisy=step.noisy, sign=step.sign)
            highest, first = listed.sigmas[0], levels.sigmas[0]
            return _OTHER_RUN.format(listed=listed.calls, highest=highest, calls=len(levels.sigmas) - 1, first=first)
        return Controller(
            levels,
            tolerance=self.skipping.tolerance or 0.0,
            max_skipped=MOST_SKIPPED if self.skipping.max_skipped is None else self.skipping.max_skipped,
            noisy=step.noisy,
            sign=step.sign,
        )


def guidance_of(
    pipes: Iterable[Any],
    sample: Tensor,
    twice: dict[int, bool],
    *,
    scale: float = 1.0,
    conditional_first: bool = False,
) -> Callable[[Tensor], Tensor] | None:
    """Return how a pipeline's guidance combines the samples of a call, `None` without guidance.

    `u + g (c - u)`, with the unconditional half `u`, the conditional half `c` and the guidance scale `g`. A call
    without such halves uses the bound `g` times each sample.

    Args:
        pipes: Pipelines that may be making the call.
        sample: The latent that enters the denoiser, [B, ...].
        twice: By batch, whether the second half repeats the first; filled here, since looking waits for the device.
        scale: That of pipelines which do not say it themselves; 1 is no guidance.
        conditional_first: Whether the conditional half comes first, and guidance is `c + g (c - u)`.

    Example:
        >>> import torch
        >>> guidance_of([], torch.zeros(2, 4, 8, 8), {}) is None
        True
    """
    scales = [_scale_of(pipe) for pipe in pipes if getattr(pipe, "do_classifier_free_guidance", False)]
    if scale != 1.0:
        scales.append(scale)
    if not scales:
        return None
    scale, batch = max(scales), sample.shape[0]
    if batch not in twice:
        twice[batch] = batch % 2 == 0 and is_twice(sample)
    if not twice[batch]:
        return lambda error: scale * error
    half = batch // 2
    if conditional_first:
        return lambda error: error[:half] + scale * (error[:half] - error[half:])
    return lambda error: error[:half] + scale * (error[half:] - error[:half])


def _scale_of(pipe: Any) -> float:
    scale = getattr(pipe, "guidance_scale", 1.0)
    return float(scale.max() if isinstance(scale, Tensor) else scale)  # Stable Video Diffusion: one for each frame
