"""What the calls of a run did, and why."""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Literal

_LONGEST = 4096  # calls of one record; older ones are dropped


@dataclass(frozen=True)
class CallRecord:
    """One call of a patched denoiser.

    Attributes:
        index: Step within the run; `None` if it is not known.
        kind: `"full"`, `"skipped"`, or `"stock"` (the patch was disabled or the step is not known).
        why: The reason, in words.
        forced: Whether the schedule asked for a skipped step and the reason made it a full one.
    """

    index: int | None
    kind: Literal["full", "skipped", "stock"]
    why: str
    forced: bool = False


@dataclass
class RunRecord:
    """The calls of one run, in order.

    Example:
        >>> record = RunRecord()
        >>> record.add(CallRecord(0, "full", "first step of the run"))
        >>> record.full, record.skipped, record.forced
        (1, 0, {})
    """

    calls: deque[CallRecord] = field(default_factory=lambda: deque(maxlen=_LONGEST))

    def add(self, call: CallRecord) -> None:
        """Append a call."""
        self.calls.append(call)

    @property
    def full(self) -> int:
        """How many calls ran the whole denoiser by the schedule's settings."""
        return self._count("full")

    @property
    def skipped(self) -> int:
        """How many calls were skipped steps."""
        return self._count("skipped")

    @property
    def stock(self) -> int:
        """How many calls ran as if unpatched."""
        return self._count("stock")

    @property
    def forced(self) -> dict[str, int]:
        """Why calls were full where the schedule asked to skip, with how many there were."""
        return dict(Counter(call.why for call in self.calls if call.forced))

    def _count(self, kind: str) -> int:
        return sum(call.kind == kind for call in self.calls)
