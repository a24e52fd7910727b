"""Generating pictures that can be made again from their settings."""

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from agentsd.pictures.settings import DEMO_GUIDANCE, Settings
from agentsd.schedule import Schedule
from agentsd.system.numbers import is_whole
from agentsd.unet.denoisers import denoiser_in, layout_of


def generate(pipe: Any, pictures: Sequence[Settings]) -> list[Image.Image]:
    """Make one batch of pictures with the pipeline as it is (patched or not).

    Each picture has its own generator. It does not depend on the others in its batch (up to rounding), unless they
    share the full steps of a tolerance: see `by_picture`.

    Args:
        pipe: The pipeline.
        pictures: Settings that differ in prompt and seed alone.

    Returns:
        One picture per settings.
    """
    images: list[Image.Image] = pipe(**call_arguments(pictures), output_type="pil").images
    return images


def by_picture(pipe: Any, schedule: Schedule) -> Schedule | None:
    """Return the schedule under which a picture of a batch is what it is alone, `None` if its denoiser has none.

    Args:
        pipe: The pipeline.
        schedule: The schedule of single pictures.

    Example:
        >>> by_picture(pipe, agentsd.preset("fast")).skipping.by_picture
        True
    """
    if schedule.skipping.tolerance is None:
        return schedule
    return schedule.with_by_picture() if layout_of(denoiser_in(pipe)).by_sample else None


def resolve(pipe: Any, settings: Settings, picture: Image.Image) -> Settings:
    """Return the settings with every choice written out that was left to the pipeline."""
    defaults = inspect.signature(type(pipe).__call__).parameters

    def spelt(value: Any, name: str) -> Any:
        if value is not None or name not in defaults or defaults[name].default is inspect.Parameter.empty:
            return value
        return defaults[name].default

    return dataclasses.replace(
        settings,
        model=settings.model
        if settings.model in DEMO_GUIDANCE or not Path(settings.model).expanduser().is_dir()
        # A relative folder would mean another one elsewhere.
        else str(Path(settings.model).expanduser().resolve()),
        steps=spelt(settings.steps, "num_inference_steps"),
        guidance_scale=spelt(settings.guidance_scale, "guidance_scale"),
        height=picture.height,
        width=picture.width,
    )


def cut_prompts(pipe: Any, prompts: Sequence[str]) -> dict[int, tuple[int, int]]:
    """Return the places of prompts that are longer than a text encoder reads, with their tokens and how many it reads.

    Args:
        pipe: The pipeline.
        prompts: The prompts.

    Example:
        >>> cut_prompts(pipe, ["a red ring", "ring " * 100])
        {1: (402, 77)}
    """
    cut: dict[int, tuple[int, int]] = {}
    for name, tokenizer in pipe.components.items():
        if name.startswith("tokenizer") and tokenizer is not None:
            rows = tokenizer(list(prompts), verbose=False)["input_ids"]
            for place, row in enumerate(rows):
                if len(row) > tokenizer.model_max_length:
                    cut[place] = (len(row), tokenizer.model_max_length)
    return cut


def batches(pictures: Sequence[Settings], size: int) -> Iterator[Sequence[Settings]]:
    """Yield the pictures in batches of `size`, the last perhaps smaller.

    Raises:
        ValueError: If `size` is below 1.
    """
    if not is_whole(size, 1):
        raise ValueError(f"batch_size={size!r} must be a whole number of at least 1.")
    for start in range(0, len(pictures), size):
        yield pictures[start : start + size]


def call_arguments(pictures: Sequence[Settings]) -> dict[str, Any]:
    """Return what a pipeline is called with for settings that differ in prompt and seed alone."""
    first = pictures[0]
    arguments: dict[str, Any] = {
        "prompt": [one.prompt for one in pictures],
        "negative_prompt": None if first.negative_prompt is None else [first.negative_prompt] * len(pictures),
        "num_inference_steps": first.steps,
        "guidance_scale": first.guidance_scale,
        "height": first.height,
        "width": first.width,
        "generator": [torch.Generator().manual_seed(one.seed) for one in pictures],
    }
    return {name: value for name, value in arguments.items() if value is not None}
