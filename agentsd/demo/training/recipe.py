"""The stages that the bundled UNet went through."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        name: Name in logs and checkpoints.
        grid: Side of the latents: 16, 32 or 64.
        batch: Pictures a step.
        steps: Optimiser steps, or 0 to fit ``minutes``.
        lr: Peak learning rate of AdamW.
        muon_lr: Peak learning rate of Muon on the inner matrices; 0 leaves these to AdamW.
        minutes: Compute time to fill when ``steps`` is 0; the first steps are timed to set the number.
        ema: Decay of the averaged weights, approached from below at the start of the stage.
        warmup: Steps of rising learning rate.
        focus: Share of timesteps from ``agentsd.demo.training.pool.FOCUS`` instead of from all.
        noise: Standard deviation of the noise.
    """

    name: str
    grid: int
    batch: int
    steps: int
    lr: float
    muon_lr: float = 0.0
    minutes: float = 0.0
    ema: float = 0.998
    warmup: int = 40
    focus: float = 0.0
    noise: float = 1.0

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.steps <= 0 and self.minutes <= 0:
            raise ValueError(
                f"steps={self.steps} and minutes={self.minutes} leave stage {self.name!r} no length; "
                "set one of them above 0."
            )

    def learning_rate(self, step: int, total: int) -> float:
        """Factor of the learning rates: linear rise, plateau, cosine fall to a twentieth over the last 40 %."""
        rise = min(1.0, (step + 1) / self.warmup)
        fall = max(0.0, (step / total - 0.6) / 0.4)
        return rise * (0.525 + 0.475 * math.cos(math.pi * min(fall, 1.0)))


# The training of the bundled weights, to within a few steps; README.md of the model folder has the details.
STAGES = (
    Stage("A", grid=16, batch=32, steps=1700, lr=8e-4),
    Stage("B", grid=32, batch=16, steps=470, lr=8e-4, ema=0.996, focus=0.4),
    Stage("C", grid=32, batch=16, steps=280, lr=8e-4, muon_lr=2e-3, ema=0.996, focus=0.4),
    Stage("D", grid=32, batch=16, steps=660, lr=8e-4, muon_lr=2e-3, ema=0.99),
    Stage("E", grid=32, batch=16, steps=140, lr=6e-4, muon_lr=2e-3, ema=0.98, noise=0.5),
    Stage("F", grid=64, batch=4, steps=1600, lr=8e-4, muon_lr=1e-3, ema=0.998),
)
