"""Bootstrap intervals of a statistic over independent values."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

FEWEST_FOR_INTERVAL = 6  # values: no interval that a bootstrap gets from fewer covers 95%
_VALUES_AT_A_TIME = 4_000_000  # at once: 32 MB


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its bootstrap interval.

    Attributes:
        value: The estimate, from the samples themselves.
        low: Lower end.
        high: Upper end.

    Example:
        >>> Interval(1.0, 0.5, 1.5).low
        0.5
    """

    value: float
    low: float
    high: float


def interval(
    values: npt.ArrayLike,
    statistic: Callable[..., Any] = np.median,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Return a statistic of independent values with its percentile bootstrap interval.

    Of fewer than 6 values the ends are the least and the greatest: no bootstrap of so few covers 95%.

    Args:
        values: One value a prompt or a round, [n]; infinite ones are allowed (PSNR of equal pictures).
        statistic: `np.median`, `np.mean`, or another function that takes `axis`.
        resamples: Bootstrap resamples, at least 1.
        seed: Seed of the resampling.
        confidence: Share of the bootstrap distribution inside the interval, between 0 and 1.

    Returns:
        The statistic of the values themselves, and its interval.

    Raises:
        ValueError: If `values` is empty, not one-dimensional or holds NaN, or `resamples` or `confidence` is out of
            range.

    Example:
        >>> interval([20.0, 21.0, 22.0, 23.0, 24.0], np.mean, resamples=200).value
        22.0
    """
    from scipy import stats

    check_bootstrap(resamples, confidence)
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or not len(data) or np.isnan(data).any():
        raise ValueError(
            f"values of shape {data.shape} with {int(np.isnan(data).sum())} NaN; "
            "give one number a prompt, at least one and none NaN: leave out prompts that were not measured."
        )
    value = float(statistic(data, axis=0))
    if len(data) < FEWEST_FOR_INTERVAL:
        return Interval(value, float(data.min()), float(data.max()))
    with np.errstate(invalid="ignore"):  # scipy's own ends interpolate between infinite values; ours do not
        made = stats.bootstrap(
            (data,),
            statistic,
            n_resamples=resamples,
            batch=max(1, _VALUES_AT_A_TIME // len(data)),
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    return Interval(value, *percentiles(made.bootstrap_distribution, confidence))


def percentiles(values: Array, confidence: float) -> tuple[float, float]:
    """Return the ends of the central interval that holds a share of values.

    The ends are order statistics: between two infinite values interpolation gives no number.

    Example:
        >>> percentiles(np.arange(5.0), 0.5)
        (1.0, 3.0)
    """
    ordered, tail = np.sort(values), (1 - confidence) / 2
    low = int(np.floor(tail * (len(ordered) - 1)))
    return float(ordered[low]), float(ordered[len(ordered) - 1 - low])


def check_bootstrap(resamples: int, confidence: float) -> None:
    """Refuse settings that no bootstrap can have.

    Raises:
        ValueError: If `resamples` is below 1 or `confidence` does not lie between 0 and 1.

    Example:
        >>> check_bootstrap(1000, 0.95)
    """
    if resamples < 1:
        raise ValueError(f"resamples={resamples} is below 1, the fewest a bootstrap can draw; 1000 are usual.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, ends excluded; 0.95 is usual.")


def spread_of(n: int) -> str:
    """Return what the two ends beside a figure from `n` values are.

    Example:
        >>> spread_of(2), spread_of(8)
        ('range of 2', '95% interval')
    """
    return "95% interval" if n >= FEWEST_FOR_INTERVAL else f"range of {n}"
