"""What is kept of a denoising run: the cached features of its full steps."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from agentsd.schedule import Schedule
from agentsd.unet.controller import Controller
from agentsd.unet.steps import Position


@dataclass(frozen=True)
class Cached:
    """The feature of full step `index`, and its change since the full step `gap` steps before."""

    feature: Tensor
    index: int
    change: Tensor | None = None
    gap: int = 1

    def conditional(self) -> "Cached":
        """Return what was kept for the second half of the samples."""
        half = self.feature.shape[0] // 2
        return replace(self, feature=self.feature[half:], change=None if self.change is None else self.change[half:])

    def at(self, position: Position, schedule: Schedule) -> Tensor:
        """Return what to start a step from."""
        if self.change is None:
            return self.feature
        distance = position.index - self.index
        weight = schedule.forecast_at(position.index, position.total, gap=self.gap, distance=distance)
        return torch.add(self.feature, self.change, alpha=weight * distance / self.gap)


_Calls: TypeAlias = "list[tuple[Tensor | None, int]]"  # context and number of the calls of a step


class Run:
    """Features of one run, by call: some pipelines call several times a step, for guidance branches or views.

    A call is told by its context, and among calls with one context by their order. A call that is none of the run's,
    such as one to warm up on its first timestep, looks like one more of these: several with one context are taken for
    the rule when two steps had as many.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.index = -1
        self.call = -1
        self.settled = True  # whether the call in progress is known to be the one of the step before
        self.kept: dict[int, Cached] = {}
        self.controllers: dict[int, Controller | str] = {}  # by call; a text says why there is none
        self.observing: Callable[[Tensor], None] | None = None  # takes the prediction of the full step in progress
        self.twice: dict[int, bool] = {}  # by samples in a call: whether guidance repeats them
        self._steps: tuple[_Calls, _Calls, _Calls] = ([], [], [])  # the step in progress last
        self._calls = 0

    def enter(self, index: int, context: Tensor | None) -> None:
        """Tell which call this is, of step `index`."""
        if index != self.index:
            self.index, self._steps = index, (*self._steps[1:], [])
            going_on = {call for _, call in self._steps[1]}
            self.kept = {call: kept for call, kept in self.kept.items() if call in going_on}
            self.controllers = {call: one for call, one in self.controllers.items() if call in going_on}
        alike = [[call for known, call in step if _same(known, context)] for step in self._steps]
        if not alike[1]:  # a context made anew at every step: by order alone
            alike = [[call for _, call in step] for step in self._steps]
        earlier, before, now = alike
        self.settled = len(before) in (1, len(earlier))
        if len(now) < len(before):
            self.call = before[len(now)]
        else:
            self.call, self._calls = self._calls, self._calls + 1
        # Held, so that another tensor cannot come to its address.
        self._steps[2].append((None if context is None else context.detach(), self.call))


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape


def fits(feature: Tensor, sample: Tensor) -> bool:
    """Return whether a feature has the batch, size and device of a sample."""
    return (
        feature.shape[0] == sample.shape[0]
        and feature.shape[-2:] == sample.shape[-2:]
        and feature.device == sample.device
    )


def halves(feature: Tensor, sample: Tensor) -> bool:
    """Return whether a feature has the size of a sample and half its batch."""
    return 2 * feature.shape[0] == sample.shape[0] and feature.shape[-2:] == sample.shape[-2:]
