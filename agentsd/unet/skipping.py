"""Why a denoiser, or one of its calls, cannot skip steps."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from agentsd.schedule import Schedule
from agentsd.unet.denoisers import layout_of
from agentsd.unet.shallow import max_depth
from agentsd.unet.traits import loads_weights_late


def why_not_skip(denoiser: nn.Module, depth: int) -> str | None:
    """Return why a denoiser cannot skip steps at a depth, or `None` if it can.

    Example:
        >>> why_not_skip(unet, 0) is None
        True
    """
    from diffusers import UNet2DConditionModel

    problem = layout_of(denoiser).obstacle
    if problem is not None or depth == 0:
        return problem
    name = type(denoiser).__name__
    if not isinstance(denoiser, UNet2DConditionModel):
        return f"depth={depth} runs the last layers of a UNet2DConditionModel, and {name} is none"
    most = max_depth(denoiser)
    if depth > most:
        return f"depth={depth} must be at most {most} for this {name}, the number of layers in its last up block"
    return None


def other_cache(denoiser: nn.Module) -> str | None:
    """Return what else caches the features of a denoiser, whose cached ones would be kept here as fresh ones.

    Example:
        >>> other_cache(unet) is None
        True
    """
    if str(getattr(denoiser.__dict__.get("forward"), "__module__", "")).startswith("DeepCache"):
        return "DeepCache"
    config = denoiser.__dict__.get("_cache_config")  # of diffusers' CacheMixin.enable_cache
    return None if config is None else type(config).__name__.removesuffix("Config")


def obstacle(unet: Any, arguments: Mapping[str, Any], depth: int) -> str | None:
    """Return why a call cannot start from a cached feature, or `None` if it can.

    Args:
        unet: The UNet.
        arguments: Arguments of its forward by name.
        depth: How many layers would run.
    """
    cache = other_cache(unet)
    if cache is not None:
        return f"{cache} is enabled and skips layers itself"
    if torch.is_grad_enabled() and unet.training:
        return "the UNet is being trained"
    return _obstacle_to_layers(unet, arguments) if depth else None


def _obstacle_to_layers(unet: Any, arguments: Mapping[str, Any]) -> str | None:
    given = {name for name, value in arguments.items() if value is not None}
    if any(loads_weights_late(block) for block in (unet.down_blocks[0], unet.up_blocks[-1])):
        return "group offloading loads the weights of a block only when the whole block runs"
    if "attention_mask" in given:
        return "attention_mask was given"
    if "gligen" in (arguments.get("cross_attention_kwargs") or {}):
        return "GLIGEN objects were given"
    if "down_block_additional_residuals" in given and "mid_block_additional_residual" not in given:
        return "adapter residuals came by the deprecated argument down_block_additional_residuals"
    if unet.config.addition_embed_type == "image_hint":
        return "the UNet takes an image hint"
    if any(getattr(unet.up_blocks[-1], name, None) for name in ("s1", "s2", "b1", "b2")) and len(unet.up_blocks) <= 2:
        return "FreeU changes the last up block"
    return None


def fit_skipping(denoiser: nn.Module, schedule: Schedule, *, asked: bool) -> tuple[Schedule, str | None]:
    """Return the schedule that a denoiser can run, and why it lost its skipped steps, if it did.

    Args:
        denoiser: What is to be patched.
        schedule: What `as_schedule` returned.
        asked: Whether the user wrote the schedule. A preset loses its skipped steps on a ControlNet or a denoiser with
            another cache, and the report says so.

    Raises:
        ValueError: If the user wrote the schedule and the denoiser cannot skip steps as it says.

    Example:
        >>> fit_skipping(unet, agentsd.preset("fast"), asked=False)[1] is None
        True
    """
    refused = None
    if schedule.skips_steps and not asked:
        problem = why_not_skip(denoiser, schedule.skipping.depth)
        if problem is not None:
            refused = f"{problem}; the preset skips no steps"
        elif (cache := other_cache(denoiser)) is not None:
            refused = f"{cache} is enabled and skips steps itself; the preset skips none"
        if refused is not None:
            schedule = schedule.with_skipping(1)
    check_skipping(denoiser, schedule)
    return schedule, refused


def check_skipping(denoiser: nn.Module, schedule: Schedule) -> None:
    """Raise ValueError if a denoiser cannot skip steps as its schedule says."""
    problem = why_not_skip(denoiser, schedule.skipping.depth) if schedule.skips_steps else None
    if problem is not None:
        raise ValueError(f"steps cannot be skipped: {problem}. Lower depth, or use schedule.with_skipping(1).")
    if schedule.skipping.by_picture and not layout_of(denoiser).by_sample:
        raise ValueError(
            f"by_picture=True does not fit {type(denoiser).__name__}: agentsd does not know which of its arguments "
            "have an entry for each picture. Use schedule.with_by_picture(False)."
        )
    cache = other_cache(denoiser) if schedule.skips_steps else None
    if cache is not None:
        raise ValueError(
            f"steps cannot be skipped on top of {cache}, which is enabled on this {type(denoiser).__name__} and skips "
            "steps itself; use schedule.with_skipping(1), or switch it off first (DeepCache: the helper's disable(); "
            "diffusers: disable_cache())."
        )
