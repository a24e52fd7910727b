"""The formula: parity with explicit matrices, and its properties."""

import numpy as np
import pytest
import reference
import torch
from diffusers.models.attention_processor import Attention
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsd import SampledKeys
from agentsd.attention.agent import agent_attention
from agentsd.unet.processor import attend, level_plan


@st.composite
def problems(draw):
    batch, heads, width = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.sampled_from([4, 8, 40]))
    tokens, agents = draw(st.integers(2, 40)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    make = lambda n: torch.randn(batch, heads, n, width, generator=generator, dtype=torch.float64)  # noqa: E731
    return make(tokens), make(agents), make(tokens), make(tokens), width**-0.5


@given(problems(), st.floats(0, 1), st.floats(-0.2, 0.2))
@settings(deadline=None, max_examples=40)
def test_equals_generalised_linear_attention(problem, exponent, shortcut):
    q, a, k, v, scale = problem
    ours = agent_attention(q, a, k, v, scale=scale, broadcast_exponent=exponent, shortcut=shortcut)
    expected, _, _ = reference.agent_attention(
        *(x.numpy() for x in (q, a, k, v)), scale=scale, exponent=exponent, shortcut=shortcut
    )
    np.testing.assert_allclose(ours, expected, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_parity_by_dtype(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 64, 40, generator=generator) for _ in range(3))
    a = torch.randn(2, 4, 8, 40, generator=generator)
    expected, _, _ = reference.agent_attention(*(x.double().numpy() for x in (q, a, k, v)), scale=40**-0.5)
    ours = agent_attention(*(x.to(dtype) for x in (q, a, k, v)), scale=40**-0.5)
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours.double(), expected, atol=tolerance)


@given(problems())
@settings(deadline=None, max_examples=25)
def test_rows_are_convex_combinations(problem):
    q, a, k, v, scale = problem
    ones = agent_attention(q, a, k, torch.ones_like(v), scale=scale, shortcut=0.0)
    torch.testing.assert_close(ones, torch.ones_like(ones))
    out = agent_attention(q, a, k, v, scale=scale, shortcut=0.0)
    assert (out <= v.amax(-2, keepdim=True) + 1e-9).all()
    assert (out >= v.amin(-2, keepdim=True) - 1e-9).all()


@given(problems(), st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_order_of_keys_and_of_agents_does_not_matter(problem, seed):
    q, a, k, v, scale = problem
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randperm(k.shape[-2], generator=generator)
    agents = torch.randperm(a.shape[-2], generator=generator)
    plain = agent_attention(q, a, k, v, scale=scale, shortcut=0.0)
    shuffled = agent_attention(q, a[..., agents, :], k[..., keys, :], v[..., keys, :], scale=scale, shortcut=0.0)
    torch.testing.assert_close(plain, shuffled)


def test_one_agent_gives_every_query_the_same_summary():
    q, a, k, v = (torch.randn(1, 2, n, 8, generator=torch.Generator().manual_seed(n)) for n in (30, 1, 31, 31))
    out = agent_attention(q, a, k, v, scale=8**-0.5, shortcut=0.0)
    torch.testing.assert_close(out, out[..., :1, :].expand_as(out))


def test_shortcut_needs_as_many_values_as_queries():
    q, a, k = torch.ones(1, 1, 4, 2), torch.ones(1, 1, 1, 2), torch.ones(1, 1, 5, 2)
    with pytest.raises(ValueError, match=r"shortcut=0\.075 .* 4 queries and 5 values; pass shortcut=0"):
        agent_attention(q, a, k, k, scale=1.0)
    assert agent_attention(q, a, k, k, scale=1.0, shortcut=0.0).shape == q.shape


def test_scale_must_be_positive():
    q = torch.ones(1, 1, 4, 2)
    with pytest.raises(ValueError, match=r"scale=-1 must be positive"):
        agent_attention(q, q, q, q, scale=-1)


class TestSampledKeys:
    """The layer with key/value sampling: softmax over the sampled tokens, recentred."""

    @pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 7)])
    def test_equals_the_formula(self, height, width):
        attn = Attention(12, heads=2, dim_head=6)
        config = SampledKeys(stride=3)
        tokens = torch.randn(2, height * width, 12, generator=torch.Generator().manual_seed(0))
        plan = level_plan(height, width, config)
        with torch.no_grad():
            found = attend(attn, tokens, tokens, plan)
            drawn = tokens[:, plan.sample]
            drawn = drawn + (tokens.mean(1, keepdim=True) - drawn.mean(1, keepdim=True))
            heads = lambda x: x.unflatten(-1, (2, 6)).transpose(1, 2)  # noqa: E731
            query, key, value = heads(attn.to_q(tokens)), heads(attn.to_k(drawn)), heads(attn.to_v(drawn))
            weights = (query @ key.transpose(-1, -2) * 6**-0.5).softmax(-1)
            wanted = attn.to_out[0]((weights @ value).transpose(1, 2).flatten(2))
        torch.testing.assert_close(found, wanted)

    def test_is_exact_where_attention_is_uniform(self):
        attn = Attention(8, heads=2, dim_head=4)
        tokens = torch.randn(1, 64, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            attn.to_q.weight.zero_()
            found = attend(attn, tokens, None, level_plan(8, 8, SampledKeys(stride=4)))
            torch.testing.assert_close(found, attn(tokens))
