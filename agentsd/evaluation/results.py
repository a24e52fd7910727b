"""The figures of an evaluation from its measures: distances, differences with intervals, and what they allow to say."""

import hashlib
import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from agentsd.bench.intervals import Interval, interval, spread_of
from agentsd.evaluation.arms import STOCK, EvaluationArm
from agentsd.evaluation.differences import (
    ENOUGH_SAMPLES,
    Delta,
    bootstrap_counts,
    delta_of,
    half_counts,
    small_sample_stamp,
)
from agentsd.evaluation.features import FeatureExtractor
from agentsd.evaluation.frechet import FrechetDistances
from agentsd.evaluation.kernel import KernelDistances
from agentsd.evaluation.reference import Moments
from agentsd.evaluation.store import read_arrays, write_arrays

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
_LONG_FEATURES = 512
_RESAMPLES, _FEW_RESAMPLES = 1000, 200
_FEWEST = 4  # pictures for an interval: a half-sample of fewer has no covariance
_EQUAL_TIME = 0.05  # times further apart than this share are not called equal
_LOG_EVERY = 30.0  # seconds

Array = npt.NDArray[np.float64]
Distances = FrechetDistances | KernelDistances


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


@dataclass(frozen=True, eq=False)
class Real:
    """The reference's features, paired with the prompts or not, or its moments alone.

    One object serves all arms: it keeps what the reference decides, and the resampled distances of stock.

    Attributes:
        features: Features, [M, D].
        moments: Mean and covariance instead.
        paired: Whether row `i` belongs to prompt `i`.
        folder: Where resampled distances are kept for the next start; `None` keeps none.
    """

    features: Array | None = None
    moments: Moments | None = None
    paired: bool = False
    folder: Path | None = None
    _measured: dict[str, tuple[float, Array]] = field(default_factory=dict, repr=False)

    @cached_property
    def frechet(self) -> FrechetDistances:
        """Fréchet distances from the reference."""
        if self.features is not None:
            return FrechetDistances(self.features, paired=self.paired)
        if self.moments is None:
            raise ValueError("features and moments are both missing; a reference needs one of them.")
        return FrechetDistances((self.moments.mean, self.moments.covariance))

    @cached_property
    def kernel(self) -> KernelDistances | None:
        """Kernel distances from the reference; `None` where it is moments alone."""
        return None if self.features is None else KernelDistances(self.features, paired=self.paired)

    def measure(self, distances: Distances, arm: Array, resamples: int, seed: int, what: str) -> tuple[float, Array]:
        """Return an arm's distance, and those on resampled prompts [resamples]; equal features are measured once.

        Args:
            distances: `frechet` or `kernel`.
            arm: Features of the arm, [N, D].
            resamples: How many.
            seed: Seed of the resampling.
            what: Arm and metric, for the log.
        """
        settings = f"1 {type(distances).__name__} {self.paired} {resamples} {seed} {arm.shape} {self._sha256} "
        key = hashlib.sha256(settings.encode() + np.ascontiguousarray(arm).tobytes()).hexdigest()[:32]
        path = None if self.folder is None else self.folder / f"{key}.npz"
        if key not in self._measured:
            there = None if path is None else read_arrays(path)
            if there is None or not {"value", "drawn"} <= there.keys():
                counts = (bootstrap_counts if self.paired else half_counts)(len(arm), resamples, seed)
                drawn = distances.draws(arm, counts, _progress(f"interval of {what}"))
                there = {"value": np.array(distances.of(arm)), "drawn": drawn}
                if path is not None:
                    write_arrays(path, **there)
            self._measured[key] = float(there["value"]), there["drawn"]
        return self._measured[key]

    @cached_property
    def _sha256(self) -> str:
        given = [self.features] if self.moments is None else [self.moments.mean, self.moments.covariance]
        hasher = hashlib.sha256()
        for array in given:
            hasher.update(np.ascontiguousarray(array, dtype=np.float64).tobytes())
        return hasher.hexdigest()


def _progress(what: str) -> Callable[[int, int], None]:
    """Return what logs how far a computation is, not more often than is readable; nothing where it is short."""
    began = said = time.monotonic()

    def step(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= _LOG_EVERY:
            said = now
            logger.info("%s: %d of %d, about %.0f s left", what, done, total, (now - began) / done * (total - done))

    return step


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
        fewer = min(number, reference.get("number", number))  # moments do not tell theirs
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
        value, drawn = (distances.of(own), None) if few else real.measure(distances, own, resamples, seed, what)
        metrics[name] = _entry(value, len(own), f"{extractor.name}, float64{variant}")
        metrics[name]["stamp"] = small_sample_stamp(fewer, biased=distances is real.frechet)
        if arm.name == STOCK or stock is None or drawn is None:
            continue
        base = np.asarray(stock, dtype=np.float64)
        value_of_stock, drawn_of_stock = real.measure(distances, base, resamples, seed, f"{STOCK}, {name}")
        delta = delta_of(value - value_of_stock, drawn - drawn_of_stock, len(own))
        way = "paired bootstrap over prompts" if real.paired else "half-samples of the prompts, reference fixed"
        metrics[f"delta_{name}"] = _with_interval(delta, len(own), f"{way}, {resamples} draws{variant}")
        if name == decisive:
            verdict = verdict_of(delta, agreeing)
    return metrics, verdict


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
