"""Agent attention inside one diffusers `Attention` layer, and what a step tells its layers."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from agentsd.attention.agent import agent_attention
from agentsd.attention.tokens import (
    CellPattern,
    TokenMap,
    cell_pattern,
    draw_tokens,
    pool_tokens,
    rank_tokens,
    sample_tokens,
)
from agentsd.schedule import AgentConfig, TokenCounts

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention

SITE = "_agentsd"
_REMEMBERED_INPUTS = 4096  # of blocks awaiting their backward


@dataclass(frozen=True)
class LevelPlan:
    """What a step does with every patched layer of one grid."""

    height: int
    width: int
    config: AgentConfig
    counts: TokenCounts
    pattern: CellPattern | None = None  # None if nothing is ranked
    drawn: Tensor | None = None  # the tokens that are agents, int64 [n]; None if they are not sampled


def level_plan(
    height: int,
    width: int,
    config: AgentConfig,
    device: torch.device | None = None,
    *,
    pattern: Callable[[int, int, int], CellPattern] = cell_pattern,
    draw: Callable[[int, int, int], Tensor] = draw_tokens,
) -> LevelPlan | None:
    """Return what settings do on a grid; `None` if nothing is left to do there.

    Args:
        height: Grid height in tokens.
        width: Grid width in tokens.
        config: Settings of the level.
        device: Where tokens will be; `None` is the CPU.
        pattern: Gives the cell pattern of a height, width and stride; by default nothing is left to chance.
        draw: Gives the tokens that are sampled agents, likewise.

    Example:
        >>> level_plan(8, 8, AgentConfig(agents="sample", stride=4)).drawn.tolist()
        [18, 22, 50, 54]
    """
    counts = config.count_tokens(height, width)
    if counts is None:
        return None
    cells = pattern(height, width, config.stride).to(device) if config.uses_ranking else None
    samples = counts.agents is not None and not config.gathers
    drawn = draw(height, width, config.cell_stride(height, width)).to(device) if samples else None
    return LevelPlan(height, width, config, counts, cells, drawn)


@dataclass(frozen=True)
class StepContext:
    """What a step does: by level (a layer whose level is missing runs stock attention), and with features kept.

    `feature` is what to start from, `None` at a full step; `keep` says that a full step leaves its own. `depth` is how
    many layers run on a feature.
    `guided` is false where the unconditional half of the samples is left out.
    """

    levels: Mapping[int, LevelPlan] = field(default_factory=dict)
    feature: Tensor | None = None
    keep: bool = False
    depth: int = 1
    guided: bool = True


class StepSlot:
    """Where the UNet's hook leaves the step for its layers: one value per thread, never copied or pickled."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._latest = StepContext()
        self._of_input: OrderedDict[int, StepContext] = OrderedDict()

    def recall(self, hidden_states: Tensor, *, in_call: bool) -> None:
        """Keep the step by the block's input, or, when autograd recomputes a checkpoint, set the step it had then.

        The graph keeps that input alive until its backward, so its address tells the call it belongs to.
        """
        address = hidden_states.data_ptr()
        if in_call:
            self._of_input[address] = self.read()
            self._of_input.move_to_end(address)
            while len(self._of_input) > _REMEMBERED_INPUTS:
                self._of_input.popitem(last=False)
        else:
            self._local.context = self._of_input.get(address, self._latest)

    def write(self, context: StepContext) -> None:
        """Set this thread's step, and forget what an interrupted one may have left."""
        self._local.context = context
        self._local.metric = None
        self._local.feature = None
        self._latest = context

    def forget(self) -> None:
        """Let go of what was left, in every thread."""
        self._local = threading.local()
        self._latest = StepContext()
        self._of_input.clear()

    def read(self) -> StepContext:
        """Return this thread's step; in a thread without one (autograd recomputing a checkpoint) the latest."""
        return getattr(self._local, "context", self._latest)

    @property
    def in_call(self) -> bool:
        """Whether this thread is inside a call of the denoiser (else a block's call is autograd recomputing it)."""
        return getattr(self._local, "in_call", False)

    @in_call.setter
    def in_call(self, value: bool) -> None:
        self._local.in_call = value

    def put_metric(self, metric: Tensor | None) -> None:
        """Leave the block's input (before norm1) for the layer that ranks by it."""
        self._local.metric = metric

    def take_metric(self) -> Tensor | None:
        """Return and forget the block's input."""
        metric: Tensor | None = getattr(self._local, "metric", None)
        self._local.metric = None
        return metric

    def put_feature(self, feature: Tensor) -> None:
        """Leave the feature of a full step."""
        self._local.feature = feature

    def take_feature(self) -> Tensor | None:
        """Return and forget the feature."""
        feature: Tensor | None = getattr(self._local, "feature", None)
        self._local.feature = None
        return feature

    def __deepcopy__(self, memo: dict[int, Any]) -> "StepSlot":
        return StepSlot()

    def __reduce__(self) -> tuple[type["StepSlot"], tuple[()]]:
        return StepSlot, ()


@dataclass
class Site:
    """One patched layer: where it is, what it had before, and where it reads its step. Lives on the module."""

    name: str
    level: int
    original: Any
    slot: StepSlot
    problem: str | None = None


class AgentAttnProcessor:
    """Attention processor that computes agent attention when the step asks for it and else calls the original.

    It holds nothing: all it needs is on the layer (`attn._agentsd`). It must be constructible without arguments,
    since IP-Adapter rebuilds the processors it finds; on a layer that is not patched it is stock attention.

    Example:
        >>> type(AgentAttnProcessor()).__name__
        'AgentAttnProcessor'
    """

    def __call__(
        self,
        attn: "Attention",
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Return the layer's output, [B, N, C], as diffusers' processors do."""
        site: Site | None = attn.__dict__.get(SITE)
        if site is None:
            from diffusers.models.attention_processor import AttnProcessor2_0

            original = AttnProcessor2_0()
        else:
            metric = site.slot.take_metric()
            plan = site.slot.read().levels.get(site.level)
            if plan is not None:
                problem = _problem(plan, hidden_states, encoder_hidden_states, attention_mask)
                if problem is None:
                    return attend(attn, hidden_states, metric, plan)
                if site.problem != problem:
                    site.problem = problem
            original = site.original
        if temb is not None:  # not every processor takes it: attention slicing's does not
            kwargs["temb"] = temb
        result: Tensor = original(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)
        return result


def _problem(
    plan: LevelPlan, hidden_states: Tensor, encoder_hidden_states: Tensor | None, attention_mask: Tensor | None
) -> str | None:
    if encoder_hidden_states is not None:
        return "called as cross-attention: stock"
    if attention_mask is not None:
        return "called with an attention mask: stock"
    if hidden_states.ndim != 3 or hidden_states.shape[1] != plan.height * plan.width:
        return "number of tokens differs from the expected grid: stock"
    return None


def attend(attn: "Attention", tokens: Tensor, metric: Tensor | None, plan: LevelPlan) -> Tensor:
    """Merge, attend (through agents or directly), project out and unmerge: [B, N, C] -> [B, N, C]."""
    features, token_map, agent_tokens, _ = cut_tokens(tokens, metric, plan)
    # Sampled agents bring their own keys and values.
    keepers = features if agent_tokens is None or plan.config.gathers else agent_tokens
    query = split_heads(attn, attn.to_q(features))
    key, value = (split_heads(attn, project(keepers)) for project in (attn.to_k, attn.to_v))
    if agent_tokens is None or not plan.config.gathers:
        attended = F.scaled_dot_product_attention(query, key, value, scale=attn.scale)
    else:
        attended = agent_attention(
            query,
            split_heads(attn, attn.to_q(agent_tokens)),
            key,
            value,
            scale=attn.scale,
            broadcast_exponent=plan.config.broadcast_exponent,
            shortcut=plan.config.shortcut,
        )
    output: Tensor = attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(2)))
    return output if token_map is None else token_map.unmerge(output)


class Cut(NamedTuple):
    """What is left of a layer's tokens: features [B, M, C], agent tokens [B, n, C], and the maps that merged them."""

    features: Tensor
    feature_map: TokenMap | None  # None if nothing is merged
    agents: Tensor | None  # None if there are none
    agent_map: TokenMap | None  # None if they are pooled or sampled


def cut_tokens(tokens: Tensor, metric: Tensor | None, plan: LevelPlan) -> Cut:
    """Merge tokens [B, N, C] into features and, by one ranking, into agents, or pool or sample these, as planned."""
    config, counts = plan.config, plan.counts
    features, feature_map, agents, agent_map, ranking = tokens, None, None, None, None
    if plan.pattern is not None:
        ranking = rank_tokens(tokens if metric is None else metric, plan.pattern.to(tokens.device))
    if ranking is not None and counts.features < counts.tokens:
        feature_map = ranking.cut(counts.tokens - counts.features)
        features = feature_map.merge(tokens)
    if counts.agents is not None:
        if config.agents == "sample":
            if plan.drawn is None:
                raise ValueError("drawn=None must be the tokens that are agents; make the plan with level_plan.")
            agents = sample_tokens(tokens, plan.drawn.to(tokens.device))
        elif config.agents == "pool" or ranking is None:
            agents = pool_tokens(tokens, plan.height, plan.width, config.cell_stride(plan.height, plan.width))
        else:
            agent_map = ranking.cut(counts.tokens - counts.agents)
            agents = agent_map.merge(tokens)
    return Cut(features, feature_map, agents, agent_map)


def split_heads(attn: "Attention", tokens: Tensor) -> Tensor:
    """Return projected tokens by head: [B, N, heads * d] -> [B, heads, N, d]."""
    batch, number, channels = tokens.shape
    return tokens.view(batch, number, attn.heads, channels // attn.heads).transpose(1, 2)
