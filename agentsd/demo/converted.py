"""A UNet that predicts velocities for one process, seen from another process."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor


class ConvertedUNet(UNet2DConditionModel):  # type: ignore[misc]
    """A UNet asked with the timesteps of one process and run at those of another with the same signal-to-noise ratio.

    `agentsd.demo.processes` builds it. It takes and returns what `UNet2DConditionModel` does.
    """

    def set_process(self, asked: Tensor, model: Tensor, kind: str) -> None:
        """Set the two processes.

        Args:
            asked: Log signal-to-noise ratio of the timesteps that callers name, [T], falling.
            model: The same of the timesteps that the weights were trained with, [T'], falling.
            kind: What callers expect: `"epsilon"`, `"v_prediction"` or `"flow_prediction"`. Samples of the last are
                `(1 - s) x0 + s n`, and the velocity is `n - x0`.
        """
        self.kind = kind
        # The timestep of the model for each asked one, by interpolation.
        rising = model.flip(0)
        place = torch.searchsorted(rising, asked.clamp(rising[0], rising[-1])).clamp(1, len(rising) - 1)
        low, high = rising[place - 1], rising[place]
        share = ((asked - low) / (high - low)).clamp(0, 1)
        steps = len(model) - 1 - (place - 1 + share)
        self.register_buffer("model_steps", steps.float().to(self.device), persistent=False)
        self.register_buffer("log_snr", asked.float().to(self.device), persistent=False)

    def forward(self, sample: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the UNet at the matching timestep and convert its velocity."""
        time = torch.as_tensor(timestep, device=sample.device).float().clamp(0, len(self.model_steps) - 1)
        step, log_snr = (_at(table, time) for table in (self.model_steps, self.log_snr))
        return_dict = kwargs.pop("return_dict", True)
        wide = log_snr.reshape(-1, *(1,) * (sample.ndim - 1))
        alpha, sigma = torch.sigmoid(wide).sqrt(), torch.sigmoid(-wide).sqrt()
        if self.kind == "flow_prediction":
            sample = (sample * (alpha + sigma)).to(sample.dtype)  # of variance 1
        velocity = super().forward(sample, step, *args, return_dict=False, **kwargs)[0]
        if self.kind == "epsilon":
            velocity = (alpha * velocity.float() + sigma * sample.float()).to(velocity.dtype)
        elif self.kind == "flow_prediction":
            noise_less_picture = (alpha + sigma) * velocity.float() + (sigma - alpha) * sample.float()
            velocity = noise_less_picture.to(velocity.dtype)
        return UNet2DConditionOutput(sample=velocity) if return_dict else (velocity,)


def _at(table: Tensor, time: Tensor) -> Tensor:
    """Return a table at fractional positions, linearly interpolated."""
    low = time.floor().long().clamp(max=len(table) - 2)
    return torch.lerp(table[low], table[low + 1], time - low)
