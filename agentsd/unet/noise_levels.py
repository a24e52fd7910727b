"""The noise level at each call of a run, read from the scheduler's own steps."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

KINDS = ("epsilon", "v_prediction", "sample", "flow_prediction")

SMALLEST = 1e-3  # noise level that counts as none
_HIGHEST = 1e4  # stands for samples without any signal


@dataclass(frozen=True)
class NoiseLevels:
    """What a scheduler does at each call of a run.

    Args:
        sigmas: Noise over signal at each call, and after the last: one more entry than there are calls.
        kind: What the denoiser predicts: `"epsilon"`, `"v_prediction"`, `"sample"` or `"flow_prediction"`.
    """

    sigmas: tuple[float, ...]
    kind: str


def noise_levels(scheduler: Any) -> NoiseLevels | str:
    """Return the noise levels of the run that a scheduler is set to; a text if agentsd cannot read them.

    `sigma = sqrt(1 - a) / sqrt(a)` with the share `a` of signal power (`alphas_cumprod`), where the scheduler does not
    list its sigmas. Samples must be variance preserving when they enter the denoiser. Flow matching mixes
    `(1 - s) x0 + s n` instead, and lists `s`: then `sigma = s / (1 - s)`.

    Args:
        scheduler: A diffusers scheduler after `set_timesteps`.

    Returns:
        The levels, or the reason why there are none.

    Example:
        >>> from diffusers import EulerDiscreteScheduler
        >>> scheduler = EulerDiscreteScheduler()
        >>> scheduler.set_timesteps(4)
        >>> [round(sigma, 1) for sigma in noise_levels(scheduler).sigmas]
        [157.4, 9.5, 1.5, 0.0, 0.0]
    """
    name = type(scheduler).__name__
    config = getattr(scheduler, "config", None)
    kind = getattr(config, "prediction_type", "flow_prediction" if _matches_flow(scheduler) else None)
    if kind not in KINDS:
        return f"{name} predicts {kind!r}, which is none of {', '.join(KINDS)}"
    if name.startswith("EDM"):
        return f"{name} scales samples in its own way"
    timesteps = getattr(scheduler, "timesteps", None)
    if not isinstance(timesteps, Tensor) or timesteps.ndim != 1:
        return f"{name} has no list of timesteps"
    sigmas = getattr(scheduler, "sigmas", None)
    if isinstance(sigmas, Tensor) and len(sigmas) == len(timesteps) + 1:
        levels = sigmas.double().cpu()
        if kind == "flow_prediction":
            levels = levels / (1 - levels)
    elif kind == "flow_prediction":
        return f"{name} lists no sigmas"
    else:
        signal = getattr(scheduler, "alphas_cumprod", None)
        if not isinstance(signal, Tensor):
            return f"{name} lists neither sigmas nor alphas_cumprod"
        signal = signal.double().cpu()
        places = timesteps.double().cpu().round().long().clamp(0, len(signal) - 1)
        share = signal[places].clamp(1e-8, 1 - 1e-8)
        levels = torch.cat([((1 - share) / share).sqrt(), torch.zeros(1, dtype=torch.float64)])
    return NoiseLevels(tuple(levels.clamp(max=_HIGHEST).tolist()), str(kind))


def times_of(sigmas: tuple[float, ...]) -> tuple[float, ...]:
    """Return when calls happen: `-log(sigma)`, or their number if noise levels rise after the first three calls.

    Example:
        >>> [round(time, 2) for time in times_of((2.0, 1.0, 0.5, 0.0))]
        [-0.69, -0.0, 0.69]
    """
    late = sigmas[2:-1]
    if any(later > earlier for earlier, later in pairwise(late)):
        return tuple(float(index) for index in range(len(sigmas) - 1))
    return tuple(-math.log(max(sigma, SMALLEST)) for sigma in sigmas[:-1])


def moves_of(sigmas: tuple[float, ...]) -> tuple[float, ...]:
    """Return by how much an error of each call's noise moves the final latent.

    That is the step in `sigma` that follows. Solvers that visit one noise level twice (Heun) use the mean of both ends
    of a step. Each of the two visits then moves by half of the steps around it.

    Example:
        >>> moves_of((4.0, 3.0, 2.0, 1.0, 0.5, 0.0))
        (1.0, 1.0, 1.0, 0.5, 0.5)
    """
    steps = [abs(after - sigma) for sigma, after in pairwise(sigmas)]
    late = sigmas[3:-1]
    if all(later < earlier for earlier, later in pairwise(late)):
        return tuple(steps)
    return tuple((before + after) / 2 for before, after in pairwise([0.0, *steps]))


def _matches_flow(scheduler: Any) -> bool:
    return any(one.__name__.startswith("FlowMatch") for one in type(scheduler).__mro__)
