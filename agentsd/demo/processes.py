"""The demo model under other diffusion processes: the same trained weights behind Stable Diffusion's own schedules.

The demo model was trained with velocities, linear betas and trailing timesteps. People run models that predict noise,
under `scaled_linear` betas and leading timesteps, with large guidance. What is measured under one process need not hold
under another. A process here is a real `StableDiffusionPipeline`: its UNet takes the timesteps of the other process and
returns the other kind of prediction.

A sample at signal-to-noise ratio `alpha^2 / sigma^2` is the same for every variance-preserving process. The conversion
therefore looks up the timestep of the demo model with the same ratio, runs the UNet there, and converts the velocity
`v`: `eps = alpha v + sigma x` and `x0 = alpha x - sigma v` (Salimans & Ho, ICLR 2022, https://arxiv.org/abs/2202.00512).

Flow matching (Liu et al., ICLR 2023, https://arxiv.org/abs/2209.03003) mixes `(1 - s) x0 + s n` and predicts `n - x0`.
Its samples are those of a variance-preserving process times `1 / (alpha + sigma)`, at `s = sigma / (alpha + sigma)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from agentsd.demo import model_path

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

_SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
_LEADING = {**_SCALED, "timestep_spacing": "leading", "steps_offset": 1}

# Name -> class and configuration of the scheduler, from the scheduler_config.json of the public models. `own` is empty:
# it is the demo model as it was trained.
PROCESSES: MappingProxyType[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "own": ("DDIMScheduler", {}),
        # stable-diffusion-v1-5
        "sd15": (
            "PNDMScheduler",
            {**_LEADING, "prediction_type": "epsilon", "skip_prk_steps": True, "set_alpha_to_one": False},
        ),
        # stable-diffusion-2-1
        "sd21-v": (
            "DDIMScheduler",
            {**_LEADING, "prediction_type": "v_prediction", "clip_sample": False, "set_alpha_to_one": False},
        ),
        # stable-diffusion-xl-base-1.0
        "sdxl": ("EulerDiscreteScheduler", {**_LEADING, "prediction_type": "epsilon"}),
        # Lin et al., WACV 2024 (https://arxiv.org/abs/2305.08891): the last training step holds no signal at all.
        "zero-snr": (
            "DDIMScheduler",
            {
                **_SCALED,
                "timestep_spacing": "trailing",
                "prediction_type": "v_prediction",
                "rescale_betas_zero_snr": True,
                "clip_sample": False,
            },
        ),
        # Rectified flow, as SD 3 and FLUX; stable-diffusion-3-medium has the shift.
        "flow": ("FlowMatchScheduler", {"shift": 3.0}),
    }
)


def demo_pipeline(process: str = "own", **load: Any) -> StableDiffusionPipeline:
    """Load the demo model as a pipeline of one of `PROCESSES`.

    Args:
        process: Name of the process.
        load: Further arguments of `from_pretrained`, for example `torch_dtype`.

    Returns:
        The pipeline. `X.from_config(pipe.scheduler.config)` gives another solver of its process.

    Raises:
        ValueError: If the process is unknown.

    Example:
        >>> demo_pipeline("sd15").scheduler.config.prediction_type
        'epsilon'
    """
    if process not in PROCESSES:
        raise ValueError(f"process={process!r} is unknown; choose one of {', '.join(PROCESSES)}.")
    from diffusers import StableDiffusionPipeline

    pipe: StableDiffusionPipeline = StableDiffusionPipeline.from_pretrained(model_path(), **load)
    pipe.set_progress_bar_config(disable=True)
    if process != "own":
        kind, config = PROCESSES[process]
        scheduler = scheduler_class(kind)(**config)
        pipe.unet = convert(pipe.unet, log_snr_of(pipe.scheduler), scheduler)
        pipe.scheduler = scheduler
    return pipe


def scheduler_class(name: str) -> Any:
    """Return a scheduler class: one of diffusers, or `FlowMatchScheduler`, which `StableDiffusionPipeline` can drive.

    Example:
        >>> scheduler_class("FlowMatchScheduler").__bases__[0].__name__
        'FlowMatchEulerDiscreteScheduler'
    """
    import diffusers

    from agentsd.demo.flow import FlowMatchScheduler

    return FlowMatchScheduler if name == "FlowMatchScheduler" else getattr(diffusers, name)


def log_snr_of(scheduler: Any) -> Tensor:
    """Return `log(alpha^2 / sigma^2)` of a scheduler's training timesteps, float64 [T], falling.

    A process whose last step holds no signal gets a finite last value: that of an `alpha^2` of 1e-8.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> bool((log_snr_of(DDIMScheduler()).diff() < 0).all())
        True
    """
    if not hasattr(scheduler, "alphas_cumprod"):  # flow matching: timestep 1000 s, of 0 to 1000
        steps = scheduler.config.num_train_timesteps
        share = (torch.arange(steps + 1, dtype=torch.float64) / steps).clamp(1e-4, 1 - 1e-4)
        return 2 * (torch.log1p(-share) - torch.log(share))
    alphas = scheduler.alphas_cumprod.double().clamp(1e-8, 1 - 1e-8)
    return torch.log(alphas) - torch.log1p(-alphas)


def convert(unet: UNet2DConditionModel, model: Tensor, scheduler: Any) -> UNet2DConditionModel:
    """Return a UNet that shares the weights of `unet` and speaks the process of a scheduler.

    Args:
        unet: A UNet that predicts velocities.
        model: `log_snr_of` the process that it was trained with, [T].
        scheduler: The process that it is asked in; `epsilon`, `v_prediction` or flow matching.

    Returns:
        A UNet of a subclass of `UNet2DConditionModel`.

    Raises:
        ValueError: If the scheduler asks for another kind of prediction.
    """
    from agentsd.demo.converted import ConvertedUNet

    kind = getattr(scheduler.config, "prediction_type", "flow_prediction")
    if kind not in ("epsilon", "v_prediction", "flow_prediction"):
        raise ValueError(f"prediction_type={kind!r} is not converted; take 'epsilon' or 'v_prediction'.")
    converted = ConvertedUNet.from_config(unet.config)
    converted.load_state_dict(unet.state_dict(), assign=True)
    converted.to(unet.device, unet.dtype).eval()
    converted.set_process(log_snr_of(scheduler), model, kind)
    return converted
