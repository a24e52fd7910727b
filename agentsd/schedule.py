"""What happens at which step, as plain data: phases, skipped steps and schedules (no torch here)."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from types import MappingProxyType
from typing import Any, get_args

from agentsd.attention.checks import check_bool, check_fields, check_int, check_number, load_object, plain
from agentsd.attention.settings import Attention, MergedTokens

_VERSION = 1  # of the JSON; raise it when an old text would change its meaning
_KINDS: Mapping[str, type[Any]] = MappingProxyType({kind.__name__: kind for kind in get_args(Attention)})


@dataclass(frozen=True)
class Phase:
    """A stretch of the denoising run and what the UNet does in it.

    Args:
        until: Share of the run at which the phase ends, in (0, 1]. Step `i` of `n` belongs to the first phase with
            `i / n < until`.
        attention: Settings of self-attention in the phase. `None` is stock attention, bit for bit.
        every: A full step follows `every` steps after the last full step, even if that was in the phase before. The
            steps between are skipped steps, see `Skipping`. 1 makes every step a full step.

    Raises:
        ValueError: If `until` is outside (0, 1], `attention` is of another kind, or `every` is not a positive integer.

    Example:
        >>> Phase(0.4, MergedTokens(merge_ratio=0.4)).until
        0.4
    """

    until: float
    attention: Attention | None = None
    every: int = 1

    def __post_init__(self) -> None:
        check_number("until", self.until)
        check_int("every", self.every, minimum=1)
        if not 0 < self.until <= 1:
            raise ValueError(f"until={self.until!r} must lie in (0, 1]: a share of the denoising run.")
        if self.attention is not None and not isinstance(self.attention, Attention):
            raise ValueError(f"attention={self.attention!r} must be {', '.join(_KINDS)}, or None for stock attention.")


@dataclass(frozen=True, kw_only=True)
class Skipping:
    """How a skipped step does without the whole UNet.

    Args:
        depth: How many of the UNet's last layers run at a skipped step, on a cached feature (Ma et al., CVPR 2024,
            https://arxiv.org/abs/2312.00858). 0 runs none: the cached feature is the UNet's prediction. Schedulers that
            add fresh noise at every step (Euler ancestral, LCM, SDEs) need the last layer, so 0 acts as 1 there.
        forecast: How far a forecast extrapolates cached features, as a share of the run in [0, 1]. With full steps at
            `a` and `b`, step `b + d` uses `F_b + w * d / (b - a) * (F_b - F_a)` with the weight `w` of
            `Schedule.forecast_at`. 0 uses `F_b` itself (DeepCache). A forecast costs no time.
        last_full: Whether the last step of the run is a full step: no later step corrects its error.
        tolerance: The relative error of the final latent that is accepted, in (0, 1]. Full steps are then chosen at run
            time from the errors that the forecast is seen to make (`agentsd.unet.controller`), and `Phase.every` stays
            1. `None` leaves the choice to `Phase.every`.
        max_skipped: Most skipped steps in a row under a tolerance; `None` is 4.

    Raises:
        ValueError: If `depth` is not an integer of at least 0, `forecast` lies outside [0, 1], `last_full` is
            neither `True` nor `False`, `tolerance` lies outside (0, 1], or a field does not go with `tolerance`.

    Example:
        >>> Skipping(depth=1, forecast=0.0, last_full=False).depth
        1
    """

    depth: int = 0
    forecast: float = 0.2
    last_full: bool = True
    tolerance: float | None = None
    max_skipped: int | None = None

    def __post_init__(self) -> None:
        check_int("depth", self.depth, minimum=0)
        check_number("forecast", self.forecast)
        if not 0 <= self.forecast <= 1:
            raise ValueError(
                f"forecast={self.forecast!r} must lie in [0, 1], a share of the run: 0 uses cached features unchanged, "
                "larger values extrapolate further; our presets use 0.2."
            )
        check_bool("last_full", self.last_full)
        if self.max_skipped is not None:
            check_int("max_skipped", self.max_skipped, minimum=1)
        if self.tolerance is None:
            if self.max_skipped is not None:
                raise ValueError(f"max_skipped={self.max_skipped} goes with a tolerance only; set tolerance as well.")
            return
        check_number("tolerance", self.tolerance)
        if not 0 < self.tolerance <= 1:
            raise ValueError(
                f"tolerance={self.tolerance!r} must lie in (0, 1], the relative error of the final latent that is "
                "accepted; our presets use 0.015 to 0.12."
            )
        for name, value, default in (("depth", self.depth, 0), ("forecast", self.forecast, 0.2)):
            if value != default:
                raise ValueError(f"{name}={value!r} does not go with a tolerance; leave it out.")
        if not self.last_full:
            raise ValueError("last_full=False does not go with a tolerance; leave it out.")


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
        >>> schedule = Schedule((Phase(0.4, MergedTokens(merge_ratio=0.4)), Phase(1.0)))
        >>> schedule.at(19, 50).merge_ratio, schedule.at(20, 50)
        (0.4, None)
    """

    phases: tuple[Phase, ...]
    skipping: Skipping = field(default_factory=Skipping)
    guidance_interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "guidance_interval", _interval(self.guidance_interval))
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

        if self.skipping.tolerance is not None and any(phase.every > 1 for phase in phases):
            raise ValueError(
                f"tolerance={self.skipping.tolerance} chooses full steps at run time and does not go with "
                f"every={max(phase.every for phase in phases)}; leave every at 1, or leave out the tolerance."
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
            (Phase(until=1.0, attention=None, every=3),)
        """
        return cls((Phase(1.0, attention, every),), Skipping() if skipping is None else skipping, guidance_interval)

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """The distinct settings of self-attention, in order of first use."""
        return tuple(dict.fromkeys(phase.attention for phase in self.phases if phase.attention is not None))

    @property
    def skips_steps(self) -> bool:
        """Whether any step may be a skipped step."""
        return self.skipping.tolerance is not None or any(phase.every > 1 for phase in self.phases)

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
        return next(phase for phase in self.phases if index < _end(phase, total)).attention

    def is_full(self, index: int, total: int) -> bool:
        """Return whether step `index` of `total` is a full step.

        Args:
            index: Step within the run, `0 <= index < total`.
            total: Number of steps in the run.

        Returns:
            `True` at the first step, at each step `every` steps after the last full step, and with
            `skipping.last_full` at the last step. Under a tolerance every step can be one.

        Raises:
            ValueError: If `index` lies outside the run.

        Example:
            >>> [Schedule.constant(None, every=3).is_full(i, 6) for i in range(6)]
            [True, False, False, True, False, True]
        """
        _check_index(index, total)
        return index in _full_steps(self.phases, total) or (self.skipping.last_full and index == total - 1)

    def with_merge_ratio(self, ratio: float) -> "Schedule":
        """Return the schedule with `merge_ratio=ratio` in every phase that merges tokens.

        Raises:
            ValueError: If no phase merges tokens, or the ratio does not fit one.

        Example:
            >>> Schedule.constant(MergedTokens(merge_ratio=0.4)).with_merge_ratio(0.2).at(0, 50).merge_ratio
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
            (Phase(until=1.0, attention=None, every=1),)
        """
        skipping = Skipping(tolerance=tolerance, max_skipped=self.skipping.max_skipped)
        return replace(replace(self.with_reuse(1), skipping=Skipping()), skipping=skipping)

    def with_attention(self, attention: Attention | None) -> "Schedule":
        """Return the schedule with one setting of self-attention for all phases.

        Example:
            >>> Schedule((Phase(0.5, None, 4), Phase(1.0, None, 2))).with_attention(MergedTokens()).attentions
            (MergedTokens(),)
        """
        return replace(self, phases=tuple(replace(phase, attention=attention) for phase in self.phases))

    def with_reuse(self, every: int) -> "Schedule":
        """Return the schedule with a full step every `every` steps in all phases; 1 skips none.

        Phases that then have the same settings become one.

        Raises:
            ValueError: If `every` is not a positive integer.

        Example:
            >>> Schedule((Phase(0.5, None, 4), Phase(1.0, None, 2))).with_reuse(3).phases
            (Phase(until=1.0, attention=None, every=3),)
        """
        phases: list[Phase] = []
        for phase in self.phases:
            if phases and phases[-1].attention == phase.attention:
                phases.pop()
            phases.append(replace(phase, every=every))
        skipping = self.skipping if self.skipping.tolerance is None else Skipping()
        return replace(self, phases=tuple(phases), skipping=skipping)

    def to_json(self) -> str:
        """Return the schedule as JSON on one line: equal schedules give equal texts.

        Example:
            >>> Schedule.from_json(Schedule.constant(None, every=3).to_json()).phases
            (Phase(until=1.0, attention=None, every=3),)
        """
        return json.dumps({"version": _VERSION, **schedule_object(self)})

    @classmethod
    def from_json(cls, text: str | bytes) -> "Schedule":
        """Return the schedule that `to_json` wrote.

        Raises:
            ValueError: If the text is not such JSON, has another version, or a field is unknown, missing or out of
                range.
        """
        return schedule_from(load_object(text, "schedule", _VERSION))


def attention_object(attention: Attention) -> dict[str, Any]:
    """Return settings of self-attention as JSON's types, with their kind.

    Example:
        >>> attention_object(MergedTokens(merge_ratio=0.4))["kind"]
        'MergedTokens'
    """
    return {"kind": type(attention).__name__, **plain(attention)}


def attention_from(data: object, what: str = "attention") -> Attention:
    """Return the settings that `attention_object` wrote.

    Raises:
        ValueError: If the kind or a field is unknown, or a field is out of range.

    Example:
        >>> attention_from({"kind": "MergedTokens", "merge_ratio": 0.4}).merge_ratio
        0.4
    """
    kind = data.get("kind") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"{what}={data!r} must be a JSON object whose 'kind' is one of {', '.join(_KINDS)}.")
    given = {name: value for name, value in data.items() if name != "kind"}
    made: Attention = _KINDS[kind](**check_fields(_KINDS[kind], given, what))
    return made


def schedule_object(schedule: Schedule) -> dict[str, Any]:
    """Return a schedule as JSON's types, without a version.

    Example:
        >>> schedule_object(Schedule.constant(None))["phases"]
        [{'until': 1.0, 'every': 1}]
    """
    phases = [
        plain(replace(phase, attention=None))
        | ({} if phase.attention is None else {"attention": attention_object(phase.attention)})
        for phase in schedule.phases
    ]
    return {**plain(schedule), "phases": phases}


def schedule_from(data: object) -> Schedule:
    """Return the schedule that `schedule_object` wrote.

    Raises:
        ValueError: If a field is unknown, missing or out of range.

    Example:
        >>> schedule_from({"phases": [{"until": 1.0}]}) == Schedule.constant(None)
        True
    """
    given = dict(check_fields(Schedule, data, "schedule"))
    phases = given["phases"]
    if not isinstance(phases, list):
        raise ValueError(f"phases={phases!r} must be a JSON list of phases.")
    given["phases"] = tuple(_phase_from(phase, f"phases[{index}]") for index, phase in enumerate(phases))
    if "skipping" in given:
        given["skipping"] = Skipping(**check_fields(Skipping, given["skipping"], "skipping"))
    return Schedule(**given)


def _phase_from(data: object, what: str) -> Phase:
    given = dict(check_fields(Phase, data, what))
    if given.get("attention") is not None:
        given["attention"] = attention_from(given["attention"], f"{what}.attention")
    return Phase(**given)


def _end(phase: Phase, total: int) -> int:
    # Fraction of the decimal as written: 0.1 * 30 must be 3, not 3.0000000000000004.
    return math.ceil(Fraction(str(phase.until)) * total)


@lru_cache(maxsize=64)
def _full_steps(phases: tuple[Phase, ...], total: int) -> frozenset[int]:
    """Return the steps at which phases run the whole UNet: when `every` steps have passed since the last such step."""
    full, first = [0], 0
    for phase in phases:
        end = _end(phase, total)
        full.extend(range(max(first, full[-1] + phase.every), end, phase.every))
        first = end
    return frozenset(full)


def _interval(value: object) -> tuple[float, float]:
    shares = tuple(value) if isinstance(value, tuple | list) else ()
    if len(shares) != 2:
        raise ValueError(f"guidance_interval={value!r} must be two shares of the run, such as (0.2, 1.0).")
    for share in shares:
        check_number("guidance_interval", share)
    if not 0 <= shares[0] < shares[1] <= 1:
        raise ValueError(f"guidance_interval={value!r} must rise within [0, 1]; (0, 1) guides at every step.")
    return float(shares[0]), float(shares[1])


def _check_index(index: int, total: int) -> None:
    if not 0 <= index < total:
        raise ValueError(f"index={index} must lie in [0, total={total}).")
