"""Fewer tokens without ranking: means of cells, and tokens sampled cell by cell (pure functions)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def pool_tokens(tokens: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Average the tokens of each `stride x stride` cell; cells cut off at the border average what they hold.

    Args:
        tokens: Tokens of a grid in row order, [B, height * width, C].
        height: Grid height in tokens.
        width: Grid width in tokens.
        stride: Side of a cell in tokens.

    Returns:
        Pooled tokens, [B, ceil(height / stride) * ceil(width / stride), C], in row order.

    Raises:
        ValueError: If the tokens do not fill the grid.

    Example:
        >>> pool_tokens(torch.arange(16.0).view(1, 16, 1), 4, 4, 2).flatten().tolist()
        [2.5, 4.5, 10.5, 12.5]
    """
    batch, number, channels = tokens.shape
    if number != height * width:
        raise ValueError(f"tokens has {number} tokens, the grid {height}x{width} has {height * width}.")
    image = tokens.view(batch, height, width, channels).permute(0, 3, 1, 2)
    pooled = F.avg_pool2d(image, stride, ceil_mode=True, count_include_pad=False)
    return pooled.flatten(2).transpose(1, 2)


def choose_tokens(
    height: int, width: int, stride: int, index: int = 0, generator: torch.Generator | None = None
) -> Tensor:
    """Choose one token of every cell of a grid at random; successive choices take the tokens of a cell in turn.

    The grid has `ceil(height / stride)` times `ceil(width / stride)` cells. Their sides differ by one token at most:
    each chosen token represents about as many others.

    Args:
        height: Grid height in tokens.
        width: Grid width in tokens.
        stride: Side of a cell in tokens, at most.
        index: Number of the choice, from 0: the place in every cell's random order of its tokens, cyclic.
        generator: CPU generator of those orders; `None` takes the middle of each cell every time. Give another
            generator after every `stride ** 2` choices: with one order for all, a layer that runs at every fourth step
            alone could see the same token each time.

    Returns:
        Token indices, int64 [ceil(height / stride) * ceil(width / stride)], cell by cell, on the CPU.

    Example:
        >>> chosen = [choose_tokens(4, 4, 2, i, torch.Generator().manual_seed(0)) for i in range(4)]
        >>> sorted(torch.cat(chosen).tolist()) == list(range(16))
        True
    """
    tops, bottoms = cell_edges(height, stride)
    lefts, rights = cell_edges(width, stride)
    heights, widths = (bottoms - tops)[:, None], (rights - lefts)[None, :]
    if generator is None:
        y, x = heights // 2, widths // 2
    else:
        size = heights * widths
        most = int(size.max())
        # The choice must not follow the user's default device and dtype.
        order = torch.rand(*size.shape, most, generator=generator, device="cpu", dtype=torch.float32)
        absent = torch.arange(most, device="cpu") >= size[..., None]
        order = order.masked_fill(absent, 2.0).argsort(dim=-1)
        member = order.gather(-1, (index % size)[..., None]).squeeze(-1)
        y, x = member // widths, member % widths
    return ((tops[:, None] + y) * width + lefts[None, :] + x).flatten()


def cell_edges(length: int, stride: int) -> tuple[Tensor, Tensor]:
    """Return where the cells of sampled tokens begin and end, in one direction.

    Example:
        >>> [edges.tolist() for edges in cell_edges(7, 3)]
        [[0, 2, 4], [2, 4, 7]]
    """
    number = -(-length // stride)
    edges = torch.arange(number + 1, device="cpu") * length // number
    return edges[:-1], edges[1:]


def sample_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Take some tokens and shift them by one vector: their mean becomes that of all tokens.

    `S = F[index] + mean(F) - mean(F[index])`: a common shift of keys changes no softmax, so it corrects the values
    alone (a control variate), exactly where attention is uniform.

    Args:
        tokens: Tokens, [B, N, C].
        index: Which to take, int64 [n].

    Returns:
        The tokens, [B, n, C].

    Example:
        >>> sample_tokens(torch.tensor([[[1.0], [2.0], [6.0]]]), torch.tensor([0, 1])).flatten().tolist()
        [2.5, 3.5]
    """
    taken = tokens.index_select(1, index)
    # In float32: the difference of two means of 16-bit tokens is of the size of their rounding.
    wide = torch.promote_types(tokens.dtype, torch.float32)
    shift = tokens.mean(1, keepdim=True, dtype=wide) - taken.mean(1, keepdim=True, dtype=wide)
    return (taken + shift).to(tokens.dtype)
