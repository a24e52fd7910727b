"""Agent attention inside one diffusers `Attention` layer, and what a step does with its layers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from agentsd.attention.agent import agent_attention
from agentsd.attention.sampling import choose_tokens, pool_tokens, sample_tokens
from agentsd.attention.settings import Attention as Settings
from agentsd.attention.settings import MergedTokens, PooledAgents, SampledKeys, TokenCounts
from agentsd.attention.tokens import CellPattern, TokenMap, cell_pattern, rank_tokens
from agentsd.unet.slot import StepSlot

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention

SITE = "_agentsd"


@dataclass(frozen=True)
class LevelPlan:
    """What a step does with every patched layer of one grid."""

    height: int
    width: int
    settings: Settings
    counts: TokenCounts
    pattern: CellPattern | None = None  # for merged tokens: which are ranked against which
    sample: Tensor | None = None  # for sampled keys: the tokens whose keys and values are used, int64 [n]
    merges: bool = field(init=False)  # whether tokens are merged before attention
    has_agents: bool = field(init=False)
    # The numbers as the shape of an empty tensor, [merged tokens, tokens merged into agents, height, width, 0]. The
    # compiler treats shapes as dynamic, but numbers on a module as constants.
    shape: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        counts = self.counts
        into_agents = counts.tokens - (counts.tokens if counts.agents is None else counts.agents)
        shape = torch.empty(counts.tokens - counts.kept, into_agents, self.height, self.width, 0, device="cpu")
        object.__setattr__(self, "merges", counts.kept < counts.tokens)
        object.__setattr__(self, "has_agents", counts.agents is not None)
        object.__setattr__(self, "shape", shape)


def level_plan(
    height: int,
    width: int,
    settings: Settings,
    device: torch.device | None = None,
    *,
    pattern: Callable[[int, int, int], CellPattern] = cell_pattern,
    sample: Callable[[int, int, int], Tensor] = choose_tokens,
) -> LevelPlan | None:
    """Return what settings do on a grid; `None` if attention stays stock there.

    Args:
        height: Grid height in tokens.
        width: Grid width in tokens.
        settings: Settings of the level.
        device: Where tokens will be; `None` is the CPU.
        pattern: Returns the cell pattern of a height, width and stride; by default it is not random.
        sample: Returns the sampled tokens of a height, width and stride; by default they are not random.

    Example:
        >>> level_plan(8, 8, SampledKeys(stride=4)).sample.tolist()
        [18, 22, 50, 54]
    """
    counts = settings.count_tokens(height, width)
    if counts is None:
        return None
    cells = sampled = None
    if isinstance(settings, MergedTokens):
        cells = pattern(height, width, settings.stride).to(device)
    elif isinstance(settings, SampledKeys):
        sampled = sample(height, width, settings.cell_stride(height, width)).to(device)
    return LevelPlan(height, width, settings, counts, cells, sampled)


@dataclass
class Site:
    """One patched layer: its place, its original processor, and the slot with its step. Kept on the module."""

    name: str
    level: int
    original: Any
    slot: StepSlot
    problem: str | None = None


class AgentAttnProcessor:
    """Attention processor that computes agent attention when the step asks for it; else it calls the original.

    It holds nothing: all it needs is on the layer (`attn._agentsd`). It takes no arguments, because IP-Adapter
    constructs the processors that it finds anew. On a layer that is not patched it is stock attention.

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


def original_processor(attn: Any) -> Any:
    """Return the layer's processor; the stock one if it is a left-over of ours, which would call itself."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    return AttnProcessor2_0() if isinstance(attn.processor, AgentAttnProcessor) else attn.processor


def _problem(
    plan: LevelPlan, hidden_states: Tensor, encoder_hidden_states: Tensor | None, attention_mask: Tensor | None
) -> str | None:
    if encoder_hidden_states is not None:
        return "called as cross-attention: stock"
    if attention_mask is not None:
        return "called with an attention mask: stock"
    # Not in a compiled graph: the check would tie it to one size.
    if not torch.compiler.is_compiling() and (
        hidden_states.ndim != 3 or hidden_states.shape[1] != plan.height * plan.width
    ):
        return "number of tokens differs from the expected grid: stock"
    return None


def attend(attn: "Attention", tokens: Tensor, metric: Tensor | None, plan: LevelPlan) -> Tensor:
    """Merge, attend (through agents or directly), project out and unmerge: [B, N, C] -> [B, N, C]."""
    kept, token_map, agents, _, sampled = cut_tokens(tokens, metric, plan)
    sources = kept if sampled is None else sampled
    query = split_heads(attn, attn.to_q(kept))
    key, value = (split_heads(attn, project(sources)) for project in (attn.to_k, attn.to_v))
    if agents is None or isinstance(plan.settings, SampledKeys):
        attended = F.scaled_dot_product_attention(query, key, value, scale=attn.scale)
    else:
        attended = agent_attention(
            query,
            split_heads(attn, attn.to_q(agents)),
            key,
            value,
            scale=attn.scale,
            broadcast_exponent=plan.settings.broadcast_exponent,
            shortcut=plan.settings.shortcut,
        )
    output: Tensor = attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(2)))
    return output if token_map is None else token_map.unmerge(output)


class Cut(NamedTuple):
    """The tokens of a layer after cutting [B, N, C]: kept [B, M, C], agents [B, n, C] and sampled ones [B, n, C]."""

    kept: Tensor
    kept_map: TokenMap | None = None  # None if nothing is merged
    agents: Tensor | None = None  # None if there are none
    agent_map: TokenMap | None = None  # None if they are pooled
    sampled: Tensor | None = None  # the tokens with keys and values; None if all kept tokens have them


def cut_tokens(tokens: Tensor, metric: Tensor | None, plan: LevelPlan) -> Cut:
    """Merge tokens [B, N, C] into kept tokens and, by one ranking, into agents, or pool or sample them."""
    settings = plan.settings
    merged, into_agents, height, width, _ = plan.shape.shape
    if isinstance(settings, SampledKeys):
        if plan.sample is None:
            raise ValueError("sample=None must be the tokens whose keys are used; make the plan with level_plan.")
        return Cut(tokens, sampled=sample_tokens(tokens, plan.sample.to(tokens.device)))
    if isinstance(settings, PooledAgents):
        return Cut(tokens, agents=pool_tokens(tokens, height, width, settings.cell_stride(height, width)))
    if plan.pattern is None:
        raise ValueError("pattern=None must be the cell pattern of merged tokens; make the plan with level_plan.")
    ranking = rank_tokens(tokens if metric is None else metric, plan.pattern.to(tokens.device))
    kept, kept_map, agents, agent_map = tokens, None, None, None
    if plan.merges:
        kept_map = ranking.cut(merged)
        kept = kept_map.merge(tokens)
    if plan.has_agents:
        agent_map = ranking.cut(into_agents)
        agents = agent_map.merge(tokens)
    return Cut(kept, kept_map, agents, agent_map)


def split_heads(attn: "Attention", tokens: Tensor) -> Tensor:
    """Return projected tokens by head: [B, N, heads * d] -> [B, heads, N, d]."""
    batch, number, channels = tokens.shape
    return tokens.view(batch, number, attn.heads, channels // attn.heads).transpose(1, 2)
