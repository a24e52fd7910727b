"""The figures of an evaluation from its measures: distances, differences with intervals, and what they allow to say."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentsd.bench.intervals import Interval, interval, spread_of
from agentsd.evaluation.arms import STOCK, EvaluationArm
from agentsd.evaluation.differences import Delta, delta_of, small_sample_stamp
from agentsd.evaluation.feature_sets import Array
from agentsd.evaluation.features import FeatureExtractor
from agentsd.evaluation.frechet import frechet_distance
from agentsd.evaluation.real import Distances, Real

SCHEMA_VERSION = 1
_LONG_FEATURES = 512
_RESAMPLES, _FEW_RESAMPLES = 1000, 200
_FEWEST = 4  # pictures for an interval: a half-sample of fewer has no covariance


@dataclass(frozen=True)
class Rows:
    """What was measured on every picture of an arm, in order of the prompts; what was not measured is `None`.

    Attributes:
        psnr_db: PSNR against stock, dB.
        ssim: SSIM against stock.
        latent_l2: Relative distance of the final latents from those of stock.
        lpips: LPIPS against stock.
        features: Features, [N, D].
        clip_score: CLIP score.
        right: 1 where the picture shows what its demo caption names, else 0.
    """

    psnr_db: Array | None = None
    ssim: Array | None = None
    latent_l2: Array | None = None
    lpips: Array | None = None
    features: Array | None = None
    clip_score: Array | None = None
    right: Array | None = None


def arm_results(
    arm: EvaluationArm,
    rows: Mapping[str, Rows],
    real: Real | None,
    extractor: FeatureExtractor | None,
    *,
    resamples: int | None = None,
    seed: int = 0,
    to_stock: bool = False,
) -> dict[str, Any]:
    """Return every figure of one arm as plain data, each with its number of pictures and its method.

    Args:
        arm: The arm.
        rows: Measures of all arms by name, stock's among them.
        real: The reference, or `None` for no distance.
        extractor: What made the features.
        resamples: Bootstrap draws; `None` chooses.
        seed: Seed of the bootstrap.
        to_stock: Whether to take the distance of the arm's pictures from those of stock.

    Returns:
        Metrics by name, and a verdict for arms other than stock.

    Raises:
        ValueError: If measures do not fit each other.
    """
    own, stock = rows[arm.name], rows[STOCK]
    draws = resamples or _RESAMPLES
    metrics: dict[str, Any] = {}
    for name in ("psnr_db", "ssim", "latent_l2", "lpips"):
        values = getattr(own, name)
        if values is not None:
            metrics[name] = _likeness(name, values, draws, seed)
    agreeing: dict[str, Interval] = {}
    for name in ("clip_score", "right"):
        values, base = getattr(own, name), getattr(stock, name)
        if values is None:
            continue
        label = "attribute_accuracy" if name == "right" else name
        mean = interval(values, np.mean, resamples=draws, seed=seed)
        metrics[label] = _with_interval(mean, len(values), "mean over pictures, bootstrap")
        if arm.name != STOCK and base is not None:
            difference = interval(values - base, np.mean, resamples=draws, seed=seed)
            agreeing[label] = difference
            metrics[f"delta_{label}"] = _with_interval(difference, len(values), "paired bootstrap over prompts")
    verdict = None
    if real is not None and extractor is not None and own.features is not None:
        few = resamples or (_FEW_RESAMPLES if extractor.dimension > _LONG_FEATURES else _RESAMPLES)
        found, verdict = _distances(own.features, stock.features, arm, real, extractor, few, seed, agreeing)
        metrics |= found
    if to_stock and extractor is not None and own.features is not None and arm.name != STOCK:
        metrics[f"{extractor.distance}_to_stock"] = _to_stock(own.features, stock.features, extractor)
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
        return "no difference from stock shown"
    if delta.value > 0:
        return "worse than stock"
    better = [name for name, difference in agreeing.items() if difference.low > 0]
    if better:
        return f"better than stock: lower distance, and {' and '.join(better)} agree{'s' * (len(better) == 1)}"
    return "different from stock: lower distance, no other metric agrees"


def kernel_name(extractor: FeatureExtractor) -> str:
    """Return what a kernel distance over an extractor's features is called: `kid` for the FID network alone."""
    return "kid" if extractor.distance == "fid" else extractor.distance.replace("fd_", "kd_", 1)


def speed_figures(timing: Mapping[str, Any], arm: str) -> dict[str, Any] | None:
    """Return an arm's times as they go into the results, or `None` if it was not timed."""
    row = timing.get("arms", {}).get(arm)
    if row is None:
        return None
    names = (
        "seconds_median", "speedup", "unet_speedup", "peak_bytes", "peak_reserved_bytes", "patching_seconds",
        "attention", "compiled",
    )  # fmt: skip
    return {name: row[name] for name in names} | {name: row[name] for name in ("time_ratio",) if name in row}


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
    if real.moments is not None and len(real.moments.mean) != own.shape[1]:
        raise ValueError(
            f"reference statistics have {len(real.moments.mean)} features, {extractor.name} {own.shape[1]}; they must "
            "be of one extractor: give --inception-weights, or statistics of these features."
        )
    own = np.asarray(own, dtype=np.float64)
    fewer = len(own) if real.features is None else min(len(own), len(real.features))
    paired = ", pairs of one prompt included" if real.paired else ""
    measured: list[tuple[str, Distances, str]] = [(extractor.distance, real.frechet, paired)]
    if real.kernel is not None:
        pairs = "without pairs of one prompt (Gretton et al. 2012, Lemma 6)" if real.paired else "all pairs"
        measured.append((kernel_name(extractor), real.kernel, f", unbiased, {pairs}"))
    decisive = kernel_name(extractor) if real.paired else extractor.distance  # the one that pairs do not bias
    metrics: dict[str, Any] = {}
    verdict = None
    for name, distances, variant in measured:
        few = len(own) < _FEWEST
        what = f"{arm.name}, {name}"
        value, resampled = (distances.of(own), None) if few else real.measure(distances, own, resamples, seed, what)
        metrics[name] = _entry(value, len(own), f"{extractor.name}, float64{variant}")
        metrics[name]["stamp"] = small_sample_stamp(fewer, biased=distances is real.frechet)
        if arm.name == STOCK or stock is None or resampled is None:
            continue
        base = np.asarray(stock, dtype=np.float64)
        value_of_stock, resampled_of_stock = real.measure(distances, base, resamples, seed, f"{STOCK}, {name}")
        delta = delta_of(value - value_of_stock, resampled - resampled_of_stock, len(own))
        way = "paired bootstrap over prompts" if real.paired else "half-samples of the prompts, reference fixed"
        metrics[f"delta_{name}"] = _with_interval(delta, len(own), f"{way}, {resamples} draws{variant}")
        if name == decisive:
            verdict = verdict_of(delta, agreeing)
    return metrics, verdict


def _to_stock(own: Array, stock: Array | None, extractor: FeatureExtractor) -> dict[str, Any]:
    if stock is None:
        raise ValueError("stock has no features; start the same command again to measure them.")
    value = frechet_distance(np.asarray(own, dtype=np.float64), np.asarray(stock, dtype=np.float64))
    return _entry(value, len(own), f"{extractor.name}, float64, generated pictures on both sides")


def _likeness(name: str, values: Array, resamples: int, seed: int) -> dict[str, Any]:
    worst = 0.95 if name in ("latent_l2", "lpips") else 0.05
    middle = interval(values, np.median, resamples=resamples, seed=seed)
    entry = _with_interval(middle, len(values), "median over prompts, bootstrap")
    # The order statistic: between two infinite PSNR numpy's interpolation gives none.
    tail = np.sort(values)[round(worst * (len(values) - 1))]
    entry[f"p{round(100 * worst)}"] = _plain(float(tail))
    if name == "psnr_db":
        entry["equal_pictures"] = int(np.isinf(values).sum())
    return entry


def _entry(value: float, number: int, method: str) -> dict[str, Any]:
    return {"value": _plain(value), "n": number, "method": method}


def _with_interval(estimate: Interval, number: int, method: str) -> dict[str, Any]:
    method = f"{method}, {spread_of(number)}"
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
