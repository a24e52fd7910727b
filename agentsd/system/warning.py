"""Warnings that point at the user's line, from wherever in a pipeline's call they come."""

import sys
import warnings
from types import FrameType

_INSIDE = frozenset({"agentsd", "torch", "diffusers", "accelerate", "transformers", "peft", "contextlib", "functools"})


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the first line outside agentsd, torch, diffusers and their helpers.

    Args:
        message: The text.
        category: The kind of warning.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_user("something")
        >>> str(caught[0].message)
        'something'
    """
    frame = outside(sys._getframe(1))
    warnings.warn_explicit(
        message,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def outside(frame: FrameType) -> FrameType:
    """Return the first frame, from `frame` outwards, outside agentsd, torch, diffusers and their helpers.

    Example:
        >>> outside(sys._getframe()) is sys._getframe()
        False
    """
    while frame.f_back is not None and _is_inside(frame):
        frame = frame.f_back
    return frame


def _is_inside(frame: FrameType) -> bool:
    name = str(frame.f_globals.get("__name__", ""))
    return name.partition(".")[0] in _INSIDE
