"""Whether a step is full or skipped: one small interface, and the rule of a fixed schedule."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from agentsd.schedule import Schedule
from agentsd.unet.batch import Part
from agentsd.unet.runs import Cached
from agentsd.unet.steps import Position


@dataclass(frozen=True)
class Decision:
    """Whether a step should be full, and why."""

    full: bool
    why: str
    forced: bool = False  # whether the policy would skip steps, but cannot in this run
    part: Part | None = None  # the pictures that need a full step, where others skip it


@dataclass(frozen=True)
class Step:
    """What a policy sees of a call.

    Attributes:
        position: The step within its run.
        sample: The latent that enters the denoiser, [B, ...].
        cached: What the last full step of this call left; `None` if there is none.
        scheduler: The scheduler of the run; `None` if it is not known.
        noisy: Whether its steps add fresh noise.
        pipes: The pipelines with this scheduler that were given to `apply`.
        copies: How often calls repeat their pictures, by batch size; filled by `copies_in`.
        guided: Whether the call holds both halves of guidance, where there are any.
        guidance: The guidance scale, where the pipelines do not say it themselves.
        sign: -1 where the scheduler sees the negated prediction.
        left_out: Steps at the end of the scheduler's list that are not run.
        conditional_first: Whether guidance puts the conditional half of the samples first.
        apart: Whether the denoiser can run for some pictures of the call alone.
    """

    position: Position
    sample: Tensor
    cached: Cached | None = None
    scheduler: Any = None
    noisy: bool = False
    pipes: tuple[Any, ...] = ()
    copies: dict[int, int] = field(default_factory=dict)
    guided: bool = True
    guidance: float = 1.0
    sign: int = 1
    left_out: int = 0
    conditional_first: bool = False
    apart: bool = False


class Policy(Protocol):
    """Decides for one call of each step of a run. At skipped steps it may not wait for the device."""

    keeps: bool  # whether it holds the predictions that it needs itself; else the run caches a feature for it

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that it holds."""

    def decide(self, step: Step) -> Decision:
        """Return whether the step should be full."""

    def forecast(self, step: Step) -> Tensor:
        """Return the feature that a skipped step starts from; `step.cached` is not `None`."""

    def observe(self, step: Step, feature: Tensor, part: Part | None = None) -> None:
        """Take in the feature of a full step; of a part of the batch if the policy decided that only it runs."""


class FixedSteps:
    """The full steps that a schedule lists, with its forecast.

    Example:
        >>> step = Step(Position(1, 4, 1), torch.zeros(1, 4, 8, 8))
        >>> from agentsd import Phase
        >>> FixedSteps(Schedule((Phase(1.0, None, 2),))).decide(step)
        Decision(full=False, why='the schedule skips it', forced=False, part=None)
    """

    keeps = False
    nbytes = 0

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def decide(self, step: Step) -> Decision:
        """Return whether the schedule lists the step."""
        full = self.schedule.is_full(step.position.index, step.position.total)
        return Decision(full, "a full step of the schedule" if full else "the schedule skips it")

    def forecast(self, step: Step) -> Tensor:
        """Return the cached feature, extrapolated as the schedule says."""
        if step.cached is None:
            raise ValueError("cached=None must be the feature of an earlier full step.")
        return step.cached.at(step.position, self.schedule)

    def observe(self, step: Step, feature: Tensor, part: Part | None = None) -> None:
        """Do nothing: the schedule is fixed."""
