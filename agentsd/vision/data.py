"""Pictures to learn from: rendered scenes of the demo's world, or a folder of pictures."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agentsd.vision.preprocess import MEAN, STD, evaluation_transform

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class Pictures:
    """Pictures in memory with their labels.

    Attributes:
        images: [n, 3, H, W], float32, normalised.
        labels: [n, groups], int64: one label a group.
        groups: For each group of labels its name and its number of classes.
    """

    images: Tensor
    labels: Tensor
    groups: tuple[tuple[str, int], ...]

    @property
    def logits(self) -> int:
        """How many logits a model needs."""
        return sum(number for _, number in self.groups)

    def split(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Cut logits, [B, sum of classes], into one tensor a group."""
        return torch.split(logits, [number for _, number in self.groups], dim=1)


def scene_pictures(number: int, size: int, *, seed: int, held_out: bool = False) -> Pictures:
    """Render scenes of two objects; what is asked is both shapes, both colours and how the objects lie.

    "First" is the left or the upper object, so that every scene has one answer.

    Args:
        number: How many.
        size: Side in pixels.
        seed: Of the scenes.
        held_out: Whether to draw combinations that training never shows.

    Returns:
        The pictures.

    Example:
        >>> pictures = scene_pictures(3, 32, seed=0)
        >>> pictures.images.shape, pictures.labels.shape, pictures.logits
        (torch.Size([3, 3, 32, 32]), torch.Size([3, 5]), 24)
    """
    from agentsd.demo.render import render_batch
    from agentsd.demo.scenes import COLOURS, SHAPES, sample_scenes

    scenes = sample_scenes(number, seed, count=2, held_out=held_out)
    labels = []
    for scene in scenes:
        first, second = scene.objects
        if scene.relation in ("right", "below"):
            first, second = second, first
        upright = int(scene.relation in ("above", "below"))
        pairs = ((SHAPES, first.shape), (COLOURS, first.colour), (SHAPES, second.shape), (COLOURS, second.colour))
        labels.append([*(names.index(name) for names, name in pairs), upright])
    pixels = torch.from_numpy(render_batch(scenes, size)).permute(0, 3, 1, 2).float() / 255
    images = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    groups = (
        ("first shape", len(SHAPES)),
        ("first colour", len(COLOURS)),
        ("second shape", len(SHAPES)),
        ("second colour", len(COLOURS)),
        ("relation", 2),
    )
    return Pictures(images.contiguous(), torch.tensor(labels).reshape(-1, len(groups)), groups)


def folder_pictures(folder: str | Path, size: int, *, part: str, every: int = 10) -> Pictures:
    """Read a folder that has one folder of pictures a class; every tenth picture is kept for evaluation.

    Args:
        folder: The folder.
        size: Side in pixels; pictures are squashed to it.
        part: "train" or "evaluation".
        every: One in how many pictures is for evaluation.

    Returns:
        The pictures.

    Raises:
        ValueError: If the folder has fewer than two classes, or no picture for this part.
    """
    from PIL import Image

    folder = Path(folder)
    classes = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if len(classes) < 2:
        raise ValueError(
            f"folder={str(folder)!r} has {len(classes)} folders of pictures; give one a class, at least 2."
        )
    images, labels = [], []
    for label, path in enumerate(classes):
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        for index, file in enumerate(files):
            if (index % every == every - 1) == (part == "evaluation"):
                with Image.open(file) as picture:
                    images.append(evaluation_transform(picture, size, crop=1.0))
                labels.append([label])
    if not images:
        raise ValueError(
            f"folder={str(folder)!r} has no picture for part={part!r}; give at least {every} pictures a class, "
            f"ending in {', '.join(SUFFIXES)}."
        )
    return Pictures(torch.stack(images), torch.tensor(labels), (("class", len(classes)),))


def batches(pictures: Pictures, size: int, *, seed: int, step: int) -> Tensor:
    """Choose the pictures of one training step; it depends on (seed, step) alone, so that runs can be resumed.

    Args:
        pictures: All pictures.
        size: How many to choose.
        seed: Of the run.
        step: The step, from 0.

    Returns:
        Indices, [size].

    Example:
        >>> pictures = scene_pictures(8, 16, seed=0)
        >>> bool((batches(pictures, 4, seed=1, step=7) == batches(pictures, 4, seed=1, step=7)).all())
        True
    """
    chosen = np.random.default_rng((seed, step)).integers(0, len(pictures.images), size)
    return torch.from_numpy(chosen)
