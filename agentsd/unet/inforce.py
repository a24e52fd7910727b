"""What holds in this thread or task: the schedule of the patch, or that of the `using` block around the call."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, overload

from agentsd.schedule import Schedule
from agentsd.unet.record import RunRecord

T = TypeVar("T")


@dataclass
class InForce:
    """A schedule, and what its runs have come to.

    Attributes:
        schedule: The schedule.
        skipping_problem: Why a step was full although the schedule skips it; `None` if none was.
        noise_problem: Why skipped steps ran the last layer although the schedule runs none; `None` if none did.
        guidance_problem: Why guidance was computed although the schedule leaves it out; `None` if it was not.
        batch_problem: Why the pictures of a batch shared their full steps although the schedule chooses them by
            picture; `None` if they did not.
        record: What the runs did, step by step.
    """

    schedule: Schedule
    skipping_problem: str | None = None
    noise_problem: str | None = None
    guidance_problem: str | None = None
    batch_problem: str | None = None
    record: RunRecord = field(default_factory=RunRecord)


@dataclass(frozen=True)
class _Block:
    key: object  # of the patch; not the patch itself, which a context that lives on would keep
    in_force: InForce | None  # None: stock
    outer: "_Block | None"


_INNERMOST: ContextVar[_Block | None] = ContextVar("agentsd_block", default=None)


class _Of(Generic[T]):
    """An attribute that is read from what is in force."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> "_Of[T]": ...
    @overload
    def __get__(self, instance: "HasBlocks", owner: type) -> T: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else getattr(instance.now, self._name)

    def __set__(self, instance: "HasBlocks", value: T) -> None:
        setattr(instance.now, self._name, value)


class HasBlocks:
    """Base of what carries a patch: a schedule for all, and others inside blocks of one thread or task.

    Example:
        >>> patched = HasBlocks(agentsd.preset("fast"))
        >>> with patched.block(InForce(agentsd.preset("quality"))):
        ...     patched.schedule.skipping.tolerance
        0.015
        >>> patched.schedule.skipping.tolerance
        0.06
    """

    schedule = _Of[Schedule]()
    skipping_problem = _Of["str | None"]()
    noise_problem = _Of["str | None"]()
    guidance_problem = _Of["str | None"]()
    batch_problem = _Of["str | None"]()
    record = _Of[RunRecord]()

    def __init__(self, schedule: Schedule) -> None:
        self.base = InForce(schedule)
        self.key = object()

    @property
    def now(self) -> InForce:
        """What is in force here: of the innermost block with a schedule, else of the patch."""
        return next((one for one in self._blocks() if one is not None), self.base)

    @property
    def enabled(self) -> bool:
        """Whether no block around asks for stock."""
        return all(one is not None for one in self._blocks())

    @contextmanager
    def block(self, in_force: InForce | None) -> Iterator[None]:
        """Let something else be in force in this thread or task while the context lasts; `None` is stock."""
        token = _INNERMOST.set(_Block(self.key, in_force, _INNERMOST.get()))
        try:
            yield
        finally:
            _INNERMOST.reset(token)

    def _blocks(self) -> Iterator[InForce | None]:
        block = _INNERMOST.get()
        while block is not None:
            if block.key is self.key:
                yield block.in_force
            block = block.outer
