"""What is kept of denoising runs: the cached features of their full steps, within a bound."""

import threading
import time
import weakref
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from agentsd.schedule import Schedule
from agentsd.unet.conditions import find_knobs
from agentsd.unet.foreign import ForeignCode
from agentsd.unet.steps import Position

MOST_BYTES = 2**29  # of the cached features of one run; one feature with its change is always kept
MOST_CALLS = 64  # calls of one step that may skip; further calls are full
REMEMBERED_RUNS = 4  # runs that may take turns on one denoiser in one thread
IDLE_SECONDS = 600.0  # after which a run of another thread counts as interrupted


@dataclass(frozen=True)
class Cached:
    """The feature of full step `index` for samples of a shape, and its change since the step `gap` steps before."""

    feature: Tensor
    index: int
    change: Tensor | None = None
    gap: int = 1
    shape: torch.Size = field(default_factory=torch.Size)

    @property
    def nbytes(self) -> int:
        """Bytes of the feature and its change."""
        return sum(tensor.nbytes for tensor in (self.feature, self.change) if tensor is not None)

    def conditional(self) -> "Cached":
        """Return what was kept for the second half of the samples."""
        half = self.feature.shape[0] // 2
        change = None if self.change is None else self.change[half:]
        return replace(self, feature=self.feature[half:], change=change, shape=torch.Size((half, *self.shape[1:])))

    def at(self, position: Position, schedule: Schedule) -> Tensor:
        """Return what to start a step from."""
        if self.change is None:
            return self.feature
        distance = position.index - self.index
        weight = schedule.forecast_at(position.index, position.total, gap=self.gap, distance=distance)
        return torch.add(self.feature, self.change, alpha=weight * distance / self.gap)


_Calls: TypeAlias = "list[tuple[Tensor | None, int]]"  # context and number of the calls of a step


class Run:
    """Cached features of one run, by call: some pipelines call several times a step, for guidance branches or views.

    A call is identified by its context, and among calls with one context by their order. A step may have more calls
    with one context than the step before. Such a call replaces the one before it: the earlier one may have been a stray
    call that warms up or times the denoiser. Calls with one context are distinguished after two steps with as many.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.schedule: Schedule | None = None
        self.index = -1
        self.call: int | None = None  # None: one of too many
        self.settled = True  # whether the call in progress surely continues one of the step before
        self.kept: dict[int, Cached] = {}
        self.policies: dict[int, Any] = {}  # they decide between full and skipped steps, by call
        self.conditions: dict[int, tuple[torch.Size, dict[str, Any]]] = {}  # of the last full step, by call
        self.outputs: dict[int, type[Any] | None] = {}  # what the denoiser returned its prediction in, by call
        self.guidance: float | None = None  # the scale that the caller names; None: not looked at
        self.left_out: int | None = None  # last steps that the loop leaves out; None: not looked at
        self.eta: float | None = None  # share of noise that the caller asks of DDIM; None: not looked at
        self.copies: dict[int, int] = {}  # by samples in a call: how often it repeats its pictures
        self.compiled: bool | None = None  # whether the denoiser is; None: not looked at
        self.trains: bool | None = None  # whether a parameter requires a gradient; None: not looked at
        self.foreign: ForeignCode | None = None  # None: not looked at
        self.knobs: list[Any] | None = None  # modules with the scales of adapters; None: not looked at
        self.touched = time.monotonic()
        self._steps: tuple[_Calls, _Calls, _Calls] = ([], [], [])  # the step in progress last
        self._calls = 0

    def look_at(self, denoiser: nn.Module) -> None:
        """Look once at what is inside the denoiser: adapters and code of others."""
        if self.knobs is None:
            self.knobs, self.foreign = find_knobs(denoiser), ForeignCode(denoiser)

    def foreign_code(self) -> str | None:
        """Return what other code inside the denoiser may need its layers at every step; `None` if nothing does."""
        return None if self.foreign is None else self.foreign.find()

    def enter(self, index: int, context: Tensor | None) -> None:
        """Find out which call this is, of step `index`."""
        self.touched = time.monotonic()
        if index != self.index:
            self.index, self._steps = index, (*self._steps[1:], [])
            going_on = {call for _, call in self._steps[1]}
            self.kept = {call: kept for call, kept in self.kept.items() if call in going_on}
            self.policies = {call: policy for call, policy in self.policies.items() if call in going_on}
            self.conditions = {call: given for call, given in self.conditions.items() if call in going_on}
        if len(self._steps[2]) >= MOST_CALLS:
            self.call, self.settled = None, False
            return
        alike = [[call for known, call in step if _same(known, context)] for step in self._steps]
        stray = bool(alike[2])  # the context was seen in this step already
        if not alike[1]:  # a context made anew at every step: by order alone
            alike = [[call for _, call in step] for step in self._steps]
        earlier, before, now = alike
        self.settled = len(before) in (1, len(earlier))
        if len(now) < len(before):
            self.call = before[len(now)]
            if self.call in now:  # it replaced another at the step before; now they are two
                self.call = self._new_call()
        elif stray:
            self.call, self.settled = now[-1], False
        else:
            self.call = self._new_call()
        # Held: no other tensor may come to its address.
        self._steps[2].append((None if context is None else context.detach(), self.call))

    def keep(self, cached: Cached) -> None:
        """Keep the feature of the call in progress."""
        if self.call is not None:
            self.kept.pop(self.call, None)
            self.kept[self.call] = cached

    def trim(self) -> None:
        """Forget the calls that were made first until the rest is within `MOST_BYTES`."""
        while self.nbytes > MOST_BYTES:
            first = next((call for call in {**self.kept, **self.policies} if call != self.call), None)
            if first is None:
                return
            self.kept.pop(first, None)
            self.policies.pop(first, None)

    def drop(self) -> None:
        """Forget what the call in progress left at earlier steps."""
        if self.call is not None:
            self.kept.pop(self.call, None)
            self.policies.pop(self.call, None)

    @property
    def nbytes(self) -> int:
        """Bytes of the cached features: at most `MOST_BYTES`, or one feature and its change."""
        return sum(one.nbytes for one in (*self.kept.values(), *self.policies.values()))

    def _new_call(self) -> int:
        self._calls += 1
        return self._calls - 1


class _Thread:
    """Stands for a thread: gone when the thread is."""


class Runs:
    """The runs in progress on a denoiser, by thread. Runs of ended or idle threads are dropped.

    At most `REMEMBERED_RUNS` a thread, each with at most `MOST_BYTES` of cached features.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self._of_thread: weakref.WeakKeyDictionary[_Thread, list[Run]] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def at(self, number: int, index: int, going_on: frozenset[int], schedule: Schedule) -> Run:
        """Return this thread's run of a number; a new one if it starts again, or goes on under another schedule.

        Args:
            number: Of the run.
            index: Of the step.
            going_on: Numbers of the runs that are not over yet.
            schedule: What the step follows.
        """
        if not hasattr(self._local, "thread"):
            self._local.thread = _Thread()
        mine: list[Run] = self._of_thread.get(self._local.thread, [])
        run = self._of_number(number, index)
        new = run is None
        if run is None or run.schedule not in (None, schedule):
            run = Run(number)
        run.schedule = schedule
        others = [other for other in mine if other.number != number and other.number in going_on]
        with self._lock:
            self._of_thread[self._local.thread] = [*others, run][-REMEMBERED_RUNS:]  # the least recent goes first
            if new:
                self._drop_idle()
        return run

    def find(self, number: int, index: int, schedule: Schedule) -> Run | None:
        """Return this thread's run that a step would go on with; `None` if it would be a new one. Nothing changes."""
        run = self._of_number(number, index)
        return run if run is not None and run.schedule in (None, schedule) else None

    def _of_number(self, number: int, index: int) -> Run | None:
        thread = getattr(self._local, "thread", None)
        mine = [] if thread is None else self._of_thread.get(thread, [])
        return next((run for run in mine if run.number == number and run.index <= index), None)

    @property
    def nbytes(self) -> int:
        """Bytes of all cached features."""
        with self._lock:
            return sum(run.nbytes for runs in self._of_thread.values() for run in runs)

    def _drop_idle(self) -> None:
        oldest = time.monotonic() - IDLE_SECONDS
        for thread, runs in list(self._of_thread.items()):
            if thread is not self._local.thread:
                self._of_thread[thread] = [run for run in runs if run.touched >= oldest]


def fits(cached: Cached, sample: Tensor) -> bool:
    """Return whether a feature is one of a sample's shape and device."""
    return cached.shape == sample.shape and cached.feature.device == sample.device


def halves(one: torch.Size, other: torch.Size) -> bool:
    """Return whether two shapes differ in their batch alone, and the first has half of it."""
    return 2 * one[0] == other[0] and one[1:] == other[1:]


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape
