"""What to do and when, as plain data: layer settings, phases and schedules (no torch here)."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Literal, get_args

AgentSelection = Literal["merge", "pool", "sample"]


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """How one self-attention layer is computed: tokens are merged, then agents gather and broadcast.

    With feature tokens `F` (what is left after merging), `Q, K, V = F Wq, F Wk, F Wv`, agents `A` and head width `d`:
    `O = softmax(Q A^T (d^-0.5)^broadcast_exponent) softmax(A K^T d^-0.5) V + shortcut V`
    (Han et al., ECCV 2024, https://arxiv.org/abs/2312.08874; merging: Bolya & Hoffman, https://arxiv.org/abs/2303.17604).
    Sampled agents are tokens that bring their own key and value instead of gathering:
    `O = softmax(Q K_A^T d^-0.5) V_A` (downsampled keys: Smith et al., https://arxiv.org/abs/2402.13573; drawn anew at
    every step and recentred, see `agentsd.attention.tokens.sample_tokens`, here).

    Args:
        merge_ratio: Share of the grid's tokens merged into similar ones before attention, in [0, 1). At most
            `1 - 1/stride**2` of them can be merged (one token per cell stays); the report shows the true counts.
        agent_ratio: Share of the grid's tokens merged away to leave the agents, in (0, 1); `"auto"` keeps one agent
            per `stride x stride` cell; `None` means merging only, followed by ordinary attention.
        agents: `"merge"` takes agents by token merging (ranked by similarity, cost N^2 / stride^2); `"pool"` averages
            the queries of each `stride x stride` cell (cost N, exactly one agent per cell); `"sample"` draws one token
            of each cell, which does not gather (half of the cost of pooling).
        stride: Side of a grid cell in tokens, at the finest patched level; half as much at each coarser one, but at
            least 2, so that a coarse level is not left with a handful of agents.
        min_agents: Fewest pooled or sampled agents of a level: on smaller grids the cells shrink instead, down to 2x2.
        max_agents: Most pooled or sampled agents of a level: on larger grids the cells grow instead, so that the cost
            stays linear in the number of tokens. `None` sets no limit, and agents grow with the grid. Where cells of no
            size keep both bounds, this one holds.
        broadcast_exponent: Exponent on the second softmax's scale; 1 is the plain scale, smaller is sharper. Sampled
            agents have the plain scale.
        shortcut: Weight of the value shortcut that stands in for the trained depthwise convolution. Sampled agents have
            none.
        max_downsample: Coarsest level to patch, as a downsampling factor relative to the finest level *that has
            attention*: 1 is that level alone, 2 also the next, 4 the next two.
        randomize: Whether a cell's merge destination or sampled agent is drawn anew each step (from the seed); if not,
            it is the cell's top-left token or its middle.

    Raises:
        ValueError: If a field is out of range, or the combination cannot be faster than merging alone.

    Example:
        >>> AgentConfig(merge_ratio=0.4, agent_ratio=0.95, stride=4).max_merge_ratio
        0.9375
    """

    merge_ratio: float = 0.0
    agent_ratio: float | Literal["auto"] | None = "auto"
    agents: AgentSelection = "merge"
    stride: int = 4
    min_agents: int | None = None
    max_agents: int | None = None
    broadcast_exponent: float = 0.3
    shortcut: float = 0.075
    max_downsample: int = 1
    randomize: bool = True

    def __post_init__(self) -> None:
        _check_number("merge_ratio", self.merge_ratio)
        if not 0 <= self.merge_ratio < 1:
            raise ValueError(f"merge_ratio={self.merge_ratio!r} must lie in [0, 1); 0 merges nothing.")
        if self.agent_ratio is not None and self.agent_ratio != "auto":
            _check_number("agent_ratio", self.agent_ratio)
            if not 0 < self.agent_ratio < 1:
                raise ValueError(
                    f"agent_ratio={self.agent_ratio!r} must lie in (0, 1), or be 'auto' (one agent per cell) "
                    "or None (merging only)."
                )
        if self.agents not in get_args(AgentSelection):
            raise ValueError(f"agents={self.agents!r} must be 'merge', 'pool' or 'sample'.")
        _check_int("stride", self.stride, minimum=2)
        for name, bound in (("min_agents", self.min_agents), ("max_agents", self.max_agents)):
            if bound is not None:
                _check_int(name, bound, minimum=1)
                if self.agents == "merge":
                    raise ValueError(
                        f"{name}={bound!r} belongs to agents='pool' and 'sample'; leave it out for merged agents, "
                        "which are as many as there are whole cells."
                    )
        if self.min_agents is not None and self.max_agents is not None and self.min_agents > self.max_agents:
            raise ValueError(f"min_agents={self.min_agents} must be at most max_agents={self.max_agents}.")
        _check_number("broadcast_exponent", self.broadcast_exponent)
        if not 0 <= self.broadcast_exponent <= 2:
            raise ValueError(f"broadcast_exponent={self.broadcast_exponent!r} must lie in [0, 2]; published: 0.3.")
        _check_number("shortcut", self.shortcut)
        if not -1 <= self.shortcut <= 1:
            raise ValueError(f"shortcut={self.shortcut!r} must lie in [-1, 1]; published: 0.075.")
        _check_int("max_downsample", self.max_downsample, minimum=1)
        if self.max_downsample & (self.max_downsample - 1):
            raise ValueError(f"max_downsample={self.max_downsample!r} must be a power of two: 1, 2, 4, 8.")
        if not isinstance(self.randomize, bool):
            raise ValueError(f"randomize={self.randomize!r} must be True or False.")
        self._check_combination()

    @property
    def max_merge_ratio(self) -> float:
        """Largest share that can be merged: all but one token of every cell."""
        return 1 - 1 / self.stride**2

    @property
    def gathers(self) -> bool:
        """Whether agents gather from all keys and values, as the published ones do; sampled agents do not."""
        return self.agents != "sample"

    @property
    def uses_ranking(self) -> bool:
        """Whether tokens must be ranked by similarity (to merge features or to select agents)."""
        return self.merge_ratio > 0 or (self.agent_ratio is not None and self.agents == "merge")

    def at_downsample(self, downsample: int) -> "AgentConfig":
        """Return these settings for a level `downsample` times coarser than the finest patched one.

        Example:
            >>> AgentConfig(agents="pool", stride=8, max_downsample=2).at_downsample(2).stride
            4
        """
        stride = max(2, self.stride // downsample)
        return self if stride == self.stride else replace(self, stride=stride, max_downsample=1)

    def cell_stride(self, height: int, width: int) -> int:
        """Return the side of the cells of pooled or sampled agents on a grid, so that their number keeps its bounds.

        Example:
            >>> config = AgentConfig(agents="pool", stride=8, min_agents=64, max_agents=256)
            >>> [config.cell_stride(side, side) for side in (16, 32, 64, 192)]
            [2, 4, 8, 12]
        """

        def number(stride: int) -> int:
            return math.ceil(height / stride) * math.ceil(width / stride)

        stride = self.stride
        while self.min_agents is not None and stride > 2 and number(stride) < self.min_agents:
            stride -= 1
        while self.max_agents is not None and number(stride) > self.max_agents:
            stride += 1
        return stride

    def whole_cells(self, height: int, width: int) -> int:
        """Return how many cells lie whole within a grid: with none, a layer stays stock.

        Example:
            >>> [AgentConfig(merge_ratio=0.4, stride=4).whole_cells(side, side) for side in (3, 4, 9)]
            [0, 1, 4]
        """
        cell = self.stride if self.uses_ranking else self.cell_stride(height, width)
        return (height // cell) * (width // cell)

    def count_tokens(self, height: int, width: int) -> "TokenCounts | None":
        """Return how many tokens become features and agents on a grid; `None` if nothing is left to do there.

        That is so on a grid that holds no whole cell. Where agents would not be fewer than half of the features (small
        grids, whose cut-off cells keep more of them; sampled ones: than all features) there are none, and attention is
        ordinary.

        Example:
            >>> AgentConfig(merge_ratio=0.4, agent_ratio=0.95, stride=4).count_tokens(64, 64)
            TokenCounts(tokens=4096, features=2458, agents=256)
        """
        tokens, cells = height * width, self.whole_cells(height, width)
        if cells == 0:
            return None
        sources = tokens - cells
        features = tokens - min(int(self.merge_ratio * tokens), sources)
        agents: int | None = None
        if self.agents != "merge":
            stride = self.cell_stride(height, width)
            agents = math.ceil(height / stride) * math.ceil(width / stride)
        elif self.agent_ratio is not None:
            share = 1.0 if self.agent_ratio == "auto" else self.agent_ratio
            agents = tokens - min(int(share * tokens), sources)
        if agents is not None and self._passes * agents >= features:
            agents = None
        if agents is None and features == tokens:
            return None
        return TokenCounts(tokens, features, agents)

    @property
    def _passes(self) -> int:
        """Softmax attentions over the agents: to gather and to broadcast."""
        return 2 if self.gathers else 1

    @property
    def _rule(self) -> str:
        return "2 * agents < features" if self.gathers else "agents < features"

    def _check_combination(self) -> None:
        if self.agent_ratio is None:
            if self.agents != "merge":
                raise ValueError(
                    f"agents={self.agents!r} with agent_ratio=None has no agents to {self.agents}; "
                    "leave agent_ratio='auto', or use agents='merge' for merging only."
                )
            if self.merge_ratio == 0:
                raise ValueError(
                    "merge_ratio=0 with agent_ratio=None changes nothing; raise merge_ratio, set agent_ratio, "
                    "or put None in the place of this config for stock attention."
                )
            return
        if self.agents != "merge" and self.agent_ratio != "auto":
            raise ValueError(
                f"agent_ratio={self.agent_ratio!r} does not apply to agents={self.agents!r}, which keeps one agent per "
                f"stride x stride cell; leave agent_ratio='auto' and set stride (now {self.stride})."
            )
        for name in () if self.gathers else ("broadcast_exponent", "shortcut"):
            if getattr(self, name) != getattr(AgentConfig, name):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} does not apply to agents='sample', which do not gather; leave it "
                    "out, or use agents='pool'."
                )
        stride = max(2, self.stride // self.max_downsample)  # the coarsest level's, where the most agents are kept
        most = 1 - 1 / stride**2
        kept_features = 1 - min(self.merge_ratio, self.max_merge_ratio)
        wanted = most if self.agent_ratio == "auto" else self.agent_ratio
        kept_agents = 1 - min(wanted, most)
        # Two passes over n agents cost 4nNC against 2N^2C for softmax attention: no gain unless 2n < N.
        if self._passes * kept_agents >= kept_features:
            raise ValueError(
                f"agent_ratio={self.agent_ratio!r} with stride={stride} keeps {kept_agents:.4g} of the tokens as "
                f"agents and merge_ratio={self.merge_ratio!r} keeps {kept_features:.4g} as features: agents pay only "
                f"while {self._rule}. Raise agent_ratio or stride, lower merge_ratio or max_downsample, or set "
                "agent_ratio=None with agents='merge' for merging only."
            )


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of a grid, feature tokens after merging, and agents (`None`: ordinary attention on the features)."""

    tokens: int
    features: int
    agents: int | None


@dataclass(frozen=True)
class Phase:
    """A stretch of the denoising run and what the UNet does in it.

    Args:
        until: Share of the run at which the phase ends, in (0, 1]; a step `i` of `n` belongs to the first phase with
            `i / n < until`.
        config: Settings for self-attention in the phase; `None` runs stock attention, bit for bit.
        reuse: After how many steps the whole UNet runs again (also if the last time was in the phase before); the steps
            between reuse its features and run its outermost layers only (Ma et al., CVPR 2024,
            https://arxiv.org/abs/2312.00858) or nothing, see `Schedule`. 1 runs the whole UNet at every step.

    Raises:
        ValueError: If `until` is outside (0, 1], `config` is neither an `AgentConfig` nor `None`, or `reuse` is no
            positive integer.

    Example:
        >>> Phase(0.4, AgentConfig(merge_ratio=0.4)).until
        0.4
    """

    until: float
    config: AgentConfig | None
    reuse: int = 1

    def __post_init__(self) -> None:
        _check_number("until", self.until)
        _check_int("reuse", self.reuse, minimum=1)
        if not 0 < self.until <= 1:
            raise ValueError(f"until={self.until!r} must lie in (0, 1]: a share of the denoising run.")
        if self.config is not None and not isinstance(self.config, AgentConfig):
            raise ValueError(f"config={self.config!r} must be an AgentConfig or None (stock attention).")


@dataclass(frozen=True)
class Schedule:
    """Which settings hold at which step of a run: phases in rising order, the last ending at 1.

    Args:
        phases: One or more `Phase`, `until` strictly rising, the last `until` equal to 1.
        reuse_depth: How many of the UNet's last layers run at a step that reuses features (with the first layers whose
            outputs they need). 0 runs none: what is reused is the prediction itself, but for schedulers that draw fresh
            noise at every step (Euler ancestral, LCM, SDEs), which the last layer has to see.
        reuse_forecast: For which share of the run changes of reused features are taken to go on, in [0, 1]. A step `d`
            steps after the full step `b`, before which step `a` was full, starts from
            `F_b + w * d / (b - a) * (F_b - F_a)`, with the weight `w` of `forecast_at`: 0 reuses `F_b` as it is
            (DeepCache), large values come near the straight line through both. Costs no time.
        last_full: Whether the whole UNet runs at the last step of the run, whatever its phase says: nothing after it
            mends its error.
        guidance_interval: Share of the run, (from, until), in which classifier-free guidance is computed. Outside it
            the unconditional half of the UNet's batch is left out, which halves the step and takes the conditional
            prediction as it is (https://arxiv.org/abs/2404.07724). (0, 1) guides at every step.

    Raises:
        ValueError: If there is no phase, the order does not rise, the last phase does not end at 1, `reuse_depth` is no
            integer of at least 0, `reuse_forecast` lies outside [0, 1], or `guidance_interval` is no interval within
            [0, 1].

    Example:
        >>> schedule = Schedule((Phase(0.4, AgentConfig(merge_ratio=0.4)), Phase(1.0, None)))
        >>> schedule.at(19, 50).merge_ratio, schedule.at(20, 50)
        (0.4, None)
    """

    phases: tuple[Phase, ...]
    reuse_depth: int = 1
    reuse_forecast: float = 0.0
    last_full: bool = False
    guidance_interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "guidance_interval", _interval(self.guidance_interval))
        _check_int("reuse_depth", self.reuse_depth, minimum=0)
        _check_number("reuse_forecast", self.reuse_forecast)
        if not 0 <= self.reuse_forecast <= 1:
            raise ValueError(
                f"reuse_forecast={self.reuse_forecast!r} must lie in [0, 1], a share of the run: 0 reuses features "
                "unchanged, the larger the longer their changes go on; our presets take 0.2."
            )
        if not isinstance(self.last_full, bool):
            raise ValueError(f"last_full={self.last_full!r} must be True or False.")
        phases = tuple(self.phases) if isinstance(self.phases, Iterable) else ()
        if not phases or not all(isinstance(phase, Phase) for phase in phases):
            raise ValueError(f"phases={self.phases!r} must hold one or more Phase, as in (Phase(1.0, config),).")
        object.__setattr__(self, "phases", phases)
        ends = [phase.until for phase in phases]
        if any(later <= earlier for earlier, later in pairwise(ends)):
            raise ValueError(f"phases end at {ends}: `until` must rise strictly from phase to phase.")
        if ends[-1] != 1:
            raise ValueError(f"phases end at {ends}: the last must end at 1; add Phase(1.0, None) for stock attention.")

    @classmethod
    def constant(
        cls, config: AgentConfig | None, *, reuse: int = 1, reuse_depth: int = 1, reuse_forecast: float = 0.0
    ) -> "Schedule":
        """Return the schedule that holds `config` and `reuse` at every step."""
        return cls((Phase(1.0, config, reuse),), reuse_depth, reuse_forecast)

    @property
    def configs(self) -> tuple[AgentConfig, ...]:
        """The distinct settings used, in order of first use."""
        return tuple(dict.fromkeys(phase.config for phase in self.phases if phase.config is not None))

    @property
    def reuses(self) -> bool:
        """Whether any step reuses features."""
        return any(phase.reuse > 1 for phase in self.phases)

    @property
    def forecasts(self) -> bool:
        """Whether reused features follow their own change at any step."""
        return self.reuse_forecast != 0

    def forecast_at(self, index: int, total: int, *, gap: int, distance: int) -> float:
        """Return how far the features reused at step `index` of `total` follow their own last change.

        `w = (index / total) ** ((gap + distance) / 2 / (reuse_forecast * total))`: from the middle of the stretch in
        which the change was seen to the middle of the one that it is carried over lie `(gap + distance) / 2` steps, and
        changes go on the less the more steps those are, and the more the later in the run.

        Args:
            index: Step within the run, `0 <= index < total`.
            total: Number of steps in the run.
            gap: Steps between the last two full steps, at least 1.
            distance: Steps since the last full step, at least 1.

        Returns:
            The weight, in [0, 1): 0 leaves the features as they are, 1 would follow the straight line.

        Raises:
            ValueError: If `index` lies outside the run, or `gap` or `distance` is no positive integer.

        Example:
            >>> Schedule.constant(None, reuse=3, reuse_forecast=0.1).forecast_at(10, 20, gap=3, distance=1)
            0.5
        """
        _check_index(index, total)
        _check_int("gap", gap, minimum=1)
        _check_int("distance", distance, minimum=1)
        if not self.forecasts:
            return 0.0
        return float((index / total) ** ((gap + distance) / 2 / (self.reuse_forecast * total)))

    @property
    def skips_guidance(self) -> bool:
        """Whether guidance is left out at any step."""
        return self.guidance_interval != (0.0, 1.0)

    def is_guided(self, index: int, total: int) -> bool:
        """Return whether guidance is computed at step `index` of `total`.

        Args:
            index: Step within the run, `0 <= index < total`.
            total: Number of steps in the run.

        Raises:
            ValueError: If `index` lies outside the run.

        Example:
            >>> schedule = Schedule((Phase(1.0, None),), guidance_interval=(0.2, 1.0))
            >>> [schedule.is_guided(i, 10) for i in range(4)]
            [False, False, True, True]
        """
        _check_index(index, total)
        start, end = (math.ceil(Fraction(str(share)) * total) for share in self.guidance_interval)
        return start <= index < end

    def at(self, index: int, total: int) -> AgentConfig | None:
        """Return the settings of step `index` of a run of `total` steps; exact, without rounding.

        A single-step run (Turbo) is step 0 and so belongs to the first phase.

        Args:
            index: Step within the run, `0 <= index < total`.
            total: Number of steps in the run.

        Returns:
            The phase's settings; `None` means stock attention.

        Raises:
            ValueError: If `index` lies outside the run.
        """
        return self._phase(index, total).config

    def is_full(self, index: int, total: int) -> bool:
        """Return whether the whole UNet runs at step `index` of `total`, rather than its outermost layers only.

        Args:
            index: Step within the run, `0 <= index < total`.
            total: Number of steps in the run.

        Returns:
            `True` once the phase's `reuse` steps have passed since the step before that was full (the first of a run
            is), and with `last_full` at the last step.

        Raises:
            ValueError: If `index` lies outside the run.

        Example:
            >>> [Schedule.constant(None, reuse=3).is_full(i, 7) for i in range(7)]
            [True, False, False, True, False, False, True]
        """
        _check_index(index, total)
        return index in _full_steps(self.phases, total) or (self.last_full and index == total - 1)

    def _phase(self, index: int, total: int) -> Phase:
        _check_index(index, total)
        return next(phase for phase in self.phases if index < _end(phase, total))

    def with_merge_ratio(self, ratio: float) -> "Schedule":
        """Return the same schedule with `merge_ratio=ratio` in every phase that has settings."""
        return self._map(
            lambda phase: (
                phase if phase.config is None else replace(phase, config=replace(phase.config, merge_ratio=ratio))
            )
        )

    def with_reuse(self, reuse: int) -> "Schedule":
        """Return the schedule with `reuse` in every phase; phases that differed in nothing else become one.

        Example:
            >>> dense_late = Schedule((Phase(0.5, None, 4), Phase(1.0, None, 2)))
            >>> dense_late.with_reuse(3).phases
            (Phase(until=1.0, config=None, reuse=3),)
        """
        phases: list[Phase] = []
        for phase in self.phases:
            if phases and phases[-1].config == phase.config:
                phases.pop()
            phases.append(replace(phase, reuse=reuse))
        return replace(self, phases=tuple(phases))

    def _map(self, change: Callable[[Phase], Phase]) -> "Schedule":
        return replace(self, phases=tuple(change(phase) for phase in self.phases))


def _end(phase: Phase, total: int) -> int:
    # Fraction of the decimal as written: 0.1 * 30 must be 3, not 3.0000000000000004.
    return math.ceil(Fraction(str(phase.until)) * total)


@lru_cache(maxsize=64)
def _full_steps(phases: tuple[Phase, ...], total: int) -> frozenset[int]:
    """Return the steps at which phases run the whole UNet: when `reuse` steps have passed since the last such step."""
    full, first = [0], 0
    for phase in phases:
        end = _end(phase, total)
        full.extend(range(max(first, full[-1] + phase.reuse), end, phase.reuse))
        first = end
    return frozenset(full)


def _interval(value: object) -> tuple[float, float]:
    shares = tuple(value) if isinstance(value, tuple | list) else ()
    if len(shares) != 2:
        raise ValueError(f"guidance_interval={value!r} must be two shares of the run, such as (0.2, 1.0).")
    for share in shares:
        _check_number("guidance_interval", share)
    if not 0 <= shares[0] < shares[1] <= 1:
        raise ValueError(f"guidance_interval={value!r} must rise within [0, 1]; (0, 1) guides at every step.")
    return float(shares[0]), float(shares[1])


def _check_index(index: int, total: int) -> None:
    if not 0 <= index < total:
        raise ValueError(f"index={index} must lie in [0, total={total}).")


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ValueError(f"{name}={value!r} must be a finite number.")


def _check_int(name: str, value: object, *, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name}={value!r} must be an integer of at least {minimum}.")
