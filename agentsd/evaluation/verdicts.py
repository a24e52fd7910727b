"""What an evaluation found, in one sentence for each arm."""

from collections.abc import Mapping
from typing import Any

from agentsd.evaluation.differences import ENOUGH_SAMPLES


def sentences(results: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each candidate, with stock of equal time beside it.

    Args:
        results: Content of `results.json`.

    Returns:
        The sentences, in the order of the arms.

    Example:
        >>> speed = {"speedup": {"median": 3.6}}
        >>> near = {"psnr_db": {"value": 51.1, "p5": 48.0, "equal_pictures": 0, "n": 32}}
        >>> arm = {"role": "candidate", "speed": speed, "metrics": near, "verdict": "no difference from stock shown"}
        >>> sentences({"number": 32, "arms": {"balanced": arm}})[0]
        'balanced: 3.6x faster; likeness 51.1 dB, worst 5% 48.0 dB; no quality difference found (32 pictures: too few \
to find a small one).'
    """
    arms = results["arms"]
    said = []
    for name, arm in arms.items():
        if arm["role"] != "candidate":
            continue
        parts = [_time(arm), _likeness(arm), _quality(arm, results["number"])]
        said.append(f"{name}: {'; '.join(part for part in parts if part)}.")
        for rival, other in arms.items():
            if other["role"] == "equal time" and name in other.get("equals", arms):
                parts = [_time(other), _likeness(other)]
                said.append(f"For comparison, {rival}: {'; '.join(part for part in parts if part)}.")
    return said


def _time(arm: Mapping[str, Any]) -> str:
    if "speed" not in arm:
        return "not timed"
    gain = arm["speed"]["speedup"]["median"]
    if gain >= 1.05:
        return f"{gain:.1f}x faster"
    return f"{1 / gain:.1f}x slower" if gain <= 0.95 else "as fast as stock"


def _likeness(arm: Mapping[str, Any]) -> str:
    entry = arm["metrics"].get("psnr_db")
    if entry is None:
        return ""
    if entry["value"] is None:
        return f"{entry['equal_pictures']} of {entry['n']} pictures equal stock"
    worst = "" if entry["p5"] is None else f", worst 5% {entry['p5']:.1f} dB"
    return f"likeness {entry['value']:.1f} dB{worst}"


def _quality(arm: Mapping[str, Any], number: int) -> str:
    verdict: str | None = arm.get("verdict")
    if verdict is None:
        return "quality not measured"
    if verdict != "no difference from stock shown":
        return f"quality {verdict}"
    few = f" ({number} pictures: too few to find a small one)" if number < ENOUGH_SAMPLES else ""
    return f"no quality difference found{few}"
