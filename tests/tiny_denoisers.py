"""Tiny pipelines whose steps can be skipped, and nothing else: for the tests and docs/pipelines.md."""

from collections.abc import Callable
from dataclasses import dataclass

import diffusers
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from tiny import make_vae


@dataclass(frozen=True)
class Skips:
    """A pipeline that skips steps, and nothing else.

    Attributes:
        name: What it is called in the table.
        pipeline: Its class in diffusers.
        build: Makes a tiny one; returns it with the arguments of a call.
        layout: How its denoiser is called: for the table.
        calls: Calls of the denoiser a step.
        noisy: Whether its scheduler adds fresh noise.
    """

    name: str
    pipeline: str
    build: Callable[[], tuple]
    layout: str
    calls: int = 1
    noisy: bool = False

    @property
    def id(self) -> str:
        return self.build.__name__


def texts(*shapes, seed: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


def assemble(cls, transformer, scheduler, *, without: tuple[str, ...], **parts):
    """A pipeline of a denoiser and a scheduler, without the parts that a call with ready embeddings does not need."""
    pipe = cls(transformer=transformer.eval(), scheduler=scheduler, **dict.fromkeys(without), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeddings(*names: str, width: int = 16, tokens: int = 5, **pooled: int) -> dict:
    made = dict(zip(names, texts(*((1, tokens, width) for _ in names)), strict=True))
    return {**made, **dict(zip(pooled, texts(*((1, size) for size in pooled.values()), seed=4), strict=True))}


PROMPTS = ("prompt_embeds", "negative_prompt_embeds")
POOLED = dict(pooled_prompt_embeds=16, negative_pooled_prompt_embeds=16)
SIZE = dict(height=64, width=64)


def stable_diffusion_3():
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, num_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16,
        caption_projection_dim=16, pooled_projection_dim=16, out_channels=4, in_channels=4, patch_size=1,
    )  # fmt: skip
    names = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = assemble(diffusers.StableDiffusion3Pipeline, transformer, scheduler, without=names)
    return pipe, dict(**embeddings(*PROMPTS, **POOLED), **SIZE, guidance_scale=4.0)


def stable_diffusion_3_unguided():
    pipe, arguments = stable_diffusion_3()
    return pipe, {**arguments, "guidance_scale": 1.0}


def flux():
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    names = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    pipe = assemble(diffusers.FluxPipeline, transformer, scheduler, without=names)
    return pipe, dict(**embeddings(*PROMPTS, **POOLED), **SIZE)


def flux_true_guidance():
    pipe, arguments = flux()
    return pipe, dict(**arguments, true_cfg_scale=3.0)


def pixart():
    torch.manual_seed(0)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=1, attention_head_dim=8, num_attention_heads=2, in_channels=4, out_channels=8,
        patch_size=2, cross_attention_dim=16, caption_channels=16, norm_num_groups=1,
    )  # fmt: skip
    names = ("text_encoder", "tokenizer")
    scheduler = DPMSolverMultistepScheduler()
    pipe = assemble(diffusers.PixArtSigmaPipeline, transformer, scheduler, without=names, vae=make_vae())
    masks = dict(prompt_attention_mask=torch.ones(1, 5), negative_prompt_attention_mask=torch.ones(1, 5))
    size = dict(height=16, width=16, use_resolution_binning=False)
    return pipe, dict(**embeddings(*PROMPTS), **masks, **size, negative_prompt=None)


SKIPPING = (
    Skips("SD 3, SD 3.5", "StableDiffusion3Pipeline", stable_diffusion_3, "flow matching, guidance in one call"),
    Skips("SD 3 without guidance", "StableDiffusion3Pipeline", stable_diffusion_3_unguided, "flow matching"),
    Skips("FLUX", "FluxPipeline", flux, "flow matching, guidance as an input, scaled timesteps"),
    Skips("FLUX, true guidance", "FluxPipeline", flux_true_guidance, "flow matching, guidance in two calls", calls=2),
    Skips("PixArt", "PixArtSigmaPipeline", pixart, "predicts a variance too"),
)


def table() -> str:
    """Return the table of docs/pipelines.md."""
    lines = ["| pipeline | class in diffusers | how its denoiser is called |", "|---|---|---|"]
    lines += [f"| {kind.name} | `{kind.pipeline}` | {kind.layout} |" for kind in SKIPPING]
    return "\n".join(lines) + "\n"
