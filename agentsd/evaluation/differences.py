"""Differences of distances between two arms, with intervals by resampling prompts.

A Fréchet distance from few samples is biased upwards, by an amount that depends on the model (Chong & Forsyth 2020),
and a bootstrap adds the same bias once more: an interval of one absolute distance misses its own estimate. Hence only
differences between two arms on the same prompts have an interval here. In a difference the bias cancels where
the arms spread equally, and in part where they do not.

A reference that is paired with the prompts adds a bias of its own: picture `i` of an arm resembles reference `i` more
than others do, since both show one prompt. The kernel distance leaves those pairs out and has no bias; the Fréchet
distance cannot, so with a paired reference its difference also holds how closely either arm follows the prompts.
"""

from collections.abc import Callable

import numpy as np

from agentsd.bench.intervals import FEWEST_FOR_INTERVAL, Interval, check_bootstrap, percentiles
from agentsd.evaluation.feature_sets import Array, Features, checked_features
from agentsd.evaluation.frechet import FrechetDistances, frechet_distance
from agentsd.evaluation.kernel import KernelDistances, kernel_distance

Distance = Callable[[Array, Array], float]

ENOUGH_SAMPLES = 2048  # features of the FID network: with fewer samples its covariance has no full rank


class Delta(Interval):
    """A difference, accelerated minus stock, with the ends of its bootstrap interval.

    Example:
        >>> Delta(value=0.2, low=-0.1, high=0.4).covers(0)
        True
    """

    def covers(self, difference: float) -> bool:
        """Return whether `difference` lies in the interval; 0 in it: the arms show no difference."""
        return self.low <= difference <= self.high


def small_sample_stamp(n: int, *, biased: bool = True) -> str:
    """Return what must stand beside every distance from `n` samples; empty if they are enough.

    Args:
        n: Samples on the smaller side, at least 1.
        biased: Whether few samples bias the distance, as they do Fréchet's; the kernel distance they only scatter.

    Returns:
        A remark, empty from 2048 samples on.

    Raises:
        ValueError: If `n` is below 1.

    Example:
        >>> small_sample_stamp(200)
        'n=200 < 2048: biased high; comparative only'
        >>> small_sample_stamp(200, biased=False)
        'n=200 < 2048: few samples, noisy but not biased; comparative only'
        >>> small_sample_stamp(5000)
        ''
    """
    if n < 1:
        raise ValueError(f"n={n} samples; a distance needs at least 1: evaluate some pictures.")
    if n >= ENOUGH_SAMPLES:
        return ""
    what = "biased high" if biased else "few samples, noisy but not biased"
    return f"n={n} < {ENOUGH_SAMPLES}: {what}; comparative only"


def paired_delta(
    real: Features,
    stock: Features,
    fast: Features,
    statistic: Distance,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Delta:
    """Return `statistic(real, fast) - statistic(real, stock)` with a bootstrap interval over prompts.

    Row `i` of all three belongs to prompt `i`. Each resample draws prompts with replacement and takes their rows from
    all three: what the arms share cancels. `kernel_distance` is taken with `paired=True`: pairs of one prompt
    are left out, between the sets and where a resample holds copies: only the distributions count. Other
    statistics also hold how alike a picture and the reference of its own prompt are; where the arms differ in that,
    their interval lies at another value than the difference of the distributions.

    The interval is that of the percentiles, shifted: the mean of the resamples is the difference itself.
    Unmoved it can miss the Fréchet difference altogether where one arm spreads less than the other, since resampling
    repeats the bias of few samples. It says how far the difference varies with the prompts, not by how much that bias
    has shifted the difference itself: see `small_sample_stamp`, and `kernel_distance` beside it.

    Args:
        real: Features of the reference pictures, [n, d].
        stock: Features of the stock pipeline's pictures, [n, d].
        fast: Features of the accelerated pipeline's pictures, [n, d].
        statistic: `frechet_distance`, `kernel_distance`, or another function of two such matrices.
        resamples: Bootstrap resamples, at least 1.
        seed: Seed of the resampling.
        confidence: Share of the bootstrap distribution inside the interval, between 0 and 1; with fewer than 6
            prompts the ends are those of all resamples.

    Returns:
        The difference, from the rows themselves, and its interval.

    Raises:
        ValueError: If the shapes differ, there are fewer than 3 rows, a value is not finite, or `resamples` or
            `confidence` is out of range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> real, stock = rng.normal(size=(2, 50, 4))
        >>> paired_delta(real, stock, stock + 1, frechet_distance, resamples=50).low > 0
        True
    """
    check_bootstrap(resamples, confidence)
    real, stock, fast = checked_features(real=real, stock=stock, fast=fast)
    if not len(real) == len(stock) == len(fast) >= 3:
        raise ValueError(
            f"real, stock and fast have {len(real)}, {len(stock)} and {len(fast)} rows; row i of each must belong to "
            "prompt i, with at least 3 prompts: leave out prompts that lack a picture."
        )
    counts = bootstrap_counts(len(real), resamples, seed)
    distances: FrechetDistances | KernelDistances
    if statistic is frechet_distance:
        distances = FrechetDistances(real, paired=True)
    elif statistic is kernel_distance:
        distances = KernelDistances(real, paired=True)
    else:
        resampled = np.array([_difference(real, stock, fast, statistic, row) for row in counts])
        return delta_of(statistic(real, fast) - statistic(real, stock), resampled, len(real), confidence)
    if np.array_equal(stock, fast):
        return Delta(0.0, 0.0, 0.0)
    resampled = distances.draws(fast, counts) - distances.draws(stock, counts)
    return delta_of(distances.of(fast) - distances.of(stock), resampled, len(real), confidence)


def delta_of(value: float, resampled: Array, n: int, confidence: float = 0.95) -> Delta:
    """Return a difference with the interval of its resamples, shifted: their mean is the difference.

    Args:
        value: The difference, from all prompts.
        resampled: The difference on each resample, [resamples].
        n: Prompts; with fewer than 6 the ends are those of all resamples, since no share of them means anything.
        confidence: Share of the resamples inside the interval.

    Example:
        >>> delta_of(1.0, np.array([2.0, 3.0, 4.0]), n=5)
        Delta(value=1.0, low=0.0, high=2.0)
    """
    low, high = percentiles(resampled - resampled.mean(), 1.0 if n < FEWEST_FOR_INTERVAL else confidence)
    return Delta(value, value + low, value + high)


def bootstrap_counts(n: int, resamples: int, seed: int) -> Array:
    """Return how often resamples with replacement draw each of `n` prompts, [resamples, n].

    Draws of fewer than 2 distinct prompts are made anew.

    Example:
        >>> bootstrap_counts(5, 2, seed=0).sum(axis=1)
        array([5., 5.])
    """
    rng = np.random.default_rng(seed)
    rows: list[Array] = []
    while len(rows) < resamples:
        counts = np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)
        if np.count_nonzero(counts) > 1:
            rows.append(counts)
    return np.stack(rows)


def half_counts(n: int, resamples: int, seed: int) -> Array:
    """Return which of `n` prompts half-samples without replacement draw: 1 or 0, [resamples, n].

    Their spread is that of the whole (delete-half jackknife). A bootstrap would draw prompts twice, which biases a
    distance to a fixed reference.

    Example:
        >>> half_counts(4, 2, seed=0).sum(axis=1)
        array([2., 2.])
    """
    draw = np.random.default_rng(seed)
    counts = np.zeros((resamples, n))
    for row in counts:
        row[draw.permutation(n)[: n // 2]] = 1
    return counts


def _difference(real: Array, stock: Array, fast: Array, statistic: Distance, counts: Array) -> float:
    rows = np.repeat(np.arange(len(real)), counts.astype(np.int64))
    return statistic(real[rows], fast[rows]) - statistic(real[rows], stock[rows])
