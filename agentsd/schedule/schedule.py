"""Which settings hold at which step of a run: phases in rising order (no torch here)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise

from agentsd.attention.checks import check_int, short_repr
from agentsd.attention.settings import Attention, MergedTokens
from agentsd.schedule.phases import Phase, Skipping, end_of, full_steps, interval_of


@dataclass(frozen=True)
class Schedule:
    """Which settings hold at which step of a run: phases in rising order, the last ending at 1.

    Args:
        phases: One or more `Phase`, `until` strictly rising, the last `until` equal to 1.
        skipping: What skipped steps do.
        guidance_interval: Share of the run, (from, until), with classifier-free guidance. Outside it the UNet computes
            the conditional half of its batch only, which halves the step (https://arxiv.org/abs/2404.07724). (0, 1)
            guides at every step.

    Raises:
        ValueError: If there is no phase, the order does not rise, the last phase does not end at 1, `skipping` is not a
            `Skipping`, or `guidance_interval` is not an interval within [0, 1].

    Example:
        >>> schedule = Schedule((Phase(0.4, agentsd.MergedTokens(merge_ratio=0.4)), Phase(1.0)))
        >>> schedule.at(19, 50).merge_ratio, schedule.at(20, 50)
        (0.4, None)
    """

    phases: tuple[Phase, ...]
    skipping: Skipping = field(default_factory=Skipping)
    guidance_interval: tuple[float, float] = (0.0, 1.0)

    __repr__ = short_repr

    def __post_init__(self) -> None:
        object.__setattr__(self, "guidance_interval", interval_of(self.guidance_interval))
        if not isinstance(self.skipping, Skipping):
            raise ValueError(f"skipping={self.skipping!r} must be a Skipping, as in Skipping(depth=0, forecast=0.2).")
        phases = tuple(self.phases) if isinstance(self.phases, Iterable) else ()
        if not phases or not all(isinstance(phase, Phase) for phase in phases):
            raise ValueError(f"phases={self.phases!r} must hold one or more Phase, as in (Phase(1.0, attention),).")
        object.__setattr__(self, "phases", phases)
        ends = [phase.until for phase in phases]
        if any(later <= earlier for earlier, later in pairwise(ends)):
            raise ValueError(f"phases end at {ends}: `until` must rise strictly from phase to phase.")
        if ends[-1] != 1:
            raise ValueError(f"phases end at {ends}: the last must end at 1; add Phase(1.0) for stock attention.")

        if self.skipping.by_noise_level and any(phase.every > 1 for phase in phases):
            what = "listed full steps do not go"
            if self.skipping.tolerance is not None:
                what = f"tolerance={self.skipping.tolerance} chooses full steps at run time and does not go"
            raise ValueError(
                f"{what} with every={max(phase.every for phase in phases)}; leave every at 1, or leave out the other."
            )

    @classmethod
    def constant(
        cls,
        attention: Attention | None,
        every: int = 1,
        *,
        skipping: Skipping | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
    ) -> "Schedule":
        """Return the schedule of one phase.

        Example:
            >>> Schedule.constant(None, every=3).phases
            (Phase(until=1.0, every=3),)
        """
        return cls((Phase(1.0, attention, every),), Skipping() if skipping is None else skipping, guidance_interval)

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """The distinct settings of self-attention, in order of first use."""
        return tuple(dict.fromkeys(phase.attention for phase in self.phases if phase.attention is not None))

    @property
    def skips_steps(self) -> bool:
        """Whether any step may be a skipped step."""
        return self.skipping.by_noise_level or any(phase.every > 1 for phase in self.phases)

    @property
    def skips_guidance(self) -> bool:
        """Whether any step runs without guidance."""
        return self.guidance_interval != (0.0, 1.0)

    def forecast_at(self, index: int, total: int, *, gap: int, distance: int) -> float:
        """Return the weight of the forecast at step `index` of `total`.

        `w = (index / total) ** ((gap + distance) / 2 / (forecast * total))`. The change is seen between the last two
        full steps and extrapolated to this step; `(gap + distance) / 2` steps lie between the middles of these two
        stretches. The weight falls with that distance and rises along the run.

        Args:
            index: Step within the run, `0 <= index < total`.
            total: Number of steps in the run.
            gap: Steps between the last two full steps, at least 1.
            distance: Steps since the last full step, at least 1.

        Returns:
            The weight, in [0, 1): 0 uses the cached feature as it is, 1 would follow the straight line.

        Raises:
            ValueError: If `index` lies outside the run, or `gap` or `distance` is not a positive integer.

        Example:
            >>> Schedule.constant(None, 3, skipping=Skipping(forecast=0.1)).forecast_at(10, 20, gap=3, distance=1)
            0.5
        """
        _check_index(index, total)
        check_int("gap", gap, minimum=1)
        check_int("distance", distance, minimum=1)
        if self.skipping.forecast == 0:
            return 0.0
        return float((index / total) ** ((gap + distance) / 2 / (self.skipping.forecast * total)))

    def is_guided(self, index: int, total: int) -> bool:
        """Return whether step `index` of `total` computes guidance.

        Args:
            index: Step within the run, `0 <= index < total`.
            total: Number of steps in the run.

        Raises:
            ValueError: If `index` lies outside the run.

        Example:
            >>> schedule = Schedule.constant(None, guidance_interval=(0.2, 1.0))
            >>> [schedule.is_guided(i, 10) for i in range(4)]
            [False, False, True, True]
        """
        _check_index(index, total)
        start, end = (math.ceil(Fraction(str(share)) * total) for share in self.guidance_interval)
        return start <= index < end

    def at(self, index: int, total: int) -> Attention | None:
        """Return the settings of self-attention at step `index` of `total`; exact, without rounding.

        A run of a single step (Turbo) is step 0 and belongs to the first phase.

        Args:
            index: Step within the run, `0 <= index < total`.
            total: Number of steps in the run.

        Returns:
            The phase's settings; `None` is stock attention.

        Raises:
            ValueError: If `index` lies outside the run.
        """
        _check_index(index, total)
        return next(phase for phase in self.phases if index < end_of(phase, total)).attention

    def is_full(self, index: int, total: int) -> bool:
        """Return whether step `index` of `total` is a full step.

        Args:
            index: Step within the run, `0 <= index < total`.
            total: Number of steps in the run.

        Returns:
            `True` at the first step, at each step `every` steps after the last full step, and with
            `skipping.last_full` at the last step. Under a tolerance every step can be one. Listed full steps hold for
            runs of their own number of calls; in another run every step is full.

        Raises:
            ValueError: If `index` lies outside the run.

        Example:
            >>> [Schedule.constant(None, every=3).is_full(i, 6) for i in range(6)]
            [True, False, False, True, False, True]
        """
        _check_index(index, total)
        listed = self.skipping.listed
        if listed is not None:
            return total != listed.calls or index in listed.full
        return index in full_steps(self.phases, total) or (self.skipping.last_full and index == total - 1)

    def with_merge_ratio(self, ratio: float) -> "Schedule":
        """Return the schedule with `merge_ratio=ratio` in every phase that merges tokens.

        Raises:
            ValueError: If no phase merges tokens, or the ratio does not fit one.

        Example:
            >>> Schedule.constant(agentsd.MergedTokens(merge_ratio=0.4)).with_merge_ratio(0.2).at(0, 50).merge_ratio
            0.2
        """
        if not any(isinstance(phase.attention, MergedTokens) for phase in self.phases):
            raise ValueError(
                f"merge_ratio={ratio!r} has no phase to change: none of them merges tokens. Use the preset 'paper', or "
                "MergedTokens in a phase."
            )
        phases = (
            replace(phase, attention=replace(phase.attention, merge_ratio=ratio))
            if isinstance(phase.attention, MergedTokens)
            else phase
            for phase in self.phases
        )
        return replace(self, phases=tuple(phases))

    def with_tolerance(self, tolerance: float) -> "Schedule":
        """Return the schedule with full steps chosen at run time, within a tolerance.

        Raises:
            ValueError: If the tolerance lies outside (0, 1].

        Example:
            >>> Schedule.constant(None, every=3).with_tolerance(0.05).phases
            (Phase(until=1.0),)
        """
        now = self.skipping
        skipping = Skipping(tolerance=tolerance, max_skipped=now.max_skipped, by_picture=now.by_picture)
        return replace(replace(self.with_skipping(1), skipping=Skipping()), skipping=skipping)

    def with_by_picture(self, by_picture: bool = True) -> "Schedule":
        """Return the schedule with full steps chosen for each picture of a batch, or for the batch.

        Raises:
            ValueError: If the schedule has no tolerance.

        Example:
            >>> agentsd.preset("fast").with_by_picture().skipping.by_picture
            True
        """
        return replace(self, skipping=replace(self.skipping, by_picture=by_picture))

    def with_attention(self, attention: Attention | None) -> "Schedule":
        """Return the schedule with one setting of self-attention for all phases.

        Example:
            >>> schedule = Schedule((Phase(0.5, None, 4), Phase(1.0, None, 2)))
            >>> [phase.every for phase in schedule.with_attention(agentsd.MergedTokens()).phases]
            [4, 2]
        """
        return replace(self, phases=tuple(replace(phase, attention=attention) for phase in self.phases))

    def with_skipping(self, every: int) -> "Schedule":
        """Return the schedule with a full step every `every` steps in all phases; 1 skips none.

        Phases that then have the same settings become one.

        Raises:
            ValueError: If `every` is not a positive integer.

        Example:
            >>> Schedule((Phase(0.5, None, 4), Phase(1.0, None, 2))).with_skipping(3).phases
            (Phase(until=1.0, every=3),)
        """
        phases: list[Phase] = []
        for phase in self.phases:
            if phases and phases[-1].attention == phase.attention:
                phases.pop()
            phases.append(replace(phase, every=every))
        skipping = Skipping() if self.skipping.by_noise_level else self.skipping
        return replace(self, phases=tuple(phases), skipping=skipping)

    def to_json(self) -> str:
        """Return the schedule as JSON on one line: equal schedules give equal texts.

        Example:
            >>> Schedule.from_json(Schedule.constant(None, every=3).to_json()).phases
            (Phase(until=1.0, every=3),)
        """
        from agentsd.schedule.text import written  # it needs this class

        return written(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Schedule":
        """Return the schedule that `to_json` wrote.

        Raises:
            ValueError: If the text is not such JSON, has another version, or a field is unknown, missing or out of
                range.
        """
        from agentsd.schedule.text import read  # it needs this class

        return read(text)


def _check_index(index: int, total: int) -> None:
    if not 0 <= index < total:
        raise ValueError(f"index={index} must lie in [0, total={total}).")
