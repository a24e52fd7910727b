"""What the last run did, step by step: full steps, skipped steps, and why a step was forced full."""

import statistics
import threading
import time
from collections import Counter, OrderedDict, defaultdict
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, TypeAlias

from agentsd.unet.steps import Position

_MOST_STEPS = 4096  # in one run; an endless loop must not grow it
_MOST_RUNS = 16  # that take turns

_Key: TypeAlias = tuple[int, int | None, int]  # thread, number of the run in it, steps


@dataclass(frozen=True)
class LastRun:
    """The steps of the last run by kind; a step with several calls counts once.

    Attributes:
        full: Steps that ran the whole UNet for all pictures.
        skipped: Steps that all pictures skipped.
        stock: Full steps that ran exactly as without agentsd; `full` counts them too.
        forced: Why steps ran the whole UNet although the schedule skips them: (reason, number of steps).
        full_seconds: Median time of a full step on a CPU; `None` elsewhere, where steps run on after they are started.
        skipped_seconds: The same of a skipped step.
        partial: Steps that ran the whole UNet for some pictures of the batch, each with their share.

    Example:
        >>> str(LastRun(full=9, skipped=11, stock=0, forced=()))
        '20 steps: 9 full, 11 skipped'
        >>> run = LastRun(full=9, skipped=8, stock=0, forced=(), partial=(0.5, 0.25, 0.75))
        >>> str(run)
        '20 steps: 9 full, 3 full for some of the pictures, 8 skipped; 10.5 UNet calls a picture'
    """

    full: int
    skipped: int
    stock: int
    forced: tuple[tuple[str, int], ...]
    full_seconds: float | None = field(default=None, compare=False)
    skipped_seconds: float | None = field(default=None, compare=False)
    partial: tuple[float, ...] = ()

    @property
    def steps(self) -> int:
        """Steps of the run so far."""
        return self.full + len(self.partial) + self.skipped

    @property
    def calls(self) -> float:
        """Steps that a picture ran in full, on average over the batch.

        Example:
            >>> LastRun(full=9, skipped=9, stock=0, forced=(), partial=(0.5, 0.25)).calls
            9.75
        """
        return self.full + sum(self.partial)

    def to_dict(self) -> dict[str, Any]:
        """Return the run as JSON's types.

        Example:
            >>> LastRun(full=2, skipped=0, stock=0, forced=(("short", 2),)).to_dict()["forced"]
            [{'reason': 'short', 'steps': 2}]
        """
        forced = [{"reason": reason, "steps": number} for reason, number in self.forced]
        return asdict(self) | {"forced": forced, "partial": list(self.partial), "calls": self.calls}

    def __str__(self) -> str:
        stock = f" ({self.stock} of them stock)" if self.stock else ""
        forced = "".join(f"; {number} forced full: {reason}" for reason, number in self.forced)
        some = f", {len(self.partial)} full for some of the pictures" if self.partial else ""
        calls = f"; {self.calls:.1f} UNet calls a picture" if self.partial else ""
        return f"{self.steps} steps: {self.full} full{stock}{some}, {self.skipped} skipped{calls}{forced}"


@dataclass
class _Step:
    share: float
    stock: bool
    reason: str | None
    began: float
    calls: int = 1

    @property
    def kind(self) -> str:
        if self.share < 1:
            return "partial" if self.share else "skipped"
        return "forced" if self.reason else "full"


@dataclass
class _Run:
    index: int = -1
    steps: dict[int, _Step] = field(default_factory=dict)
    reported: bool = False  # whether `finished` returned it

    def summary(self, *, timed: bool = False) -> LastRun:
        steps = list(self.steps.values())
        seconds: defaultdict[float, list[float]] = defaultdict(list)
        for step, following in pairwise(steps if timed else ()):  # the end of the last step is not known
            seconds[step.share].append(following.began - step.began)
        medians = {share: statistics.median(found) for share, found in seconds.items()}
        full = [step for step in steps if step.share == 1]
        partial = tuple(step.share for step in steps if 0 < step.share < 1)
        forced = Counter(step.reason for step in full if step.reason is not None)
        stock = sum(step.stock for step in full)
        skipped = len(steps) - len(full) - len(partial)
        times = medians.get(1.0), medians.get(0.0)
        return LastRun(len(full), skipped, stock, tuple(forced.items()), *times, partial)


class RunRecord:
    """Collects the steps of runs, of every thread by itself; a new run, or an earlier step, starts a new record.

    Example:
        >>> record = RunRecord()
        >>> record.note(Position(0, 2, 1), share=1.0, stock=False)
        >>> record.note(Position(1, 2, 1), share=0.0, stock=False)
        >>> record.last_run.skipped
        1
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: OrderedDict[_Key, _Run] = OrderedDict()  # the run of the latest call last

    def note(self, position: Position | None, *, share: float, stock: bool, reason: str | None = None) -> None:
        """Record what a call does.

        Args:
            position: Step of the call; `None` if it belongs to no step that is known.
            share: Share of its pictures for which the whole UNet runs.
            stock: Whether it runs exactly as without agentsd.
            reason: Why it runs the whole UNet although the schedule skips its step.
        """
        key = _key(position)
        with self._lock:
            run = self._runs.pop(key, None) or _Run()
            index = run.index + 1 if position is None else position.index
            if index < run.index or len(run.steps) >= _MOST_STEPS:
                run, index = _Run(), 0 if position is None else index
            self._runs[key] = run
            while len(self._runs) > _MOST_RUNS:
                self._runs.popitem(last=False)
            run.index = index
            before = run.steps.get(index)
            if before is None:
                run.steps[index] = _Step(share, stock, reason, time.perf_counter())
            else:  # a step with one full call is full
                before.share = max(before.share, share)
                before.stock &= stock
                before.reason = before.reason or reason
                before.calls += 1

    def finished(self, position: Position) -> LastRun | None:
        """Return what a run did if the call in progress is the last of its last step; once for a run.

        Example:
            >>> record = RunRecord()
            >>> record.note(Position(0, 1, 1), share=1.0, stock=False)
            >>> record.finished(Position(0, 1, 1)).full
            1
        """
        with self._lock:
            run = self._runs.get(_key(position))
            if run is None or run.reported or position.index != position.total - 1:
                return None
            before = run.steps.get(position.index - 1)
            if before is not None and run.steps[position.index].calls < before.calls:
                return None  # guidance by several calls: more will come
            run.reported = True
            return run.summary()

    @property
    def last_run(self) -> LastRun | None:
        """What the last run did, also while it goes on; `None` before the first."""
        return self.read(timed=False)

    def read(self, *, timed: bool) -> LastRun | None:
        """Return what the last run did.

        Args:
            timed: Whether a step ends when its call returns: on a CPU it does.
        """
        with self._lock:
            return next(reversed(self._runs.values())).summary(timed=timed) if self._runs else None

    @property
    def last_steps(self) -> tuple[str, ...]:
        """What each step of the last run was: "full", "skipped", "forced" or "partial".

        A forced step is full, though the schedule skips it. A partial one is full for some pictures of the batch.

        Example:
            >>> record = RunRecord()
            >>> record.note(Position(0, 2, 1), share=1.0, stock=True)
            >>> record.note(Position(1, 2, 1), share=0.0, stock=False)
            >>> record.last_steps
            ('full', 'skipped')
        """
        with self._lock:
            run = next(reversed(self._runs.values()), _Run())
            steps = [run.steps[index] for index in sorted(run.steps)]
        return tuple(step.kind for step in steps)

    def __reduce__(self) -> tuple[type["RunRecord"], tuple[()]]:
        return RunRecord, ()

    def __deepcopy__(self, memo: object) -> "RunRecord":
        return RunRecord()


def _key(position: Position | None) -> _Key:
    number, total = (None, 0) if position is None else (position.run, position.total)
    return threading.get_ident(), number, total
