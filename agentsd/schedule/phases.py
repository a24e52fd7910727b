"""Phases of a run and how skipped steps do without the whole UNet (no torch here)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from types import MappingProxyType
from typing import Any, get_args

from agentsd.attention.checks import check_bool, check_int, check_number, short_repr
from agentsd.attention.settings import Attention
from agentsd.schedule.listed import ListedSteps

KINDS: Mapping[str, type[Any]] = MappingProxyType({kind.__name__: kind for kind in get_args(Attention)})


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
        >>> Phase(0.4, agentsd.MergedTokens(merge_ratio=0.4)).until
        0.4
    """

    until: float
    attention: Attention | None = None
    every: int = 1

    __repr__ = short_repr

    def __post_init__(self) -> None:
        check_number("until", self.until)
        check_int("every", self.every, minimum=1)
        if not 0 < self.until <= 1:
            raise ValueError(f"until={self.until!r} must lie in (0, 1]: a share of the denoising run.")
        if self.attention is not None and not isinstance(self.attention, Attention):
            raise ValueError(f"attention={self.attention!r} must be {', '.join(KINDS)}, or None for stock attention.")


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
        by_picture: Whether each picture of a batch has its own full steps under a tolerance, as if it were alone. The
            UNet then runs for the pictures that need it. Otherwise the picture with the largest error decides for all.
        listed: The full steps of a run, one by one, as `agentsd.calibrate` chooses them; `Phase.every` stays 1.

    Raises:
        ValueError: If `depth` is not an integer of at least 0, `forecast` lies outside [0, 1], `last_full` is
            neither `True` nor `False`, `tolerance` lies outside (0, 1], `listed` is not a `ListedSteps`, or a field
            does not go with `tolerance` or `listed`.

    Example:
        >>> Skipping(depth=1, forecast=0.0, last_full=False).depth
        1
    """

    depth: int = 0
    forecast: float = 0.2
    last_full: bool = True
    tolerance: float | None = None
    max_skipped: int | None = None
    by_picture: bool = False
    listed: ListedSteps | None = None

    __repr__ = short_repr

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
        if self.tolerance is None and self.max_skipped is not None:
            raise ValueError(f"max_skipped={self.max_skipped} goes with a tolerance only; set tolerance as well.")
        check_bool("by_picture", self.by_picture)
        if self.tolerance is None and self.by_picture:
            raise ValueError("by_picture=True goes with a tolerance only; set tolerance as well.")
        if self.listed is not None and not isinstance(self.listed, ListedSteps):
            raise ValueError(f"listed={self.listed!r} must be a ListedSteps, as agentsd.calibrate makes it.")
        if self.listed is not None and self.tolerance is not None:
            raise ValueError(f"tolerance={self.tolerance!r} does not go with listed full steps; leave one of them out.")
        if self.tolerance is not None:
            check_number("tolerance", self.tolerance)
            if not 0 < self.tolerance <= 1:
                raise ValueError(
                    f"tolerance={self.tolerance!r} must lie in (0, 1], the relative error of the final latent that is "
                    "accepted; our presets use 0.015 to 0.12."
                )
        if not self.by_noise_level:
            return
        what = "a tolerance" if self.listed is None else "listed full steps"
        for name, value, default in (("depth", self.depth, 0), ("forecast", self.forecast, 0.2)):
            if value != default:
                raise ValueError(f"{name}={value!r} does not go with {what}; leave it out.")
        if not self.last_full:
            raise ValueError(f"last_full=False does not go with {what}; leave it out.")

    @property
    def by_noise_level(self) -> bool:
        """Whether forecasts follow the scheduler's noise levels: with a tolerance or listed full steps."""
        return self.tolerance is not None or self.listed is not None


def interval_of(value: object) -> tuple[float, float]:
    """Return an interval of guidance as two shares of the run; a ValueError if it is none."""
    shares = tuple(value) if isinstance(value, tuple | list) else ()
    if len(shares) != 2:
        raise ValueError(f"guidance_interval={value!r} must be two shares of the run, such as (0.2, 1.0).")
    for share in shares:
        check_number("guidance_interval", share)
    if not 0 <= shares[0] < shares[1] <= 1:
        raise ValueError(f"guidance_interval={value!r} must rise within [0, 1]; (0, 1) guides at every step.")
    return float(shares[0]), float(shares[1])


def end_of(phase: Phase, total: int) -> int:
    """Return the step at which a phase ends in a run of `total` steps."""
    # Fraction of the decimal as written: 0.1 * 30 must be 3, not 3.0000000000000004.
    return math.ceil(Fraction(str(phase.until)) * total)


@lru_cache(maxsize=64)
def full_steps(phases: tuple[Phase, ...], total: int) -> frozenset[int]:
    """Return the steps at which phases run the whole UNet: when `every` steps have passed since the last such step."""
    full, first = [0], 0
    for phase in phases:
        end = end_of(phase, total)
        full.extend(range(max(first, full[-1] + phase.every), end, phase.every))
        first = end
    return frozenset(full)
