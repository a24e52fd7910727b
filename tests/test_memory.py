"""Agent attention holds no matrix of tokens by tokens, nor of tokens by agents."""

import pytest
import torch
from probe import MERGE, POOL, SAMPLE, unet_inputs
from tiny import make_one_level_unet
from torch.utils._python_dispatch import TorchDispatchMode

import agentsd
from agentsd.attention.agent import agent_attention

TOKENS, AGENTS = 1024, 64  # 32 x 32, one agent per 4 x 4


class Shapes(TorchDispatchMode):
    """Collects the shape of every tensor that any operator makes."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.shapes.add(tuple(value.shape))
        return result

    def matrices(self, *sizes):
        """Return the shapes that end in two of `sizes`."""
        return {shape for shape in self.shapes if len(shape) > 1 and shape[-1] in sizes and shape[-2] in sizes}


def explicit(query, agents, key, value, *, scale):
    gathered = (agents @ key.transpose(-1, -2) * scale).softmax(-1) @ value
    return (query @ agents.transpose(-1, -2) * scale**0.3).softmax(-1) @ gathered


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gradient", [False, True])
def test_agent_attention(dtype, gradient):
    query, key, value = (torch.randn(1, 2, TOKENS, 8, dtype=dtype) for _ in range(3))
    agents = torch.randn(1, 2, AGENTS, 8, dtype=dtype)
    query.requires_grad_(gradient)
    with Shapes() as seen:
        agent_attention(query, agents, key, value, scale=8**-0.5)
    assert (1, 2, TOKENS, 8) in seen.shapes
    assert not seen.matrices(TOKENS, AGENTS)
    with Shapes() as seen:
        explicit(query, agents, key, value, scale=8**-0.5)
    assert seen.matrices(TOKENS, AGENTS)  # the same watch catches the explicit form


def shapes_of_a_layer(config):
    unet = make_one_level_unet()
    sample, text = unet_inputs(1, 32, 32)
    if config is not None:
        agentsd.apply(unet, config)
    found = {}

    def start(attn, args, kwargs):
        found["mode"] = Shapes()
        found["mode"].__enter__()

    def stop(attn, args, kwargs, output):
        found["mode"].__exit__(None, None, None)

    attn = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    attn.register_forward_pre_hook(start, with_kwargs=True)
    attn.register_forward_hook(stop, with_kwargs=True)
    with torch.no_grad():
        unet(sample, 900, text[:1])
    return found["mode"]


@pytest.mark.parametrize("config", [POOL, SAMPLE], ids=["pool", "sample"])
def test_a_layer_with_agents_of_cells_never_pairs_tokens(config):
    seen = shapes_of_a_layer(config)
    assert (1, AGENTS, 16) in seen.shapes
    assert not seen.matrices(TOKENS, AGENTS)


def test_a_layer_that_ranks_pairs_sources_with_destinations_only():
    seen = shapes_of_a_layer(agentsd.MergedTokens(stride=4))
    sources = TOKENS - AGENTS
    assert seen.matrices(sources, AGENTS) == {(1, sources, AGENTS)}
    assert not seen.matrices(TOKENS, sources)
    assert not seen.matrices(TOKENS, AGENTS)


def test_merging_attends_over_the_features_only():
    features = MERGE.count_tokens(32, 32).kept
    seen = shapes_of_a_layer(MERGE)
    assert (1, features, 16) in seen.shapes
    assert not seen.matrices(TOKENS)
    assert not seen.matrices(features)
