"""Ranking and merging tokens on a grid: cell patterns, rankings, merge maps (pure functions)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Upper bound on similarities held at once (64 MiB in float16): ranking a large grid goes through in row blocks.
_MAX_SIMILARITIES = 2**25


@dataclass(frozen=True)
class CellPattern:
    """Which tokens of a grid are merge destinations (one per whole cell) and which are sources (all others).

    Attributes:
        destinations: Token indices, int64 [D], in cell order (row by row).
        sources: Token indices, int64 [N - D], ascending.
    """

    destinations: Tensor
    sources: Tensor

    def to(self, device: torch.device | None) -> "CellPattern":
        """Return the pattern on `device` (`None`: where it is)."""
        return CellPattern(self.destinations.to(device), self.sources.to(device))


def cell_pattern(height: int, width: int, stride: int, generator: torch.Generator | None = None) -> CellPattern:
    """Pick one destination per whole `stride x stride` cell: its top-left token, or a random member.

    Tokens outside the last whole cell are sources.

    Args:
        height: Grid height in tokens.
        width: Grid width in tokens.
        stride: Side of a cell in tokens.
        generator: CPU generator that chooses the members; `None` takes the top-left ones.

    Returns:
        The pattern, on the CPU.

    Raises:
        ValueError: If the grid holds no whole cell.

    Example:
        >>> cell_pattern(4, 5, 2).destinations.tolist()
        [0, 2, 10, 12]
    """
    rows, columns = height // stride, width // stride
    if rows == 0 or columns == 0:
        raise ValueError(f"grid {height}x{width} holds no whole cell of stride={stride}; use a smaller stride.")
    if generator is None:
        member = torch.zeros(rows, columns, dtype=torch.int64, device="cpu")
    else:
        member = torch.randint(stride * stride, (rows, columns), generator=generator, device="cpu")
    y = torch.arange(rows, device="cpu")[:, None] * stride + member // stride
    x = torch.arange(columns, device="cpu")[None, :] * stride + member % stride
    destinations = (y * width + x).flatten()
    is_source = torch.ones(height * width, dtype=torch.bool, device="cpu")
    is_source[destinations] = False
    return CellPattern(destinations, is_source.nonzero().flatten())


@dataclass(frozen=True)
class TokenMap:
    """A fixed way to merge N tokens to M and back; merging is linear, unmerging copies.

    Attributes:
        kept: Source tokens that stay, int64 [B, K], most similar first.
        merged: Source tokens that are merged away, int64 [B, R].
        target: Destination (its position among the destinations) of each merged token, int64 [B, R].
        destinations: Token indices of the destinations, int64 [D].
        position: For every token, its place among the M = K + D merged tokens, int64 [B, N].
    """

    kept: Tensor
    merged: Tensor
    target: Tensor
    destinations: Tensor
    position: Tensor

    def merge(self, tokens: Tensor) -> Tensor:
        """Average merged tokens into their destinations: [B, N, C] -> [B, M, C], kept sources first."""
        destinations = tokens.index_select(1, self.destinations)
        if self.merged.shape[1]:
            # Sums in float32: thousands of similar tokens may share a destination, and float16 ends at 65504.
            wide = torch.promote_types(tokens.dtype, torch.float32)
            total = add_rows(destinations.to(wide), self.target, take_rows(tokens, self.merged).to(wide))
            # Counts in float32: bfloat16 cannot count past 256.
            count = torch.ones(destinations.shape[:2], dtype=torch.float32, device=tokens.device)
            one_each = torch.ones(self.target.shape, dtype=torch.float32, device=tokens.device)
            count = count.scatter_add(1, self.target, one_each)
            destinations = (total * count.reciprocal().to(wide).unsqueeze(-1)).to(tokens.dtype)
        if not self.kept.shape[1]:
            return destinations
        return torch.cat([take_rows(tokens, self.kept), destinations], dim=1)

    def unmerge(self, tokens: Tensor) -> Tensor:
        """Give every original token its representative's value: [B, M, C] -> [B, N, C]."""
        return take_rows(tokens, self.position)


@dataclass(frozen=True)
class Ranking:
    """Sources in order of similarity to their best destination: one ranking, any number of cuts.

    Attributes:
        order: Source tokens, most similar first, int64 [B, S].
        target: Best destination of each (its position among the destinations), int64 [B, S], in the same order.
        pattern: The pattern that was ranked.
    """

    order: Tensor
    target: Tensor
    pattern: CellPattern

    def cut(self, count: int) -> TokenMap:
        """Return the map that merges the `count` most similar sources (all of them, if there are fewer)."""
        batch, sources = self.order.shape
        count = min(count, sources)
        kept = sources - count
        number = self.pattern.destinations.shape[0]
        device = self.order.device
        position = torch.empty(batch, sources + number, dtype=torch.int64, device=device)
        position = position.scatter(1, self.order[:, count:], torch.arange(kept, device=device).expand(batch, kept))
        position = position.scatter(1, self.order[:, :count], self.target[:, :count] + kept)
        places = torch.arange(kept, kept + number, device=device).expand(batch, number)
        position = position.scatter(1, self.pattern.destinations.expand(batch, number), places)
        return TokenMap(
            kept=self.order[:, count:],
            merged=self.order[:, :count],
            target=self.target[:, :count],
            destinations=self.pattern.destinations,
            position=position,
        )


def rank_tokens(metric: Tensor, pattern: CellPattern) -> Ranking:
    """Rank every source by cosine similarity to its most similar destination (https://arxiv.org/abs/2303.17604).

    Costs N^2 C / stride^2 multiply-adds; large grids go through in blocks, so memory stays bounded.

    Args:
        metric: Token features to compare, [B, N, C].
        pattern: Destinations and sources, on the metric's device.

    Returns:
        The ranking.

    Raises:
        ValueError: If the metric and the pattern differ in their number of tokens.

    Example:
        >>> ranking = rank_tokens(torch.randn(1, 16, 8), cell_pattern(4, 4, 2))
        >>> ranking.cut(6).merge(torch.ones(1, 16, 3)).shape
        torch.Size([1, 10, 3])
    """
    expected = pattern.sources.shape[0] + pattern.destinations.shape[0]
    # Not in a compiled graph: the check would tie it to one size.
    if not torch.compiler.is_compiling() and metric.shape[1] != expected:
        raise ValueError(f"metric has {metric.shape[1]} tokens, the pattern {expected}: both must be of one grid.")
    unit = F.normalize(metric, dim=-1)
    sources = unit.index_select(1, pattern.sources)
    destinations = unit.index_select(1, pattern.destinations).transpose(1, 2)
    rows = max(1, _MAX_SIMILARITIES // (metric.shape[0] * pattern.destinations.shape[0]))
    blocks = (sources,) if sources.shape[1] <= rows else sources.split(rows, dim=1)
    best = [(block @ destinations).max(dim=-1) for block in blocks]
    similarity = torch.cat([block.values for block in best], dim=1)
    target = torch.cat([block.indices for block in best], dim=1)
    order = similarity.argsort(dim=-1, descending=True, stable=True)
    return Ranking(order=pattern.sources[order], target=target.gather(1, order), pattern=pattern)


def take_rows(tokens: Tensor, index: Tensor) -> Tensor:
    """Pick tokens sample by sample: [B, N, C] by [B, K] -> [B, K, C].

    Equal to `tokens.gather` with the index repeated for every channel, and several times faster on a CPU, which copies
    whole rows when all samples form one list.

    Example:
        >>> take_rows(torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]), torch.tensor([[1], [0]])).flatten().tolist()
        [2.0, 3.0]
    """
    batch, number, channels = tokens.shape
    rows = tokens.reshape(batch * number, channels).index_select(0, _in_one_list(index, number))
    return rows.view(batch, index.shape[1], channels)


def add_rows(tokens: Tensor, index: Tensor, added: Tensor) -> Tensor:
    """Return `tokens` [B, N, C] with the rows of `added` [B, K, C] summed onto the places `index` [B, K].

    Example:
        >>> add_rows(torch.zeros(1, 2, 1), torch.tensor([[1, 1]]), torch.ones(1, 2, 1)).flatten().tolist()
        [0.0, 2.0]
    """
    batch, number, channels = tokens.shape
    rows = added.reshape(-1, channels)
    places = _in_one_list(index, number).unsqueeze(-1).expand_as(rows)
    return tokens.reshape(batch * number, channels).scatter_add(0, places, rows).view_as(tokens)


def _in_one_list(index: Tensor, number: int) -> Tensor:
    """Return the places of tokens [B, K] among those of all samples in a row, [B * K]."""
    starts = torch.arange(index.shape[0], device=index.device).unsqueeze(1) * number
    return (index + starts).flatten()
