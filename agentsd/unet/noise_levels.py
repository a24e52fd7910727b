"""The noise level at each call of a run, read from the scheduler's own steps."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KINDS = ("epsilon", "v_prediction", "sample", "flow_prediction")

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


def _matches_flow(scheduler: Any) -> bool:
    return any(one.__name__.startswith("FlowMatch") for one in type(scheduler).__mro__)
