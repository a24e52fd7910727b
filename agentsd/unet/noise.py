"""Which schedulers add fresh noise to the sample at every step."""

from typing import Any

# Schedulers of diffusers that add noise to the sample at every step; others do if their algorithm is an SDE's.
_NOISY = frozenset(
    {
        "CMStochasticIterativeScheduler",
        "CosineDPMSolverMultistepScheduler",
        "DDPMParallelScheduler",
        "DDPMScheduler",
        "DPMSolverSDEScheduler",
        "EulerAncestralDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "LCMScheduler",
        "RePaintScheduler",
        "SASolverScheduler",
        "ScoreSdeVeScheduler",
        "TCDScheduler",
        "UnCLIPScheduler",
    }
)


def draws_noise(scheduler: Any) -> bool:
    """Return whether a scheduler draws fresh noise between steps, which an earlier prediction knows nothing of.

    DDIM with `eta` above 0, which is given to the pipeline's call, cannot be seen.

    Example:
        >>> draws_noise(pipe.scheduler)
        False
    """
    algorithm = getattr(getattr(scheduler, "config", None), "algorithm_type", None)
    return type(scheduler).__name__ in _NOISY or str(algorithm).startswith("sde")
