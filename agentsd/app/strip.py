"""Which steps ran in full and which were skipped, as a small drawing with its text."""

import html
from collections.abc import Sequence
from itertools import groupby

_KINDS = {"full": "full", "forced": "forced full", "partial": "full for some pictures", "skipped": "skipped"}
_HEIGHT = 26
# Heights differ too: nobody needs the colours.
_BARS = {"full": (0, _HEIGHT), "forced": (0, _HEIGHT), "partial": (8, 18), "skipped": (16, 10)}


def summary(steps: Sequence[str]) -> str:
    """Return how many steps of each kind there were.

    Example:
        >>> summary(["full", "full", "skipped", "forced"])
        '4 steps: 2 full, 1 forced full, 1 skipped'
    """
    counts = [f"{steps.count(kind)} {name}" for kind, name in _KINDS.items() if kind in steps]
    return f"{len(steps)} steps: {', '.join(counts)}" if steps else "no steps"


def in_words(steps: Sequence[str]) -> str:
    """Return which steps were skipped, for those who cannot see the drawing.

    Example:
        >>> in_words(["full", "full", "skipped", "skipped", "full", "skipped"])
        '6 steps: 3 full, 3 skipped. Skipped: 3 to 4, 6.'
    """
    ranges, start = [], 1
    for kind, run in groupby(steps):
        length = len(list(run))
        if kind == "skipped":
            ranges.append(str(start) if length == 1 else f"{start} to {start + length - 1}")
        start += length
    return f"{summary(steps)}. Skipped: {', '.join(ranges) if ranges else 'none'}."


def strip_html(steps: Sequence[str], total: int | None = None) -> str:
    """Return the steps as one bar each: tall for full steps, short for skipped ones.

    Args:
        steps: The kinds of the steps so far.
        total: How many there will be; `None` if these are all.

    Example:
        >>> strip_html(["full", "skipped"]).count("<rect")
        2
    """
    if not steps:
        return ""
    number = max(total or 0, len(steps))
    bars = []
    for place, kind in enumerate(steps):
        top, height = _BARS[kind]
        bars.append(f'<rect class="step-{kind}" x="{place * 10 + 1}" y="{top}" width="8" height="{height}" rx="1"/>')
    legend = "".join(
        f'<span class="step-key"><span class="step-dot step-{kind}"></span>{name}</span>'
        for kind, name in _KINDS.items()
        if kind in steps
    )
    return (
        f'<div class="steps"><svg role="img" aria-label="{in_words(steps)}" viewBox="0 0 {number * 10} {_HEIGHT}" '
        f'preserveAspectRatio="none">{"".join(bars)}</svg>'
        f'<p class="step-legend">{legend}<span>{summary(steps)}</span></p></div>'
    )


def progress_html(text: str, done: int, total: int) -> str:
    """Return a progress bar with its text.

    Example:
        >>> 'aria-valuenow="3"' in progress_html("stock: step 3 of 20", 3, 20)
        True
    """
    text = html.escape(text)
    share = 100 * done / max(total, 1)
    return (
        f'<div class="work"><p role="status">{text}</p><div class="work-bar" role="progressbar" aria-label="{text}" '
        f'aria-valuemin="0" aria-valuemax="{total}" aria-valuenow="{done}"><span style="width:{share:.1f}%"></span>'
        "</div></div>"
    )
