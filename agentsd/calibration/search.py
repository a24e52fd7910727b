"""The fastest setting whose measured pictures meet a target."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

MEASURES = ("tolerance", "psnr", "lpips")
MOST_TRIES = 7  # settings that are measured
_LESS = 0.75  # what the next tolerance is of one that missed, at most, while none has met
_CLOSE = 1.08  # two tolerances within this ratio count as equal


@dataclass(frozen=True)
class Target:
    """What pictures must meet.

    Args:
        measure: `"tolerance"` (relative error of the final latent), `"psnr"` in dB, or `"lpips"`.
        goal: The value.
        worst: Whether the worst 5% of the pictures must meet it, not their median.

    Example:
        >>> str(Target("psnr", 40.0))
        'a median PSNR of 40 dB to stock'
    """

    measure: str
    goal: float
    worst: bool = False

    def excess(self, found: float) -> float:
        """Return by what factor the error is too large: above 1 the target is missed.

        Example:
            >>> Target("tolerance", 0.02).excess(0.04), round(Target("psnr", 40.0).excess(34.0), 1)
            (2.0, 2.0)
        """
        if self.measure == "psnr":
            return 0.0 if math.isinf(found) else float(10 ** ((self.goal - found) / 20))
        return found / self.goal

    def excess_of(self, found: Sequence[float]) -> float:
        """Return the same for several pictures: of their median, or of the worst 5%.

        Example:
            >>> Target("tolerance", 0.02).excess_of([0.01, 0.02, 0.06])
            1.0
        """
        each = [self.excess(one) for one in found]
        return float(np.quantile(each, 0.95) if self.worst else np.median(each))

    def __str__(self) -> str:
        what = {
            "psnr": f"PSNR of {self.goal:g} dB to stock",
            "lpips": f"LPIPS of {self.goal:g} to stock",
            "tolerance": f"error of the final latent of {self.goal:g}",
        }[self.measure]
        if not self.worst:
            return f"a median {what}"
        return f"{'a' if self.measure == 'psnr' else 'an'} {what} in the worst 5%"


def fewest_calls(excess: Callable[[int], float], simulated: dict[int, float], start: int) -> int:
    """Return the fewest calls whose measured pictures meet a target.

    Args:
        excess: Measures with so many calls: above 1 the target is missed.
        simulated: Simulated error by number of calls.
        start: The number of calls to measure first.

    Returns:
        The number of calls; all of them if fewer do not meet the target within 7 measurements.

    Example:
        >>> fewest_calls(lambda calls: 12 / calls, {calls: 1 / calls for calls in range(4, 21)}, 6)
        12
    """
    found: dict[int, float] = {}
    most, least = max(simulated), min(simulated)
    here = start
    for _ in range(MOST_TRIES):
        found[here] = excess(here)
        met = [calls for calls, one in found.items() if one <= 1]
        missed = [calls for calls, one in found.items() if one > 1]
        high, low = min(met, default=most), max(missed, default=least - 1)
        if high - low <= 1:
            break
        # Measured errors keep about one ratio to simulated ones.
        wanted = simulated[here] / max(found[here], 1e-6)
        near = [calls for calls in simulated if low < calls < high]
        here = next((calls for calls in sorted(near) if simulated[calls] <= wanted), max(near))
    return min((calls for calls, one in found.items() if one <= 1), default=most)


def largest_tolerance(excess: Callable[[float], float], start: float) -> float:
    """Return the largest tolerance whose measured pictures meet a target.

    Args:
        excess: Measures with a tolerance: above 1 the target is missed.
        start: The tolerance to measure first.

    Raises:
        ValueError: If no tolerance that was measured meets the target.

    Example:
        >>> 0.037 < largest_tolerance(lambda tolerance: tolerance / 0.04, 0.03) <= 0.04
        True
    """
    low, high, here = 0.0, 1.0, start
    for _ in range(MOST_TRIES):
        found = excess(here)
        low, high = (max(low, here), high) if found <= 1 else (low, min(high, here))
        if low and high / low <= _CLOSE:
            break
        guess = here / min(max(found, 0.25), 4.0)
        if not low:  # calls come in whole numbers: a little less may change nothing
            guess = min(guess, here * _LESS)
        inside = (low or high / 16) * 1.02 < guess < high / 1.02
        here = guess if inside else math.sqrt((low or high / 16) * high)
    if not low:
        raise ValueError(
            "the target is not met by any tolerance that was tried, down to "
            f"{high:.2g}; ask for less, or run more steps."
        )
    return low
