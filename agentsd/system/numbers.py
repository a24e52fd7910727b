"""Checks of numbers that users give."""

from typing import TypeGuard


def is_whole(value: object, least: int | None = None) -> TypeGuard[int]:
    """Return whether a value is a whole number, and not below `least` if that is given; `True` is no number.

    Example:
        >>> is_whole(3), is_whole(True), is_whole(0, 1), is_whole(2.0)
        (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)
