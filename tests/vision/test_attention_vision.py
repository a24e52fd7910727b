"""The module: against explicit formulas, its cache, its errors, its complexity."""

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from agentsd.attention.agent import agent_attention
from agentsd.vision import AgentAttention, complexity
from agentsd.vision.flops import softmax_complexity
from agentsd.vision.functional import agent_grid, biased_agent_attention


def made(**changes):
    torch.manual_seed(0)
    options = {"grid": (6, 4), "agents": (3, 2)} | changes
    layer = AgentAttention(16, 2, **options)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.endswith("_bias"):
                parameter.normal_()
    return layer


def explicit(layer, x, grid):
    """The layer written out, one image, one head and one agent at a time."""
    batch, tokens, dim = x.shape
    height, width = grid
    lead, heads = tokens - height * width, layer.heads
    depth = dim // heads
    query, key, value = F.linear(x, layer.qkv.weight, layer.qkv.bias).split(dim, dim=-1)
    out = torch.zeros_like(x)
    rows, columns = layer.agents
    gather, spread = layer.biases(grid)
    for b in range(batch):
        image = query[b, lead:].reshape(height, width, dim)
        agents = [
            image[
                a * height // rows : math.ceil((a + 1) * height / rows),
                c * width // columns : math.ceil((c + 1) * width / columns),
            ].mean((0, 1))
            for a in range(rows)
            for c in range(columns)
        ]
        for h in range(heads):
            part = slice(h * depth, (h + 1) * depth)
            gathered = []
            for index, agent in enumerate(agents):
                scores = key[b, :, part] @ agent[part] / math.sqrt(depth) + gather[0, h, index]
                gathered.append(scores.softmax(0) @ value[b, :, part])
            scores = query[b, :, part] @ torch.stack(agents)[:, part].T / math.sqrt(depth) + spread[0, h]
            out[b, :, part] = scores.softmax(-1) @ torch.stack(gathered)
        picture = F.pad(value[b, lead:].reshape(height, width, dim), (0, 0, 1, 1, 1, 1))
        for y in range(height):
            for w in range(width):
                patch = picture[y : y + 3, w : w + 3]
                out[b, lead + y * width + w] += torch.einsum("ijc,cij->c", patch, layer.dwc.weight[:, 0])
                out[b, lead + y * width + w] += layer.dwc.bias
    return layer.proj(out)


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("grid", [(6, 4), (5, 7)])
def test_against_the_formula(class_token, grid):
    layer = made(class_token=class_token)
    x = torch.randn(2, grid[0] * grid[1] + class_token, 16)
    torch.testing.assert_close(layer(x, grid), explicit(layer, x, grid), rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": False}, {"bias": False}, {"convolution": False}])
def test_few_agents_need_neither_queries_nor_keys(changes):
    layer = made(agents=4, **changes).eval()
    x = torch.randn(2, 35, 16)
    assert not layer._folds(x)  # gradients
    plain = layer(x, (5, 7))
    with torch.no_grad():
        assert layer._folds(x)
        layer.qkv.forward = None  # not called
        for _ in range(2):
            torch.testing.assert_close(layer(x, (5, 7)), plain, rtol=0, atol=2e-6)
        layer.agents = 9
        assert not layer._folds(x)
    assert not made(agents=4, class_token=True).eval()._folds(x)


def test_biases_entry_by_entry_on_the_trained_grid():
    layer = made(grid=(7, 7), agents=4)
    gather, spread = layer.biases((7, 7))  # the block bias has the size of the grid: nothing to interpolate
    for head, agent, y, x in [(0, 0, 0, 0), (1, 3, 2, 5), (0, 2, 6, 1)]:
        first = (
            layer.an_bias[head, agent, y, x] + layer.ah_bias[0, head, agent, y, 0] + layer.aw_bias[0, head, agent, 0, x]
        )
        second = (
            layer.na_bias[head, agent, y, x] + layer.ha_bias[0, head, y, 0, agent] + layer.wa_bias[0, head, 0, x, agent]
        )
        torch.testing.assert_close(gather[0, head, agent, 7 * y + x], first)
        torch.testing.assert_close(spread[0, head, 7 * y + x, agent], second)


def test_class_token_has_its_bias_in_front():
    layer = made(class_token=True)
    gather, spread = layer.biases((6, 4))
    assert gather.shape == (1, 2, 6, 25)
    assert spread.shape == (1, 2, 25, 6)
    torch.testing.assert_close(gather[..., 0], layer.ac_bias[..., 0])
    torch.testing.assert_close(spread[:, :, 0], layer.ca_bias[:, :, 0])


def test_without_biases_it_is_the_attention_of_the_other_half():
    q, a, k, v = (torch.randn(2, 3, n, 8) for n in (20, 5, 20, 20))
    ours = biased_agent_attention(q, a, k, v)
    theirs = agent_attention(q, a, k, v, scale=8**-0.5, broadcast_exponent=1.0, shortcut=0.0)
    assert torch.equal(ours, theirs)
    zeros = biased_agent_attention(q, a, k, v, gather_bias=torch.zeros(5, 20), broadcast_bias=torch.zeros(20, 5))
    torch.testing.assert_close(zeros, theirs)


def test_reduced_keys():
    layer = made(reduction=2)
    assert layer.ah_bias.shape == (1, 2, 6, 3, 1)
    assert layer(torch.randn(1, 24, 16)).shape == (1, 24, 16)
    assert layer(torch.randn(1, 63, 16), (9, 7)).shape == (1, 63, 16)


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 30))
def test_any_grid_and_any_number_of_agents(height, width, agents):
    layer = made(agents=agents)
    layer.agents = agents + 1
    x = torch.randn(1, height * width, 16)
    assert layer(x, (height, width)).isfinite().all()
    rows, columns = agent_grid(agents)
    assert rows * columns == agents


class TestCache:
    def test_used_in_eval_alone(self):
        layer = made().eval()
        with torch.no_grad():
            assert layer.biases((6, 4))[0] is layer.biases((6, 4))[0]
            assert layer.biases((6, 4))[0] is not layer.biases((4, 6))[0]
        assert layer.biases((6, 4))[0] is not layer.biases((6, 4))[0]  # gradients
        layer.train()
        with torch.no_grad():
            assert layer.biases((6, 4))[0] is not layer.biases((6, 4))[0]

    def check_stale(self, agents, change):
        for number in (agents, 4):  # with 4, queries and keys are not projected
            self.check_one(made(agents=number).eval(), change)

    def check_one(self, layer, change):
        x = torch.randn(1, 24, 16)
        with torch.no_grad():
            before = layer(x)
            change(layer)
            after = layer(x)
            layer._cache.clear()
            torch.testing.assert_close(after, layer(x), rtol=0, atol=0)
        assert not torch.equal(before, after)

    def test_loading_makes_it_stale(self):
        def load(layer, **options):
            state = {name: value.clone() for name, value in layer.state_dict().items()}
            state["ah_bias"][..., 0, :] += 1
            layer.load_state_dict(state, **options)

        self.check_stale(6, load)
        self.check_stale(6, lambda layer: load(layer, assign=True))

    def test_compiled_code_sees_what_is_loaded(self):
        layer, other = made().eval(), made().eval()
        x = torch.randn(1, 24, 16)
        with torch.no_grad():
            other.an_bias.normal_()
            layer(x)
            compiled = torch.compile(layer, fullgraph=True, backend="eager")
            before = compiled(x)
            layer.load_state_dict(other.state_dict())
            torch.testing.assert_close(compiled(x), other(x), rtol=0, atol=1e-6)
            assert not torch.allclose(before, other(x), atol=1e-3)

    def test_writing_in_place_makes_it_stale(self):
        self.check_stale(6, lambda layer: layer.an_bias.normal_())

    def test_other_agents_make_it_stale(self):
        self.check_stale(6, lambda layer: setattr(layer, "agents", (1, 3)))

    def test_training_makes_it_stale(self):
        def train(layer):
            optimizer = torch.optim.SGD(layer.parameters(), lr=1)
            with torch.enable_grad():
                layer.train()(torch.randn(1, 24, 16)).square().sum().backward()
            optimizer.step()
            layer.eval()

        self.check_stale(6, train)

    def test_gradients_reach_the_biases_after_a_cached_call(self):
        layer = made().eval()
        with torch.inference_mode():
            layer(torch.randn(1, 24, 16))
        layer(torch.randn(1, 24, 16)).sum().backward()
        assert layer.an_bias.grad.abs().sum() > 0

    def test_dtype_and_copies(self):
        layer = made().eval()
        x = torch.randn(1, 24, 16)
        with torch.no_grad():
            expected = layer(x)
            twin = copy.deepcopy(layer)
            assert twin._cache is not layer._cache
            twin.an_bias.add_(torch.randn_like(twin.an_bias))
            assert not torch.equal(twin(x), expected)
            assert torch.equal(layer(x), expected)
            buffer = io.BytesIO()
            torch.save(layer, buffer)
            buffer.seek(0)
            loaded = torch.load(buffer, weights_only=False)
            assert torch.equal(loaded(x), expected)
            half = layer.to(torch.bfloat16)
            torch.testing.assert_close(half(x.bfloat16()).float(), expected, rtol=0, atol=0.1)

    def test_a_replica_computes_its_own(self):
        layer = made().eval()
        replica = layer._replicate_for_data_parallel()  # shares what is no parameter
        for name, parameter in layer._parameters.items():
            setattr(replica, name, parameter.detach() + 1)
        with torch.no_grad():
            own = layer.biases((6, 4))[0]
            assert not torch.equal(replica.biases((6, 4))[0], own)
            assert torch.equal(layer.biases((6, 4))[0], own)

    def test_a_stream_of_sizes_does_not_fill_the_memory(self):
        layer = made().eval()
        with torch.no_grad():
            for width in range(2, 40):
                layer.biases((3, width))
        assert len(layer._cache._entries) <= 8

    def test_the_state_dict_is_without_it(self):
        layer = made().eval()
        names = set(layer.state_dict())
        with torch.no_grad():
            layer(torch.randn(1, 24, 16))
        assert set(layer.state_dict()) == names


class TestErrors:
    def test_mask_and_shift(self):
        layer, x = made(), torch.randn(1, 24, 16)
        with pytest.raises(ValueError, match=r"mask of shape \(24, 24\).*agent is an average.*softmax attention"):
            layer(x, mask=torch.zeros(24, 24))
        with pytest.raises(ValueError, match=r"shift=3.*wraps regions.*shift=0"):
            layer(x, shift=3)

    def test_tokens_that_do_not_fill_the_grid(self):
        with pytest.raises(ValueError, match=r"x has 25 tokens, but grid=\(6, 4\) holds 24; pass the grid"):
            made()(torch.randn(1, 25, 16))
        with pytest.raises(ValueError, match="holds 24 and a class token"):
            made(class_token=True)(torch.randn(1, 24, 16))

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"agents": 0}, "agents=0 is not positive"),
            ({"agents": (3, 0)}, r"agents=\(3, 0\) has a side"),
            ({"kernel": 4}, "kernel=4 is not odd"),
            ({"reduction": 5}, r"reduction=5 does not fit grid=\(6, 4\)"),
            ({"reduction": 2, "class_token": True}, "class_token=True has no place"),
        ],
    )
    def test_settings(self, changes, text):
        with pytest.raises(ValueError, match=text):
            made(**changes)

    def test_heads(self):
        with pytest.raises(ValueError, match="heads=3 does not divide dim=16"):
            AgentAttention(16, 3, grid=(4, 4))

    def test_one_bias_without_the_other(self):
        q = torch.randn(1, 1, 4, 4)
        with pytest.raises(ValueError, match="broadcast_bias=None, but the other"):
            biased_agent_attention(q, q, q, q, gather_bias=torch.zeros(4, 4))


def counted(layer, *inputs):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(*inputs)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("side", "dim", "agents"), [(14, 32, 49), (28, 64, 16), (8, 48, 9)])
def test_complexity_is_what_torch_counts(side, dim, agents):
    layer = AgentAttention(dim, 2, grid=(side, side), agents=agents)
    tokens = side * side
    pooling = tokens * dim  # torch counts no pooling
    assert complexity(tokens, dim, agents) == counted(layer, torch.randn(1, tokens, dim)) + pooling


def test_softmax_complexity_is_what_torch_counts():
    from agentsd.vision.softmax import SoftmaxAttention

    assert softmax_complexity(64, 32) == counted(SoftmaxAttention(32, 2), torch.randn(1, 64, 32), (8, 8))
    with pytest.raises(ValueError, match="agents=0 is not positive"):
        complexity(64, 32, 0)


@pytest.mark.parametrize("agents", [6, 4])
def test_autocast_and_float64(agents):
    layer = made(agents=agents).eval()
    x = torch.randn(1, 24, 16)
    with torch.no_grad():
        expected = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(layer(x).float(), expected, rtol=0, atol=0.1)
        torch.testing.assert_close(layer.double()(x.double()).float(), expected, rtol=0, atol=1e-5)


def test_dropout_drops_in_training():
    layer = made(attention_dropout=0.5)
    x = torch.randn(1, 24, 16)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    torch.testing.assert_close(layer(x), explicit(layer, x, (6, 4)), rtol=0, atol=1e-5)
