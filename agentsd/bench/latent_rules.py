"""Rivals that skip whole UNet steps and look at the solver's noise levels: SADA and LTC-Accel, from their equations.

- `Sada`: skips while the error of a third-order step and the second difference of the flow point apart (ICML 2025,
  https://arxiv.org/abs/2507.17135). From 48% of the run on, three of four calls are skipped.
- `LtcAccel`: replaces every second step by the last change of the latent, scaled (ICCV 2025,
  https://arxiv.org/abs/2503.09675). The paper finds the scale once for all prompts; here it is that of the last two
  whole steps of the run.
"""

import math
from typing import Any

import torch
from torch import Tensor

from agentsd.unet.noise_levels import noise_levels

_SMALLEST = 1e-4


class Levels:
    """Noise levels of a run, and what predictions mean at them.

    Args:
        scheduler: The scheduler of the run.

    Raises:
        ValueError: If its noise levels cannot be read.

    Example:
        >>> pipe.scheduler.set_timesteps(4)
        >>> levels = Levels(pipe.scheduler)
        >>> float(levels.noise(0, torch.zeros(1), torch.ones(1)))
        1.0
    """

    def __init__(self, scheduler: Any) -> None:
        found = noise_levels(scheduler)
        if isinstance(found, str):
            raise ValueError(f"scheduler cannot be read: {found}.")
        self.sigmas, self.kind = found.sigmas, found.kind
        self.timesteps = [float(timestep) for timestep in scheduler.timesteps]
        self.train_steps = int(scheduler.config.num_train_timesteps)
        self.betas = scheduler.betas

    def scales(self, index: int) -> tuple[float, float]:
        """Return the factors of picture and noise in a sample at a call."""
        alpha = 1 / math.sqrt(1 + self.sigmas[index] ** 2)
        return max(alpha, _SMALLEST), max(self.sigmas[index] * alpha, _SMALLEST)

    def noise(self, index: int, sample: Tensor, prediction: Tensor) -> Tensor:
        """Return the noise that a prediction means."""
        alpha, sigma = self.scales(index)
        if self.kind == "v_prediction":
            return alpha * prediction + sigma * sample
        return prediction if self.kind == "epsilon" else (sample - alpha * prediction) / sigma

    def prediction(self, index: int, sample: Tensor, noise: Tensor) -> Tensor:
        """Return the prediction that means a noise."""
        alpha, sigma = self.scales(index)
        if self.kind == "v_prediction":
            return (noise - sigma * sample) / alpha
        return noise if self.kind == "epsilon" else (sample - sigma * noise) / alpha

    def beta(self, index: int) -> float:
        """Return the rate of the process at a call, for a run of length 1."""
        place = min(max(round(self.timesteps[index]), 0), self.train_steps - 1)
        return float(self.betas[place]) * self.train_steps


class Sada:
    """Skips a call if `mean[(x - x') (f_i - 2 f_{i-1} + f_{i-2})] <= 0`, with the flow `f` and its third-order step.

    `f = beta (noise / sigma - x) / 2` and `x' = x_i - (5/8 f_i + 3/4 f_{i-1} - 3/8 f_{i-2}) / n`. A skipped call takes
    the picture that `x'` and the last noise mean, or after 48% of the run the cubic through the last four pictures.

    Example:
        >>> rule = Sada(50)
        >>> pipe.scheduler.set_timesteps(50)
        >>> rule.begin(pipe.scheduler)
        >>> rule.needs_full(0, torch.zeros(1))
        True
    """

    def __init__(
        self, calls: int, *, most: int = 4, start: float = 0.2, fixed: float = 0.48, end: float = 0.92, every: int = 4
    ) -> None:
        self.calls, self.most, self.every = calls, most, every
        self.start, self.fixed, self.end = (math.ceil(share * calls) for share in (start, fixed, end))
        self.flows: list[Tensor] = []  # of the last three calls
        self.pictures: list[tuple[float, Tensor]] = []  # of the last four full steps, by timestep
        self.stepped: Tensor | None = None
        self.last_noise: Tensor | None = None
        self.last_sample: Tensor | None = None
        self.skipped = 0

    def begin(self, scheduler: Any) -> None:
        """Read the noise levels of the run."""
        self.levels = Levels(scheduler)

    def needs_full(self, index: int, sample: Tensor) -> bool:
        """Return whether the criterion, the fixed part or the ends of the run need a full step."""
        if not self.start <= index < self.end or len(self.flows) < 3 or self.last_sample is None:
            return True
        if index >= self.fixed:
            return len(self.pictures) < 4 or (index - self.fixed) % self.every == 0
        now, before, oldest = self.flows[::-1]
        self.stepped = self.last_sample - (0.625 * now + 0.75 * before - 0.375 * oldest) / self.calls
        product = (sample - self.stepped) * (now - 2 * before + oldest)
        return self.skipped >= self.most or float(product.mean()) > 0

    def observe(self, index: int, sample: Tensor, prediction: Tensor) -> None:
        """Keep flow and picture of a full step."""
        noise = self.levels.noise(index, sample, prediction)
        alpha, sigma = self.levels.scales(index)
        self.pictures = [*self.pictures[-3:], (self.levels.timesteps[index], (sample - sigma * noise) / alpha)]
        self.skipped = 0
        self._keep(index, sample, noise)

    def forecast(self, index: int, sample: Tensor) -> Tensor:
        """Return the prediction that means the forecast picture."""
        alpha, sigma = self.levels.scales(index)
        if index >= self.fixed:
            picture = lagrange(self.pictures, self.levels.timesteps[index])
        elif self.stepped is None or self.last_noise is None:
            raise ValueError("index must follow three full steps.")
        else:
            picture = (self.stepped - sigma * self.last_noise) / alpha
        noise = (sample - alpha * picture) / sigma
        self.skipped += 1
        self._keep(index, sample, noise)
        return self.levels.prediction(index, sample, noise)

    def _keep(self, index: int, sample: Tensor, noise: Tensor) -> None:
        sigma = self.levels.scales(index)[1]
        flow = 0.5 * self.levels.beta(index) * (noise / sigma - sample)
        self.flows = [*self.flows[-2:], flow]
        self.last_sample, self.last_noise = sample, noise


def lagrange(points: list[tuple[float, Tensor]], place: float) -> Tensor:
    """Return the polynomial through all points at a place.

    Example:
        >>> float(lagrange([(float(x), torch.tensor(float(x**3))) for x in range(4)], 5.0))
        125.0
    """
    total = torch.zeros_like(points[0][1])
    for number, (here, value) in enumerate(points):
        weight = 1.0
        for other, (there, _) in enumerate(points):
            if other != number:
                weight *= (place - there) / (here - there)
        total = total + weight * value
    return total


class LtcAccel:
    """Replaces every second step from 30% to 95% of the run by `w g` times the last change of the latent.

    `g` is the ratio of the two steps' progress in `alpha / sigma`, and `w = <D, D'> / (g |D'|^2)` for the last two
    changes `D` and `D'` of whole steps. The prediction is the one that moves a first-order step so far.

    Example:
        >>> [LtcAccel(20).needs_full(index, torch.zeros(1)) for index in (0, 1, 19)]
        [True, True, True]
    """

    def __init__(self, calls: int, *, start: float = 0.3, end: float = 0.95) -> None:
        self.calls = calls
        self.start, self.end = math.ceil(start * calls), math.ceil(end * calls)
        self.samples: list[Tensor] = []  # of the last three calls
        self.was_full: list[bool] = []
        self.scale = 1.0

    def begin(self, scheduler: Any) -> None:
        """Read the noise levels of the run."""
        self.levels = Levels(scheduler)

    def needs_full(self, index: int, sample: Tensor) -> bool:
        """Return whether the step before was replaced, or the call lies outside the interval."""
        self.samples = [*self.samples[-2:], sample]
        if len(self.samples) == 3 and all(self.was_full[-2:]):
            older, newer = self.samples[1] - self.samples[0], self.samples[2] - self.samples[1]
            square = float((older * older).sum())
            self.scale = float((newer * older).sum()) / (self._progress(index - 1) * max(square, 1e-12))
        full = len(self.samples) < 3 or not self.start <= index < min(self.end, self.calls - 1)
        full = full or not self.was_full[-1]
        self.was_full = [*self.was_full[-1:], full]
        return full

    def observe(self, index: int, sample: Tensor, prediction: Tensor) -> None:
        """Nothing: the rule looks at latents alone."""

    def forecast(self, index: int, sample: Tensor) -> Tensor:
        """Return the prediction that moves the latent by its last change, scaled."""
        change = self.scale * self._progress(index) * (self.samples[-1] - self.samples[-2])
        alpha = self.levels.scales(index)[0]
        after = self.levels.scales(index + 1)[0]
        step = self.levels.sigmas[index + 1] - self.levels.sigmas[index]
        noise = ((sample + change) / after - sample / alpha) / step
        return self.levels.prediction(index, sample, noise)

    def _progress(self, index: int) -> float:
        """Return the progress of step `index` over that of the step before."""
        before, now, after = (1 / max(self.levels.sigmas[place], _SMALLEST) for place in range(index - 1, index + 2))
        return (after - now) / (now - before)
