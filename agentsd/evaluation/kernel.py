"""The kernel distance between sets of features, in float64: unbiased, also for few samples."""

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from agentsd.evaluation.feature_sets import Array, Features, OnStep, checked_arm, checked_features

_BLOCK = 512  # rows of a kernel matrix at a time: 30,000 samples take 120 MB


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
    x, y = checked_features(x=x, y=y)
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
        (self._real,) = checked_features(real=real)
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
        return checked_arm(arm, self._real.shape[1], len(self._real) if self._paired else None)

    def _sums(self, arm: Array) -> Array:
        """For each row of the arm, the sum of its kernels with the reference, [n]."""
        return np.concatenate([block.sum(axis=1) for _, block in _kernel_blocks(arm, self._real)])


def _mean_of_pairs(x: Array, y: Array) -> float:
    """Mean kernel of rows `i` of one and `j` of the other, without those with `i = j`."""
    n = len(x)
    everything = sum(float(block.sum()) for _, block in _kernel_blocks(x, y))
    return (everything - float(_kernel_of_pairs(x, y).sum())) / (n * (n - 1))


def _sums_of_pairs(x: Array, y: Array, counts: Array, on_step: OnStep | None) -> Array:
    """Sum of the kernels of different prompts, each as often as both were resampled, [resamples]."""
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
