"""What is measured on every picture, chunk by chunk: features, likeness to stock, CLIP score, attributes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agentsd.bench.lpips import Lpips, find_weights, load_lpips
from agentsd.bench.metrics import psnr, relative_l2, ssim
from agentsd.bench.store import Array, UnfinishedError
from agentsd.evaluation.arms import STOCK
from agentsd.evaluation.captions import Prompt
from agentsd.evaluation.clip_score import load_clip
from agentsd.evaluation.drawing import modules_sha256
from agentsd.evaluation.features import Extractor, FeatureExtractor, demo_extractor, inception_extractor
from agentsd.evaluation.manifest import digest
from agentsd.evaluation.reference import Reference
from agentsd.evaluation.store import Store, chunks

LIKENESS = "likeness"
ATTRIBUTES = "attributes"
LPIPS = "lpips alex 0.1"

# Rows by name for the pictures of an arm at the indices given.
Measure = Callable[[str, Sequence[int]], Mapping[str, Array]]


def make_extractor(features: str, weights: Path | None, resize: str, device: torch.device) -> FeatureExtractor:
    """Return FID-Inception, or the small network of the demo, whose distances have names of their own.

    Args:
        features: `"inception"` or `"demo"`.
        weights: Weights of FID-Inception, or `None` for those in torch's cache.
        resize: How its input is resized.
        device: Where it runs.

    Returns:
        The extractor.

    Raises:
        ValueError: If the weights are missing or are not those of FID-Inception.

    Example:
        >>> make_extractor("demo", None, "clean", torch.device("cpu")).distance
        'fd_demo'
    """
    return demo_extractor() if features == "demo" else inception_extractor(weights, resize, device=device)


def check_extractor(extractor: FeatureExtractor, size: tuple[int, int]) -> None:
    """Refuse an extractor that cannot take the run's pictures, before any is generated.

    Args:
        extractor: The extractor.
        size: Width and height of the pictures in pixels.

    Raises:
        ValueError: If it takes no pictures of this size.

    Example:
        >>> check_extractor(make_extractor("demo", None, "clean", torch.device("cpu")), (64, 64))
    """
    extractor(np.zeros((1, size[1], size[0], 3), dtype=np.uint8))


def check_reference(reference: Reference, extractor: FeatureExtractor, number: int) -> None:
    """Refuse a reference whose distance from the run's pictures has no meaning, before any is generated.

    Args:
        reference: The reference.
        extractor: What makes the features.
        number: How many pictures an arm has.

    Raises:
        ValueError: If there are too few pictures, or the statistics are of other features.

    Example:
        >>> from agentsd.evaluation.reference import Moments
        >>> moments = Moments(np.zeros(3), np.eye(3))
        >>> reference = Reference("moments", 0, False, {}, moments=moments)
        >>> check_reference(reference, make_extractor("demo", None, "clean", torch.device("cpu")), 10)
        Traceback (most recent call last):
        ...
        ValueError: reference statistics have 3 features, agentsd-demo 128; ...
    """
    if number < 2:
        raise ValueError(f"num={number} is too few for a distance; give --num 2 or more, or leave --reference out.")
    length = extractor.dimension if reference.moments is None else len(reference.moments.mean)
    if length != extractor.dimension:
        raise ValueError(
            f"reference statistics have {length} features, {extractor.name} {extractor.dimension}; "
            "they must be of one extractor: give --inception-weights, or statistics of these features."
        )


def without_network(extractor: FeatureExtractor) -> FeatureExtractor:
    """Return an extractor's names alone; when its network is no longer referred to, its memory is free.

    Example:
        >>> without_network(make_extractor("demo", None, "clean", torch.device("cpu"))).name
        'agentsd-demo'
    """
    return Extractor(**extractor_config(extractor), function=_gone)


def extractor_config(extractor: FeatureExtractor) -> dict[str, Any]:
    """Return what decides features, as plain data: distances are comparable only where it is equal.

    Example:
        >>> extractor_config(make_extractor("demo", None, "clean", torch.device("cpu")))["dimension"]
        128
    """
    names = ("name", "dimension", "distance", "resize", "sha256")
    return {name: getattr(extractor, name) for name in names}


def feature_kind(extractor: FeatureExtractor) -> str:
    """Return the name of an extractor's features on disk."""
    return f"features {extractor.name} {digest(extractor_config(extractor))[:12]}"


@dataclass(frozen=True)
class Clip:
    """A CLIP model and what decides its scores."""

    score: Callable[[Array, Sequence[str]], Array]
    config: dict[str, Any]

    @property
    def kind(self) -> str:
        """Name of the scores on disk."""
        return f"clip {digest(self.config)[:12]}"

    def without_network(self) -> "Clip":
        """Return what decides the scores alone; see `without_network`."""
        return replace(self, score=_gone)


def make_clip(model: str, device: torch.device) -> Clip:
    """Return the CLIP model of a folder or hub id; raises ValueError if it cannot be loaded."""
    scorer = load_clip(model, device=device)
    return Clip(scorer, {"model": Path(model).name, "weights_sha256": modules_sha256({"clip": scorer.model})})


def likeness(store: Store) -> Measure:
    """Return the measure of PSNR (dB), SSIM and relative latent L2 against stock of the same prompt."""

    def measure(arm: str, indices: Sequence[int]) -> Mapping[str, Array]:
        ours, stock = (_unit(store.pictures(name, indices)) for name in (arm, STOCK))
        latents = [torch.from_numpy(_latents(store, name, indices)) for name in (arm, STOCK)]
        rows = {"psnr_db": psnr(ours, stock), "ssim": ssim(ours, stock), "latent_l2": relative_l2(*latents)}
        return {name: values.double().numpy() for name, values in rows.items()}

    return measure


def make_lpips(weights: Path | None) -> Lpips:
    """Return the network of LPIPS; raises ValueError if its weights are missing or damaged."""
    return load_lpips(find_weights() if weights is None else weights)


def lpips_measure(store: Store, network: Lpips) -> Measure:
    """Return the measure of LPIPS against stock of the same prompt."""

    def measure(arm: str, indices: Sequence[int]) -> Mapping[str, Array]:
        ours, stock = (_unit(store.pictures(name, indices)) for name in (arm, STOCK))
        with torch.inference_mode():
            return {"lpips": network(ours, stock).double().numpy()}

    return measure


def feature_measure(store: Store, extractor: FeatureExtractor) -> Measure:
    """Return the measure of an extractor's features, float32 [N, D]."""
    return lambda arm, indices: {"features": extractor(store.pictures(arm, indices))}


def reference_measure(reference: Reference, extractor: FeatureExtractor) -> Measure:
    """Return the measure of an extractor's features on a reference's pictures."""
    return lambda arm, indices: {"features": extractor(reference.pictures(indices))}


def clip_measure(store: Store, clip: Clip, prompts: Sequence[Prompt]) -> Measure:
    """Return the measure of the CLIP score of each picture with its prompt."""

    def measure(arm: str, indices: Sequence[int]) -> Mapping[str, Array]:
        texts = [prompts[index].text for index in indices]
        return {"clip_score": clip.score(store.pictures(arm, indices), texts)}

    return measure


def attribute_measure(store: Store, prompts: Sequence[Prompt]) -> Measure:
    """Return the measure of whether a picture shows what a demo caption names: 1 or 0."""
    from agentsd.demo.attributes import load_classifier, matches, picture_scores
    from agentsd.demo.captions import parse_caption

    classifier = load_classifier()

    def measure(arm: str, indices: Sequence[int]) -> Mapping[str, Array]:
        scores = picture_scores(classifier, store.pictures(arm, indices))
        wanted = [parse_caption(prompts[index].text).combos for index in indices]
        return {"right": matches(scores, wanted).astype(np.float64)}

    return measure


def measure_all(
    store: Store,
    wanted: Sequence[tuple[str, str, Measure]],
    number: int,
    *,
    rank: int = 0,
    world: int = 1,
    on_chunk: Callable[[int, int], object] | None = None,
) -> None:
    """Take the measures that are missing, this process its share of the chunks.

    Chunks lie at fixed places: a network sees the same batches with any number of processes.

    Args:
        store: Pictures and measures.
        wanted: Arm, kind and measure.
        number: How many pictures.
        rank: This process.
        world: How many processes.
        on_chunk: Called with done and all chunks of this process.
    """
    tasks = [(arm, kind, measure, chunk) for arm, kind, measure in wanted for chunk in chunks(number)][rank::world]
    for done, (arm, kind, measure, chunk) in enumerate(tasks):
        if store.read_measure(arm, kind, chunk) is None:
            store.write_measure(arm, kind, chunk, measure(arm, chunk))
        if on_chunk is not None:
            on_chunk(done + 1, len(tasks))


def read_all(store: Store, arm: str, kind: str, number: int) -> dict[str, Array]:
    """Return a measure of all pictures, in order of the prompts.

    Raises:
        UnfinishedError: If a chunk is missing.
    """
    parts = []
    for chunk in chunks(number):
        rows = store.read_measure(arm, kind, chunk)
        if rows is None:
            path = store.measure_path(arm, kind, chunk[0])
            raise UnfinishedError(f"{str(path.parent)!r} lacks a file of measures; start the same command again.")
        parts.append(rows)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _gone(*args: object) -> Array:
    raise RuntimeError("the network was dropped when everything was measured.")


def _unit(pictures: Array) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def _latents(store: Store, arm: str, indices: Sequence[int]) -> Array:
    rows = [store.latent(arm, index) for index in indices]
    if any(row is None for row in rows):
        raise UnfinishedError(f"arm {arm!r} lacks latents; start the same command again to remake them.")
    return np.stack([np.asarray(row, dtype=np.float32) for row in rows])
