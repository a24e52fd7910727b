"""What an evaluation found, in one sentence for each arm."""

from collections.abc import Mapping
from typing import Any

from agentsd.bench.intervals import spread_of
from agentsd.evaluation.differences import ENOUGH_SAMPLES
from agentsd.evaluation.tables import title


def sentences(results: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each candidate, with stock of equal time beside it.

    Args:
        results: Content of `results.json`.

    Returns:
        The sentences, in the order of the arms.

    Example:
        >>> speed = {"speedup": {"median": 3.6, "low": 3.5, "high": 3.7, "n": 8}}
        >>> near = {"psnr_db": {"value": 51.1, "p5": 48.0, "equal_pictures": 0, "n": 32}}
        >>> arm = {"role": "candidate", "speed": speed, "metrics": near, "verdict": "no difference from stock shown"}
        >>> sentences({"number": 32, "reference": None, "arms": {"balanced": arm}})[0]
        'balanced: 3.6x faster (95% interval: 3.5 to 3.7); likeness 51.1 dB, worst 5% 48.0 dB; no quality difference \
found; 32 pictures are too few to find a small one.'
    """
    arms = results["arms"]
    said = []
    for name, arm in arms.items():
        if arm["role"] != "candidate":
            continue
        parts = [_time(arm), _likeness(arm), _quality(arm, results)]
        said.append(f"{name}: {'; '.join(part for part in parts if part)}.")
        for rival, other in arms.items():
            if other["role"] == "equal time" and name in other.get("equals", arms):
                parts = [_time(other), _likeness(other)]
                said.append(f"For comparison, {rival}: {'; '.join(part for part in parts if part)}.")
    return said


def _time(arm: Mapping[str, Any]) -> str:
    if "speed" not in arm:
        return "not timed"
    gain = arm["speed"]["speedup"]
    median, low, high = (gain[name] for name in ("median", "low", "high"))
    if median >= 1.05:
        return f"{median:.1f}x faster{_ends(gain['n'], f'{low:.1f}', f'{high:.1f}')}"
    if median <= 0.95:
        return f"{1 / median:.1f}x slower{_ends(gain['n'], f'{1 / high:.1f}', f'{1 / low:.1f}')}"
    return "as fast as stock"


def _likeness(arm: Mapping[str, Any]) -> str:
    entry = arm["metrics"].get("psnr_db")
    if entry is None:
        return ""
    if entry["value"] is None:
        return f"{entry['equal_pictures']} of {entry['n']} pictures equal stock"
    worst = "" if entry["p5"] is None else f", worst 5% {entry['p5']:.1f} dB"
    return f"likeness {entry['value']:.1f} dB{worst}"


def _quality(arm: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    verdict: str | None = arm.get("verdict")
    if verdict is None:
        return "quality not measured"
    difference = _difference(arm["metrics"], results["reference"])
    if verdict != "no difference from stock shown":
        return f"quality {verdict}{difference}"
    number = results["number"]
    few = f"; {number} pictures are too few to find a small one" if number < ENOUGH_SAMPLES else ""
    return f"no quality difference found{difference}{few}"


def _difference(metrics: Mapping[str, Any], reference: Mapping[str, Any] | None) -> str:
    """Return the difference of distances that decided, in words; empty where none is there."""
    kinds = ("kid", "kd_") if reference is not None and reference["paired"] else ("fid", "fd_")
    for name, entry in metrics.items():
        distance = name.removeprefix("delta_")
        if distance != name and distance.startswith(kinds):
            ends = _ends(entry["n"], *(f"{entry[end]:+.2g}" for end in ("low", "high")))
            return f", {title(distance)} {entry['value']:+.2g} against stock{ends}"
    return ""


def _ends(number: int, low: str, high: str) -> str:
    return "" if number == 1 else f" ({spread_of(number)}: {low} to {high})"
