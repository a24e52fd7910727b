"""A piece of work in a thread of its own: its progress as events, and its end, from the page's point of view."""

import contextvars
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from agentsd.app.studio import CancelledError, OnStep


@dataclass(frozen=True)
class Progress:
    """A step that is done."""

    label: str
    done: int
    total: int


@dataclass(frozen=True)
class Done:
    """The end: a result, or nothing if the work was cancelled."""

    result: Any = None
    cancelled: bool = False


class Works:
    """The work in progress, by visitor; each visitor can cancel their own.

    Example:
        >>> [event.result for event in Works().run("me", lambda on_step, cancelled: 3)]
        [3]
    """

    def __init__(self) -> None:
        self._cancelled: dict[str, threading.Event] = {}

    def run(self, visitor: str, work: Callable[[OnStep, threading.Event], Any]) -> Iterator[Progress | Done]:
        """Yield the progress of a piece of work, and its end.

        Args:
            visitor: Whose work it is.
            work: Called with what takes steps, and with the event that says whether to stop.

        Raises:
            Exception: What the work raised.
        """
        cancelled = self._cancelled[visitor] = threading.Event()
        events: queue.SimpleQueue[Progress | Done | BaseException] = queue.SimpleQueue()

        def call() -> None:
            try:
                events.put(Done(work(lambda *step: events.put(Progress(*step)), cancelled)))
            except CancelledError:
                events.put(Done(cancelled=True))
            except BaseException as error:  # raised again below, in the visitor's thread
                events.put(error)

        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(call,), name="agentsd-app", daemon=True)
        thread.start()
        try:
            while True:
                event = events.get()
                if isinstance(event, BaseException):
                    raise event
                while isinstance(event, Progress) and not events.empty():  # the page need not see each of many
                    later = events.get()
                    if isinstance(later, BaseException):
                        raise later
                    event = later
                yield event
                if isinstance(event, Done):
                    return
        finally:  # also if the visitor has left
            cancelled.set()
            if self._cancelled.get(visitor) is cancelled:
                del self._cancelled[visitor]

    def cancel(self, visitor: str) -> bool:
        """Ask the work of a visitor to stop; returns whether there was any."""
        event = self._cancelled.get(visitor)
        if event is not None:
            event.set()
        return event is not None
