"""Which runs are in progress on a denoiser: whoever takes their patch away gets a warning."""

import sys
import threading
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

from agentsd.system.warning import outside, warn_user
from agentsd.unet.callers import is_ours_or_torch
from agentsd.unet.steps import Position


@dataclass(frozen=True)
class _Mark:
    """The function that called the denoiser last in a thread: as long as it runs, so does its loop."""

    frame: int
    code: CodeType
    index: int
    total: int


class Activity:
    """The calls of a denoiser, by thread.

    Example:
        >>> Activity().runs()
        []
    """

    def __init__(self) -> None:
        self._marks: dict[int, _Mark] = {}

    def note(self, position: Position) -> None:
        """Note that a step begins."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and is_ours_or_torch(frame):
            frame = frame.f_back
        if frame is not None:
            mark = _Mark(id(frame), frame.f_code, position.index, position.total)
            self._marks[threading.get_ident()] = mark

    def done(self) -> None:
        """Note that the run in this thread has ended."""
        self._marks.pop(threading.get_ident(), None)

    def runs(self) -> list[str]:
        """Return the runs in progress in words, of this thread too if it is inside one (a callback)."""
        threads, here = sys._current_frames(), threading.get_ident()
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        found = []
        for ident, mark in list(self._marks.items()):
            # In this thread the user's own function may hold the loop: whoever writes it knows where it is.
            frame = outside(sys._getframe(1)) if ident == here else threads.get(ident)
            frame = frame.f_back if frame is not None and ident == here else frame
            while frame is not None and not (id(frame) == mark.frame and frame.f_code is mark.code):
                frame = frame.f_back
            if frame is not None:
                name = names.get(ident, ident)
                found.append(f"the run in thread {name!r} is at step {mark.index + 1} of {mark.total}")
        return found


def warn_if_running(activity: Activity, deed: str, denoiser: Any) -> None:
    """Warn at the user's line if a patch is taken away from runs in progress.

    Args:
        activity: The runs.
        deed: What is done to the patch, as the message begins.
        denoiser: What is patched.
    """
    runs = activity.runs()
    if runs:
        warn_user(
            f"{deed} the patch of {type(denoiser).__name__} while it is in use: {'; '.join(runs)}. Its remaining steps "
            "follow other settings. Apply once, and choose settings per call with patch.using(...).",
            RuntimeWarning,
        )
