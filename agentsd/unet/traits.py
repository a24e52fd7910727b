"""Traits of a UNet: its device, its layers, whether it is offloaded or compiled."""

import hashlib
from typing import Any

import torch
from torch import nn


def device_label(device: torch.device) -> str:
    """Return a label of a device by speed: the name of a GPU, else the kind.

    Example:
        >>> device_label(torch.device("cpu"))
        'cpu'
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def layer_digest(denoiser: nn.Module) -> str:
    """Return a digest of the shapes of all attention and convolution blocks: equal for UNets of one architecture.

    LoRA and IP-Adapters add weights but no such block, so they change nothing.

    Example:
        >>> layer_digest(unet) == layer_digest(pipe.unet)
        True
    """
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D

    shapes: list[tuple[Any, ...]] = []
    for name, module in denoiser.named_modules():
        name = name.removeprefix("_orig_mod.").replace("._orig_mod", "")  # a compiled block is the same block
        if isinstance(module, Attention):
            shapes.append((name, module.query_dim, module.inner_dim, module.heads))
        elif isinstance(module, ResnetBlock2D):
            shapes.append((name, module.in_channels, module.out_channels))
    return hashlib.sha256(repr(shapes).encode()).hexdigest()[:32]


def is_offloaded(denoiser: nn.Module) -> bool:
    """Return whether weights come to the device only while they are used (accelerate's or diffusers' offloading).

    Example:
        >>> is_offloaded(unet)
        False
    """
    if any("_hf_hook" in module.__dict__ or loads_weights_late(module) for module in denoiser.modules()):
        return True
    return any(weight.is_meta for weight in denoiser.parameters())


def loads_weights_late(module: nn.Module) -> bool:
    """Return whether diffusers' group offloading brings in the weights of a module when it runs.

    Example:
        >>> loads_weights_late(unet.down_blocks[0])
        False
    """
    return any("group_offloading" in name for name in hook_names(module))


def hook_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the hooks that diffusers has put on a module.

    Example:
        >>> hook_names(unet.down_blocks[0])
        ()
    """
    return tuple(getattr(module.__dict__.get("_diffusers_hook"), "hooks", ()))


def is_compiled(module: nn.Module) -> bool:
    """Return whether a module, or any part of it, runs through torch.compile.

    Example:
        >>> is_compiled(unet)
        False
    """
    return any(
        hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None
        for part in module.modules()
    )
