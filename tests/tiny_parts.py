"""What tiny pipelines of any denoiser are made of."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


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


def masked(*names: str) -> dict:
    return {**embeddings(*PROMPTS), **dict.fromkeys(names, torch.ones(1, 5, dtype=torch.long))}


MASKS = ("prompt_attention_mask", "negative_prompt_attention_mask")
