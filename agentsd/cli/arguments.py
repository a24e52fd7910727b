"""Kinds of command-line arguments, with errors that say what is allowed. Nothing here loads torch."""

import argparse
from collections.abc import Callable, Iterable
from difflib import get_close_matches


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """Return the kind of argument that is one of some names.

    Args:
        names: The names.

    Returns:
        What argparse takes as `type`.

    Example:
        >>> one_of(["balanced", "fast"])("fsat")
        Traceback (most recent call last):
        ...
        argparse.ArgumentTypeError: 'fsat' is unknown. Did you mean 'fast'? Choose one of balanced, fast.
    """
    known = list(names)

    def chosen(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"{unknown(text, known)} Choose one of {', '.join(known)}.")
        return text

    return chosen


def unknown(text: str, known: Iterable[str]) -> str:
    """Return the sentence about a name that is unknown, with the name that was probably meant.

    Example:
        >>> unknown("DeepCache", ["DeepCache 3", "stock"])
        "'DeepCache' is unknown. Did you mean 'DeepCache 3'?"
    """
    lower = {name.lower(): name for name in known}
    close = get_close_matches(text.lower(), lower, n=1)
    return f"{text!r} is unknown." + (f" Did you mean {lower[close[0]]!r}?" if close else "")


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return the kind of argument that is a whole number within limits.

    Example:
        >>> whole(1)("0")
        Traceback (most recent call last):
        ...
        argparse.ArgumentTypeError: '0' must be a whole number of at least 1.
    """
    limits = f"of at least {least}" if most is None else f"from {least} to {most}"

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number {limits}.")
        return value

    return number


def side(text: str) -> int:
    """Return the side of a picture in pixels.

    Example:
        >>> side("512")
        512
        >>> side("100")
        Traceback (most recent call last):
        ...
        argparse.ArgumentTypeError: '100' must be a multiple of 8 of at least 16 pixels.
    """
    if not text.isdecimal() or int(text) < 16 or int(text) % 8:
        raise argparse.ArgumentTypeError(f"{text!r} must be a multiple of 8 of at least 16 pixels.")
    return int(text)
