"""Which attention layers of a diffusers denoiser can take agent attention, at which level, and why others cannot."""

from collections.abc import Iterator
from dataclasses import dataclass

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import nn

from agentsd.unet.processor import AgentAttnProcessor

_STANDARD = (AttnProcessor, AttnProcessor2_0, FusedAttnProcessor2_0, SlicedAttnProcessor, XFormersAttnProcessor)


@dataclass(frozen=True)
class Candidate:
    """A self-attention layer that can be patched; `level` counts the halvings of the latent grid before it."""

    name: str
    level: int
    block: BasicTransformerBlock
    attn: Attention


@dataclass(frozen=True)
class Skipped:
    """An attention layer that is left alone, and why."""

    name: str
    reason: str


def find_sites(denoiser: nn.Module) -> tuple[list[Candidate], list[Skipped]]:
    """Return the spatial self-attention layers that can be patched and every other attention layer with a reason.

    Args:
        denoiser: A UNet or ControlNet with `down_blocks`, `mid_block` and (a UNet) `up_blocks`.

    Returns:
        Candidates in execution order, and the skipped layers.
    """
    found: dict[str, Candidate] = {}
    for name, level, stage in _stages(denoiser):
        for inner, module in stage.named_modules():
            if _is_spatial(module):
                for index, block in enumerate(module.transformer_blocks):
                    path = f"{name}.{inner}.transformer_blocks.{index}.attn1"
                    if type(block) is BasicTransformerBlock and _obstacle(block.attn1) is None:
                        found[path] = Candidate(path, level, block, block.attn1)
    skipped = [
        Skipped(name, _reason(denoiser, name, module))
        for name, module in denoiser.named_modules()
        if (isinstance(module, Attention) or name.endswith((".attn", ".attn1", ".attn2"))) and name not in found
    ]
    return list(found.values()), skipped


def _stages(denoiser: nn.Module) -> Iterator[tuple[str, int, nn.Module]]:
    level = 0
    for index, block in enumerate(getattr(denoiser, "down_blocks", ())):
        yield f"down_blocks.{index}", level, block
        level += getattr(block, "downsamplers", None) is not None
    middle = getattr(denoiser, "mid_block", None)
    if middle is not None:
        yield "mid_block", level, middle
    for index, block in enumerate(getattr(denoiser, "up_blocks", ())):
        yield f"up_blocks.{index}", level, block
        level -= getattr(block, "upsamplers", None) is not None


def _is_spatial(module: nn.Module) -> bool:
    if type(module) is Transformer2DModel:
        return bool(module.is_input_continuous)
    # Stable Video Diffusion's: `transformer_blocks` attend within a frame, `temporal_transformer_blocks` across frames.
    return type(module) is TransformerSpatioTemporalModel


def _obstacle(attn: nn.Module) -> str | None:
    if not isinstance(attn, Attention):
        return f"{type(attn).__name__} is not diffusers' Attention"
    if attn.is_cross_attention:
        return "cross-attention"
    # Ours: of a patch that is being replaced, or restored by code that found it while patched.
    if type(attn.processor) not in (*_STANDARD, AgentAttnProcessor):
        return f"processor {type(attn.processor).__name__} is not one of diffusers' standard ones"
    if any(getattr(attn, name, None) is not None for name in ("norm_q", "norm_k", "group_norm", "spatial_norm")):
        return "normalises its queries, keys or input"
    if attn.inner_kv_dim != attn.inner_dim:
        return "has fewer key-value heads than query heads"
    if attn.residual_connection or attn.rescale_output_factor != 1:
        return "adds a residual or rescales its output"
    return None


def _reason(denoiser: nn.Module, name: str, attn: nn.Module) -> str:
    obstacle = _obstacle(attn)
    if obstacle is not None:
        return obstacle
    if not name.endswith(".attn1"):
        return "not the first attention of a transformer block"
    block = denoiser.get_submodule(name.rpartition(".")[0])
    if type(block).__name__ == "ToMeBlock":
        return "patched by tomesd; call tomesd.remove_patch first"
    if type(block) is not BasicTransformerBlock:
        return f"inside {type(block).__name__}, not BasicTransformerBlock"
    path = name.rsplit(".", 3)
    parent = denoiser.get_submodule(path[0]) if len(path) > 3 else denoiser
    return f"inside {type(parent).__name__}, not a Transformer2DModel of a UNet's blocks"
