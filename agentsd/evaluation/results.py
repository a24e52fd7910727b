"""The figures of an evaluation from its measures: distances, differences with intervals, and what they allow to say."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from agentsd.evaluation.arms import STOCK, EvaluationArm
from agentsd.evaluation.features import FeatureExtractor
from agentsd.evaluation.reference import Moments
from agentsd.evaluation.statistics import (
    Delta,
    Interval,
    frechet_distance,
    frechet_from_moments,
    interval,
    kernel_distance,
    paired_delta,
    small_sample_stamp,
)

SCHEMA_VERSION = 1
_LONG_FEATURES = 512
_RESAMPLES, _FEW_RESAMPLES = 1000, 200
_FEWEST = 4  # pictures for an interval: a half-sample of fewer has no covariance

Array = npt.NDArray[np.float64]
Distance = Callable[[Array], float]  # of an arm's features from the reference


@dataclass(frozen=True)
class Rows:
    """What was measured on every picture of an arm, in order of the prompts; what was not measured is `None`.

    Attributes:
        psnr_db: PSNR against stock, dB.
        ssim: SSIM against stock.
        latent_l2: Relative distance of the final latents from those of stock.
        features: Features, [N, D].
        clip_score: CLIP score.
        right: 1 where the picture shows what its demo caption names, else 0.
    """

    psnr_db: Array | None = None
    ssim: Array | None = None
    latent_l2: Array | None = None
    features: Array | None = None
    clip_score: Array | None = None
    right: Array | None = None


@dataclass(frozen=True)
class Real:
    """The reference's features, paired with the prompts or not, or its moments alone."""

    features: Array | None = None
    moments: Moments | None = None
    paired: bool = False


def arm_results(
    arm: EvaluationArm,
    rows: Mapping[str, Rows],
    real: Real | None,
    extractor: FeatureExtractor | None,
    *,
    resamples: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return every figure of one arm as plain data, each with its number of pictures and its method.

    Args:
        arm: The arm.
        rows: Measures of all arms by name, stock's among them.
        real: The reference, or `None` for no distance.
        extractor: What made the features.
        resamples: Bootstrap draws; `None` chooses.
        seed: Seed of the bootstrap.

    Returns:
        Metrics by name, and a verdict for arms other than stock.

    Raises:
        ValueError: If measures do not fit each other.
    """
    own, stock = rows[arm.name], rows[STOCK]
    draws = resamples or _RESAMPLES
    metrics: dict[str, Any] = {}
    for name in ("psnr_db", "ssim", "latent_l2"):
        values = getattr(own, name)
        if values is not None:
            metrics[name] = _likeness(name, values, draws, seed)
    agreeing: dict[str, Interval] = {}
    for name in ("clip_score", "right"):
        values, base = getattr(own, name), getattr(stock, name)
        if values is None:
            continue
        label = "attribute_accuracy" if name == "right" else name
        metrics[label] = _entry(float(np.mean(values)), len(values), "mean over prompts")
        if arm.name != STOCK and base is not None:
            difference = interval(values - base, np.mean, resamples=draws, seed=seed)
            agreeing[label] = difference
            metrics[f"delta_{label}"] = _with_interval(difference, len(values), "paired bootstrap over prompts")
    verdict = None
    if real is not None and extractor is not None and own.features is not None:
        few = resamples or (_FEW_RESAMPLES if extractor.dimension > _LONG_FEATURES else _RESAMPLES)
        found, verdict = _distances(own.features, stock.features, arm, real, extractor, few, seed, agreeing)
        metrics |= found
    result: dict[str, Any] = {"role": arm.role, "steps": arm.steps, "settings": arm.to_dict(), "metrics": metrics}
    if arm.equals:
        result["equals"] = list(arm.equals)
    if verdict is not None:
        result["verdict"] = verdict
    return result


def verdict_of(delta: Delta, agreeing: Mapping[str, Interval]) -> str:
    """Return what a difference of distances allows to say; a lower distance alone never says "better".

    Args:
        delta: Arm minus stock, with its interval.
        agreeing: Differences of metrics of which more is better, by name.

    Returns:
        A phrase.

    Example:
        >>> verdict_of(Delta(-1.0, -1.5, -0.5), {})
        'different from stock: lower distance, no other metric agrees'
    """
    if delta.covers(0):
        return "not told apart from stock"
    if delta.value > 0:
        return "worse than stock"
    better = [name for name, difference in agreeing.items() if difference.low > 0]
    if better:
        return f"better than stock: lower distance, and {' and '.join(better)} agree{'s' * (len(better) == 1)}"
    return "different from stock: lower distance, no other metric agrees"


def stamps(
    number: int, extractor: FeatureExtractor | None, reference: Mapping[str, Any] | None, about: Mapping[str, Any]
) -> list[str]:
    """Return the remarks that must stand beside the figures.

    Args:
        number: How many pictures an arm has.
        extractor: What made the features.
        reference: The reference's configuration.
        about: What is known of model and captions: `unet_parameters`, `demo_model`, `demo_captions`, `paired`.

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
        small = small_sample_stamp(number)
        if small:
            said.append(f"Small sample, {small}.")
        if extractor.distance != "fid":
            said.append(f"Distances are of the features {extractor.name!r}, not of FID-Inception: not FID, not KID.")
        if not about.get("paired", True):
            said.append("The reference is not paired with the prompts: intervals hold it fixed.")
    return said


def kernel_name(extractor: FeatureExtractor) -> str:
    """Return what a kernel distance over an extractor's features is called: `kid` for the FID network alone."""
    return "kid" if extractor.distance == "fid" else extractor.distance.replace("fd_", "kd_", 1)


def speed_figures(timing: Mapping[str, Any], arm: str) -> dict[str, Any] | None:
    """Return an arm's times as they go into the results, or `None` if it was not timed."""
    row = timing.get("arms", {}).get(arm)
    if row is None:
        return None
    names = ("seconds_median", "speedup", "unet_speedup", "peak_bytes", "peak_reserved_bytes", "patching_seconds")
    return {name: row[name] for name in names}


def seconds_by_prompt(timing: Mapping[str, Any], arm: str) -> list[float]:
    """Return the seconds of each timed prompt, median of its two runs; empty if batches or nothing was timed."""
    row = timing.get("arms", {}).get(arm)
    if row is None or timing.get("batch") != 1:
        return []
    times = row["seconds"]
    return [statistics.median(times[i : i + 2]) for i in range(0, len(times), 2)]


def _distances(
    own: Array,
    stock: Array | None,
    arm: EvaluationArm,
    real: Real,
    extractor: FeatureExtractor,
    resamples: int,
    seed: int,
    agreeing: Mapping[str, Interval],
) -> tuple[dict[str, Any], str | None]:
    distances: dict[str, tuple[Callable[[Array, Array], float] | None, Distance]] = {}
    if real.moments is not None:
        mean, covariance = real.moments.mean, real.moments.covariance
        if len(mean) != own.shape[1]:
            raise ValueError(
                f"reference statistics have {len(mean)} features, {extractor.name} {own.shape[1]}; they must be of one "
                "extractor: give --inception-weights, or statistics of these features."
            )
        distances[extractor.distance] = (
            None,
            lambda x: frechet_from_moments(mean, covariance, x.mean(axis=0), np.cov(x, rowvar=False)),
        )
    elif real.features is not None:
        features = np.asarray(real.features, dtype=np.float64)
        distances[extractor.distance] = (frechet_distance, lambda x: frechet_distance(features, x))
        distances[kernel_name(extractor)] = (kernel_distance, lambda x: kernel_distance(features, x))
    own = np.asarray(own, dtype=np.float64)
    metrics: dict[str, Any] = {}
    verdict = None
    for name, (statistic, distance) in distances.items():
        metrics[name] = _entry(distance(own), len(own), f"{extractor.name}, float64")
        metrics[name]["stamp"] = small_sample_stamp(len(own))
        if arm.name == STOCK or stock is None or len(own) < _FEWEST:
            continue
        base = np.asarray(stock, dtype=np.float64)
        if real.paired and statistic is not None and real.features is not None:
            reference = np.asarray(real.features, dtype=np.float64)
            delta = paired_delta(reference, base, own, statistic, resamples=resamples, seed=seed)
            method = f"paired bootstrap over prompts, {resamples} draws, 95%"
        else:
            delta = _half_sampled(distance, base, own, resamples, seed)
            method = f"half-samples of the prompts, reference fixed, {resamples} draws, 95%"
        metrics[f"delta_{name}"] = _with_interval(delta, len(own), method)
        if name == extractor.distance:
            verdict = verdict_of(delta, agreeing)
    return metrics, verdict


def _half_sampled(distance: Distance, stock: Array, fast: Array, resamples: int, seed: int) -> Delta:
    """Interval from half-samples without replacement, whose spread is that of the whole (delete-half jackknife).

    A bootstrap would draw prompts twice, which biases a kernel distance to a reference that is not drawn with them.
    """
    value = distance(fast) - distance(stock)
    draw = np.random.default_rng(seed)
    differences = []
    for _ in range(resamples):
        half = draw.permutation(len(fast))[: len(fast) // 2]
        differences.append(distance(fast[half]) - distance(stock[half]))
    apart = np.asarray(differences) - np.mean(differences)
    low, high = np.quantile(apart, [0.025, 0.975])
    return Delta(value, float(value + low), float(value + high))


def _likeness(name: str, values: Array, resamples: int, seed: int) -> dict[str, Any]:
    worst = 0.95 if name == "latent_l2" else 0.05
    middle = interval(values, np.median, resamples=resamples, seed=seed)
    entry = _with_interval(middle, len(values), "median over prompts, bootstrap")
    # The order statistic: between two infinite PSNR numpy's interpolation gives none.
    tail = np.sort(values)[round(worst * (len(values) - 1))]
    entry[f"p{round(100 * worst)}"] = _plain(float(tail))
    entry["equal_pictures"] = int(np.isinf(values).sum()) if name == "psnr_db" else None
    return {key: value for key, value in entry.items() if not (key == "equal_pictures" and value is None)}


def _entry(value: float, number: int, method: str) -> dict[str, Any]:
    return {"value": _plain(value), "n": number, "method": method}


def _with_interval(estimate: Interval, number: int, method: str) -> dict[str, Any]:
    return _entry(estimate.value, number, method) | {"low": _plain(estimate.low), "high": _plain(estimate.high)}


def _plain(value: float) -> float | None:
    """JSON has no infinity: the PSNR of equal pictures is `null`."""
    return value if math.isfinite(value) else None


def worst_by_psnr(psnr_db: Sequence[float] | Array, number: int) -> list[int]:
    """Return the indices of the pictures least like stock, worst first.

    Example:
        >>> worst_by_psnr([30.0, 20.0, math.inf, 25.0], 2)
        [1, 3]
    """
    return [int(index) for index in np.argsort(np.asarray(psnr_db), kind="stable")[:number]]
