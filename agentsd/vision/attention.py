"""The trained Agent Attention module: biases, pooled agents, depthwise convolution, class token, reduced keys."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agentsd.vision.caching import Caching
from agentsd.vision.functional import (
    Grid,
    agent_grid,
    biased_agent_attention,
    check_heads,
    folded_agent_attention,
    merge_heads,
    pool_agents,
    project,
    split_heads,
    to_image,
    to_tokens,
)
from agentsd.vision.resize import block_bias, resize_agents, resize_line

BLOCK = 7  # side of the block biases, the same for every grid
REDUCTION_EPS = 1e-5  # of the norm after the key reduction, in every family


class AgentAttention(Caching):
    """Agent Attention with learned biases and a depthwise convolution of the values.

    `A = pool(Q)`, `V_A = softmax(A K^T / sqrt(d) + B1) V`, `O = softmax(Q A^T / sqrt(d) + B2) V_A + DWC(V)`, then a
    projection (equation 6 of https://arxiv.org/abs/2312.08874). Tokens, [B, N, C], lie row by row on a grid; a class
    token, if any, comes first. It is a key of the first stage and a query of the second, and takes no convolution.

    Parameters are named as in the published checkpoints: `an_bias` and `na_bias`, [heads, n, 7, 7], are the block
    biases of B1 and B2; `ah_bias`, `aw_bias`, `ha_bias`, `wa_bias` their row and column biases; `ac_bias`, `ca_bias`
    those of the class token. One `qkv` holds queries, keys and values.

    On a grid other than the trained one, and with other agents, the biases are interpolated. In eval mode and without
    gradients they are computed once a grid and kept until a parameter changes.

    Args:
        dim: Channels C.
        heads: Number of heads; it divides `dim`.
        grid: (h, w) that the biases are trained for.
        agents: Number of agents, or (rows, columns); see `agent_grid`.
        reduction: Side of the strided convolution that reduces the keys; 1 keeps all.
        class_token: Whether the first token is a class token.
        qkv_bias: Whether queries, keys and values have a bias.
        bias: Whether there are agent biases.
        convolution: Whether there is a depthwise convolution.
        kernel: Side of that convolution, odd.
        attention_dropout: Probability of dropping an attention weight.
        dropout: Probability of dropping an output.

    Raises:
        ValueError: If a setting is out of range or two do not go together.

    Example:
        >>> layer = AgentAttention(32, 2, grid=(8, 8), agents=9).eval()
        >>> layer(torch.randn(2, 64, 32)).shape, layer(torch.randn(2, 60, 32), (10, 6)).shape
        (torch.Size([2, 64, 32]), torch.Size([2, 60, 32]))
    """

    an_bias: Tensor
    na_bias: Tensor
    ah_bias: Tensor
    aw_bias: Tensor
    ha_bias: Tensor
    wa_bias: Tensor
    ac_bias: Tensor
    ca_bias: Tensor

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        grid: Grid,
        agents: int | Grid = 49,
        reduction: int = 1,
        class_token: bool = False,
        qkv_bias: bool = True,
        bias: bool = True,
        convolution: bool = True,
        kernel: int = 3,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_heads(dim, heads)
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel={kernel} is not odd and positive, so it has no middle; use 3, as published.")
        if reduction < 1 or min(grid) < reduction:
            raise ValueError(f"reduction={reduction} does not fit grid={grid}; use 1 to at most the shorter side.")
        if reduction > 1 and class_token:
            raise ValueError("class_token=True has no place on a grid that reduction > 1 shrinks; use reduction=1.")
        self.dim, self.heads, self.grid, self.reduction, self.class_token = dim, heads, grid, reduction, class_token
        self.trained_agents = self._agents = agent_grid(agents)
        self.attention_dropout = attention_dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, stride=reduction)
            self.norm = nn.LayerNorm(dim, eps=REDUCTION_EPS)
        self.dwc = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim) if convolution else None
        self.has_bias = bias
        if bias:
            self._make_biases()

    def _make_biases(self) -> None:
        (height, width), number = self.grid, self.trained_agents[0] * self.trained_agents[1]
        shapes = {
            "an_bias": (self.heads, number, BLOCK, BLOCK),
            "na_bias": (self.heads, number, BLOCK, BLOCK),
            "ah_bias": (1, self.heads, number, height // self.reduction, 1),
            "aw_bias": (1, self.heads, number, 1, width // self.reduction),
            "ha_bias": (1, self.heads, height, 1, number),
            "wa_bias": (1, self.heads, 1, width, number),
        }
        if self.class_token:
            shapes |= {"ac_bias": (1, self.heads, number, 1), "ca_bias": (1, self.heads, 1, number)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02)))

    @property
    def agents(self) -> Grid:
        """(rows, columns) of the agents in use; set it to use another grid of agents without retraining."""
        return self._agents

    @agents.setter
    def agents(self, agents: int | Grid) -> None:
        self._agents = agent_grid(agents)

    def biases(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return B1, [1, heads, n, M], and B2, [1, heads, N, n], for a grid and the agents in use.

        Args:
            grid: (h, w) of the queries.

        Returns:
            Both biases, with the class token in front.

        Raises:
            ValueError: If the module has no biases.

        Example:
            >>> [tuple(b.shape) for b in AgentAttention(32, 2, grid=(8, 8), agents=9).biases((4, 6))]
            [(1, 2, 9, 24), (1, 2, 24, 9)]
        """
        if not self.has_bias:
            raise ValueError("bias=False: this module has no biases; build it with bias=True.")
        return self._cache.get(self, (grid, self._agents), lambda: self._biases(grid))

    def _biases(self, grid: Grid) -> tuple[Tensor, Tensor]:
        keys = (grid[0] // self.reduction, grid[1] // self.reduction)

        def agents(bias: Tensor, axis: int) -> Tensor:
            return resize_agents(bias, axis, self.trained_agents, self._agents)

        gather = block_bias(agents(self.an_bias, 1), keys)[None]
        gather = gather + resize_line(agents(self.ah_bias, 2), 3, keys[0])
        gather = (gather + resize_line(agents(self.aw_bias, 2), 4, keys[1])).flatten(3)
        spread = block_bias(agents(self.na_bias, 1), grid).permute(0, 2, 3, 1)[None]
        spread = spread + resize_line(agents(self.ha_bias, 4), 2, grid[0])
        spread = (spread + resize_line(agents(self.wa_bias, 4), 3, grid[1])).flatten(2, 3)
        if self.class_token:
            gather = torch.cat([agents(self.ac_bias, 2), gather], dim=3)
            spread = torch.cat([agents(self.ca_bias, 3), spread], dim=2)
        return gather.contiguous(), spread.contiguous()

    def _project(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        if self._is_lean(x):
            query, key = project(x, self.qkv, 0, 2).chunk(2, dim=-1)
            return query, key, project(x, self.qkv, 2, 3)  # apart, values need no copy before their convolution
        if self.reduction == 1:
            query, key, value = self.qkv(x).chunk(3, dim=-1)
            return query, key, value
        reduced = self.norm(to_tokens(self.sr(to_image(x, grid))))
        key, value = project(reduced, self.qkv, 1, 3).chunk(2, dim=-1)
        return project(x, self.qkv, 0, 1), key, value

    def _local(self, value: Tensor, grid: Grid, convolution: nn.Conv2d) -> Tensor:
        if self.reduction == 1:
            # One copy here is faster than the convolution's own reordering of values that lie between queries and keys.
            return to_tokens(convolution(to_image(value[:, int(self.class_token) :].contiguous(), grid)))
        keys = (grid[0] // self.reduction, grid[1] // self.reduction)
        return to_tokens(convolution(F.interpolate(to_image(value, keys), size=grid, mode="bilinear")))

    def forward(self, x: Tensor, grid: Grid | None = None, *, mask: Tensor | None = None, shift: int = 0) -> Tensor:
        """Attend.

        Args:
            x: Tokens, [B, N, C], with the class token first, if there is one.
            grid: (h, w) of the image tokens; `None` is the trained grid.
            mask: Not supported.
            shift: Not supported.

        Returns:
            Tokens, [B, N, C].

        Raises:
            ValueError: If there is a mask or a shift, or if the tokens do not fill the grid.

        Example:
            >>> AgentAttention(32, 2, grid=(4, 4), agents=4, class_token=True)(torch.randn(1, 17, 32)).shape
            torch.Size([1, 17, 32])
        """
        if mask is not None:
            raise ValueError(
                f"mask of shape {tuple(mask.shape)}: every agent is an average over a region and attends to all keys, "
                "so a mask between queries and keys has no meaning here; use softmax attention where you need a mask."
            )
        if shift:
            raise ValueError(
                f"shift={shift}: a shifted window wraps regions that are not neighbours into one map, and agents "
                "would mix them, since they take no mask; use shift=0 and let the window cover the map."
            )
        grid = self.grid if grid is None else grid
        lead = int(self.class_token)
        if x.shape[1] != grid[0] * grid[1] + lead:
            raise ValueError(
                f"x has {x.shape[1]} tokens, but grid={grid} holds {grid[0] * grid[1]}"
                f"{' and a class token' if lead else ''}; pass the grid (h, w) of the tokens."
            )
        out = self._folded(x, grid) if self._folds(x) else self.attend(*self._project(x, grid), grid)
        result: Tensor = self.dropout(self.proj(out))
        return result

    def _is_lean(self, x: Tensor) -> bool:
        """Whether the parts of the projection are better computed apart: no gradients, a CPU."""
        inferring = not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling())
        return inferring and self.reduction == 1 and type(self.qkv) is nn.Linear and x.device.type == "cpu"

    def _folds(self, x: Tensor) -> bool:
        """Whether queries and keys are better left unprojected: few agents, many channels."""
        few = 2 * self.heads * self._agents[0] * self._agents[1] <= self.dim
        return few and not self.class_token and self._is_lean(x)

    def _folded(self, x: Tensor, grid: Grid) -> Tensor:
        dim, weight, bias = self.dim, self.qkv.weight, self.qkv.bias
        # Averaging commutes with the projection: the tokens are averaged, and the averages projected.
        agents, value = project(pool_agents(x, grid, self._agents), self.qkv, 0, 1), project(x, self.qkv, 2, 3)
        gather, spread = None, None
        if self.has_bias:
            gather, spread = self._cache.get(self, (grid, self._agents, "last"), lambda: self._tokens_last(grid))
        out = folded_agent_attention(
            x,
            agents,
            value,
            (weight[:dim], None if bias is None else bias[:dim]),
            weight[dim : 2 * dim],
            heads=self.heads,
            gather_bias=gather,
            broadcast_bias=spread,
        )
        return out if self.dwc is None else out.add_(self._local(value, grid, self.dwc))

    def _tokens_last(self, grid: Grid) -> tuple[Tensor, Tensor]:
        gather, spread = self._biases(grid)
        return gather, spread.transpose(-1, -2).contiguous()

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: Grid) -> Tensor:
        """Attend without the projections: agents, both softmaxes, convolution.

        Args:
            query: Projected tokens, [B, N, C].
            key: Projected tokens, reduced or not, [B, M, C].
            value: Projected tokens, reduced or not, [B, M, C].
            grid: (h, w) of the image tokens among the queries.

        Returns:
            Tokens, [B, N, C], before the output projection.

        Example:
            >>> layer, x = AgentAttention(8, 2, grid=(4, 4), agents=4), torch.randn(1, 16, 8)
            >>> layer.proj(layer.attend(*layer.qkv(x).chunk(3, dim=-1), (4, 4))).equal(layer(x))
            True
        """
        agents = pool_agents(query[:, 1:] if self.class_token else query, grid, self._agents)
        gather, spread = self.biases(grid) if self.has_bias else (None, None)
        attended = biased_agent_attention(
            split_heads(query, self.heads),
            split_heads(agents, self.heads),
            split_heads(key, self.heads),
            split_heads(value, self.heads),
            gather_bias=None if gather is None else gather.to(query.dtype),
            broadcast_bias=None if spread is None else spread.to(query.dtype),
            dropout=self.attention_dropout if self.training else 0.0,
        )
        out = merge_heads(attended)
        if self.dwc is None:
            return out
        # The class token takes no convolution.
        local, lead = self._local(value, grid, self.dwc), int(self.class_token)
        if torch.is_grad_enabled():
            return torch.cat([out[:, :lead], out[:, lead:] + local], dim=1) if lead else out + local
        out[:, lead:] += local
        return out
