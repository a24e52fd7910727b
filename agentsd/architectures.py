"""UNets of the public Stable Diffusion architectures with random weights: for speed and memory, not for pictures."""

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

_CROSS_DOWN = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
_CROSS_UP = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3

# From the unet/config.json of stable-diffusion-v1-5, stable-diffusion-2-1 and stable-diffusion-xl-base-1.0.
ARCHITECTURES: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {
        "sd15": {
            "sample_size": 64,
            "block_out_channels": (320, 640, 1280, 1280),
            "down_block_types": _CROSS_DOWN,
            "up_block_types": _CROSS_UP,
            "attention_head_dim": 8,
            "cross_attention_dim": 768,
        },
        "sd21": {
            "sample_size": 96,
            "block_out_channels": (320, 640, 1280, 1280),
            "down_block_types": _CROSS_DOWN,
            "up_block_types": _CROSS_UP,
            "attention_head_dim": (5, 10, 20, 20),
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
        },
        "sdxl": {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "transformer_layers_per_block": (1, 2, 10),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    }
)


def random_unet(
    architecture: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", seed: int = 0
) -> "UNet2DConditionModel":
    """Build a UNet of a public architecture with small random weights, without a float32 copy of it.

    Args:
        architecture: One of `ARCHITECTURES`.
        dtype: Type of the weights.
        device: Where to build it.
        seed: Seed of the weights.

    Returns:
        The UNet, in evaluation mode.

    Raises:
        ValueError: If the architecture is unknown.

    Example:
        >>> random_unet("sd16")
        Traceback (most recent call last):
        ...
        ValueError: architecture='sd16' is unknown; choose one of sd15, sd21, sdxl.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture={architecture!r} is unknown; choose one of {', '.join(sorted(ARCHITECTURES))}.")
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(layers_per_block=2, **ARCHITECTURES[architecture])
    unet = unet.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                # Fan-in scaling keeps activations near one, so that no arm is timed on denormals or infinities.
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
    return unet.eval()


def random_inputs(
    unet: "UNet2DConditionModel", height: int, width: int, batch: int, *, seed: int = 0
) -> dict[str, Any]:
    """Return random UNet inputs for latents of `height x width`: keywords of its `forward`.

    Args:
        unet: UNet to feed.
        height: Latent height, for Stable Diffusion an eighth of the picture's.
        width: Latent width.
        batch: Samples per call; classifier-free guidance doubles the number of images.
        seed: Seed of the inputs.

    Returns:
        `sample`, `timestep`, `encoder_hidden_states` and, where the architecture wants them, `added_cond_kwargs`.
    """
    device, dtype = unet.device, unet.dtype
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    inputs: dict[str, Any] = {
        "sample": normal(batch, unet.config.in_channels, height, width),
        "timestep": 500,
        "encoder_hidden_states": normal(batch, 77, unet.config.cross_attention_dim),
    }
    if unet.config.addition_embed_type == "text_time":
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        sizes = torch.tensor([[8 * height, 8 * width, 0, 0, 8 * height, 8 * width]] * batch)
        inputs["added_cond_kwargs"] = {"text_embeds": normal(batch, pooled), "time_ids": sizes.to(device, dtype)}
    return inputs
