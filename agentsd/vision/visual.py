"""Looking inside a trained model: its agents, what they gather from, who takes from them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agentsd.vision.attention import AgentAttention
from agentsd.vision.functional import Grid, pool_agents, split_heads


@dataclass(frozen=True)
class AgentMaps:
    """What one layer attended over at one call, the mean of its heads.

    Attributes:
        layer: Name of the layer.
        grid: (h, w) of the tokens.
        agents: (rows, columns) of the agents.
        gather: How much each agent takes from each token, [B, n, h*w]; sums to 1 over the tokens (and class token).
        spread: How much each token takes from each agent, [B, h*w, n]; sums to 1 over the agents.
    """

    layer: str
    grid: Grid
    agents: Grid
    gather: Tensor
    spread: Tensor


@contextmanager
def record(model: nn.Module, layer: str | None = None) -> Iterator[list[AgentMaps]]:
    """Record what agent layers attend over while the context lasts.

    Args:
        model: A model of this package.
        layer: Name of the layer; `None` is the first one with agents.

    Yields:
        The list that is filled, an entry a call.

    Raises:
        ValueError: If there is no such layer.

    Example:
        >>> from agentsd.vision.example import example_model
        >>> model = example_model()
        >>> with record(model) as seen:
        ...     _ = model(torch.zeros(1, 3, 48, 48))
        >>> seen[0].gather.shape, seen[0].agents
        (torch.Size([1, 9, 144]), (3, 3))
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, AgentAttention)}
    name = next(iter(layers), "") if layer is None else layer
    if name not in layers:
        raise ValueError(f"layer={layer!r} has no agents; choose one of {', '.join(layers) or 'a model with agents'}.")
    seen: list[AgentMaps] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        grid = inputs[1] if len(inputs) > 1 else layers[name].grid
        seen.append(attention_maps(layers[name], inputs[0], grid, name=name))

    handle = layers[name].register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def attention_maps(layer: AgentAttention, x: Tensor, grid: Grid, *, name: str = "") -> AgentMaps:
    """Compute both softmaxes of a layer for tokens, [B, N, C].

    Args:
        layer: The layer.
        x: Its input, [B, N, C].
        grid: (h, w) of the image tokens.
        name: Name of the layer.

    Returns:
        The maps, without the class token.

    Raises:
        ValueError: If the layer reduces its keys, which then are no tokens.
    """
    if layer.reduction > 1:
        raise ValueError(f"reduction={layer.reduction}: the keys of this layer are no tokens; record one without.")
    lead = int(layer.class_token)
    query, key, _ = layer.qkv(x).chunk(3, dim=-1)
    agents = pool_agents(query[:, lead:], grid, layer.agents)
    query, key, agents = (split_heads(part, layer.heads) for part in (query, key, agents))
    scale = query.shape[-1] ** -0.5
    first, second = scale * agents @ key.transpose(-1, -2), scale * query @ agents.transpose(-1, -2)
    if layer.has_bias:
        gather, spread = layer.biases(grid)
        first, second = first + gather, second + spread
    return AgentMaps(
        layer=name,
        grid=grid,
        agents=layer.agents,
        gather=first.softmax(-1).mean(1)[..., lead:],
        spread=second.softmax(-1).mean(1)[:, lead:],
    )


def draw_agents(maps: AgentMaps, picture: Any, axes: Any = None, marked: int | None = None) -> Any:
    """Draw a picture with the cells that are averaged into agents, and a dot for every agent.

    Args:
        maps: Of the layer.
        picture: PIL picture or array, [H, W, 3].
        axes: Of matplotlib; `None` makes new ones.
        marked: Number of an agent that gets a yellow ring.

    Returns:
        The axes.

    Raises:
        ValueError: If there is no such agent.
    """
    axes = _axes(axes)
    axes.imshow(picture, extent=(0, 1, 1, 0))
    rows, columns = maps.agents
    for row in range(1, rows):
        axes.axhline(row / rows, color="white", linewidth=0.8)
    for column in range(1, columns):
        axes.axvline(column / columns, color="white", linewidth=0.8)
    points = [((column + 0.5) / columns, (row + 0.5) / rows) for row in range(rows) for column in range(columns)]
    axes.scatter(*zip(*points, strict=True), s=14, color="white", edgecolors="black", linewidths=0.6)
    if marked is not None:
        if not 0 <= marked < len(points):
            raise ValueError(f"marked={marked} must lie in [0, {len(points)}), the agents that there are.")
        axes.scatter(*points[marked], s=110, facecolors="none", edgecolors="yellow", linewidths=2)
    axes.set_title(f"{rows * columns} agents of {maps.grid[0]} x {maps.grid[1]} tokens", fontsize=9)
    return _bare(axes)


def draw_map(weights: Tensor, maps: AgentMaps, picture: Any, axes: Any = None, title: str = "") -> Any:
    """Draw weights over the tokens on top of a picture, the heaviest brightest, with a colour bar.

    Args:
        weights: [h*w], such as `maps.gather[0, agent]` or `maps.spread[0, :, agent]`.
        maps: Of the layer.
        picture: PIL picture or array, [H, W, 3].
        axes: Of matplotlib; `None` makes new ones.
        title: Above the picture.

    Returns:
        The axes.
    """
    axes = _axes(axes)
    axes.imshow(picture, extent=(0, 1, 1, 0))
    image = weights.detach().float().cpu().reshape(maps.grid).numpy()
    shown = axes.imshow(image, extent=(0, 1, 1, 0), cmap="magma", alpha=0.7, interpolation="nearest")
    axes.figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.04, format="%.2g")
    axes.set_title(title, fontsize=9)
    return _bare(axes)


def draw_curves(rows: Sequence[Mapping[str, Any]], axes: Any = None) -> Any:
    """Draw accuracy against training steps: for each arm the mean of its seeds, shaded from the lowest to the highest.

    Args:
        rows: Of `scripts/train_vision.py`; those of the kind "curve" are drawn.
        axes: Of matplotlib; `None` makes new ones.

    Returns:
        The axes.
    """
    axes = _axes(axes)
    curves = [row for row in rows if row["kind"] == "curve"]
    for arm in dict.fromkeys(row["arm"] for row in curves):
        steps = sorted({row["step"] for row in curves if row["arm"] == arm})
        shares = [[row["exact"] for row in curves if (row["arm"], row["step"]) == (arm, step)] for step in steps]
        (line,) = axes.plot(steps, [sum(each) / len(each) for each in shares], label=arm)
        axes.fill_between(steps, [min(e) for e in shares], [max(e) for e in shares], color=line.get_color(), alpha=0.12)
    axes.set_xlabel("steps")
    axes.set_ylabel("all five labels right")
    axes.legend(fontsize=8)
    return axes


def _axes(axes: Any) -> Any:
    if axes is not None:
        return axes
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(4, 4))[1]


def _bare(axes: Any) -> Any:
    axes.set_xticks([])
    axes.set_yticks([])
    return axes
