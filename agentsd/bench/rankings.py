"""Cheaper rankings than the published one, tried beside pooled agents: in windows, and one ranking for several layers.

They are arms of the benchmarks, not settings: `results/README.md` says what came out.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from agentsd.attention.tokens import CellPattern, Ranking, rank_tokens
from agentsd.unet import processor

Ranker = Callable[[Tensor, CellPattern], Ranking]


def rank_in_windows(metric: Tensor, pattern: CellPattern, side: int = 16) -> Ranking:
    """Rank every source by its most similar destination within its own window of `side x side` tokens: O(N).

    Args:
        metric: Token features of a square grid whose side is a multiple of `side`, [B, N, C].
        pattern: Destinations and sources; `side` must be a multiple of the cells' side.
        side: Side of a window in tokens; a smaller grid is one window.

    Returns:
        The ranking, over the whole grid as `rank_tokens` gives it.

    Raises:
        ValueError: If the windows do not tile the grid.

    Example:
        >>> from agentsd.attention.tokens import cell_pattern
        >>> rank_in_windows(torch.randn(1, 64, 8), cell_pattern(8, 8, 2), side=4).order.shape
        torch.Size([1, 48])
    """
    batch, number, _ = metric.shape
    grid = round(number**0.5)
    side = min(side, grid)
    if grid * grid != number or grid % side:
        raise ValueError(f"windows of side={side} do not tile a grid of {number} tokens; take a square one they tile.")
    windows = (grid // side) ** 2

    def by_window(tokens: Tensor) -> Tensor:
        """Places in `tokens`, those of a window in a row: [W, number per window]."""
        window = tokens // grid // side * (grid // side) + tokens % grid // side
        places: Tensor = window.argsort(stable=True).view(windows, -1)
        return places

    sources, destinations = by_window(pattern.sources), by_window(pattern.destinations)
    unit = F.normalize(metric, dim=-1)
    best = (unit[:, pattern.sources[sources]] @ unit[:, pattern.destinations[destinations]].mT).max(dim=-1)
    similarity = best.values.flatten(1)
    target = destinations.expand(batch, -1, -1).gather(2, best.indices).flatten(1)
    order = similarity.argsort(dim=-1, descending=True, stable=True)
    return Ranking(pattern.sources[sources.flatten()][order], target.gather(1, order), pattern)


class SharedRanking:
    """One ranking for all layers of a grid and for `calls` calls of the UNet in a row.

    Example:
        >>> from agentsd.attention.tokens import cell_pattern
        >>> shared, pattern = SharedRanking(calls=1), cell_pattern(4, 4, 2)
        >>> shared.start_call()
        >>> shared(torch.randn(1, 16, 8), pattern) is shared(torch.randn(1, 16, 8), pattern)
        True
    """

    def __init__(self, calls: int) -> None:
        self.calls = calls
        self._call = -1
        self._kept: dict[tuple[int, ...], Ranking] = {}

    def start_call(self, *_: object) -> None:
        """Count a call of the UNet; a forward pre-hook."""
        self._call += 1
        if self._call % self.calls == 0:
            self._kept.clear()

    def __call__(self, metric: Tensor, pattern: CellPattern) -> Ranking:
        """Return the ranking of the first layer of this grid that asked."""
        key = (metric.shape[0], metric.shape[1], pattern.destinations.shape[0])
        if key not in self._kept:
            self._kept[key] = rank_tokens(metric, pattern)
        return self._kept[key]


@contextmanager
def ranked_by(unet: Any, ranker: Ranker) -> Iterator[None]:
    """Let every patched layer rank by `ranker`, in this process, until the context is left."""
    hook = unet.register_forward_pre_hook(ranker.start_call) if isinstance(ranker, SharedRanking) else None
    names = vars(processor)  # where its layers look the ranking up
    before, names["rank_tokens"] = names["rank_tokens"], ranker
    try:
        yield
    finally:
        names["rank_tokens"] = before
        if hook is not None:
            hook.remove()


def ranking_free(metric: Tensor, pattern: CellPattern) -> Ranking:
    """Return an arbitrary ranking at next to no cost: no cheaper one can be faster. For speed alone, not for pictures.

    Example:
        >>> from agentsd.attention.tokens import cell_pattern
        >>> ranking_free(torch.randn(1, 16, 8), cell_pattern(4, 4, 2)).order.shape
        torch.Size([1, 12])
    """
    sources = pattern.sources.expand(metric.shape[0], -1)
    return Ranking(sources, torch.zeros_like(sources), pattern)
