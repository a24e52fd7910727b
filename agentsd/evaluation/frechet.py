"""The Fréchet distance between sets of features, in float64.

A Fréchet distance from few samples is biased upwards, by an amount that depends on the model (Chong & Forsyth 2020).
Where the reference is paired with the prompts, it also holds how closely an arm follows them.
"""

from dataclasses import dataclass

import numpy as np

from agentsd.evaluation.feature_sets import (
    Array,
    Features,
    OnStep,
    checked_arm,
    checked_features,
    checked_moments,
)


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
    x, y = checked_features(x=x, y=y)
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
    mu1, cov1, mu2, cov2 = checked_moments(mu1=mu1, cov1=cov1, mu2=mu2, cov2=cov2)
    half = _half(cov1)
    overlap = _sum_of_roots(half @ cov2 @ half.T)
    return _combine(mu1 - mu2, float(np.trace(cov1)) + float(np.trace(cov2)), overlap)


class FrechetDistances:
    """Fréchet distances of arms from one reference; what the reference alone decides is computed once.

    Args:
        real: Features of the reference, [m, d], or its mean [d] and covariance [d, d].
        paired: Whether row `i` of reference and arms belongs to prompt `i`; resampling then takes both.

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
            self._mean, covariance = checked_moments(mean=real[0], covariance=real[1])
            self._half, self._trace = _half(covariance), float(np.trace(covariance))
        else:
            (rows,) = checked_features(real=real)
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
        real, arm = self._rows, checked_arm(arm, self._mean.size, len(self._rows))
        values = np.empty(len(counts))
        for place, row in enumerate(counts):
            one, other = _moments(real, row), _moments(arm, row)
            full = min(len(one.factor), len(other.factor)) >= real.shape[1]
            overlap = _overlap(_compact(one.factor) @ other.factor.T, full)
            values[place] = _combine(one.mean - other.mean, one.trace + other.trace, overlap)
            if on_step is not None:
                on_step(place + 1, len(counts))
        return values

    def _from_fixed(self, arm: Features, counts: Array, on_step: OnStep | None = None) -> Array:
        arm = checked_arm(arm, self._mean.size)
        n, d = arm.shape
        centre = arm.mean(axis=0)
        rows = arm - centre
        squares, product = (rows**2).sum(axis=1), self._half @ rows.T
        if n < d:
            product = _compact(product)  # the same singular values, whatever columns are taken
        totals = counts.sum(axis=1)
        means = counts @ rows / totals[:, None]
        traces = (counts @ squares - totals * (means**2).sum(axis=1)) / (totals - 1)
        values = np.empty(len(counts))
        for place, (row, total, mean, trace) in enumerate(zip(counts, totals, means, traces, strict=True)):
            present = row > 0
            weights = row[present]
            columns = product[:, present]
            columns = (columns - (columns @ weights / total)[:, None]) * np.sqrt(weights / (total - 1))
            overlap = _overlap(columns, min(len(self._half), len(weights)) >= d)
            values[place] = _combine(self._mean - centre - mean, self._trace + float(trace), overlap)
            if on_step is not None:
                on_step(place + 1, len(counts))
        return values


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
