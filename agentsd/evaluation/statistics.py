"""Distances between sets of features, and intervals by bootstrap: pure functions in float64.

A Fréchet distance from few samples is biased upwards, by an amount that depends on the model (Chong & Forsyth 2020),
and a bootstrap adds the same bias once more: an interval of one absolute distance misses its own estimate. Hence only
differences between two arms drawn from the same prompts have an interval here. In a difference the bias cancels where
the arms spread equally, and in part where they do not; the kernel distance has none.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.floating[Any]]
Array = npt.NDArray[np.float64]
Distance = Callable[[Array, Array], float]

ENOUGH_SAMPLES = 2048  # features of the FID network: with fewer samples its covariance has no full rank
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


def small_sample_stamp(n: int) -> str:
    """Return what must stand beside every Fréchet distance from `n` samples; empty if they are enough.

    Args:
        n: Samples on the smaller side, at least 1.

    Returns:
        A remark, empty from 2048 samples on.

    Raises:
        ValueError: If `n` is below 1.

    Example:
        >>> small_sample_stamp(200)
        'n=200 < 2048: biased high; comparative only'
        >>> small_sample_stamp(5000)
        ''
    """
    if n < 1:
        raise ValueError(f"n={n} samples; a distance needs at least 1: evaluate some pictures.")
    return "" if n >= ENOUGH_SAMPLES else f"n={n} < {ENOUGH_SAMPLES}: biased high; comparative only"


# --- Fréchet distance ---


def frechet_distance(x: Features, y: Features) -> float:
    """Return the Fréchet distance of two sets of features: `|m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2))`.

    Means and covariances are those of Heusel et al. 2017. With `A = (X - m) / sqrt(n - 1)`, `Tr (S1 S2)^(1/2)` is the
    sum of the singular values of `A1 A2^T`; that is used where one side has fewer samples than features, and is exact
    where eigenvalues lose half of the digits. Otherwise it is the sum of the roots of the eigenvalues of
    `S1^(1/2) S2 S1^(1/2)`.

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
    return _frechet(_moments(x), _moments(y))


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
    mu1, mu2, cov1, cov2 = (np.asarray(value, dtype=np.float64) for value in (mu1, mu2, cov1, cov2))
    d = len(mu1) if mu1.ndim == 1 else 0
    for name, value, shape in (("mu1", mu1, (d,)), ("cov1", cov1, (d, d)), ("mu2", mu2, (d,)), ("cov2", cov2, (d, d))):
        if value.shape != shape or not d:
            raise ValueError(
                f"{name} has shape {value.shape}; means must be [d], covariances [d, d]: use one d for all."
            )
        if not np.isfinite(value).all():
            raise ValueError(f"{name} holds values that are not finite; compute it anew from finite features.")
        if value.ndim == 2 and not np.allclose(value, value.T, rtol=1e-6, atol=1e-9 * float(np.abs(value).max())):
            raise ValueError(f"{name} is not symmetric, as a covariance must be; give X^T X of centred features.")
    overlap = _overlap_of_roots(_root(cov1), cov2)
    return _combine(mu1, float(np.trace(cov1)), mu2, float(np.trace(cov2)), overlap)


@dataclass(frozen=True)
class _Moments:
    """A mean and a factor of the covariance, `S = factor^T factor`."""

    mean: Array
    factor: Array

    @property
    def wide(self) -> bool:
        return len(self.factor) < self.mean.size


def _moments(x: Array, counts: Array | None = None) -> _Moments:
    """Moments of rows that occur `counts` times each; a row enters once, scaled, however often it occurs."""
    counts = np.ones(len(x)) if counts is None else counts
    present = counts > 0
    rows, weights = x[present], counts[present]
    total = weights.sum()
    mean = weights @ rows / total
    return _Moments(mean, np.sqrt(weights / (total - 1))[:, None] * (rows - mean))


def _frechet(one: _Moments, other: _Moments, root: Array | None = None) -> float:
    if one.wide or other.wide:
        product = _compact(one.factor) @ _compact(other.factor).T
        overlap = float(np.linalg.svd(product, compute_uv=False).sum())
    else:
        root = _root(one.factor.T @ one.factor) if root is None else root
        overlap = _overlap_of_roots(root, other.factor.T @ other.factor)
    return _combine(one.mean, float((one.factor**2).sum()), other.mean, float((other.factor**2).sum()), overlap)


def _compact(factor: Array) -> Array:
    """The triangle R of factor = QR where there are more samples than features: R^T R is the same covariance."""
    if factor.shape[0] <= factor.shape[1]:
        return factor
    triangle: Array = np.linalg.qr(factor, mode="r")  # type: ignore[assignment]
    return triangle


def _root(covariance: Array) -> Array:
    values, vectors = np.linalg.eigh(covariance)
    result: Array = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return result


def _overlap_of_roots(root: Array, covariance: Array) -> float:
    values = np.linalg.eigvalsh(root @ covariance @ root)
    return float(np.sqrt(np.clip(values, 0, None)).sum())


def _combine(mean1: Array, trace1: float, mean2: Array, trace2: float, overlap: float) -> float:
    return max(float(((mean1 - mean2) ** 2).sum()) + trace1 + trace2 - 2 * overlap, 0.0)


# --- kernel distance ---


def kernel_distance(x: Features, y: Features) -> float:
    """Return the kernel distance of two sets of features: the unbiased estimate of the squared MMD.

    The kernel is `k(a, b) = (a . b / d + 1)^3` and pairs of a sample with itself are left out within each set
    (Binkowski et al. 2018, on all samples instead of on subsets). Its expectation does not depend on the number of
    samples.

    Args:
        x: Features, [n, d], n at least 2.
        y: Features, [m, d], m at least 2.

    Returns:
        The estimate; below 0 at times where the sets come from one distribution.

    Raises:
        ValueError: If the shapes do not fit, a side has fewer than 2 samples, or a value is not finite.

    Example:
        >>> kernel_distance(np.array([[0.0], [0.0]]), np.array([[1.0], [1.0]]))
        7.0
    """
    x, y = _check_features(x=x, y=y)
    n, m = len(x), len(y)
    across = sum(float(block.sum()) for _, block in _kernel_blocks(x, y)) / (n * m)
    return _within(x) / (n * (n - 1)) + _within(y) / (m * (m - 1)) - 2 * across


def _within(x: Array) -> float:
    return sum(float(block.sum()) for _, block in _kernel_blocks(x, x)) - float(_kernel_of_pairs(x, x).sum())


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
    all three, so that what the arms share cancels. For `kernel_distance`, pairs of two copies of one prompt are left
    out, as the estimate leaves out pairs of a sample with itself.

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
        confidence: Share of the bootstrap distribution inside the interval, between 0 and 1.

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
    counts = _draw_counts(len(real), resamples, seed)
    if statistic is frechet_distance:
        drawn = np.array([_frechet_difference(real, stock, fast, row) for row in counts])
    elif statistic is kernel_distance:
        drawn = _kernel_differences(real, stock, fast, counts)
    else:
        drawn = np.array([_difference(real, stock, fast, statistic, row) for row in counts])
    value = statistic(real, fast) - statistic(real, stock)
    low, high = _percentiles(drawn - drawn.mean(), confidence)
    return Delta(value, value + low, value + high)


def interval(
    values: npt.ArrayLike,
    statistic: Callable[..., Any] = np.median,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Return a statistic of per-prompt values with a percentile bootstrap interval over prompts.

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
    rng = np.random.default_rng(seed)
    drawn = [
        float(statistic(data[rng.integers(0, len(data), len(data))], axis=0))  # one at a time: little memory
        for _ in range(resamples)
    ]
    return Interval(float(statistic(data, axis=0)), *_percentiles(np.array(drawn), confidence))


def _draw_counts(n: int, resamples: int, seed: int) -> Array:
    """How often each of `n` prompts occurs, [resamples, n]; draws of fewer than 2 distinct prompts are made anew."""
    rng = np.random.default_rng(seed)
    rows: list[Array] = []
    while len(rows) < resamples:
        counts = np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)
        if np.count_nonzero(counts) > 1:
            rows.append(counts)
    return np.stack(rows)


def _frechet_difference(real: Array, stock: Array, fast: Array, counts: Array) -> float:
    reference = _moments(real, counts)
    root = None if reference.wide else _root(reference.factor.T @ reference.factor)
    one, other = (_frechet(reference, _moments(arm, counts), root) for arm in (fast, stock))
    return one - other


def _kernel_differences(real: Array, stock: Array, fast: Array, counts: Array) -> Array:
    n = len(real)
    apart = float(n) ** 2 - (counts**2).sum(axis=1)  # ordered pairs of draws of two different prompts
    within = _different_pairs((fast, fast), (stock, stock), counts)
    across = _different_pairs((real, fast), (real, stock), counts)
    same_draw = counts @ (_kernel_of_pairs(real, fast) - _kernel_of_pairs(real, stock))
    result: Array = within / apart - 2 * (across + same_draw) / (apart + n)
    return result


def _different_pairs(plus: tuple[Array, Array], minus: tuple[Array, Array], counts: Array) -> Array:
    """Sum of kernel differences over pairs of different prompts, weighted by how often both were drawn, [resamples]."""
    total = np.zeros(len(counts))
    for (rows, one), (_, other) in zip(_kernel_blocks(*plus), _kernel_blocks(*minus), strict=True):
        # Kernels are subtracted before they are summed, so that equal arms differ by exactly nothing.
        total += (counts[:, rows] * (counts @ (one - other).T)).sum(axis=1)
    return total - counts**2 @ (_kernel_of_pairs(*plus) - _kernel_of_pairs(*minus))


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
