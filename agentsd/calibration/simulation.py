"""What skipping calls would cost, computed from recorded runs without the denoiser, and the full steps of least cost.

An error of the value that call `i` gets (the noise, or the denoised picture under solvers that add noise) moves the
final latent by `c_i` times that error (`agentsd.calibration.solver`). A forecast is a weighted sum of the values of
earlier full steps. So the error of a whole run is a weighted sum of recorded values, and its square needs their inner
products alone: one small matrix for each run.

What is left out: later predictions react to earlier errors. `agentsd.calibrate` therefore measures its choice in real
runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agentsd.schedule.listed import MEMORY
from agentsd.unet.controller import FADE

Array = npt.NDArray[np.float64]

FIRST = 2  # full steps at the start: a forecast needs two
MOST_SKIPPED = 5  # in a row
_RIDGE = 1e-6  # pulls fitted weights to the straight line, in units of the values' own size


@dataclass(frozen=True, eq=False)
class Simulation:
    """Recorded runs as inner products.

    Args:
        products: Inner products of each run's values, over the squared length of its final latent, [runs, n, n].
        sensitivities: How far the final latent moves for each unit of error of each value, [n].
        times: Place of each call in time, [n].

    Example:
        >>> values = np.arange(5.0)[:, None]  # on a straight line
        >>> flat = Simulation((values @ values.T)[None], np.ones(5), np.arange(5.0))
        >>> flat.errors((0, 1, 4), flat.weights((0, 1, 4))).round(3)
        array([0.])
    """

    products: Array
    sensitivities: Array
    times: Array

    @property
    def calls(self) -> int:
        """Calls of a run."""
        return len(self.sensitivities)

    def line(self, index: int, full: Sequence[int]) -> tuple[float, ...]:
        """Return the weights of 0.7 of the straight line at a call, newest full step first."""
        last, before = full[-1], full[-2]
        if self.times[last] <= self.times[before]:  # one noise level twice: no line goes through both
            return (1.0, 0.0)
        share = FADE * (self.times[index] - self.times[last]) / (self.times[last] - self.times[before])
        return (1 + share, -share)

    def fitted(self, index: int, full: Sequence[int]) -> tuple[float, ...]:
        """Return the weights of the last full steps that fit a call's value best over all runs, newest first."""
        mean = self.products.mean(0)
        places = list(full[: -MEMORY - 1 : -1])
        start = np.zeros(len(places))
        start[:2] = self.line(index, full)
        inner = mean[np.ix_(places, places)]
        ridge = _RIDGE * np.trace(inner) / len(places) * np.eye(len(places))
        found = start + np.linalg.solve(inner + ridge, mean[places, index] - inner @ start)
        return tuple(float(one) for one in found)

    def weights(self, full: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """Return the fitted weights of every skipped call, in order."""
        return tuple(self.fitted(index, _before(full, index)) for index in self._skipped(full))

    def lines(self, full: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """Return the weights of the straight line for every skipped call, in order."""
        return tuple(self.line(index, _before(full, index)) for index in self._skipped(full))

    def errors(self, full: Sequence[int], weights: Sequence[Sequence[float]]) -> Array:
        """Return the relative error of each run's final latent.

        Args:
            full: Numbers of the full calls.
            weights: For each skipped call the weights of the last full steps, newest first.

        Returns:
            One error a run, [runs].
        """
        moved = self.moved(full, weights)
        squares = np.einsum("i,rij,j->r", moved, self.products, moved)
        return np.asarray(np.sqrt(np.maximum(squares, 0)))

    def error(self, full: Sequence[int]) -> float:
        """Return the root mean square of the errors of all runs with fitted weights."""
        return float(np.sqrt(np.square(self.errors(full, self.weights(full))).mean()))

    def moved(self, full: Sequence[int], weights: Sequence[Sequence[float]]) -> Array:
        """Return by how much of each recorded value the final latent is off, [n]."""
        total = np.zeros(self.calls)
        for index, one in zip(self._skipped(full), weights, strict=True):
            total += self.off(index, _before(full, index), one)
        return total

    def off(self, index: int, full: Sequence[int], weights: Sequence[float]) -> Array:
        """Return by how much of each recorded value the final latent is off if one call is skipped, [n]."""
        off = np.zeros(self.calls)
        off[index] = -self.sensitivities[index]
        for place, weight in zip(full[::-1], weights, strict=False):
            off[place] += weight * self.sensitivities[index]
        return off

    def _skipped(self, full: Sequence[int]) -> list[int]:
        return [index for index in range(self.calls) if index not in set(full)]


def _before(full: Sequence[int], index: int) -> Sequence[int]:
    return [one for one in full if one < index]
