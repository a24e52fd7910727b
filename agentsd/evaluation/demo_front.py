"""The front of the bundled demo model: speed against likeness and right objects, over arms and held-out prompts.

It keeps the seeds, the prompts and the timed call of its committed rows, which are not those of `evaluate`.
Arms, files, clocks and intervals are the same.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from agentsd.bench.arm import RunArm
from agentsd.bench.front import collect, drawer
from agentsd.bench.likeness import decode, likeness, pairs
from agentsd.bench.rows import Row
from agentsd.bench.samples import STOCK, Chunk, Store, chunks, digest_of
from agentsd.demo import held_out_prompts, model_path, parse_caption
from agentsd.demo.attributes import attribute_accuracy, load_classifier, matches, picture_scores
from agentsd.pictures.loading import dtype_argument, set_scheduler
from agentsd.system.timing import environment


@dataclass(frozen=True, kw_only=True)
class DemoFront:
    """What decides the pictures of a front of the demo model, but for the arms.

    Args:
        prompts: Held-out prompts, half of them with two objects.
        steps: Steps of a stock run.
        guidance_scale: Guidance of the pipeline call.
        batch: Prompts a call.
        dtype: Name of the weights' dtype.
        device: Where the pipeline runs.
        seed: Seed of prompts and pictures.
        scheduler: Name in `agentsd.pictures.settings.SCHEDULERS`; `None` is the model's own.

    Example:
        >>> [chunk.start for chunk in DemoFront(prompts=6, steps=2, batch=4).chunks]
        [0, 4]
    """

    prompts: int
    steps: int
    guidance_scale: float = 4.0
    batch: int = 4
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0
    scheduler: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that stand in every row."""
        return {
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "batch": self.batch,
            "dtype": self.dtype,
            "seed": self.seed,
        }

    @property
    def setup(self) -> dict[str, Any]:
        """Everything that changes a result but the arm and the prompts, as plain data."""
        changed = {} if self.scheduler is None else {"scheduler": self.scheduler}
        return {"model": digest_of(model_path())} | self.settings | environment(self.device) | changed

    @cached_property
    def chunks(self) -> list[Chunk]:
        """The prompts in calls."""
        return chunks(held_out_prompts(self.prompts, seed=self.seed), self.batch)

    @cached_property
    def pipe(self) -> Any:
        """The pipeline, loaded once."""
        from diffusers import StableDiffusionPipeline

        pipe = StableDiffusionPipeline.from_pretrained(model_path(), **dtype_argument(getattr(torch, self.dtype)))
        pipe.to(self.device).set_progress_bar_config(disable=True)
        if self.scheduler is not None:
            set_scheduler(pipe, self.scheduler)
        return pipe

    @cached_property
    def draw(self) -> Callable[..., torch.Tensor]:
        """What draws a chunk, see `agentsd.bench.front.drawer`."""
        return drawer(self.pipe, steps=self.steps, guidance_scale=self.guidance_scale, seed=self.seed)


def front_rows(
    front: DemoFront, store: Store, arms: Mapping[str, RunArm], tell: Callable[[object], object]
) -> Iterator[Row]:
    """Yield a row for every complete arm, stock first.

    Args:
        front: What was drawn.
        store: Where samples are kept.
        arms: The arms but stock.
        tell: Takes lines of progress.

    Yields:
        Rows: speed-up, likeness to stock, and which pictures show all that their prompts name.
    """
    classifier = load_classifier()
    wanted = [parse_caption(prompt).combos for chunk in front.chunks for prompt in chunk.prompts]
    reference = None
    for name, samples in collect(store, arms, front.chunks).items():
        if all(math.isnan(sample.stock_seconds) for sample in samples):
            tell(f"{name}: left out, it failed where it was to be timed; run the same command again")
            continue
        pictures, latents = pictures_of(front.pipe, [sample.latents for sample in samples])
        if reference is None:  # stock comes first
            reference = pictures, latents
        scores = picture_scores(classifier, (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy())
        right = matches(scores, wanted)
        row = {
            "benchmark": "demo front",
            "weights": "bundled demo model",
            "arm": name,
            "settings": "" if name == STOCK else arms[name].settings,
            "prompts": len(wanted),
            "scheduler": type(front.pipe.scheduler).__name__,
            **front.settings,
            "size": pictures.shape[-1],
            "timed": "pipeline call without VAE decoding",
            **pairs(samples),
            **likeness(pictures, reference[0], latents, reference[1]),
            "attribute_accuracy": attribute_accuracy(scores, wanted),
            "right": int(right.sum()),
            "right_each": [int(value) for value in right],
            **environment(front.device),
        }
        tell({key: row[key] for key in ("arm", "speedup", "psnr_db_median", "ssim_median", "attribute_accuracy")})
        yield row


def pictures_of(pipe: Any, latents: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pictures of all latents, [N, 3, H, W] in [0, 1], and the latents in one tensor.

    Args:
        pipe: A pipeline with a VAE.
        latents: Latents by chunk, [B, C, h, w] each.
    """
    joined = torch.cat(list(latents))
    return decode(pipe, joined), joined
