"""The public Stable Diffusion architectures with random weights: for speed and memory, not for pictures."""

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
    from diffusers.models.attention_processor import Attention

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

# From the text_encoder*/config.json of the same models: CLIP ViT-L/14, OpenCLIP ViT-H/14 and OpenCLIP bigG/14.
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
_CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
TEXT_ENCODERS: MappingProxyType[str, tuple[dict[str, Any], ...]] = MappingProxyType(
    {
        "sd15": ({**_CLIP_L, "hidden_act": "quick_gelu", "projection_dim": 768},),
        "sd21": ({**_CLIP_H, "hidden_act": "gelu", "projection_dim": 512},),
        "sdxl": (
            {**_CLIP_L, "hidden_act": "quick_gelu", "projection_dim": 768},
            {**_CLIP_G, "hidden_act": "gelu", "projection_dim": 1280},
        ),
    }
)
_VOCABULARY = 49408

# From their vae/config.json.
VAE: MappingProxyType[str, Any] = MappingProxyType(
    {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 32,
    }
)
# As small as every code path allows: a rehearsal of a benchmark, whose times say nothing.
_TINY_UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 32, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
}
_TINY_CLIP = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_TINY_VAE = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
TINY: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {
        "tiny": _TINY_UNET,
        "tiny-xl": {
            **_TINY_UNET,
            "cross_attention_dim": 64,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 32 + 6 * 8,
        },
    }
)
_TINY_TEXT_ENCODERS = {"tiny": (_TINY_CLIP,), "tiny-xl": (_TINY_CLIP, {**_TINY_CLIP, "projection_dim": 32})}
_SCALING = {"sd15": 0.18215, "sd21": 0.18215, "sdxl": 0.13025}


def random_unet(
    architecture: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", seed: int = 0
) -> "UNet2DConditionModel":
    """Build a UNet of a public architecture with small random weights, without a float32 copy of it.

    Args:
        architecture: One of `ARCHITECTURES` or `TINY`.
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
    filled: UNet2DConditionModel = _fill(_empty_unet(architecture), dtype, device, seed)
    return filled


def random_attention(
    architecture: str,
    levels: int = 1,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> "dict[int, list[Attention]]":
    """Build all self-attention layers of an architecture's finest levels that have any, and nothing else.

    Args:
        architecture: One of `ARCHITECTURES`.
        levels: How many levels, from the finest on.
        dtype: Type of the weights.
        device: Where to build them.
        seed: Seed of the weights.

    Returns:
        The layers in the order in which a UNet runs them, by how much coarser their grid is than the finest.

    Raises:
        ValueError: If the architecture is unknown.

    Example:
        >>> {factor: len(layers) for factor, layers in random_attention("sd15", 2, dtype=torch.bfloat16).items()}
        {1: 5, 2: 5}
    """
    from agentsd.unet.sites import find_sites

    sites, _ = find_sites(_empty_unet(architecture))
    finest = min(site.level for site in sites)
    found: dict[int, list[Attention]] = {}
    for index, site in enumerate(site for site in sites if site.level < finest + levels):
        found.setdefault(2 ** (site.level - finest), []).append(_fill(site.attn, dtype, device, seed + index))
    return found


def random_pipeline(
    architecture: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", seed: int = 0
) -> "StableDiffusionPipeline | StableDiffusionXLPipeline":
    """Build a whole pipeline of a public architecture with small random weights: text encoder, UNet, VAE, DDIM.

    Its tokenizer is the demo model's: padded to 77 tokens, it costs the text encoder what the true one does.

    Args:
        architecture: One of `ARCHITECTURES`.
        dtype: Type of the weights.
        device: Where to build it.
        seed: Seed of the weights.

    Returns:
        The pipeline, without a safety checker and a progress bar.

    Raises:
        ValueError: If the architecture is unknown.

    Example:
        >>> random_pipeline("sd16")
        Traceback (most recent call last):
        ...
        ValueError: architecture='sd16' is unknown; choose one of sd15, sd21, sdxl.
    """
    _check(architecture)
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from agentsd.demo.text import build_tokenizer

    tokenizer = build_tokenizer()
    with torch.device("meta"):
        smaller = _TINY_VAE if architecture in TINY else {}
        vae = AutoencoderKL(scaling_factor=_SCALING.get(architecture, 1.0), **{**VAE, **smaller})
        encoders = [
            kind(CLIPTextConfig(vocab_size=_VOCABULARY, max_position_embeddings=77, **config))
            for kind, config in zip(
                (CLIPTextModel, CLIPTextModelWithProjection),
                {**TEXT_ENCODERS, **_TINY_TEXT_ENCODERS}[architecture],
                strict=False,
            )
        ]
    parts: dict[str, Any] = {
        "vae": _fill(vae, dtype, device, seed + 1),
        "text_encoder": _fill(encoders[0], dtype, device, seed + 2),
        "tokenizer": tokenizer,
        "unet": random_unet(architecture, dtype=dtype, device=device, seed=seed),
        "scheduler": DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
    }
    if len(encoders) == 1:
        pipe = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    else:
        second = _fill(encoders[1], dtype, device, seed + 3)
        pipe = StableDiffusionXLPipeline(**parts, text_encoder_2=second, tokenizer_2=tokenizer, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _empty_unet(architecture: str) -> "UNet2DConditionModel":
    _check(architecture)
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(layers_per_block=2, **{**ARCHITECTURES, **TINY}[architecture])


def _check(architecture: str) -> None:
    if architecture not in ARCHITECTURES and architecture not in TINY:
        raise ValueError(f"architecture={architecture!r} is unknown; choose one of {', '.join(sorted(ARCHITECTURES))}.")


def _fill(module: Any, dtype: torch.dtype, device: str | torch.device, seed: int) -> Any:
    """Move a module from the meta device, with small random weights of `dtype` and without a float32 copy of it."""
    module = module.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if not name.endswith("position_ids"):
                raise NotImplementedError(f"{name} is a buffer that agentsd does not know how to fill.")
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                # Fan-in scaling keeps activations near one: no arm may be timed on denormals or infinities.
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
    return module.eval()
