"""Good solvers with fewer steps, the baselines of equal UNet calls: names, settings and timesteps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

KARRAS = {"use_karras_sigmas": True}


@dataclass(frozen=True)
class Solver:
    """A solver that anyone can choose.

    Args:
        scheduler: Class of diffusers.
        settings: What changes in the model's own scheduler config.
        timesteps: Gives the timesteps of a run from a scheduler of the process, the number of steps and whether the
            model is an SDXL; `None` leaves them to the scheduler.
    """

    scheduler: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    timesteps: Callable[[Any, int, bool], list[int]] | None = None

    def make(self, config: Mapping[str, Any]) -> Any:
        """Return the scheduler.

        Args:
            config: Config of a scheduler of the process.

        Example:
            >>> type(SOLVERS["DEIS"].make(pipe.scheduler.config)).__name__
            'DEISMultistepScheduler'
        """
        import diffusers

        return getattr(diffusers, self.scheduler).from_config({**config, **self.settings})


def ays_timesteps(scheduler: Any, steps: int, sdxl: bool) -> list[int]:
    """Return the timesteps of "Align Your Steps" (https://arxiv.org/abs/2404.14507) for a number of steps.

    The published lists have 10 noise levels. Other numbers are interpolated in the logarithm of the noise level, as the
    authors do.

    Args:
        scheduler: A scheduler of the process.
        steps: Number of steps, at least 2.
        sdxl: Whether to take the list of SDXL.

    Example:
        >>> len(ays_timesteps(pipe.scheduler, 6, False))
        6
    """
    from diffusers.schedulers import AysSchedules

    listed = AysSchedules["StableDiffusionXLSigmas" if sdxl else "StableDiffusionSigmas"][:-1]
    places, wanted = np.linspace(0, 1, len(listed)), np.linspace(0, 1, steps)
    levels = np.interp(wanted, places, np.log(listed))
    signal = scheduler.alphas_cumprod.double().cpu().numpy().clip(1e-8, 1 - 1e-8)
    trained = 0.5 * np.log((1 - signal) / signal)  # rises
    found = [int(np.abs(trained - level).argmin()) for level in levels]
    for place in range(len(found) - 2, -1, -1):  # two levels may share a timestep
        found[place] = max(found[place], found[place + 1] + 1)
    return found


SOLVERS: Mapping[str, Solver] = MappingProxyType(
    {
        "DPM++ 2M Karras": Solver("DPMSolverMultistepScheduler", KARRAS),
        "UniPC": Solver("UniPCMultistepScheduler"),
        "DEIS": Solver("DEISMultistepScheduler"),
        "DPM++ 3M Karras": Solver("DPMSolverMultistepScheduler", {**KARRAS, "solver_order": 3}),
        # Without noise: with it, its pictures are others than those of the same seed under any other solver.
        "SA-Solver": Solver("SASolverScheduler", {"tau_func": lambda timestep: 0}),
        "DPM++ 2M, AYS": Solver("DPMSolverMultistepScheduler", timesteps=ays_timesteps),
    }
)
