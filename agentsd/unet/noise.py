"""Which schedulers add fresh noise to the sample at every step."""

import inspect
from typing import Any

# Schedulers of diffusers whose steps add none, unless their settings or the caller ask for it.
_CALM = frozenset(
    {
        "CogVideoXDDIMScheduler",
        "DDIMInverseScheduler",
        "DDIMParallelScheduler",
        "DDIMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepInverseScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "EDMDPMSolverMultistepScheduler",
        "EDMEulerScheduler",
        "EulerDiscreteScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "HeunDiscreteScheduler",
        "IPNDMScheduler",
        "KDPM2DiscreteScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "UniPCMultistepScheduler",
    }
)
# Those that add noise at every step.
_NOISY = frozenset(
    {
        "CMStochasticIterativeScheduler",
        "CogVideoXDPMScheduler",
        "CosineDPMSolverMultistepScheduler",
        "DDPMParallelScheduler",
        "DDPMScheduler",
        "DDPMWuerstchenScheduler",
        "DPMSolverSDEScheduler",
        "EulerAncestralDiscreteScheduler",
        "FlowMatchLCMScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "LCMScheduler",
        "LTXEulerAncestralRFScheduler",
        "RePaintScheduler",
        "SASolverScheduler",
        "SCMScheduler",
        "ScoreSdeVeScheduler",
        "TCDScheduler",
        "UnCLIPScheduler",
    }
)


def noise_source(scheduler: Any, eta: float = 0.0) -> str | None:
    """Return why a scheduler's steps add fresh noise, or may add it; `None` if they do not.

    An earlier prediction does not know that noise. An unknown scheduler counts as noisy, and so does a subclass that
    overrides the step of a known one.

    Args:
        scheduler: The scheduler; `None` if none is known.
        eta: The share of noise that the caller asks of DDIM.

    Example:
        >>> noise_source(pipe.scheduler) is None
        True
        >>> noise_source(pipe.scheduler, eta=1.0)
        'DDIMScheduler adds fresh noise at every step (eta=1)'
    """
    if scheduler is None:
        return (
            "no scheduler is known for these timesteps, so its steps may add fresh noise; "
            "give agentsd.apply the pipeline, or call patch.attach(pipe)"
        )
    name = type(scheduler).__name__
    ancestors = type(scheduler).__mro__
    if any(one.__name__ in _NOISY for one in ancestors):
        return f"{name} adds fresh noise at every step"
    config = getattr(scheduler, "config", None)
    if str(getattr(config, "algorithm_type", None)).startswith("sde"):
        return f"{name} adds fresh noise at every step"
    if getattr(config, "stochastic_sampling", False):
        return f"{name} adds fresh noise at every step"
    known = next((one for one in ancestors if one.__name__ in _CALM), None)
    if known is None:
        return f"{name} is not a scheduler that agentsd knows, so its steps may add fresh noise"
    if any("step" in one.__dict__ for one in ancestors[: ancestors.index(known)]):
        return f"{name} has a step of its own, which may add fresh noise"
    if eta and takes_eta(scheduler):
        return f"{name} adds fresh noise at every step (eta={eta:g})"
    return None


def takes_eta(scheduler: Any) -> bool:
    """Return whether the caller of a scheduler's step may ask for noise by `eta`.

    Example:
        >>> takes_eta(pipe.scheduler)
        True
    """
    return "eta" in inspect.signature(scheduler.step).parameters
