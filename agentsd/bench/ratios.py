"""Speed-ups from paired times, and how costs grow with sizes."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from agentsd.bench.intervals import interval

_RESAMPLES = 2000


@dataclass(frozen=True)
class Speedup:
    """How many times faster than the baseline: median of paired ratios, 95% bootstrap interval, number of pairs.

    Of fewer than 6 pairs the ends are the least and the greatest ratio.
    """

    median: float
    low: float
    high: float
    pairs: int


def speedup(baseline: Sequence[float], arm: Sequence[float], *, seed: int = 0) -> Speedup:
    """Return the paired speed-up `median(baseline_i / arm_i)` with a bootstrap interval over the pairs.

    Args:
        baseline: Seconds of the baseline, by round.
        arm: Seconds of the arm in the same rounds.
        seed: Seed of the bootstrap.

    Returns:
        The speed-up; above 1 is faster than the baseline.

    Raises:
        ValueError: If the two differ in length or are empty.

    Example:
        >>> speedup([2.0, 2.2, 2.0], [1.0, 1.1, 1.0]).median
        2.0
    """
    if not baseline or len(baseline) != len(arm):
        raise ValueError(f"baseline has {len(baseline)} times and arm {len(arm)}: both need the same rounds.")
    logs = [math.log(a / b) for a, b in zip(baseline, arm, strict=True)]
    made = interval(logs, resamples=_RESAMPLES, seed=seed)
    return Speedup(math.exp(made.value), math.exp(made.low), math.exp(made.high), len(logs))


def power_law(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the exponent `p` of `cost ~ size^p`: the slope of the least-squares line of `log cost` over `log size`.

    Args:
        sizes: At least two different sizes, above 0.
        costs: What each costs, above 0.

    Returns:
        The exponent.

    Raises:
        ValueError: If the two differ in length, or fewer than two sizes are different.

    Example:
        >>> round(power_law([1, 2, 4], [3.0, 12.0, 48.0]), 6)
        2.0
    """
    if len(sizes) != len(costs) or len(set(sizes)) < 2:
        raise ValueError(f"sizes={list(sizes)} and costs={list(costs)}: give as many of each, at two sizes or more.")
    logs = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    return statistics.linear_regression(*logs).slope
