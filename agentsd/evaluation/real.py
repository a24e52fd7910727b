"""What pictures are compared with, as distances need it: features or moments, and resampled distances kept on disk."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from agentsd.bench.store import read_arrays, write_arrays
from agentsd.evaluation.differences import bootstrap_counts, half_counts
from agentsd.evaluation.feature_sets import Array
from agentsd.evaluation.frechet import FrechetDistances
from agentsd.evaluation.kernel import KernelDistances
from agentsd.evaluation.progress import Progress
from agentsd.evaluation.reference import Moments

Distances = FrechetDistances | KernelDistances


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
            if there is None or not {"value", "resampled"} <= there.keys():
                counts = (bootstrap_counts if self.paired else half_counts)(len(arm), resamples, seed)
                resampled = distances.draws(arm, counts, Progress(f"interval of {what}"))
                there = {"value": np.array(distances.of(arm)), "resampled": resampled}
                if path is not None:
                    write_arrays(path, **there)
            self._measured[key] = float(there["value"]), there["resampled"]
        return self._measured[key]

    @cached_property
    def _sha256(self) -> str:
        given = [self.features] if self.moments is None else [self.moments.mean, self.moments.covariance]
        hasher = hashlib.sha256()
        for array in given:
            hasher.update(np.ascontiguousarray(array, dtype=np.float64).tobytes())
        return hasher.hexdigest()
