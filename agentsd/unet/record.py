"""What the last run did, step by step: full steps, skipped steps, and why a step was forced full."""

import statistics
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from agentsd.unet.steps import Position

_MOST_STEPS = 4096  # in one record; an endless loop must not grow it


@dataclass(frozen=True)
class LastRun:
    """The steps of the last run by kind; a step with several calls counts once.

    Attributes:
        full: Steps that ran the whole UNet.
        skipped: Skipped steps.
        stock: Full steps that ran exactly as without agentsd; `full` counts them too.
        forced: Why steps ran the whole UNet although the schedule skips them: (reason, number of steps).
        full_seconds: Median time of a full step on a CPU; `None` elsewhere, where steps run on after they are started.
        skipped_seconds: The same of a skipped step.

    Example:
        >>> str(LastRun(full=9, skipped=11, stock=0, forced=()))
        '20 steps: 9 full, 11 skipped'
    """

    full: int
    skipped: int
    stock: int
    forced: tuple[tuple[str, int], ...]
    full_seconds: float | None = field(default=None, compare=False)
    skipped_seconds: float | None = field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the run as JSON's types.

        Example:
            >>> LastRun(full=2, skipped=0, stock=0, forced=(("short", 2),)).to_dict()["forced"]
            [{'reason': 'short', 'steps': 2}]
        """
        forced = [{"reason": reason, "steps": number} for reason, number in self.forced]
        return asdict(self) | {"forced": forced}

    def __str__(self) -> str:
        stock = f" ({self.stock} of them stock)" if self.stock else ""
        forced = "".join(f"; {number} forced full: {reason}" for reason, number in self.forced)
        return f"{self.full + self.skipped} steps: {self.full} full{stock}, {self.skipped} skipped{forced}"


@dataclass
class _Step:
    skipped: bool
    stock: bool
    reason: str | None
    began: float


class RunRecord:
    """Collects the steps of the run in progress, in any thread; a new run, or an earlier step, starts a new record.

    Example:
        >>> record = RunRecord()
        >>> record.note(Position(0, 2, 1), skipped=False, stock=False)
        >>> record.note(Position(1, 2, 1), skipped=True, stock=False)
        >>> record.last_run.skipped
        1
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._run: tuple[int, int | None, int] | None = None
        self._index = -1
        self._steps: dict[int, _Step] = {}

    def note(self, position: Position | None, *, skipped: bool, stock: bool, reason: str | None = None) -> None:
        """Record what a call does.

        Args:
            position: Step of the call; `None` if it belongs to no step that is known.
            skipped: Whether it runs at most a few layers.
            stock: Whether it runs exactly as without agentsd.
            reason: Why it runs the whole UNet although the schedule skips its step.
        """
        total, number, index = (0, None, self._index + 1) if position is None else _key(position)
        run = (threading.get_ident(), number, total)
        with self._lock:
            if run != self._run or index < self._index or len(self._steps) >= _MOST_STEPS:
                self._run, self._steps = run, {}
                index = 0 if position is None else index
            self._index = index
            before = self._steps.get(index)
            if before is None:
                self._steps[index] = _Step(skipped, stock, reason, time.perf_counter())
            else:  # a step with one full call is full
                before.skipped &= skipped
                before.stock &= stock
                before.reason = before.reason or reason

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
            steps = list(self._steps.values())
        if not steps:
            return None
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for step, following in pairwise(steps if timed else ()):  # the end of the last step is not known
            seconds[step.skipped].append(following.began - step.began)
        medians = {skipped: statistics.median(found) if found else None for skipped, found in seconds.items()}
        full = [step for step in steps if not step.skipped]
        forced = Counter(step.reason for step in full if step.reason is not None)
        stock = sum(step.stock for step in full)
        return LastRun(len(full), len(steps) - len(full), stock, tuple(forced.items()), medians[False], medians[True])

    def __reduce__(self) -> tuple[type["RunRecord"], tuple[()]]:
        return RunRecord, ()

    def __deepcopy__(self, memo: object) -> "RunRecord":
        return RunRecord()


def _key(position: Position) -> tuple[int, int | None, int]:
    return position.total, position.run, position.index
