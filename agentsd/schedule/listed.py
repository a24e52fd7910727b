"""Full steps listed one by one, for runs of one length under one solver (no torch here)."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agentsd.attention.checks import check_int, check_number

MEMORY = 3  # full steps that a weighted forecast uses at most
_ALIKE = 1e-3  # by how much noise levels of one solver may differ, relatively: dtypes round them


@dataclass(frozen=True, kw_only=True)
class ListedSteps:
    """The full steps of one run, listed one by one; `agentsd.calibrate` chooses them.

    Args:
        sigmas: Noise over signal at each UNet call of the run, and after the last. Another solver or another number of
            steps has other levels. Such a run skips nothing, and the report says so.
        full: Numbers of the calls that are full steps, rising from 0.
        weights: For each skipped call, in order, the weights of the noises that the last full steps predicted, newest
            first. Empty: each forecast is 0.7 of the straight line through the last two.

    Raises:
        ValueError: If a field is of another kind, or the fields do not fit each other.

    Example:
        >>> steps = ListedSteps(sigmas=(9.0, 4.0, 2.0, 1.0, 0.5, 0.0), full=(0, 1, 2, 4))
        >>> steps.calls, steps.skipped
        (5, (3,))
    """

    sigmas: tuple[float, ...]
    full: tuple[int, ...]
    weights: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        for name in ("sigmas", "full", "weights"):
            if isinstance(getattr(self, name), str) or not isinstance(getattr(self, name), Iterable):
                raise ValueError(f"{name}={getattr(self, name)!r} must be a list.")
        object.__setattr__(self, "sigmas", tuple(self.sigmas))
        object.__setattr__(self, "full", tuple(self.full))
        object.__setattr__(self, "weights", tuple(_numbers("weights", one) for one in self.weights))
        _numbers("sigmas", self.sigmas)
        if len(self.sigmas) < 3 or min(self.sigmas) < 0:
            raise ValueError(f"sigmas={self.sigmas!r} must hold three or more noise levels, none below 0.")
        for index in self.full:
            check_int("full", index, minimum=0)
        if self.full[:2] != (0, 1) or self.full[-1] >= self.calls or sorted(set(self.full)) != list(self.full):
            raise ValueError(
                f"full={self.full!r} must rise from 0 to at most {self.calls - 1}, the last call of the noise levels, "
                "and hold call 1: a forecast needs two full steps."
            )
        if self.weights and len(self.weights) != len(self.skipped):
            raise ValueError(
                f"weights hold {len(self.weights)} lists for {len(self.skipped)} skipped calls; give one for each, or "
                "none at all."
            )
        for index, one in zip(self.skipped, self.weights, strict=False):
            most = min(MEMORY, sum(full < index for full in self.full))
            if not 1 <= len(one) <= most:
                raise ValueError(f"weights of call {index} are {one!r}; there must be 1 to {most} of them.")

    @property
    def calls(self) -> int:
        """UNet calls of the run at stock."""
        return len(self.sigmas) - 1

    @property
    def skipped(self) -> tuple[int, ...]:
        """Numbers of the calls that are skipped."""
        return tuple(index for index in range(self.calls) if index not in set(self.full))

    def fits(self, sigmas: Sequence[float]) -> bool:
        """Return whether a run has the noise levels that the list was made for.

        Example:
            >>> ListedSteps(sigmas=(2.0, 1.0, 0.0), full=(0, 1)).fits((2.0, 1.0, 0.5, 0.0))
            False
        """
        return len(sigmas) == len(self.sigmas) and all(
            math.isclose(one, other, rel_tol=_ALIKE, abs_tol=1e-4)
            for one, other in zip(sigmas, self.sigmas, strict=True)
        )


def _numbers(name: str, values: Iterable[float]) -> tuple[float, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{name}={values!r} must be a list of numbers.")
    found = tuple(values)
    for value in found:
        check_number(name, value)
        if math.isinf(value):
            raise ValueError(f"{name}={value!r} must be a finite number.")
    return found
