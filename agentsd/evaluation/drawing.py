"""Pictures from prompts with seeds that hang on the prompt alone, not on batches, processes or order."""

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from agentsd import __version__
from agentsd.evaluation.arms import EvaluationArm
from agentsd.evaluation.captions import Prompt
from agentsd.evaluation.manifest import digest
from agentsd.pictures.generate import cut_prompts
from agentsd.pictures.settings import Settings

LAYOUT = 2  # of run folders; raised where the same run would be described otherwise
SEED_RULE = "sha256 of agentsd, seed, image id, noise: first 63 bits"


@dataclass(frozen=True)
class Drawn:
    """A picture and its final latents."""

    picture: Image.Image
    latent: npt.NDArray[np.float32]


def picture_seed(seed: int, image_id: int | str, noise: int = 0) -> int:
    """Return the seed of a picture's noise.

    Args:
        seed: Seed of the evaluation.
        image_id: Image id of the prompt.
        noise: Which of the prompt's independent noises.

    Returns:
        A whole number from 0 to 2**63 - 1.

    Example:
        >>> picture_seed(0, 397133) == picture_seed(0, "397133") != picture_seed(0, 397133, noise=1)
        True
    """
    text = f"agentsd|{seed}|{image_id}|{noise}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Painter:
    """Draws the pictures of an evaluation with one pipeline.

    Args:
        pipe: The pipeline; its safety checker and progress bar are switched off.
        prompts: All prompts.
        settings: What the pipeline is called with; steps come from the arm.

    Raises:
        ValueError: If two prompts share an image id.

    Example:
        >>> from agentsd.pictures.settings import Settings
        >>> painter = Painter(pipe, [Prompt(0, 7, "a red ring")], Settings(prompt="", steps=2))
        >>> painter.size
        (32, 32)
    """

    def __init__(self, pipe: Any, prompts: Sequence[Prompt], settings: Settings) -> None:
        pipe.set_progress_bar_config(disable=True)
        if getattr(pipe, "safety_checker", None) is not None:
            pipe.safety_checker = None  # a blackened picture would count as one
        self.pipe = pipe
        self.prompts = list(prompts)
        self.settings = settings
        ids = [str(prompt.image_id) for prompt in prompts]
        if len(set(ids)) < len(ids):
            twice = next(one for i, one in enumerate(ids) if one in ids[:i])
            raise ValueError(
                f"image_id={twice!r} occurs twice, so two pictures would share their noise; make ids differ."
            )
        defaults = inspect.signature(type(pipe).__call__).parameters
        guidance, steps = settings.guidance_scale, settings.steps
        self.guidance_scale = defaults["guidance_scale"].default if guidance is None else guidance
        self.steps: int = defaults["num_inference_steps"].default if steps is None else steps
        self.size = (settings.width or _native_side(pipe), settings.height or _native_side(pipe))

    def seed(self, index: int, noise: int = 0) -> int:
        """Return the seed of picture `index`."""
        return picture_seed(self.settings.seed, self.prompts[index].image_id, noise)

    def cut_prompts(self) -> dict[int | str, int]:
        """Return the image ids of prompts that are longer than a text encoder reads, with their numbers of tokens."""
        found = cut_prompts(self.pipe, [prompt.text for prompt in self.prompts])
        return {self.prompts[place].image_id: tokens for place, (tokens, _) in found.items()}

    def draw(self, arm: EvaluationArm, places: Sequence[int], *, keep: bool = True) -> list[Drawn]:
        """Draw a batch with the pipeline as it is; the arm says steps and noise, its patch is the caller's.

        Args:
            arm: The arm.
            places: Indices of prompts; beyond the last they begin anew.
            keep: Whether final latents are read back too (not while timing).

        Returns:
            Pictures with latents; latents are empty if they are not kept.
        """
        indices = [place % len(self.prompts) for place in places]
        latents: list[torch.Tensor] = []

        def keep_latents(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            latents[:] = [tensors["latents"]]
            return {}

        extra: dict[str, Any] = {}
        if keep:
            extra = {"callback_on_step_end": keep_latents, "callback_on_step_end_tensor_inputs": ["latents"]}
        pictures = arm.call(
            self.pipe,
            prompt=[self.prompts[index].text for index in indices],
            guidance_scale=self.guidance_scale,
            height=self.size[1],
            width=self.size[0],
            # On the CPU and one for each picture: equal on every device and in every batch.
            generator=[torch.Generator().manual_seed(self.seed(index, arm.noise)) for index in indices],
            output_type="pil",
            **extra,
        ).images
        if len(pictures) != len(indices):
            raise ValueError(
                f"arm={arm.name!r} gave {len(pictures)} pictures for {len(indices)} prompts; leave it out."
            )
        if not keep:
            return [Drawn(picture, np.empty(0, np.float32)) for picture in pictures]
        if not latents:
            raise ValueError(f"arm={arm.name!r} does not return its latents (callback_on_step_end); leave it out.")
        rows = latents[0].float().cpu().numpy()
        if not np.isfinite(rows).all():
            raise ValueError(
                f"dtype={self.settings.dtype!r}: arm {arm.name!r} gave latents that are not finite for prompt "
                f"{indices[0]} or one of its batch; use bfloat16 or float32."
            )
        return [Drawn(picture, row) for picture, row in zip(pictures, rows, strict=True)]

    def config(self, batch: int) -> dict[str, Any]:
        """Return everything that decides the pictures but for the arm, as plain data."""
        import diffusers
        import transformers

        return {
            "layout": LAYOUT,
            "agentsd": __version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
            "device": torch.device(self.pipe.device).type,
            "pipeline": type(self.pipe).__name__,
            "weights_sha256": modules_sha256(self.pipe.components),
            "scheduler": {
                "class": type(self.pipe.scheduler).__name__,
                "sha256": digest(scheduler_settings(self.pipe.scheduler)),
            },
            "guidance_scale": float(self.guidance_scale),
            "width": self.size[0],
            "height": self.size[1],
            "dtype": self.settings.dtype,
            "batch": batch,
            "seed": self.settings.seed,
            "seed_rule": SEED_RULE,
            "num": len(self.prompts),
            "prompts_sha256": digest({"prompts": [[str(one.image_id), one.text] for one in self.prompts]}),
        }


def scheduler_settings(scheduler: Any) -> dict[str, Any]:
    """Return what a scheduler was made with, as plain data that is equal in every process.

    Keys that diffusers keeps for itself are left out: `_use_default_values` is a set, listed in random order.

    Args:
        scheduler: A diffusers scheduler.

    Returns:
        Its settings by name.

    Example:
        >>> scheduler_settings(pipe.scheduler)["prediction_type"]
        'epsilon'
    """
    settings = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    # Betas that were trained may be an array.
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in settings.items()}


def modules_sha256(modules: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all weights, by part and name; parts that are no modules do not count.

    Example:
        >>> modules_sha256(pipe.components) == modules_sha256(pipe.components)
        True
    """
    hasher = hashlib.sha256()
    for part, module in sorted(modules.items()):
        if isinstance(module, torch.nn.Module):
            for name, value in sorted(module.state_dict().items()):
                hasher.update(f"{part}.{name} {tuple(value.shape)} {value.dtype}".encode())
                hasher.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def _native_side(pipe: Any) -> int:
    side = pipe.unet.config.sample_size
    return int(side if isinstance(side, int) else max(side)) * int(pipe.vae_scale_factor)
