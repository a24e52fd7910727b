"""Skipping by noise levels: the policy that asks a controller, and guidance applied to its errors."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor

from agentsd.schedule import Skipping
from agentsd.unet.batch import Part, copies_in
from agentsd.unet.by_picture import ByPicture
from agentsd.unet.controller import FEWEST_CALLS, MOST_SKIPPED, Controller
from agentsd.unet.decisions import Decision, Step
from agentsd.unet.denoisers import latent_part
from agentsd.unet.listed import ListedController
from agentsd.unet.noise_levels import noise_levels
from agentsd.unet.steps import Position

_OTHER_RUN = (
    "full steps are listed for {listed} calls from noise level {highest:.3g}, but this run has {calls} calls from "
    "{first:.3g}: use the solver and the number of steps that they were made for, or call agentsd.calibrate again"
)
_NO_PIPELINE = "no pipeline is known whose scheduler says how noisy each step is: call agentsd.apply on the pipeline"


class WithinTolerance:
    """Chooses full steps at run time, for each picture within a tolerance, or takes them from a list.

    It holds at most three predictions of each sample.

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
        self.controller: ByPicture | str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the predictions that are held."""
        return self.controller.nbytes if isinstance(self.controller, ByPicture) else 0

    def decide(self, step: Step) -> Decision:
        """Return whether the controller needs a full step, or why it cannot skip any."""
        controller = self.controller
        if controller is None or (isinstance(controller, ByPicture) and not controller.fits(step.sample)):
            controller = self.controller = self._start(step)
        if isinstance(controller, str):
            return Decision(True, controller, forced=True)
        part = controller.part(self._index(controller, step.position))
        full = len(part.pictures) == part.of
        if self.skipping.listed is not None:
            return Decision(full, "a full step of the list" if full else "the list skips it")
        if part.pictures:
            return Decision(full, "the tolerance needs a full step", part=None if full else part)
        return Decision(False, "the forecast is within the tolerance")

    def will_skip(self, position: Position) -> bool:
        """Return whether all pictures will skip the step at a position, unless something changes before its call."""
        controller = self.controller
        return isinstance(controller, ByPicture) and not controller.part(self._index(controller, position)).pictures

    def forecast(self, step: Step) -> Tensor:
        """Return the predictions that a skipped step uses, and count the step."""
        if not isinstance(self.controller, ByPicture):
            raise ValueError(f"no step can be skipped: {self.controller}.")
        return self.controller.forecast(self._index(self.controller, step.position), step.sample)

    def observe(self, step: Step, feature: Tensor, part: Part | None = None) -> None:
        """Take in the predictions of a full step, or of the part of the batch that ran."""
        if not isinstance(self.controller, ByPicture):
            return
        # Pictures beside the latent need not be the same for both halves. Before a part, whole steps were looked at.
        latent = step.sample if part is not None else latent_part(step.sample, feature)[0]
        guide = None
        if step.guided:
            guide = guidance_of(
                step.pipes, latent, step.copies, scale=step.guidance, conditional_first=step.conditional_first
            )
        index = self._index(self.controller, step.position)
        self.controller.observe(index, step.sample, feature, part or self._all(step, latent), guide=guide)

    def _all(self, step: Step, latent: Tensor) -> Part:
        """Return the pictures of a call; one that stands for all where they are decided together."""
        number = len(latent) // copies_in(latent, step.copies) if step.apart else 1
        return Part(tuple(range(number)), number)

    def _index(self, controller: ByPicture, position: Position) -> int:
        return controller.calls - position.total + position.index

    def _start(self, step: Step) -> ByPicture | str:
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
                return ByPicture(partial(ListedController, levels, listed, noisy=step.noisy, sign=step.sign))
            highest, first = listed.sigmas[0], levels.sigmas[0]
            return _OTHER_RUN.format(listed=listed.calls, highest=highest, calls=len(levels.sigmas) - 1, first=first)
        most = MOST_SKIPPED if self.skipping.max_skipped is None else self.skipping.max_skipped
        rules: dict[str, Any] = {"tolerance": self.skipping.tolerance or 0.0, "max_skipped": most}
        return ByPicture(partial(Controller, levels, **rules, noisy=step.noisy, sign=step.sign))


def guidance_of(
    pipes: Iterable[Any],
    sample: Tensor,
    copies: dict[int, int],
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
        copies: How often calls repeat their pictures, by batch size; filled here, since looking waits for the device.
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
    scale = max(scales)
    if copies_in(sample, copies) != 2:
        return lambda error: scale * error

    def guide(error: Tensor) -> Tensor:  # of all pictures, or of one
        unconditional, conditional = error.chunk(2)[::-1] if conditional_first else error.chunk(2)
        start = conditional if conditional_first else unconditional
        return start + scale * (conditional - unconditional)

    return guide


def _scale_of(pipe: Any) -> float:
    scale = getattr(pipe, "guidance_scale", 1.0)
    return float(scale.max() if isinstance(scale, Tensor) else scale)  # Stable Video Diffusion: one for each frame
