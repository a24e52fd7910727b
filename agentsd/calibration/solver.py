"""How far an error of one prediction moves the final latent, for any scheduler: found by stepping it with ones.

Between the denoiser's calls a scheduler's step is linear in the sample and the predictions. So the final latent is the
sum of the predicted noises, each times a number that depends on the scheduler alone. What an error of a prediction does
to later predictions is left out.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from agentsd.unet.controller import Controller
from agentsd.unet.denoisers import latent_part
from agentsd.unet.noise_levels import NoiseLevels, noise_levels

_SMALLEST = 1e-4


class Noises(Controller):
    """Turns predictions into noises and back, as the controller does at run time.

    Example:
        >>> noises = Noises(NoiseLevels((2.0, 1.0, 0.0), "epsilon"))
        >>> float(noises.value(0, torch.zeros(1, 1), torch.ones(1, 1)))
        1.0
    """

    def __init__(self, levels: NoiseLevels, *, noisy: bool = False) -> None:
        super().__init__(levels, tolerance=1.0, noisy=noisy)

    def value(self, index: int, sample: Tensor, prediction: Tensor) -> Tensor:
        """Return the noise that a prediction means; the denoised picture for a solver that adds noise."""
        latent, mean, _ = latent_part(sample.detach(), prediction.detach())
        return self._value(index, latent, mean)

    def prediction(self, index: int, sample: Tensor, value: Tensor) -> Tensor:
        """Return the prediction that means a noise or denoised picture."""
        return self._prediction(index, sample, value)


def sensitivities(scheduler: Any, *, noisy: bool) -> list[float]:
    """Return how far the final latent moves for each unit of error of each call's noise.

    Args:
        scheduler: A scheduler after `set_timesteps`, before its first step; it is not changed.
        noisy: Whether it adds fresh noise. The numbers are then for errors of the denoised picture.

    Returns:
        One number a call.

    Raises:
        ValueError: If the scheduler's noise levels cannot be read, or its noise cannot be repeated.

    Example:
        >>> from diffusers import EulerDiscreteScheduler
        >>> scheduler = EulerDiscreteScheduler()
        >>> scheduler.set_timesteps(3)
        >>> levels = noise_levels(scheduler).sigmas
        >>> [round(one, 3) for one in sensitivities(scheduler, noisy=False)] == [
        ...     round(after - before, 3) for before, after in zip(levels, levels[1:])
        ... ]
        True
    """
    levels = noise_levels(scheduler)
    if isinstance(levels, str):
        raise ValueError(f"scheduler cannot be calibrated: {levels}.")
    calls = len(levels.sigmas) - 1
    nothing = torch.zeros(calls, calls)
    still, again, moved = (_final(scheduler, levels, values) for values in (nothing, nothing, torch.eye(calls)))
    if not torch.equal(still, again):
        raise ValueError(
            f"scheduler {type(scheduler).__name__} cannot be calibrated: its noise does not follow torch's seed; use "
            "another one."
        )
    found = [float(one) for one in moved - still]
    if not noisy:
        return found
    # An error of the picture is one of the noise, over `-sigma`; later noises are held, not later pictures.
    return [-one / max(sigma, _SMALLEST) for one, sigma in zip(found, levels.sigmas, strict=False)]


def _final(scheduler: Any, levels: NoiseLevels, noises: Tensor) -> Tensor:
    """Return the final latents of several runs from a sample of 0: run `i` has `noises[i, k]` at call `k`."""
    stepped, known = copy.deepcopy(scheduler), Noises(levels)
    sample = torch.zeros(len(noises), 1, 1, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for index, timestep in enumerate(stepped.timesteps):
            scaled = sample
            if hasattr(stepped, "scale_model_input"):
                scaled = stepped.scale_model_input(sample, timestep)
            prediction = known.prediction(index, scaled, noises[:, index].reshape(-1, 1, 1, 1))
            sample = stepped.step(prediction, timestep, sample, return_dict=False)[0]
    return sample.flatten()
