"""Agent attention as a pure function: two fused softmax attentions and a shortcut."""

import torch.nn.functional as F
from torch import Tensor


def agent_attention(
    query: Tensor,
    agents: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    broadcast_exponent: float = 0.3,
    shortcut: float = 0.075,
) -> Tensor:
    """Attend through agents: they gather from all keys and values, then broadcast to all queries.

    `V_A = softmax(A K^T scale) V`, `O = softmax(Q A^T scale^broadcast_exponent) V_A + shortcut V`
    (Han et al., ECCV 2024, https://arxiv.org/abs/2312.08874). This is the generalised linear attention
    `O = phi_q(Q) phi_k(K)^T V`; with `n` agents it costs O(n N) and never holds an N x N or n x N matrix,
    because both stages are fused scaled-dot-product attentions.

    Args:
        query: Queries, [batch, heads, N, d].
        agents: Agent queries, [batch, heads, n, d].
        key: Keys, [batch, heads, N, d].
        value: Values, [batch, heads, N, d].
        scale: Factor on the logits of the first softmax, usually d^-0.5.
        broadcast_exponent: Exponent on `scale` in the second softmax.
        shortcut: Weight of the values added to the output.

    Returns:
        Attended queries, [batch, heads, N, d].

    Raises:
        ValueError: If `scale` is not positive or, with a shortcut, queries and values differ in number.

    Example:
        >>> import torch
        >>> q, a = torch.randn(1, 2, 64, 8), torch.randn(1, 2, 4, 8)
        >>> agent_attention(q, a, q, torch.ones_like(q), scale=8**-0.5, shortcut=0.0).allclose(torch.ones_like(q))
        True
    """
    if scale <= 0:
        raise ValueError(f"scale={scale!r} must be positive, usually head_width ** -0.5.")
    if shortcut and query.shape[-2] != value.shape[-2]:
        raise ValueError(
            f"shortcut={shortcut!r} adds values to queries, but there are {query.shape[-2]} queries and "
            f"{value.shape[-2]} values; pass shortcut=0."
        )
    gathered = F.scaled_dot_product_attention(agents, key, value, scale=scale)
    broadcast = F.scaled_dot_product_attention(query, agents, gathered, scale=scale**broadcast_exponent)
    return broadcast.add(value, alpha=shortcut) if shortcut else broadcast
