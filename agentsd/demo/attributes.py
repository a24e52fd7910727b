"""Attribute accuracy: does the picture show the objects that the prompt names?"""

from __future__ import annotations

import json
import logging
import pathlib
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from agentsd.demo.render import render_batch
from agentsd.demo.scenes import COMBOS, Scene, combo_index, sample_scenes
from agentsd.demo.training.pool import THUMBNAIL, Pool, thumbnails
from agentsd.system.precision import cpu_autocast
from agentsd.system.writing import write_whole

logger = logging.getLogger(__name__)

Combo = tuple[str, str]
FOLDER = "attribute_classifier"


def _block(inputs: int, outputs: int, stride: int) -> list[torch.nn.Module]:
    convolution = torch.nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return [convolution, torch.nn.GroupNorm(8, outputs), torch.nn.SiLU()]


class AttributeClassifier(torch.nn.Module):
    """Small CNN that finds (colour, shape) combinations in 64 x 64 thumbnails.

    The 30 scores of each place are joined by a smooth maximum over places: a colour and a shape count
    together only where they meet in one object.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = ((3, 24, 1), (24, 48, 2), (48, 48, 1), (48, 96, 2), (96, 96, 1), (96, 128, 2), (128, 128, 1))
        self.trunk = torch.nn.Sequential(*(layer for width in widths for layer in _block(*width)))
        self.head = torch.nn.Conv2d(128, len(COMBOS), 1)

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Penultimate features (n, 128), averaged over places, of thumbnails (n, 3, 64, 64) in [-1, 1]."""
        result: torch.Tensor = self.trunk(inputs).float().mean(dim=(2, 3))
        return result

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Scores (n, 30) of thumbnails (n, 3, 64, 64) in [-1, 1]; above 0 means present."""
        scores = self.head(self.trunk(inputs)).float().flatten(2)
        return torch.logsumexp(scores, dim=2) - float(np.log(scores.shape[2]))


def _inputs(pictures: npt.NDArray[np.uint8]) -> torch.Tensor:
    small = pictures if pictures.shape[1] == THUMBNAIL else thumbnails(pictures)
    return torch.from_numpy(np.ascontiguousarray(small)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _targets(scenes: Sequence[Scene]) -> torch.Tensor:
    targets = torch.zeros(len(scenes), len(COMBOS))
    for row, scene in enumerate(scenes):
        for item in scene.objects:
            targets[row, combo_index(item.colour, item.shape)] = 1
    return targets


def _augment(inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    number = len(inputs)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(number, *shape, generator=generator)

    inputs = inputs * uniform(0.9, 1.1, 1, 1, 1) + uniform(-0.08, 0.08, 3, 1, 1)
    softened = F.avg_pool2d(F.pad(inputs, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    inputs = torch.lerp(inputs, softened, uniform(0, 1, 1, 1, 1))
    noise = torch.randn(inputs.shape, generator=generator)
    return inputs + uniform(0, 0.06, 1, 1, 1) * noise


def train_classifier(
    pool: Pool, steps: int, *, seed: int = 0, batch: int = 64, lr: float = 2e-3
) -> AttributeClassifier:
    """Train the classifier on the pool's thumbnails with slight changes of light, sharpness and noise.

    Args:
        pool: Training pool.
        steps: Optimiser steps.
        seed: Seed of weights, batches and changes.
        batch: Thumbnails a step.
        lr: Peak learning rate.

    Returns:
        The classifier in evaluation mode.
    """
    torch.manual_seed(seed + 11)
    model = AttributeClassifier()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=lr, total_steps=steps, pct_start=0.1)
    targets = _targets(pool.scenes)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        chosen = torch.randint(0, len(pool.scenes), (batch,), generator=generator)
        inputs = _augment(_inputs(pool.thumbnails[chosen.numpy()]), generator)
        with cpu_autocast():
            scores = model(inputs.contiguous(memory_format=torch.channels_last))
        loss = F.binary_cross_entropy_with_logits(scores, targets[chosen]) * len(COMBOS)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            logger.info("classifier step %d/%d loss %.4f", step, steps, loss.item())
    model.eval()
    return model


def save_classifier(model: AttributeClassifier, folder: pathlib.Path) -> None:
    """Write the weights as fp16 safetensors, and the classes beside them."""
    from safetensors.torch import save

    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    write_whole(folder / "model.safetensors", save(weights))
    write_whole(folder / "config.json", json.dumps({"thumbnail": THUMBNAIL, "classes": COMBOS}, indent=1) + "\n")


def load_classifier(folder: pathlib.Path | None = None) -> AttributeClassifier:
    """Load the shipped classifier, or one from another folder, in fp32 and evaluation mode."""
    from safetensors.torch import load_file

    from agentsd.demo import MODEL_PATH

    model = AttributeClassifier()
    weights = load_file((folder or MODEL_PATH / FOLDER) / "model.safetensors")
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    return model.eval()


@torch.no_grad()
def picture_scores(model: AttributeClassifier, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Scores (n, 30) of pictures (n, h, h, 3) uint8, h a multiple of 64."""
    parts = [model(_inputs(pictures[start : start + 64])).numpy() for start in range(0, len(pictures), 64)]
    result: npt.NDArray[np.float32] = np.concatenate(parts)
    return result


@torch.no_grad()
def picture_features(model: AttributeClassifier, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Features (n, 128) of pictures (n, h, h, 3) uint8, h a multiple of 64, for a Fréchet distance."""
    starts = range(0, len(pictures), 64)
    result: npt.NDArray[np.float32] = np.concatenate(
        [model.features(_inputs(pictures[start : start + 64])).numpy() for start in starts]
    )
    return result


def matches(scores: npt.NDArray[np.float32], wanted: Sequence[Collection[Combo]]) -> npt.NDArray[np.bool_]:
    """Whether the k highest scores of each picture are exactly the k combinations that its prompt names.

    Args:
        scores: (n, 30), one column for each of ``COMBOS``.
        wanted: n collections of (colour, shape), each of at least one.

    Returns:
        n booleans.

    Raises:
        ValueError: The lengths differ, a collection is empty, or a combination is unknown.

    >>> scores = np.zeros((1, 30), dtype=np.float32)
    >>> scores[0, combo_index("red", "ring")] = 5
    >>> matches(scores, [{("red", "ring")}]).tolist(), matches(scores, [{("red", "cross")}]).tolist()
    ([True], [False])
    """
    if len(scores) != len(wanted):
        raise ValueError(f"wanted has {len(wanted)} entries for {len(scores)} pictures; give one for each picture.")
    result = np.zeros(len(scores), dtype=bool)
    for row, combos in enumerate(wanted):
        if not combos:
            raise ValueError(f"wanted[{row}] is empty; name at least one (colour, shape).")
        indices = {combo_index(*combo) for combo in combos}
        top = np.argsort(-scores[row], kind="stable")[: len(indices)]
        result[row] = set(top.tolist()) == indices
    return result


def attribute_accuracy(scores: npt.NDArray[np.float32], wanted: Sequence[Collection[Combo]]) -> dict[str, float]:
    """Shares of right pictures: of all, of those with one object ("singles") and with two ("pairs").

    Args:
        scores: (n, 30).
        wanted: n collections of (colour, shape).

    Returns:
        Shares in 0..1 by name; a group without pictures is left out.
    """
    right = matches(scores, wanted)
    counts = np.array([len(set(combos)) for combos in wanted])
    groups = {"all": counts > 0, "singles": counts == 1, "pairs": counts == 2}
    return {name: float(right[group].mean()) for name, group in groups.items() if group.any()}


def prepare_classifier(pool: Pool, target: pathlib.Path, steps: int = 1200) -> AttributeClassifier:
    """Load the classifier from the model folder ``target``, or train and save it there."""
    folder = target / FOLDER
    if not (folder / "model.safetensors").exists():
        model = train_classifier(pool, steps)
        scenes = sample_scenes(600, seed=4321, held_out=True)
        accuracy = attribute_accuracy(
            picture_scores(model, render_batch(scenes)), [{item.combo for item in scene.objects} for scene in scenes]
        )
        logger.info("classifier on held-out renderings: %s", accuracy)
        save_classifier(model, folder)
    return load_classifier(folder)
