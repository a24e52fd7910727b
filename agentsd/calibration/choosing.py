"""The full steps of least simulated error, by dynamic programming and exchanges.

Idea: DPCache plans the cached steps of transformers so, from a few calibration prompts. Here a stretch of skipped calls
costs what it adds to the error of the final latent, with the forecasts that are used there.
"""

import math
from functools import cache

import numpy as np

from agentsd.calibration.simulation import FIRST, MOST_SKIPPED, Simulation

_REACH = 3  # how far an exchange moves a full step
_GAIN = 0.999  # an exchange is kept below this share of the error before


def fewest(calls: int) -> int:
    """Return the fewest full steps that a choice for a run of so many calls can have.

    Example:
        >>> fewest(10)
        3
    """
    return FIRST + max(0, math.ceil((calls - FIRST - MOST_SKIPPED) / (MOST_SKIPPED + 1)))


def check_number_of_calls(number: int, calls: int) -> None:
    """Raise ValueError unless a run of so many calls can do with a number of full steps.

    Example:
        >>> check_number_of_calls(8, 20)
    """
    if not fewest(calls) <= number <= calls:
        raise ValueError(
            f"calls={number} must lie in [{fewest(calls)}, {calls}] for runs of {calls} calls: at most "
            f"{MOST_SKIPPED} are skipped in a row."
        )


def choose(simulation: Simulation, number: int) -> tuple[int, ...]:
    """Return the full steps of least simulated error.

    The first two calls are among them, and at most five calls in a row are skipped.

    Args:
        simulation: Recorded runs.
        number: How many full steps.

    Returns:
        Numbers of the calls, rising.

    Raises:
        ValueError: If no choice has so many.

    Example:
        >>> generator = np.random.default_rng(0)
        >>> values = generator.normal(size=(8, 30)).cumsum(0)
        >>> choose(Simulation((values @ values.T)[None], np.ones(8), np.arange(8.0)), 8)
        (0, 1, 2, 3, 4, 5, 6, 7)
    """
    check_number_of_calls(number, simulation.calls)
    return _exchanged(simulation, _planned(simulation, number))


def _planned(simulation: Simulation, number: int) -> tuple[int, ...]:
    """Return the full steps whose stretches of skipped calls cost least in sum."""
    calls = simulation.calls
    mean = simulation.products.mean(0)

    @cache
    def cost(before: int, last: int, after: int) -> float:
        if after == last + 1:
            return 0.0
        full = [before, last]
        off = sum(simulation.off(index, full, simulation.fitted(index, full)) for index in range(last + 1, after))
        return float(np.sqrt(max(off @ mean @ off, 0.0)))

    # layers[k]: by the last two of k + 2 full steps, the least cost so far and the last two before that.
    layers: list[dict[tuple[int, int], tuple[float, tuple[int, int] | None]]] = [{(0, 1): (0.0, None)}]
    for _ in range(number - FIRST):
        layer: dict[tuple[int, int], tuple[float, tuple[int, int] | None]] = {}
        for (before, last), (so_far, _origin) in layers[-1].items():
            for after in range(last + 1, min(last + MOST_SKIPPED + 1, calls - 1) + 1):
                total = so_far + cost(before, last, after)
                known = layer.get((last, after))
                if known is None or total < known[0]:
                    layer[last, after] = (total, (before, last))
        layers.append(layer)
    ends = {
        (before, last): so_far + cost(before, last, calls)
        for (before, last), (so_far, _origin) in layers[-1].items()
        if calls - last <= MOST_SKIPPED + 1
    }
    pair: tuple[int, int] | None = min(ends, key=lambda one: ends[one])
    full: list[int] = []
    for layer in reversed(layers):
        if pair is None:
            break
        full.append(pair[1])
        pair = layer[pair][1]
    return (0, *reversed(full))


def _exchanged(simulation: Simulation, full: tuple[int, ...]) -> tuple[int, ...]:
    """Move single full steps while that lowers the error of whole runs."""
    error, better = simulation.error(full), True
    while better:
        better = False
        for place in range(FIRST, len(full)):
            for call in range(full[place] - _REACH, full[place] + _REACH + 1):
                if call in full or not FIRST <= call < simulation.calls:
                    continue
                other = tuple(sorted({*full[:place], call, *full[place + 1 :]}))
                if max(np.diff((*other, simulation.calls))) > MOST_SKIPPED + 1:
                    continue
                found = simulation.error(other)
                if found < _GAIN * error:
                    full, error, better = other, found, True
                    break
    return full
