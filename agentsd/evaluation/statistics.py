"""Distances between sets of features, and intervals by resampling: pure functions in float64.

A Fréchet distance from few samples is biased upwards, by an amount that depends on the model (Chong & Forsyth 2020),
and a bootstrap adds the same bias once more: an interval of one absolute distance misses its own estimate. Hence only
differences between two arms drawn from the same prompts have an interval here. In a difference the bias cancels where
the arms spread equally, and in part where they do not.

A reference that is paired with the prompts adds a bias of its own: picture `i` of an arm resembles reference `i` more
than others do, since both show one prompt. The kernel distance leaves those pairs out and has no bias; the Fréchet
distance cannot, so with a paired reference its difference also holds how closely either arm follows the prompts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.floating[Any]]
Array = npt.NDArray[np.float64]
Distance = Callable[[Array, Array], float]
OnStep = Callable[[int, int], object]  # called with what is done, and with all there is to do

ENOUGH_SAMPLES = 2048  # features of the FID network: with fewer samples its covariance has no full rank
FEWEST_FOR_INTERVAL = 6  # values: no interval that a bootstrap gets from fewer covers 95%
_BLOCK = 512  # rows of a kernel matrix at a time: 30,000 samples take 120 MB


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


class Delta(Interval):
    """A difference, accelerated minus stock, with the ends of its bootstrap interval.

    Example:
        >>> Delta(value=0.2, low=-0.1, high=0.4).covers(0)
        True
    """

    def covers(self, difference: float) -> bool:
        """Return whether `difference` lies in the interval; 0 in it: the arms cannot be told apart."""
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


# --- Fréchet distance ---


def frechet_distance(x: Features, y: Features) -> float:
    """Return the Fréchet distance of two sets of features: `|m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2))`.

    Means and covariances are those of Heusel et al. 2017. With `A = (X - m) / sqrt(n - 1)`, `Tr (S1 S2)^(1/2)` is the
    sum of the singular values of `A1 A2^T`; that is used where one side has fewer samples than features, and is exact
    where eigenvalues lose half of the digits. Otherwise it is the sum of the roots of the eigenvalues of
    `R S2 R^T`, where `R^T R = S1`.

    Args:
        x: Features, [n, d], n at least 2.
        y: Features, [m, d], m at least 2.

    Returns:
        The distance, at least 0, in squared units of the features.

    Raises:
        ValueError: If the shapes do not fit, a side has fewer than 2 samples, or a value is not finite.

    Example:
        >>> x = np.array([[0.0], [2.0]])
        >>> frechet_distance(x, x + 3)
        9.0
    """
    x, y = _check_features(x=x, y=y)
    return FrechetDistances(x).of(y)


def frechet_from_moments(mu1: Array, cov1: Array, mu2: Array, cov2: Array) -> float:
    """Return the Fréchet distance of two normal distributions (Dowson & Landau 1982).

    Args:
        mu1: Mean of the first, [d].
        cov1: Its covariance, [d, d], symmetric and positive semidefinite.
        mu2: Mean of the second, [d].
        cov2: Its covariance, [d, d].

    Returns:
        The distance, at least 0.

    Raises:
        ValueError: If the shapes do not fit, a value is not finite, or a covariance is not symmetric.

    Example:
        >>> round(frechet_from_moments(np.zeros(2), np.eye(2), np.ones(2), 4 * np.eye(2)), 6)
        4.0
    """
    mu1, cov1, mu2, cov2 = _check_moments(mu1=mu1, cov1=cov1, mu2=mu2, cov2=cov2)
    half = _half(cov1)
    overlap = _sum_of_roots(half @ cov2 @ half.T)
    return _combine(mu1 - mu2, float(np.trace(cov1)) + float(np.trace(cov2)), overlap)


class FrechetDistances:
    """Fréchet distances of arms from one reference; what the reference alone decides is computed once.

    Args:
        real: Features of the reference, [m, d], or its mean [d] and covariance [d, d].
        paired: Whether row `i` of reference and arms belongs to prompt `i`, so that resampling draws both.

    Raises:
        ValueError: If `real` is not of these shapes, or not finite, or paired moments are asked for.

    Example:
        >>> x = np.array([[0.0], [2.0]])
        >>> FrechetDistances(x).of(x + 3)
        9.0
    """

    def __init__(self, real: Features | tuple[Array, Array], *, paired: bool = False) -> None:
        self._rows: Array | None = None
        if isinstance(real, tuple):
            if paired:
                raise ValueError("paired=True needs the reference's features; moments have no rows, pass False.")
            self._mean, covariance = _check_moments(mean=real[0], covariance=real[1])
            self._half, self._trace = _half(covariance), float(np.trace(covariance))
        else:
            (rows,) = _check_features(real=real)
            self._rows = rows if paired else None
            moments = _moments(rows)
            self._mean, self._half, self._trace = moments.mean, _compact(moments.factor), moments.trace

    def of(self, arm: Features) -> float:
        """Return the distance of an arm's features [n, d] from the reference."""
        return float(self._from_fixed(arm, np.ones((1, len(arm))))[0])

    def draws(self, arm: Features, counts: Array, on_step: OnStep | None = None) -> Array:
        """Return the distances of resampled prompts, [resamples].

        Args:
            arm: Features of the arm, [n, d].
            counts: How often each resample draws each prompt, [resamples, n].
            on_step: Called after each resample.
        """
        if self._rows is None:
            return self._from_fixed(arm, counts, on_step)
        real, arm = self._rows, _check_arm(arm, self._mean.size, len(self._rows))
        drawn = np.empty(len(counts))
        for place, row in enumerate(counts):
            one, other = _moments(real, row), _moments(arm, row)
            full = min(len(one.factor), len(other.factor)) >= real.shape[1]
            overlap = _overlap(_compact(one.factor) @ other.factor.T, full)
            drawn[place] = _combine(one.mean - other.mean, one.trace + other.trace, overlap)
            if on_step is not None:
                on_step(place + 1, len(counts))
        return drawn

    def _from_fixed(self, arm: Features, counts: Array, on_step: OnStep | None = None) -> Array:
        arm = _check_arm(arm, self._mean.size)
        n, d = arm.shape
        centre = arm.mean(axis=0)
        rows = arm - centre
        squares, product = (rows**2).sum(axis=1), self._half @ rows.T
        if n < d:
            product = _compact(product)  # the same singular values, whatever columns are taken
        totals = counts.sum(axis=1)
        means = counts @ rows / totals[:, None]
        traces = (counts @ squares - totals * (means**2).sum(axis=1)) / (totals - 1)
        drawn = np.empty(len(counts))
        for place, (row, total, mean, trace) in enumerate(zip(counts, totals, means, traces, strict=True)):
            present = row > 0
            weights = row[present]
            columns = product[:, present]
            columns = (columns - (columns @ weights / total)[:, None]) * np.sqrt(weights / (total - 1))
            overlap = _overlap(columns, min(len(self._half), len(weights)) >= d)
            drawn[place] = _combine(self._mean - centre - mean, self._trace + float(trace), overlap)
            if on_step is not None:
                on_step(place + 1, len(counts))
        return drawn


@dataclass(frozen=True)
class _Moments:
    """A mean and a factor of the covariance, `S = factor^T factor`."""

    mean: Array
    factor: Array

    @property
    def trace(self) -> float:
        return float((self.factor**2).sum())


def _moments(x: Array, counts: Array | None = None) -> _Moments:
    """Moments of rows that occur `counts` times each; a row enters once, scaled, however often it occurs."""
    counts = np.ones(len(x)) if counts is None else counts
    present = counts > 0
    rows, weights = x[present], counts[present]
    total = weights.sum()
    mean = weights @ rows / total
    return _Moments(mean, np.sqrt(weights / (total - 1))[:, None] * (rows - mean))


def _compact(factor: Array) -> Array:
    """The triangle R of factor = QR where there are more rows than columns: R^T R is the same covariance."""
    if factor.shape[0] <= factor.shape[1]:
        return factor
    triangle: Array = np.linalg.qr(factor, mode="r")  # type: ignore[assignment]
    return triangle


def _half(covariance: Array) -> Array:
    """A square matrix H with H^T H the covariance."""
    values, vectors = np.linalg.eigh(covariance)
    result: Array = (vectors * np.sqrt(np.clip(values, 0, None))).T
    return result


def _overlap(product: Array, full: bool) -> float:
    """Sum of the singular values of `R A^T`; by eigenvalues, which are faster, if both covariances have full rank."""
    if full:
        return _sum_of_roots(product @ product.T)
    return float(np.linalg.svd(product, compute_uv=False).sum())


def _sum_of_roots(square: Array) -> float:
    return float(np.sqrt(np.clip(np.linalg.eigvalsh(square), 0, None)).sum())


def _combine(apart: Array, traces: float, overlap: float) -> float:
    return max(float((apart**2).sum()) + traces - 2 * overlap, 0.0)


# --- kernel distance ---


def kernel_distance(x: Features, y: Features, *, paired: bool = False) -> float:
    """Return the kernel distance of two sets of features: the unbiased estimate of the squared MMD.

    The kernel is `k(a, b) = (a . b / d + 1)^3` and pairs of a sample with itself are left out within each set
    (Binkowski et al. 2018, on all samples instead of on subsets). Its expectation does not depend on the number of
    samples. That holds for independent sets. Where row `i` of both belongs to one prompt, the pairs of row `i` with row
    `i` must be left out between the sets too (Gretton et al. 2012, Lemma 6): they are more alike than others, and
    would make an arm appear the nearer to the reference the closer it follows the prompts.

    Args:
        x: Features, [n, d], n at least 2.
        y: Features, [m, d], m at least 2.
        paired: Whether row `i` of both belongs to prompt `i`.

    Returns:
        The estimate; below 0 at times where the sets come from one distribution.

    Raises:
        ValueError: If the shapes do not fit, a side has fewer than 2 samples, or a value is not finite.

    Example:
        >>> kernel_distance(np.array([[0.0], [0.0]]), np.array([[1.0], [1.0]]))
        7.0
    """
    x, y = _check_features(x=x, y=y)
    return KernelDistances(x, paired=paired).of(y)


class KernelDistances:
    """Kernel distances of arms from one reference; what the reference alone decides is computed once.

    Args:
        real: Features of the reference, [m, d].
        paired: Whether row `i` of reference and arms belongs to prompt `i`; see `kernel_distance`.

    Raises:
        ValueError: If `real` is not of this shape, or not finite.

    Example:
        >>> KernelDistances(np.array([[0.0], [0.0]])).of(np.array([[1.0], [1.0]]))
        7.0
    """

    def __init__(self, real: Features, *, paired: bool = False) -> None:
        (self._real,) = _check_features(real=real)
        self._paired = paired

    @cached_property
    def _within(self) -> float:
        return _mean_of_pairs(self._real, self._real)

    def of(self, arm: Features) -> float:
        """Return the distance of an arm's features [n, d] from the reference."""
        arm = self._check(arm)
        across = _mean_of_pairs(self._real, arm) if self._paired else self._sums(arm).mean() / len(self._real)
        return self._within + _mean_of_pairs(arm, arm) - 2 * float(across)

    def draws(self, arm: Features, counts: Array, on_step: OnStep | None = None) -> Array:
        """Return the distances of resampled prompts, [resamples], less the term of the reference alone.

        That term is the same for all arms, so it has no part in a difference. Pairs of two copies of one prompt are
        left out, as the estimate leaves out pairs of a sample with itself.

        Args:
            arm: Features of the arm, [n, d].
            counts: How often each resample draws each prompt, [resamples, n].
            on_step: Called after each block of rows.
        """
        arm = self._check(arm)
        total = counts.sum(axis=1)
        apart = total**2 - (counts**2).sum(axis=1)  # ordered pairs of draws of two different prompts
        within = _sums_of_pairs(arm, arm, counts, on_step) / apart
        if self._paired:
            across = _sums_of_pairs(self._real, arm, counts, on_step) / apart
        else:
            across = counts @ self._sums(arm) / (total * len(self._real))
        result: Array = within - 2 * across
        return result

    def _check(self, arm: Features) -> Array:
        return _check_arm(arm, self._real.shape[1], len(self._real) if self._paired else None)

    def _sums(self, arm: Array) -> Array:
        """For each row of the arm, the sum of its kernels with the reference, [n]."""
        return np.concatenate([block.sum(axis=1) for _, block in _kernel_blocks(arm, self._real)])


def _mean_of_pairs(x: Array, y: Array) -> float:
    """Mean kernel of rows `i` of one and `j` of the other, without those with `i = j`."""
    n = len(x)
    everything = sum(float(block.sum()) for _, block in _kernel_blocks(x, y))
    return (everything - float(_kernel_of_pairs(x, y).sum())) / (n * (n - 1))


def _sums_of_pairs(x: Array, y: Array, counts: Array, on_step: OnStep | None) -> Array:
    """Sum of the kernels of different prompts, each as often as both were drawn, [resamples]."""
    total = np.zeros(len(counts))
    for rows, block in _kernel_blocks(x, y):
        total += (counts[:, rows] * (counts @ block.T)).sum(axis=1)
        if on_step is not None:
            on_step(min(rows.stop, len(x)), len(x))
    result: Array = total - counts**2 @ _kernel_of_pairs(x, y)
    return result


def _kernel_of_pairs(x: Array, y: Array) -> Array:
    result: Array = ((x * y).sum(axis=1) / x.shape[1] + 1) ** 3
    return result


def _kernel_blocks(x: Array, y: Array) -> Iterator[tuple[slice, Array]]:
    for start in range(0, len(x), _BLOCK):
        rows = slice(start, start + _BLOCK)
        yield rows, (x[rows] @ y.T / x.shape[1] + 1) ** 3


# --- intervals ---


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
    all three, so that what the arms share cancels. `kernel_distance` is taken with `paired=True`: pairs of one prompt
    are left out, between the sets and where a resample holds copies, so that only the distributions count. Other
    statistics also hold how alike a picture and the reference of its own prompt are; where the arms differ in that,
    their interval lies at another value than the difference of the distributions.

    The interval is that of the percentiles, moved so that the mean of the resamples lies at the difference itself.
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
    _check_bootstrap(resamples, confidence)
    real, stock, fast = _check_features(real=real, stock=stock, fast=fast)
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
        drawn = np.array([_difference(real, stock, fast, statistic, row) for row in counts])
        return delta_of(statistic(real, fast) - statistic(real, stock), drawn, len(real), confidence)
    if np.array_equal(stock, fast):
        return Delta(0.0, 0.0, 0.0)
    drawn = distances.draws(fast, counts) - distances.draws(stock, counts)
    return delta_of(distances.of(fast) - distances.of(stock), drawn, len(real), confidence)


def delta_of(value: float, drawn: Array, n: int, confidence: float = 0.95) -> Delta:
    """Return a difference with the interval that its resamples give, moved so that their mean lies at the difference.

    Args:
        value: The difference, from all prompts.
        drawn: The difference on each resample, [resamples].
        n: Prompts; with fewer than 6 the ends are those of all resamples, since no share of them means anything.
        confidence: Share of the resamples inside the interval.

    Example:
        >>> delta_of(1.0, np.array([2.0, 3.0, 4.0]), n=5)
        Delta(value=1.0, low=0.0, high=2.0)
    """
    low, high = _percentiles(drawn - drawn.mean(), 1.0 if n < FEWEST_FOR_INTERVAL else confidence)
    return Delta(value, value + low, value + high)


def spread_of(n: int) -> str:
    """Return what the two ends beside a figure from `n` values are.

    Example:
        >>> spread_of(2), spread_of(8)
        ('range of 2', '95% interval')
    """
    return "95% interval" if n >= FEWEST_FOR_INTERVAL else f"range of {n}"


def interval(
    values: npt.ArrayLike,
    statistic: Callable[..., Any] = np.median,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Return a statistic of per-prompt values with a percentile bootstrap interval over prompts.

    Of fewer than 6 values the ends are the least and the greatest: no bootstrap of so few covers 95%.

    Args:
        values: One value a prompt, [n]; infinite ones are allowed (PSNR of equal pictures).
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
    _check_bootstrap(resamples, confidence)
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or not len(data) or np.isnan(data).any():
        raise ValueError(
            f"values of shape {data.shape} with {int(np.isnan(data).sum())} NaN; "
            "give one number a prompt, at least one and none NaN: leave out prompts that were not measured."
        )
    value = float(statistic(data, axis=0))
    if len(data) < FEWEST_FOR_INTERVAL:
        return Interval(value, float(data.min()), float(data.max()))
    rng = np.random.default_rng(seed)
    drawn = [
        float(statistic(data[rng.integers(0, len(data), len(data))], axis=0))  # one at a time: little memory
        for _ in range(resamples)
    ]
    return Interval(value, *_percentiles(np.array(drawn), confidence))


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
    distance to a reference that is not drawn with them.

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


def _percentiles(drawn: Array, confidence: float) -> tuple[float, float]:
    # Order statistics, not interpolation between them: the difference of two infinite values is no number.
    ordered, tail = np.sort(drawn), (1 - confidence) / 2
    low = int(np.floor(tail * (len(ordered) - 1)))
    return float(ordered[low]), float(ordered[len(ordered) - 1 - low])


def _check_bootstrap(resamples: int, confidence: float) -> None:
    if resamples < 1:
        raise ValueError(f"resamples={resamples} is below 1, the fewest a bootstrap can draw; 1000 are usual.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, ends excluded; 0.95 is usual.")


def _check_arm(arm: Features, d: int, n: int | None = None) -> Array:
    (checked,) = _check_features(arm=arm)
    if checked.shape[1] != d or n not in (None, len(checked)):
        raise ValueError(
            f"arm has shape {checked.shape}; the reference has {d} features a sample"
            f"{'' if n is None else f' and, paired, {n} rows'}: extract both with one extractor, for the same prompts."
        )
    return checked


def _check_moments(**moments: Array) -> list[Array]:
    """Means and covariances in turn, as arrays of float64."""
    checked = {name: np.asarray(value, dtype=np.float64) for name, value in moments.items()}
    first = next(iter(checked.values()))
    d = len(first) if first.ndim == 1 else 0
    for place, (name, value) in enumerate(checked.items()):
        if value.shape != ((d,), (d, d))[place % 2] or not d:
            raise ValueError(
                f"{name} has shape {value.shape}; means must be [d], covariances [d, d]: use one d for all."
            )
        if not np.isfinite(value).all():
            raise ValueError(f"{name} holds values that are not finite; compute it anew from finite features.")
        if value.ndim == 2 and not np.allclose(value, value.T, rtol=1e-6, atol=1e-9 * float(np.abs(value).max())):
            raise ValueError(f"{name} is not symmetric, as a covariance must be; give X^T X of centred features.")
    return list(checked.values())


def _check_features(**sets: Features) -> list[Array]:
    checked: list[Array] = []
    for name, features in sets.items():
        array = np.asarray(features, dtype=np.float64)
        if array.ndim != 2 or array.shape[0] < 2 or array.shape[1] < 1:
            raise ValueError(f"{name} has shape {array.shape}; it must be [n, d] with n at least 2: give more samples.")
        if checked and array.shape[1] != checked[0].shape[1]:
            raise ValueError(
                f"{name} has {array.shape[1]} features a sample, {next(iter(sets))} {checked[0].shape[1]}; "
                "they must be equal: extract both with one extractor."
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds values that are not finite; extract the features of those pictures anew.")
        checked.append(array)
    return checked
