"""Settings of one self-attention layer, as plain data: merged tokens, pooled agents, sampled keys (no torch here)."""

from dataclasses import dataclass, replace
from typing import TypeVar

from agentsd.attention.cells import bounded_stride, number_of_cells, whole_cells
from agentsd.attention.checks import check_bool, check_int, check_number, short_repr


@dataclass(frozen=True, kw_only=True)
class TokenCounts:
    """How many tokens of a grid take part in attention.

    Attributes:
        tokens: Tokens of the grid.
        kept: Tokens left after merging; each of them is a query.
        agents: Agents between queries and keys; `None` is ordinary attention.
        keys: Sampled keys and values; `None` takes the keys and values of all kept tokens.
    """

    tokens: int
    kept: int
    agents: int | None = None
    keys: int | None = None


@dataclass(frozen=True, kw_only=True)
class MergedTokens:
    """The published method: similar tokens are merged, then merged tokens serve as agents.

    With the kept tokens `X`, `Q, K, V = X Wq, X Wk, X Wv`, agents `A` and head width `d`:
    `O = softmax(Q A^T (d^-0.5)^broadcast_exponent) softmax(A K^T d^-0.5) V + shortcut V`
    (Han et al., ECCV 2024, https://arxiv.org/abs/2312.08874; merging: Bolya & Hoffman, https://arxiv.org/abs/2303.17604).
    Ranking tokens by similarity costs N^2 / stride^2.

    Args:
        merge_ratio: Share of the grid's tokens merged into similar ones before attention, in [0, 1). One token of every
            cell stays, so at most `1 - 1/stride**2` can be merged. The report shows the true counts.
        agent_ratio: Share of the grid's tokens merged away to leave the agents, in (0, 1]. One token of every cell
            stays, so 1 leaves one agent per cell. `None` chooses merging alone: ordinary attention on the kept tokens.
        stride: Side of a cell in tokens at the finest patched level. Each coarser level halves it, down to 2.
        broadcast_exponent: Exponent on the second softmax's scale. 1 is the plain scale, smaller is sharper.
        shortcut: Weight of the values added to the output, in [-1, 1].
        max_downsample: Coarsest level to patch, as a downsampling factor relative to the finest level that has
            attention: 1 is that level alone, 2 adds the next, 4 the next two.
        randomize: Whether the token that stays in a cell is random at each step (from the seed). Otherwise it is the
            top-left token.

    Raises:
        ValueError: If a field is out of range, or the agents are too many to save time.

    Example:
        >>> MergedTokens(merge_ratio=0.4, stride=4).count_tokens(64, 64)
        TokenCounts(tokens=4096, kept=2458, agents=256, keys=None)
    """

    merge_ratio: float = 0.0
    agent_ratio: float | None = 1.0
    stride: int = 4
    broadcast_exponent: float = 0.3
    shortcut: float = 0.075
    max_downsample: int = 1
    randomize: bool = True

    __repr__ = short_repr

    def __post_init__(self) -> None:
        check_number("merge_ratio", self.merge_ratio)
        if not 0 <= self.merge_ratio < 1:
            raise ValueError(f"merge_ratio={self.merge_ratio!r} must lie in [0, 1); 0 merges nothing.")
        if self.agent_ratio is not None:
            check_number("agent_ratio", self.agent_ratio)
            if not 0 < self.agent_ratio <= 1:
                raise ValueError(
                    f"agent_ratio={self.agent_ratio!r} must lie in (0, 1], where 1 leaves one agent per cell, "
                    "or be None for merging alone."
                )
        check_int("stride", self.stride, minimum=2)
        _check_broadcast(self.broadcast_exponent, self.shortcut)
        _check_levels(self.max_downsample)
        check_bool("randomize", self.randomize)
        self._check_combination()

    def at_downsample(self, downsample: int) -> "MergedTokens":
        """Return the settings of a level `downsample` times coarser than the finest patched one.

        Example:
            >>> MergedTokens(stride=8, max_downsample=2).at_downsample(2).stride
            4
        """
        return _at_downsample(self, downsample)

    def cell_stride(self, height: int, width: int) -> int:
        """Return the side of a cell on a grid: `stride` on every grid."""
        return self.stride

    def count_tokens(self, height: int, width: int) -> TokenCounts | None:
        """Return the token counts on a grid; `None` if attention stays stock there.

        It stays stock on a grid that holds no whole cell. Small grids keep more agents, because cells cut off at the
        border lose none. Where agents would not be fewer than half of the kept tokens, attention is ordinary.

        Example:
            >>> MergedTokens(merge_ratio=0.4, agent_ratio=None, stride=2).count_tokens(8, 8).agents is None
            True
        """
        tokens, cells = height * width, whole_cells(height, width, self.cell_stride(height, width))
        if cells == 0:
            return None
        sources = tokens - cells
        kept = tokens - min(int(self.merge_ratio * tokens), sources)
        agents = None
        if self.agent_ratio is not None:
            agents = tokens - min(int(self.agent_ratio * tokens), sources)
            if 2 * agents >= kept:
                agents = None
        if agents is None and kept == tokens:
            return None
        return TokenCounts(tokens=tokens, kept=kept, agents=agents)

    def _check_combination(self) -> None:
        if self.agent_ratio is None:
            if self.merge_ratio == 0:
                raise ValueError(
                    "merge_ratio=0 with agent_ratio=None changes nothing; raise merge_ratio, set agent_ratio, "
                    "or use None instead of these settings for stock attention."
                )
            return
        stride = max(2, self.stride // self.max_downsample)  # the coarsest level keeps the most agents
        kept_agents = max(1 - self.agent_ratio, 1 / stride**2)
        kept_tokens = max(1 - self.merge_ratio, 1 / self.stride**2)
        # Two passes over n agents cost 4nNC, softmax attention costs 2N^2C: no gain unless 2n < N.
        if 2 * kept_agents >= kept_tokens:
            raise ValueError(
                f"agent_ratio={self.agent_ratio!r} with stride={stride} keeps {kept_agents:.4g} of the tokens as "
                f"agents, and merge_ratio={self.merge_ratio!r} keeps {kept_tokens:.4g} as queries. Agents save time "
                "only while 2 * agents < kept tokens. Raise agent_ratio or stride, lower merge_ratio or "
                "max_downsample, or set agent_ratio=None for merging alone."
            )


@dataclass(frozen=True, kw_only=True)
class PooledAgents:
    """Agents are the averages of cells of queries: they gather from all keys, then broadcast to all queries.

    `O = softmax(Q A^T (d^-0.5)^broadcast_exponent) softmax(A K^T d^-0.5) V + shortcut V`, as in `MergedTokens`, but
    without ranking: the cost is linear in the number of tokens.

    Args:
        stride: Side of a cell in tokens at the finest patched level. Each coarser level halves it, down to 2.
        min_agents: Fewest agents of a level. On smaller grids cells shrink, down to 2x2.
        max_agents: Most agents of a level. On larger grids cells grow. `None` sets no limit. Where both bounds cannot
            hold, this one holds.
        broadcast_exponent: See `MergedTokens`.
        shortcut: See `MergedTokens`.
        max_downsample: See `MergedTokens`.

    Raises:
        ValueError: If a field is out of range.

    Example:
        >>> PooledAgents(stride=4, max_agents=256).count_tokens(64, 64).agents
        256
    """

    stride: int = 4
    min_agents: int | None = None
    max_agents: int | None = None
    broadcast_exponent: float = 0.3
    shortcut: float = 0.075
    max_downsample: int = 1

    __repr__ = short_repr

    def __post_init__(self) -> None:
        check_int("stride", self.stride, minimum=2)
        _check_bounds("agents", self.min_agents, self.max_agents)
        _check_broadcast(self.broadcast_exponent, self.shortcut)
        _check_levels(self.max_downsample)

    def at_downsample(self, downsample: int) -> "PooledAgents":
        """Return the settings of a level `downsample` times coarser than the finest patched one."""
        return _at_downsample(self, downsample)

    def cell_stride(self, height: int, width: int) -> int:
        """Return the side of a cell on a grid, within the bounds on the number of agents.

        Example:
            >>> settings = PooledAgents(stride=8, min_agents=64, max_agents=256)
            >>> [settings.cell_stride(side, side) for side in (16, 32, 64, 192)]
            [2, 4, 8, 12]
        """
        return bounded_stride(height, width, self.stride, self.min_agents, self.max_agents)

    def count_tokens(self, height: int, width: int) -> TokenCounts | None:
        """Return the token counts on a grid; `None` if attention stays stock there.

        It stays stock where no whole cell fits, and where agents would not be fewer than half of the tokens.
        """
        agents = number_of_cells(height, width, self.cell_stride(height, width))
        if whole_cells(height, width, self.cell_stride(height, width)) == 0 or 2 * agents >= height * width:
            return None
        return TokenCounts(tokens=height * width, kept=height * width, agents=agents)


@dataclass(frozen=True, kw_only=True)
class SampledKeys:
    """Key/value sampling: all queries attend to the keys and values of one token per cell.

    `O = softmax(Q K_S^T d^-0.5) V_S` with a sample `S` of the tokens, recentred to the mean of all tokens (see
    `agentsd.attention.sampling.sample_tokens`). Downsampled keys: Smith et al., https://arxiv.org/abs/2402.13573. Here
    the sample is new at every step. There are no agents in it.

    Args:
        stride: Side of a cell in tokens at the finest patched level. Each coarser level halves it, down to 2.
        min_keys: Fewest keys of a level. On smaller grids cells shrink, down to 2x2.
        max_keys: Most keys of a level. On larger grids cells grow. `None` sets no limit. Where both bounds cannot
            hold, this one holds.
        max_downsample: See `MergedTokens`.
        randomize: Whether the sample is new at each step (from the seed). Otherwise it is the middle of each cell.

    Raises:
        ValueError: If a field is out of range.

    Example:
        >>> SampledKeys(stride=4, max_keys=256).count_tokens(128, 128).keys
        256
    """

    stride: int = 4
    min_keys: int | None = None
    max_keys: int | None = None
    max_downsample: int = 1
    randomize: bool = True

    __repr__ = short_repr

    def __post_init__(self) -> None:
        check_int("stride", self.stride, minimum=2)
        _check_bounds("keys", self.min_keys, self.max_keys)
        _check_levels(self.max_downsample)
        check_bool("randomize", self.randomize)

    def at_downsample(self, downsample: int) -> "SampledKeys":
        """Return the settings of a level `downsample` times coarser than the finest patched one."""
        return _at_downsample(self, downsample)

    def cell_stride(self, height: int, width: int) -> int:
        """Return the side of a cell on a grid, within the bounds on the number of keys."""
        return bounded_stride(height, width, self.stride, self.min_keys, self.max_keys)

    def count_tokens(self, height: int, width: int) -> TokenCounts | None:
        """Return the token counts on a grid; `None` if attention stays stock there.

        It stays stock where no whole cell fits, and where every token would be a key.
        """
        keys = number_of_cells(height, width, self.cell_stride(height, width))
        if whole_cells(height, width, self.cell_stride(height, width)) == 0 or keys >= height * width:
            return None
        return TokenCounts(tokens=height * width, kept=height * width, keys=keys)


Attention = MergedTokens | PooledAgents | SampledKeys
_Settings = TypeVar("_Settings", MergedTokens, PooledAgents, SampledKeys)


def _at_downsample(settings: _Settings, downsample: int) -> _Settings:
    stride = max(2, settings.stride // downsample)
    return settings if stride == settings.stride else replace(settings, stride=stride, max_downsample=1)


def _check_bounds(what: str, least: int | None, most: int | None) -> None:
    for name, bound in ((f"min_{what}", least), (f"max_{what}", most)):
        if bound is not None:
            check_int(name, bound, minimum=1)
    if least is not None and most is not None and least > most:
        raise ValueError(f"min_{what}={least} must be at most max_{what}={most}.")


def _check_broadcast(exponent: float, shortcut: float) -> None:
    check_number("broadcast_exponent", exponent)
    if not 0 <= exponent <= 2:
        raise ValueError(f"broadcast_exponent={exponent!r} must lie in [0, 2]; published: 0.3.")
    check_number("shortcut", shortcut)
    if not -1 <= shortcut <= 1:
        raise ValueError(f"shortcut={shortcut!r} must lie in [-1, 1]; published: 0.075.")


def _check_levels(max_downsample: int) -> None:
    check_int("max_downsample", max_downsample, minimum=1)
    if max_downsample & (max_downsample - 1):
        raise ValueError(f"max_downsample={max_downsample!r} must be a power of two: 1, 2, 4, 8.")
