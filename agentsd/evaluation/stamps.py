"""The remarks that must stand beside figures: too few pictures, too small a model, a drifting clock."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from agentsd.evaluation.differences import ENOUGH_SAMPLES
from agentsd.evaluation.features import FeatureExtractor

_EQUAL_TIME = 0.05  # times further apart than this share are not called equal


def stamps(
    number: int,
    extractor: FeatureExtractor | None,
    reference: Mapping[str, Any] | None,
    about: Mapping[str, Any],
    arms: Mapping[str, Any] | None = None,
    no_faster: Sequence[str] = (),
) -> list[str]:
    """Return the remarks that must stand beside the figures.

    Args:
        number: How many pictures an arm has.
        extractor: What made the features.
        reference: The reference's configuration.
        about: What is known of model and captions: `unet_parameters`, `demo_model`, `demo_captions`, `paired`.
        arms: Figures by arm, times among them.
        no_faster: Arms without a stock arm of equal time, see `agentsd.evaluation.arms.no_faster`.

    Returns:
        Sentences.

    Example:
        >>> stamps(4, None, None, {"unet_parameters": 90_000})
        ['Plumbing test: the model is too small to say anything of image quality.']
    """
    said = []
    if about.get("unet_parameters", math.inf) < 1_000_000:
        said.append("Plumbing test: the model is too small to say anything of image quality.")
    elif about.get("demo_model") and not about.get("demo_captions"):
        said.append("Robustness only: the demo model knows the words of its own captions and no others.")
    if reference is not None and extractor is not None:
        fewer = min(number, reference.get("number", number))  # moments do not state theirs
        if fewer < ENOUGH_SAMPLES:
            frechet, kernel = ("FID", "KID") if extractor.distance == "fid" else ("FD", "KD")
            noisy = f", {kernel} is noisy" if "number" in reference else ""
            said.append(
                f"Small sample, n={fewer} < {ENOUGH_SAMPLES}: {frechet} is biased high{noisy}; comparative only."
            )
        if extractor.distance != "fid":
            said.append(f"Distances are of the features {extractor.name!r}, not of FID-Inception: not FID, not KID.")
        if about.get("paired"):
            said.append(
                # Drawn on grids too, whose font knows ASCII only.
                "The reference is paired with the prompts: differences of FD or FID also hold how closely an arm "
                "follows them, those of KD or KID do not."
            )
        else:
            said.append("The reference is not paired with the prompts: intervals hold it fixed.")
    for name, arm in (arms or {}).items():
        said += _speed_stamps(name, arm)
    said += [
        f"{name} takes the time of all of stock's steps or more: it has no stock arm of equal time."
        for name in no_faster
    ]
    return said


def _speed_stamps(name: str, arm: Mapping[str, Any]) -> list[str]:
    said = []
    gain = arm["speed"]["speedup"] if "speed" in arm else None
    if arm["role"] == "control" and gain is not None and not gain["low"] <= 1 <= gain["high"]:
        said.append(
            f"A/A {gain['median']:.2f}x [{gain['low']:.2f}, {gain['high']:.2f}]: the clock drifts, speed-ups are off "
            "by as much."
        )
    for rival, ratio in arm.get("speed", {}).get("time_ratio", {}).items():
        if abs(ratio["median"] - 1) > _EQUAL_TIME:
            said.append(f"{name} takes {ratio['median']:.2f}x the time of {rival}: their times are not equal.")
    return said
