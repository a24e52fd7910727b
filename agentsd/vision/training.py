"""Training a classifier: resumable, the same from the same seed."""

import dataclasses
import importlib.util
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agentsd.system.installing import install_command
from agentsd.vision.data import Pictures, batches
from agentsd.vision.model import AgentTransformer


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained.

    Attributes:
        steps: Optimiser steps.
        batch: Pictures a step.
        rate: Highest learning rate; it rises linearly, then falls to zero along a cosine.
        warmup: Steps of the rise.
        weight_decay: On all but tokens, positions, biases and norms.
        optimizer: Name of an optimiser of timm; "adamw" works without timm.
        clip: Highest norm of the gradients.
        seed: Of weights, pictures and dropped paths.
        every: Steps from one evaluation, and one saved state, to the next.

    Raises:
        ValueError: If a number is out of range.
    """

    steps: int = 1000
    batch: int = 32
    rate: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.05
    optimizer: str = "adamw"
    clip: float = 1.0
    seed: int = 0
    every: int = 200

    def __post_init__(self) -> None:
        """Check the numbers."""
        for field in ("steps", "batch", "every"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} is not positive; give at least 1.")
        if not self.rate > 0:
            raise ValueError(f"rate={self.rate} is not positive; 1e-3 is usual for small models.")

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, from 0.

        Example:
            >>> Recipe(steps=100, warmup=10, rate=1.0).rate_at(9)
            1.0
        """
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(self.steps - self.warmup, 1)))


def make_optimizer(model: nn.Module, recipe: Recipe) -> tuple[torch.optim.Optimizer, str]:
    """Make the optimiser, timm's where timm is there.

    Args:
        model: What is trained.
        recipe: How.

    Returns:
        The optimiser and where it is from.

    Raises:
        ValueError: If timm is not there and the optimiser is not "adamw".
    """
    try:
        found = importlib.util.find_spec("timm") is not None
        if found:
            from timm.optim import create_optimizer_v2
    except Exception:  # timm is there, and cannot be imported beside this torch
        found = False
    if found:
        decay = {"opt": recipe.optimizer, "lr": recipe.rate, "weight_decay": recipe.weight_decay}
        return create_optimizer_v2(model, **decay), "timm"
    if recipe.optimizer != "adamw":
        raise ValueError(
            f"optimizer={recipe.optimizer!r} is one of timm's, which cannot be imported; run "
            f"{install_command('vision')}, or use adamw."
        )
    bare = model.no_weight_decay() if isinstance(model, AgentTransformer) else set()
    named = list(model.named_parameters())
    groups = [
        {
            "params": [one for name, one in named if one.ndim > 1 and name not in bare],
            "weight_decay": recipe.weight_decay,
        },
        {"params": [one for name, one in named if one.ndim <= 1 or name in bare], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.rate), "torch"


def loss_of(pictures: Pictures, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy over the groups of labels."""
    parts = [F.cross_entropy(part, labels[:, index]) for index, part in enumerate(pictures.split(logits))]
    return torch.stack(parts).mean()


@torch.no_grad()
def evaluate(model: nn.Module, pictures: Pictures, *, batch: int = 250) -> dict[str, float]:
    """Measure a classifier.

    Args:
        model: The classifier; it is left in the mode it was in.
        pictures: What to measure it on.
        batch: Pictures at a time.

    Returns:
        "loss", "exact" (share of pictures with all labels right), "mean" (share of labels that are right), and the
        share of each group.
    """
    training = model.training
    model.eval()
    logits = torch.cat([model(part) for part in pictures.images.split(batch)])
    model.train(training)
    right = torch.stack([part.argmax(1) for part in pictures.split(logits)], dim=1) == pictures.labels
    shares = right.float().mean(0)
    return {
        "loss": float(loss_of(pictures, logits, pictures.labels)),
        "exact": float(right.all(1).float().mean()),
        "mean": float(shares.mean()),
        **{name: float(share) for (name, _), share in zip(pictures.groups, shares, strict=True)},
    }


def train(
    model: nn.Module,
    training: Pictures,
    evaluation: Pictures,
    recipe: Recipe,
    *,
    state_file: str | Path | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
    advance: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Train a classifier; a run that was stopped goes on where its last state was saved.

    Args:
        model: The classifier, with `training.logits` outputs.
        training: What it learns from.
        evaluation: What it is measured on.
        recipe: How.
        state_file: Where the state is kept; `None` keeps none.
        report: Called with every row.
        advance: Called with the number of steps done, for a progress bar.

    Returns:
        One row an evaluation: step, training loss, and what `evaluate` returns.

    Raises:
        ValueError: If the saved state is of another recipe.
    """
    torch.manual_seed(recipe.seed)
    optimizer, source = make_optimizer(model, recipe)
    rows: list[dict[str, Any]] = []
    start = 0
    if state_file is not None and Path(state_file).is_file():
        start, rows = _resume(Path(state_file), model, optimizer, recipe)
    if advance:
        advance(start)
    total, count = 0.0, 0
    for step in range(start, recipe.steps):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step)
        torch.manual_seed(recipe.seed * 1_000_003 + step)  # dropped paths depend on the step alone
        chosen = batches(training, recipe.batch, seed=recipe.seed, step=step)
        loss = loss_of(training, model(training.images[chosen]), training.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        total, count = total + float(loss.detach()), count + 1
        if advance:
            advance(1)
        if (step + 1) % recipe.every == 0 or step + 1 == recipe.steps:
            row = {"step": step + 1, "training_loss": total / count, "optimizer": f"{source} {recipe.optimizer}"}
            rows.append(row | evaluate(model, evaluation))
            total, count = 0.0, 0
            if report:
                report(rows[-1])
            if state_file is not None:
                _save(Path(state_file), model, optimizer, recipe, step + 1, rows)
    return rows


def _save(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, step: int, rows: list[Any]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "recipe": dataclasses.asdict(recipe),
        "step": step,
        "rows": json.dumps(rows),
    }
    torch.save(state, partial)
    os.replace(partial, path)  # whole or not at all


def _resume(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe
) -> tuple[int, list[dict[str, Any]]]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["recipe"] != dataclasses.asdict(recipe):
        changed = [key for key, value in dataclasses.asdict(recipe).items() if state["recipe"].get(key) != value]
        raise ValueError(
            f"state_file={str(path)!r} was saved with another {', '.join(changed)}; use the same settings, or another "
            "file."
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], json.loads(state["rows"])
