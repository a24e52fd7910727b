"""Resizing what a model learned to another grid of tokens or agents: biases, positions, tables (pure functions)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from agentsd.vision.functional import Grid


def resize_line(bias: Tensor, axis: int, size: int) -> Tensor:
    """Resize one grid axis of a row or column bias, linearly with half-pixel centres.

    Args:
        bias: Any shape.
        axis: The axis to resize.
        size: Its new length.

    Returns:
        The bias with `size` entries on `axis`.

    Example:
        >>> resize_line(torch.tensor([[0.0, 1.0]]), 1, 4)
        tensor([[0.0000, 0.2500, 0.7500, 1.0000]])
    """
    if bias.shape[axis] == size:
        return bias
    moved = bias.movedim(axis, -1)
    line = F.interpolate(moved.reshape(1, -1, moved.shape[-1]), size=size, mode="linear")
    return line.reshape(*moved.shape[:-1], size).movedim(-1, axis)


def resize_agents(bias: Tensor, axis: int, source: Grid, target: Grid) -> Tensor:
    """Resize the agent axis of a bias, read as an image of agents, bilinearly with half-pixel centres.

    Args:
        bias: Any shape, with rows*columns of `source` entries on `axis`.
        axis: The agent axis.
        source: (rows, columns) of the agents the bias was trained for.
        target: (rows, columns) of the agents now.

    Returns:
        The bias with rows*columns of `target` entries on `axis`.

    Raises:
        ValueError: If the axis does not hold the agents of `source`.

    Example:
        >>> resize_agents(torch.zeros(3, 9), 1, (3, 3), (5, 4)).shape
        torch.Size([3, 20])
    """
    if bias.shape[axis] != source[0] * source[1]:
        raise ValueError(
            f"source={source} holds {source[0] * source[1]} agents, but axis {axis} of the bias {tuple(bias.shape)} "
            f"has {bias.shape[axis]} entries; give the agent grid that the bias was trained for."
        )
    if source == target:
        return bias
    moved = bias.movedim(axis, -1)
    image = F.interpolate(moved.reshape(1, -1, *source), size=target, mode="bilinear")
    return image.reshape(*moved.shape[:-1], target[0] * target[1]).movedim(-1, axis)


def block_bias(bias: Tensor, grid: Grid) -> Tensor:
    """Stretch a block bias over a grid, bilinearly with half-pixel centres and without antialiasing.

    Args:
        bias: [heads, n, rows, columns], 7 x 7 as published.
        grid: (h, w).

    Returns:
        [heads, n, h, w].

    Example:
        >>> block_bias(torch.zeros(2, 9, 7, 7), (14, 12)).shape
        torch.Size([2, 9, 14, 12])
    """
    return F.interpolate(bias, size=grid, mode="bilinear")


def resize_positions(positions: Tensor, source: Grid, target: Grid, *, mode: str = "bicubic") -> Tensor:
    """Resize a position embedding, [1, (1 +) h*w, C]; the row of a class token in front stays as it is.

    Args:
        positions: The embedding.
        source: (h, w) it was trained for.
        target: (h, w) now.
        mode: "bicubic" as for classification, or "bilinear" as for dense tasks.

    Returns:
        The embedding, [1, (1 +) h*w of `target`, C].

    Raises:
        ValueError: If the embedding holds neither h*w nor h*w + 1 rows of `source`.

    Example:
        >>> resize_positions(torch.zeros(1, 197, 8), (14, 14), (10, 20)).shape
        torch.Size([1, 201, 8])
    """
    lead = positions.shape[1] - source[0] * source[1]
    if lead not in (0, 1):
        raise ValueError(
            f"source={source} holds {source[0] * source[1]} positions, but the embedding has {positions.shape[1]}; "
            "give the grid that the embedding was trained for."
        )
    if source == target:
        return positions
    image = positions[:, lead:].transpose(1, 2).unflatten(2, source)
    resized = F.interpolate(image, size=target, mode=mode).flatten(2).transpose(1, 2)
    return torch.cat([positions[:, :lead], resized], dim=1)


def resize_table(table: Tensor, window: int) -> Tensor:
    """Resize a table of relative position biases to another window, bicubically.

    Args:
        table: [(2v-1)^2, heads], trained for windows of side v.
        window: New side w.

    Returns:
        [(2w-1)^2, heads].

    Raises:
        ValueError: If the table is no square of an odd side.

    Example:
        >>> resize_table(torch.zeros(169, 3), 12).shape
        torch.Size([529, 3])
    """
    side = math.isqrt(table.shape[0])
    if side * side != table.shape[0] or side % 2 == 0:
        raise ValueError(
            f"table has {table.shape[0]} rows, which is not (2w-1)^2 of any window w; give a relative position table."
        )
    new = 2 * window - 1
    if side == new:
        return table
    image = table.T.reshape(1, -1, side, side)
    return F.interpolate(image, size=(new, new), mode="bicubic").flatten(2)[0].T
