"""The steps of trained Agent Attention as pure functions; the core is shared with `agentsd.attention`."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agentsd.attention.agent import agent_attention

Grid = tuple[int, int]


def agent_grid(agents: int | Grid) -> Grid:
    """Return the rows and columns on which a number of agents is laid out.

    A square number gives a square grid, as published (49 gives 7 x 7). Any other number gives the pair of factors
    nearest to a square; a pair is taken as it is.

    Args:
        agents: Number of agents, or (rows, columns).

    Returns:
        (rows, columns).

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> agent_grid(49), agent_grid(10), agent_grid((5, 4))
        ((7, 7), (2, 5), (5, 4))
    """
    if isinstance(agents, int):
        if agents < 1:
            raise ValueError(f"agents={agents} is not positive; give at least 1, or (rows, columns).")
        rows = next(rows for rows in range(math.isqrt(agents), 0, -1) if agents % rows == 0)
        return rows, agents // rows
    rows, columns = agents
    if rows < 1 or columns < 1:
        raise ValueError(f"agents={agents!r} has a side that is not positive; give (rows, columns), both at least 1.")
    return rows, columns


def to_image(tokens: Tensor, grid: Grid) -> Tensor:
    """View tokens, [B, h*w, C], as an image, [B, C, h, w] (channels last in memory: nothing is copied).

    Args:
        tokens: Tokens in row-major order, [B, h*w, C].
        grid: (h, w).

    Returns:
        The image, [B, C, h, w].

    Example:
        >>> to_image(torch.zeros(2, 12, 8), (3, 4)).shape
        torch.Size([2, 8, 3, 4])
    """
    image: Tensor = tokens.unflatten(1, grid)
    return image.permute(0, 3, 1, 2)


def to_tokens(image: Tensor) -> Tensor:
    """Flatten an image, [B, C, h, w], to row-major tokens, [B, h*w, C]; undoes `to_image`.

    Args:
        image: The image, [B, C, h, w].

    Returns:
        Tokens, [B, h*w, C].

    Example:
        >>> to_tokens(torch.zeros(2, 8, 3, 4)).shape
        torch.Size([2, 12, 8])
    """
    return image.flatten(2).transpose(1, 2)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """Split the channels into heads, [B, N, C] to [B, heads, N, C/heads].

    Args:
        tokens: Tokens, [B, N, C].
        heads: Number of heads; it divides C.

    Returns:
        The heads, [B, heads, N, C/heads].

    Example:
        >>> split_heads(torch.zeros(2, 12, 8), 4).shape
        torch.Size([2, 4, 12, 2])
    """
    split: Tensor = tokens.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)


def merge_heads(heads: Tensor) -> Tensor:
    """Undo `split_heads`.

    Args:
        heads: [B, heads, N, d].

    Returns:
        Tokens, [B, N, heads*d].

    Example:
        >>> merge_heads(torch.zeros(2, 4, 12, 2)).shape
        torch.Size([2, 12, 8])
    """
    return heads.transpose(1, 2).flatten(2)


def pool_agents(query: Tensor, grid: Grid, agents: Grid) -> Tensor:
    """Average the queries into agents, `A = AdaptiveAvgPool(Q)`, before the heads are split.

    Section 3.2 of https://arxiv.org/abs/2312.08874. The grids need not divide each other: cells overlap where needed.

    Args:
        query: Queries of the image tokens, [B, h*w, C].
        grid: (h, w) of the queries.
        agents: (rows, columns) of the agents.

    Returns:
        Agents in row-major order, [B, rows*columns, C].

    Raises:
        ValueError: If the number of queries is not h*w.

    Example:
        >>> pool_agents(torch.arange(4.0).reshape(1, 4, 1), (2, 2), (1, 1)).flatten()
        tensor([1.5000])
    """
    if query.shape[1] != grid[0] * grid[1]:
        raise ValueError(
            f"query has {query.shape[1]} tokens, but grid={grid} holds {grid[0] * grid[1]}; "
            "pass the grid of the tokens, without a class token."
        )
    if agents == grid:
        return query
    return to_tokens(F.adaptive_avg_pool2d(to_image(query, grid), agents))


def biased_agent_attention(
    query: Tensor,
    agents: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    gather_bias: Tensor | None = None,
    broadcast_bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attend through agents with a learned bias in each softmax, both stages fused.

    `V_A = softmax(A K^T / sqrt(d) + B1) V`, `O = softmax(Q A^T / sqrt(d) + B2) V_A` (equation 5 of
    https://arxiv.org/abs/2312.08874). The bias goes in as the mask of the fused attention. Without biases this is
    `agentsd.attention.agent_attention` with full scale in both stages and no shortcut.

    Args:
        query: Queries, [B, heads, N, d].
        agents: Agents, [B, heads, n, d].
        key: Keys, [B, heads, M, d].
        value: Values, [B, heads, M, d].
        gather_bias: B1, broadcast to [B, heads, n, M].
        broadcast_bias: B2, broadcast to [B, heads, N, n].
        dropout: Probability of dropping an attention weight, in both stages.

    Returns:
        Attended queries, [B, heads, N, d].

    Raises:
        ValueError: If one bias is given without the other.

    Example:
        >>> q, a = torch.randn(1, 2, 64, 8), torch.randn(1, 2, 4, 8)
        >>> biased_agent_attention(q, a, q, torch.ones_like(q)).allclose(torch.ones_like(q))
        True
    """
    if (gather_bias is None) != (broadcast_bias is None):
        missing = "gather_bias" if gather_bias is None else "broadcast_bias"
        raise ValueError(f"{missing}=None, but the other bias is given; give both or neither.")
    if gather_bias is None and not dropout:
        scale = query.shape[-1] ** -0.5
        return agent_attention(query, agents, key, value, scale=scale, broadcast_exponent=1.0, shortcut=0.0)
    gathered = F.scaled_dot_product_attention(agents, key, value, attn_mask=gather_bias, dropout_p=dropout)
    return F.scaled_dot_product_attention(query, agents, gathered, attn_mask=broadcast_bias, dropout_p=dropout)


def folded_agent_attention(
    x: Tensor,
    agents: Tensor,
    value: Tensor,
    to_query: tuple[Tensor, Tensor | None],
    to_key: Tensor,
    *,
    heads: int,
    gather_bias: Tensor | None = None,
    broadcast_bias: Tensor | None = None,
) -> Tensor:
    """Attend through few agents without projecting the tokens to queries and keys.

    The agents are projected in their place: `A K^T = (A Wk) X^T`, `Q A^T = X (Wq^T A) + bq A`; the bias of the keys is
    the same for all keys and drops out of the softmax. That is `biased_agent_attention` to rounding, with less to
    compute and to store where heads times agents are fewer than half the channels.

    Args:
        x: Tokens before projection, [B, N, C].
        agents: Projected agents, [B, n, C].
        value: Projected values, [B, N, C].
        to_query: Weight, [C, C], and bias, [C], of the queries' projection.
        to_key: Weight of the keys' projection, [C, C].
        heads: Number of heads.
        gather_bias: B1, broadcast to [B, heads, n, N].
        broadcast_bias: B2 transposed, broadcast to [B, heads, n, N].

    Returns:
        Attended tokens, [B, N, C].

    Example:
        >>> x, weight = torch.randn(1, 64, 8), torch.eye(8)
        >>> folded = folded_agent_attention(x, x[:, :2], x, (weight, None), weight, heads=2)
        >>> q, a = split_heads(x, 2), split_heads(x[:, :2], 2)
        >>> folded.allclose(merge_heads(biased_agent_attention(q, a, q, q)), atol=1e-5)
        True
    """
    scaled = split_heads(agents, heads) * (agents.shape[-1] // heads) ** -0.5
    weights = [weight.unflatten(0, (heads, -1)) for weight in (to_key, to_query[0])]
    both = torch.cat([scaled @ weight for weight in weights], dim=1).flatten(1, 2)
    # Tokens come last, so that the second softmax, over the agents, runs along contiguous tokens.
    scores = (both @ x.transpose(1, 2)).unflatten(1, (2 * heads, -1))
    first, second = scores[:, :heads], scores[:, heads:]
    if to_query[1] is not None:
        second = second + scaled @ to_query[1].unflatten(0, (heads, -1))[..., None]
    if gather_bias is not None and broadcast_bias is not None:
        first, second = first + gather_bias, second + broadcast_bias
    gathered = first.softmax(-1).to(value.dtype) @ split_heads(value, heads)
    return merge_heads(second.softmax(-2).to(value.dtype).transpose(-1, -2) @ gathered)


def project(x: Tensor, qkv: nn.Linear, first: int, last: int) -> Tensor:
    """Apply a part of the joint projection to queries (part 0), keys (1) and values (2).

    Args:
        x: Tokens, [B, N, C].
        qkv: The joint projection, C to 3C channels.
        first: The first part.
        last: The part after the last one.

    Returns:
        Projected tokens, [B, N, (last - first) * C].

    Example:
        >>> x, qkv = torch.randn(1, 4, 8), nn.Linear(8, 24)
        >>> project(x, qkv, 1, 3).allclose(qkv(x)[..., 8:], atol=1e-6)
        True
    """
    rows = slice(first * x.shape[-1], last * x.shape[-1])
    return F.linear(x, qkv.weight[rows], None if qkv.bias is None else qkv.bias[rows])


def check_heads(dim: int, heads: int) -> None:
    """Refuse a number of heads that does not divide the channels.

    Args:
        dim: Channels.
        heads: Number of heads.

    Raises:
        ValueError: If it does not divide them.

    Example:
        >>> check_heads(64, 2)
    """
    if heads < 1 or dim % heads:
        raise ValueError(f"heads={heads} does not divide dim={dim}; choose a divisor of dim.")
