"""Runs of a pipeline, recorded: the value at each call, how the solver uses it, and what came out."""

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from agentsd.calibration.solver import Noises, sensitivities
from agentsd.unet.noise import noise_source
from agentsd.unet.noise_levels import noise_levels


@dataclass(frozen=True)
class Recording:
    """One stock run of a pipeline, float32 on the CPU.

    Attributes:
        values: What each call predicted, after guidance: the noise, or the denoised picture under a solver that adds
            noise, [n, ...].
        sigmas: Noise levels of the calls and after the last, [n + 1].
        sensitivities: How far the final latent moves for each unit of error of a value, [n].
        latent: The final latent.
        picture: The picture, [3, H, W] in [0, 1].
    """

    values: Tensor
    sigmas: Tensor
    sensitivities: Tensor
    latent: Tensor
    picture: Tensor


@dataclass(frozen=True)
class Outcome:
    """What came out of a run.

    Attributes:
        latent: The final latent.
        picture: The picture, [3, H, W] in [0, 1].
        calls: Calls of the UNet or transformer, one element.
    """

    latent: Tensor
    picture: Tensor
    calls: Tensor


@dataclass
class _Seen:
    samples: list[Tensor] = field(default_factory=list)
    predictions: list[Tensor] = field(default_factory=list)
    latent: Tensor | None = None
    scheduler: Any = None  # as it was before its first step


def record(pipe: Any, prompt: str, *, seed: int, **call: Any) -> Recording:
    """Run a pipeline for one picture and record its run.

    Args:
        pipe: A diffusers pipeline.
        prompt: The prompt.
        seed: Seed of the picture's noise, made on the CPU.
        call: Further arguments of the pipeline call.

    Raises:
        ValueError: If the pipeline or its scheduler cannot be recorded.

    Example:
        >>> record(pipe, "a red circle", seed=0, num_inference_steps=4).values.shape
        torch.Size([4, 4, 16, 16])
    """
    latent, picture, seen = _run(pipe, prompt, seed, call)
    levels = noise_levels(seen.scheduler)
    name = type(pipe.scheduler).__name__
    if isinstance(levels, str):
        raise ValueError(f"scheduler cannot be calibrated: {levels}.")
    if len(levels.sigmas) != len(seen.predictions) + 1:
        raise ValueError(
            f"{type(pipe).__name__} made {len(seen.predictions)} steps of {name}, which lists "
            f"{len(levels.sigmas) - 1}; calibration needs whole runs with one step for each call."
        )
    noisy = noise_source(seen.scheduler, float(call.get("eta") or 0.0)) is not None
    noises = Noises(levels, noisy=noisy)
    pairs = zip(seen.samples, seen.predictions, strict=True)
    values = torch.cat([noises.value(index, *pair) for index, pair in enumerate(pairs)])
    moved = sensitivities(seen.scheduler, noisy=noisy)
    return Recording(values, torch.tensor(levels.sigmas), torch.tensor(moved), latent, picture)


def outcome(pipe: Any, prompt: str, *, seed: int, **call: Any) -> Outcome:
    """Run a patched pipeline for one picture, with the noise that `record` gives it.

    Args:
        pipe: A diffusers pipeline that `agentsd.apply` has patched.
        prompt: The prompt.
        seed: Seed of the picture's noise.
        call: Further arguments of the pipeline call.

    Example:
        >>> with agentsd.apply(pipe, tolerance=0.1):
        ...     outcome(pipe, "a red circle", seed=0, num_inference_steps=12).calls
        tensor(6)
    """
    from agentsd.patch import report

    latent, picture, _ = _run(pipe, prompt, seed, call)
    last = report(pipe).last_run
    return Outcome(latent, picture, torch.tensor(0 if last is None else last.full))


def _run(pipe: Any, prompt: str, seed: int, call: dict[str, Any]) -> tuple[Tensor, Tensor, _Seen]:
    with _watched(pipe.scheduler) as seen:
        made = pipe(prompt, generator=torch.Generator().manual_seed(seed), output_type="pt", **call)
    if seen.latent is None or len(seen.latent) != 1:
        raise ValueError(
            f"{type(pipe).__name__} makes several pictures for one prompt, or does not step its scheduler; calibration "
            "needs one picture for each prompt."
        )
    images = getattr(made, "images", None)
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise ValueError(f"{type(pipe).__name__} makes no pictures, which calibration compares; use apply without it.")
    return seen.latent[0], images[0].detach().float().cpu().clamp(0, 1), seen


@contextmanager
def _watched(scheduler: Any) -> Iterator[_Seen]:
    """Record what a scheduler's steps get; the scheduler is as before on leaving."""
    seen, step, had = _Seen(), scheduler.step, scheduler.__dict__.get("step")

    @functools.wraps(step)  # pipelines look at the signature
    def watch(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if seen.scheduler is None:
            seen.scheduler = _fresh_copy(scheduler, watch)
        scaled = scheduler.scale_model_input(sample, timestep) if hasattr(scheduler, "scale_model_input") else sample
        seen.samples.append(_kept(scaled))
        seen.predictions.append(_kept(model_output))
        result = step(model_output, timestep, sample, *args, **kwargs)
        seen.latent = _kept(result[0] if isinstance(result, tuple) else result.prev_sample)
        return result

    scheduler.step = watch
    try:
        yield seen
    finally:
        if had is None:
            scheduler.__dict__.pop("step", None)
        else:
            scheduler.step = had


def _fresh_copy(scheduler: Any, watch: Any) -> Any:
    scheduler.__dict__.pop("step")
    try:
        return copy.deepcopy(scheduler)
    finally:
        scheduler.step = watch


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().clone()
