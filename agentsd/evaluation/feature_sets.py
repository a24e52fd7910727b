"""Sets of features as the distances take them: checked, in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.floating[Any]]
Array = npt.NDArray[np.float64]
OnStep = Callable[[int, int], object]  # called with what is done, and with all there is to do


def checked_features(**sets: Features) -> list[Array]:
    """Return sets of features as float64, [n, d] each with one d.

    Args:
        sets: The sets by name.

    Raises:
        ValueError: If a shape does not fit, a side has fewer than 2 samples, or a value is not finite.

    Example:
        >>> checked_features(x=np.zeros((2, 3)))[0].dtype
        dtype('float64')
    """
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


def checked_arm(arm: Features, d: int, n: int | None = None) -> Array:
    """Return an arm's features as float64, [n, d].

    Args:
        arm: Features of the arm.
        d: Features a sample that the reference has.
        n: Rows that the reference has, where rows are paired.

    Raises:
        ValueError: If the shape does not fit the reference, or a value is not finite.

    Example:
        >>> checked_arm(np.zeros((2, 3)), d=3).shape
        (2, 3)
    """
    (checked,) = checked_features(arm=arm)
    if checked.shape[1] != d or n not in (None, len(checked)):
        raise ValueError(
            f"arm has shape {checked.shape}; the reference has {d} features a sample"
            f"{'' if n is None else f' and, paired, {n} rows'}: extract both with one extractor, for the same prompts."
        )
    return checked


def checked_moments(**moments: Array) -> list[Array]:
    """Return means and covariances in turn, as arrays of float64.

    Args:
        moments: Means [d] and covariances [d, d] by name, in turn.

    Raises:
        ValueError: If the shapes do not fit, a value is not finite, or a covariance is not symmetric.

    Example:
        >>> len(checked_moments(mean=np.zeros(2), covariance=np.eye(2)))
        2
    """
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
