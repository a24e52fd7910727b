"""Rivals that skip whole UNet steps, each written from its published equations, and an arm that runs one.

All decide before a call from what they saw so far, and replace a skipped call's prediction. They see what the UNet sees
and predicts: the samples of one guided picture are two.

- `Taylor`: a full step every `every` steps, between them a Taylor series of order 0, 1 or 2 in the step's number
  (TaylorSeer, Liu et al., ICCV 2025, https://arxiv.org/abs/2503.06923, applied to predictions).
- `Spectrum`: ridge regression on Chebyshev polynomials over all full steps, blended with the straight line of the last
  two; the gap between full steps grows (CVPR 2026, https://arxiv.org/abs/2603.01623).
- `AdaptiveDiffusion`: skips while the latent's speed changes little, and repeats the last prediction (Ye et al.,
  NeurIPS 2024, https://arxiv.org/abs/2410.09873).
- `EasyCache`: skips while the accumulated relative change stays under a threshold, and repeats the difference of
  prediction and sample (https://arxiv.org/abs/2507.02860).

SADA and LTC-Accel, which need the solver's noise levels, are in `agentsd.bench.latent_rules`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from agentsd.bench.latent_rules import LtcAccel, Sada


class Skipper(Protocol):
    """What decides and predicts in the arm: one object for one run of `calls` UNet calls."""

    def needs_full(self, index: int, sample: Tensor) -> bool:
        """Return whether call `index` must be a full step."""

    def observe(self, index: int, sample: Tensor, prediction: Tensor) -> None:
        """Take in a full step."""

    def forecast(self, index: int, sample: Tensor) -> Tensor:
        """Return the prediction of a skipped step."""


class Taylor:
    """A full step every so many calls, a Taylor series between.

    Example:
        >>> [Taylor(20, every=3).needs_full(index, torch.zeros(1)) for index in (0, 1, 2, 3, 19)]
        [True, True, True, False, True]
    """

    def __init__(self, calls: int, *, every: int, order: int = 1, first: int = 3) -> None:
        self.calls, self.every, self.order, self.first = calls, every, order, first
        self.seen: list[tuple[int, Tensor]] = []

    def needs_full(self, index: int, sample: Tensor) -> bool:
        """Return whether the call is one of the first, every `every`-th after, or the last."""
        return index < self.first or index == self.calls - 1 or (index - self.first + 1) % self.every == 0

    def observe(self, index: int, sample: Tensor, prediction: Tensor) -> None:
        """Keep the last three predictions."""
        self.seen = [*self.seen[-2:], (index, prediction)]

    def forecast(self, index: int, sample: Tensor) -> Tensor:
        """Return Newton's form of the series through the last `order + 1` full steps."""
        (last, value), *before = self.seen[::-1]
        if self.order == 0 or not before:
            return value
        first, previous = before[0]
        slope = (value - previous) / (last - first)
        result = value + (index - last) * slope
        if self.order == 2 and len(before) == 2:
            second, oldest = before[1]
            bend = (slope - (previous - oldest) / (first - second)) / (last - second)
            result = result + (index - last) * (index - first) * bend
        return result


class Spectrum:
    """Chebyshev ridge regression over all full steps, half blended with a straight line; gaps grow.

    Example:
        >>> Spectrum(50).needs_full(0, torch.zeros(1))
        True
    """

    def __init__(
        self,
        calls: int,
        *,
        degree: int = 4,
        ridge: float = 0.1,
        blend: float = 0.5,
        window: float = 2.0,
        grow: float = 0.75,
        first: int = 5,
    ) -> None:
        self.calls, self.degree, self.ridge, self.blend = calls, degree, ridge, blend
        self.window, self.grow, self.first = window, grow, first
        self.seen: list[tuple[int, Tensor]] = []
        self.next = 0

    def needs_full(self, index: int, sample: Tensor) -> bool:
        """Return whether the call is one of the first or the last, or the window is over."""
        return index < self.first or index == self.calls - 1 or index >= self.next

    def observe(self, index: int, sample: Tensor, prediction: Tensor) -> None:
        """Keep a prediction and open the next window."""
        self.seen.append((index, prediction))
        if index >= self.first - 1:
            self.next = index + max(1, int(self.window))
            self.window += self.grow

    def forecast(self, index: int, sample: Tensor) -> Tensor:
        """Return the blend of the fitted polynomial and the straight line."""
        times = torch.tensor([2 * seen / (self.calls - 1) - 1 for seen, _ in self.seen], dtype=torch.float64)
        basis = self._basis(times)
        here = self._basis(torch.tensor([2 * index / (self.calls - 1) - 1], dtype=torch.float64))
        gram = basis.T @ basis + self.ridge * torch.eye(basis.shape[1], dtype=torch.float64)
        weights = (here @ torch.linalg.solve(gram, basis.T)).flatten().tolist()
        fitted = torch.zeros_like(sample)
        for weight, (_, value) in zip(weights, self.seen, strict=True):
            fitted = fitted + weight * value
        (first, previous), (last, value) = self.seen[-2:]
        line = value + (index - last) / (last - first) * (value - previous)
        return self.blend * fitted + (1 - self.blend) * line

    def _basis(self, times: Tensor) -> Tensor:
        columns = [torch.ones_like(times), times]
        while len(columns) <= self.degree:
            columns.append(2 * times * columns[-1] - columns[-2])
        return torch.stack(columns[: self.degree + 1], dim=1)


class AdaptiveDiffusion:
    """Skips while `|(d_i + d_{i-2}) / 2 - d_{i-1}| <= threshold d_{i-1}`, with `d_i = mean|x_i - x_{i-1}|`.

    Example:
        >>> AdaptiveDiffusion(50).needs_full(0, torch.zeros(1))
        True
    """

    def __init__(self, calls: int, *, threshold: float = 0.01, most: int = 4, first: int = 4) -> None:
        self.calls, self.threshold, self.most, self.first = calls, threshold, most, first
        self.samples: list[Tensor] = []
        self.skipped = 0
        self.last: Tensor | None = None

    def needs_full(self, index: int, sample: Tensor) -> bool:
        """Return whether the latent's speed changes, or too many calls were skipped in a row."""
        self.samples = [*self.samples[-3:], sample]
        if index < self.first or index == self.calls - 1 or self.skipped >= self.most:
            return True
        speeds = [float((b - a).abs().mean()) for a, b in pairwise(self.samples)]
        before, middle, now = speeds
        return abs((now + before) / 2 - middle) > self.threshold * middle

    def observe(self, index: int, sample: Tensor, prediction: Tensor) -> None:
        """Keep the last prediction."""
        self.last, self.skipped = prediction, 0

    def forecast(self, index: int, sample: Tensor) -> Tensor:
        """Return the last prediction."""
        self.skipped += 1
        if self.last is None:
            raise ValueError("index must follow a full step.")
        return self.last


class EasyCache:
    """Skips while the sum of `k mean|x - x_prev| / mean|y_prev|` stays under a threshold, from 15% to 95% of the run.

    `k = mean|y - y_prev| / mean|x - x_prev|` comes from the last two full steps. A skipped step adds the difference
    `y - x` of the last full step to its sample.

    Example:
        >>> EasyCache(50).needs_full(0, torch.zeros(1))
        True
    """

    def __init__(self, calls: int, *, threshold: float = 0.2, start: float = 0.15, end: float = 0.95) -> None:
        self.calls, self.threshold, self.start, self.end = calls, threshold, start, end
        self.full: tuple[Tensor, Tensor] | None = None
        self.sample: Tensor | None = None
        self.rate: float | None = None
        self.sum = 0.0

    def needs_full(self, index: int, sample: Tensor) -> bool:
        """Return whether the accumulated change reaches the threshold."""
        before, self.sample = self.sample, sample
        if self.rate is None or self.full is None or before is None:
            return True
        if not self.start * self.calls <= index < self.end * self.calls:
            return True
        change = self.rate * (sample - before).abs().mean() / self.full[1].abs().mean()
        self.sum += float(change)
        return self.sum >= self.threshold

    def observe(self, index: int, sample: Tensor, prediction: Tensor) -> None:
        """Update the rate from two full steps."""
        if self.full is not None:
            moved = (sample - self.full[0]).abs().mean().clamp(min=1e-12)
            self.rate = float((prediction - self.full[1]).abs().mean() / moved)
        self.full, self.sum = (sample, prediction), 0.0

    def forecast(self, index: int, sample: Tensor) -> Tensor:
        """Return the sample plus the last difference."""
        if self.full is None:
            raise ValueError("index must follow a full step.")
        before, prediction = self.full
        return sample + (prediction - before)


SKIPPERS: dict[str, Callable[[int], Skipper]] = {
    "every 2, order 1 (TaylorSeer)": lambda calls: Taylor(calls, every=2),
    "every 3, order 1 (TaylorSeer)": lambda calls: Taylor(calls, every=3),
    "every 3, order 2 (TaylorSeer)": lambda calls: Taylor(calls, every=3, order=2),
    "Spectrum": Spectrum,
    "AdaptiveDiffusion 0.01": AdaptiveDiffusion,
    "AdaptiveDiffusion 0.05": lambda calls: AdaptiveDiffusion(calls, threshold=0.05),
    "EasyCache 0.05": lambda calls: EasyCache(calls, threshold=0.05),
    "EasyCache 0.2": EasyCache,
    "SADA": Sada,
    "LTC-Accel": LtcAccel,
}


@contextmanager
def skipping_by(pipe: Any, make: Callable[[int], Skipper]) -> Iterator[None]:
    """Let a rival decide which UNet calls of a pipeline run; restore the UNet on leaving.

    Args:
        pipe: A diffusers pipeline with a UNet that is not patched.
        make: Builds the rival for a run of so many calls.

    Example:
        >>> with skipping_by(pipe, Spectrum):
        ...     image = pipe("a red circle", num_inference_steps=8, output_type="pt").images
    """
    unet, had = pipe.unet, pipe.unet.__dict__.get("forward")
    original = unet.forward
    state: dict[str, Any] = {"index": 0, "timesteps": None, "skipper": None}

    def forward(sample: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        timesteps = pipe.scheduler.timesteps
        if timesteps is not state["timesteps"]:
            state.update(index=0, timesteps=timesteps, skipper=make(len(timesteps)))
            if hasattr(state["skipper"], "begin"):
                state["skipper"].begin(pipe.scheduler)
        index, skipper = state["index"], state["skipper"]
        state["index"] += 1
        if skipper.needs_full(index, sample):
            output = original(sample, timestep, *args, **kwargs)
            skipper.observe(index, sample, output[0])
            return output
        return (skipper.forecast(index, sample).to(sample.dtype),)

    unet.forward = forward
    try:
        yield
    finally:
        if had is None:
            del unet.forward
        else:
            unet.forward = had
