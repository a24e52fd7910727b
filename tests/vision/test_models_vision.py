"""The eighteen models: sizes, settings of their norms, other families against other code, any input size."""

import math

import pytest
import torch
from golden import MANIFESTS, image, manifest, published_weights
from torch import nn

from agentsd.vision import (
    CONFIGS,
    AgentAttention,
    VisionConfig,
    count_flops,
    create_model,
    load_published,
    to_published,
)
from agentsd.vision.configs import ALIASES, find_config
from agentsd.vision.model import AgentTransformer
from agentsd.vision.published import published_keys
from agentsd.vision.softmax import StripeAttention, WindowAttention

TINY = {
    "deit": dict(dims=(16,), heads=(2,), depths=(3,), blocks=("AAS",), agents=(9,)),
    "pvt": dict(dims=(8, 16), heads=(1, 2), depths=(2, 1), blocks=("AS", "A"), agents=(4, 9), reductions=(2, 1)),
    "swin": dict(dims=(8, 16, 32), heads=(1, 2, 4), depths=(1, 2, 2), blocks=("A", "SS", "SS"), agents=(4, 9, 9)),
    "cswin": dict(dims=(8, 16, 32), heads=(2, 2, 4), depths=(1, 2, 1), blocks=("A", "SS", "S"), agents=(4, 9, 9)),
}


def tiny(family, size=64, **changes):
    torch.manual_seed(0)
    options = {"splits": (1, 3, None, None)} | TINY[family]
    model = {"num_classes": changes.pop("num_classes", 5), "dense": changes.pop("dense", False)}
    config = VisionConfig(family=family, image_size=(size, size), **(options | changes))
    return AgentTransformer(config, **model).eval()


def test_there_are_eighteen_under_both_names():
    assert len(CONFIGS) == len(MANIFESTS) == 18
    assert set(ALIASES) == {*MANIFESTS, "agent_pvt_l"}
    assert {find_config(name)[0] for name in MANIFESTS} == set(CONFIGS)
    assert find_config("agent_pvt_b")[0] == find_config("agent_pvt_l")[0] == "agent_pvt_large"


@pytest.mark.parametrize("name", MANIFESTS)
def test_published_sizes(name):
    facts = manifest(name)
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == facts["params"]
    assert model.config.image_size == (facts["img_size"],) * 2
    assert model.config.drop_path == facts["drop_path_rate"]
    keys = [key for parts in published_keys(model).values() for key in parts]
    assert set(keys) == {key for key, _ in facts["state_dict"]} - set(facts["buffers"])
    shapes = {key: list(value.shape) for key, value in to_published(model).items()}
    assert shapes == {key: shape for key, shape in facts["state_dict"] if key not in facts["buffers"]}
    agents = [module for module in model.modules() if isinstance(module, AgentAttention)]
    published = [one for one in facts["attention"] if one["class"] == "AgentAttention"]
    assert [(one.dim, one.heads, math.prod(one.agents)) for one in agents] == [
        (one["dim"], one["heads"], one["agent_num"]) for one in published
    ]
    windows = [module.window for module in model.modules() if isinstance(module, WindowAttention)]
    assert windows == [one["window_size"][0] for one in facts["attention"] if one["class"] == "WindowAttention"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name.endswith("_t") else pytest.mark.slow)  # the large ones say the same
        for name in MANIFESTS
    ],
)
def test_published_flops(name):
    facts = manifest(name)
    with torch.device("meta"):
        model = create_model(name)
    counts = count_flops(model, facts["img_size"], by_operator=True)
    assert abs(sum(counts.values()) / facts["flops_fvcore"] - 1) < 1e-3
    assert counts["bmm"] == facts["flops_by_operator"]["matmul"]
    assert counts["convolution"] == facts["flops_by_operator"]["conv"]
    assert counts["native_layer_norm"] == facts["flops_by_operator"]["layer_norm"]


@pytest.mark.parametrize(("name", "block"), [("deit", 1e-6), ("pvt", 1e-6), ("swin", 1e-5), ("cswin", 1e-5)])
def test_eps_of_the_norms(name, block):
    model = tiny(name)
    for path, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            inner = ".embed." in path or path.endswith("attn.norm")
            assert module.eps == (1e-5 if inner else block), path
    assert isinstance(model.norm, nn.Identity) == (name == "pvt")
    for layer in create_model("agent_pvt_t", blocks=("SS", "AA", "AA", "AA")).modules():
        assert not hasattr(layer, "sr") or layer.norm.eps == 1e-5


def test_drop_path_grows_over_all_blocks():
    with torch.device("meta"):
        model = create_model("agent_swin_b")
    rates = [block.drop_path.rate for stage in model.stages for block in stage.blocks]
    torch.testing.assert_close(torch.tensor(rates), torch.linspace(0, 0.5, 24))


def test_softmax_blocks_are_those_of_swin():
    """All windows, against the Swin of transformers; windows are shifted and padded."""
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        image_size=96, patch_size=4, embed_dim=8, depths=[2, 2, 2], num_heads=[1, 2, 4], window_size=5, num_labels=5
    )
    theirs = transformers.SwinForImageClassification(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    ours = tiny("swin", 96, depths=(2, 2, 2), blocks=("SS", "SS", "SS"), window=5)
    table = theirs.state_dict()
    replaced = (
        ("stages.0.embed.proj", "swin.embeddings.patch_embeddings.projection"),
        ("stages.0.embed.norm", "swin.embeddings.norm"),
        ("stages.1.embed", "swin.encoder.layers.0.downsample"),
        ("stages.2.embed", "swin.encoder.layers.1.downsample"),
        ("stages.", "swin.encoder.layers."),
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
        ("attn.proj", "attention.o_proj"),
        ("attn.relative_position", "attention.relative_position_bias.relative_position"),
        ("attn.qkv", "attention.{}_proj"),
        ("head.", "classifier."),
    )
    weights = {}
    for name in ours.state_dict():
        path = name if not name.startswith("norm.") else f"swin.layer{name}"
        for part, other in replaced:
            path = path.replace(part, other)
        weights[name] = torch.cat([table[path.format(one)] for one in ("qkv" if "{}" in path else "-")])
    ours.load_state_dict(weights)
    x = torch.randn(2, 3, 96, 96, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x).logits, rtol=0, atol=2e-5)


def stripes(layer, x, grid):
    """CSwin's attention written out: a query sees the keys of its stripe."""
    height, width = grid
    query, key, value = layer.qkv(x).chunk(3, dim=-1)
    half, depth = layer.dim // 2, layer.dim // layer.heads
    position = torch.arange(height * width)
    out = torch.zeros_like(x)
    for branch, stripe in ((0, position % width // layer.split), (1, position // width // layer.split)):
        same = stripe[:, None] == stripe[None, :]
        for head in range(layer.heads // 2):
            part = slice(branch * half + head * depth, branch * half + (head + 1) * depth)
            scores = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(depth)
            out[..., part] = scores.masked_fill(~same, -math.inf).softmax(-1) @ value[..., part]
        kernel, bias = layer.dwc[branch].weight, layer.dwc[branch].bias
        for index in range(height * width):
            y, column = divmod(index, width)
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    other = (y + down) * width + column + right
                    inside = 0 <= y + down < height and 0 <= column + right < width
                    if inside and stripe[other] == stripe[index]:
                        channels = slice(branch * half, (branch + 1) * half)
                        out[:, index, channels] += value[:, other, channels] * kernel[:, 0, down + 1, right + 1]
            out[:, index, branch * half : (branch + 1) * half] += bias
    return layer.proj(out)


@pytest.mark.parametrize("grid", [(6, 6), (7, 5)])  # the second leaves stripes that are not full
def test_stripes_are_those_of_cswin(grid):
    torch.manual_seed(0)
    layer = StripeAttention(16, 4, split=3)
    x = torch.randn(2, grid[0] * grid[1], 16)
    torch.testing.assert_close(layer(x, grid), stripes(layer, x, grid), rtol=0, atol=1e-5)


def test_one_stripe_over_the_map_is_softmax_attention():
    torch.manual_seed(0)
    layer = StripeAttention(16, 4, split=None)
    x = torch.randn(2, 20, 16)
    query, key, value = layer.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
    out = ((query @ key.transpose(-1, -2) / 2).softmax(-1) @ value).transpose(1, 2).flatten(2)
    local = (
        layer.dwc[0](value.transpose(1, 2).flatten(2).transpose(1, 2).reshape(2, 16, 5, 4)).flatten(2).transpose(1, 2)
    )
    torch.testing.assert_close(layer(x, (5, 4)), layer.proj(out + local), rtol=0, atol=1e-5)


def test_fixed_windows_shift_where_they_cover_the_map():
    """The difference between the published classifier and the published detector at 224."""
    torch.manual_seed(0)
    shrunk, fixed = (WindowAttention(8, 2, window=7, shift=3, fixed=fixed) for fixed in (False, True))
    fixed.load_state_dict(shrunk.state_dict())
    still = WindowAttention(8, 2, window=7)
    still.load_state_dict(shrunk.state_dict())
    x = torch.randn(1, 49, 8)
    assert torch.equal(shrunk(x, (7, 7)), still(x, (7, 7)))
    assert not torch.allclose(fixed(x, (7, 7)), still(x, (7, 7)), atol=1e-3)
    with torch.no_grad():
        # A shift that covers the map splits it into four parts that do not see each other.
        changed = x.clone()
        changed[0, 0] += 1
        reached = (fixed(changed, (7, 7)) - fixed(x, (7, 7))).abs().sum(-1).reshape(7, 7) > 1e-6
    assert reached[:3, :3].all()
    assert reached.sum() == 9


@pytest.mark.parametrize("family", list(TINY))
def test_any_input_size(family):
    model = tiny(family)
    with torch.no_grad():
        for size in ((64, 64), (48, 96), (70, 51)):
            x = torch.randn(2, 3, *size)
            assert model(x).shape == (2, 5)
            torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=0, atol=1e-5)
            maps = model.pyramid(x)
            assert [feature.shape[1] for feature in maps] == list(model.config.dims)


@pytest.mark.parametrize("family", list(TINY))
def test_gradients_reach_every_parameter(family):
    model = tiny(family, drop_path=0.1).train()
    model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    model.set_grad_checkpointing()
    again = tiny(family).train()
    again.set_grad_checkpointing()
    plain = tiny(family).train()
    x = torch.randn(2, 3, 64, 64)
    for one in (again, plain):
        one(x).square().sum().backward()
    for (name, one), other in zip(again.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_set_agents_changes_the_numbers_and_back():
    model = tiny("pvt")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(x)
        model.set_agents([(3, 5), 16])
        assert not torch.allclose(model(x), before)
        model.set_agents([4, 9])
        assert torch.equal(model(x), before)
    with pytest.raises(ValueError, match="agents has 1 entries for 2 stages"):
        model.set_agents([4])


def test_intermediates():
    model = tiny("swin")
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
        pyramid = model.pyramid(x)
        assert all(torch.equal(one, other) for one, other in zip(maps, pyramid, strict=True))
        assert torch.equal(final, model.forward_features(x))
        (last,) = model.forward_intermediates(x, [-1], norm=True, intermediates_only=True)
        torch.testing.assert_close(last.flatten(2).transpose(1, 2), final)
        taken = model.prune_intermediate_layers([0, 1])
        assert (taken, len(model.stages), model.num_classes) == ([0, 1], 2, 0)
        first, second = model.forward_intermediates(x, taken, intermediates_only=True)
        assert torch.equal(first, pyramid[0])
        assert torch.equal(second, pyramid[1])
    with pytest.raises(ValueError, match="output_fmt='NHWC'"):
        model.forward_intermediates(x, output_fmt="NHWC")
    with pytest.raises(ValueError, match=r"indices=\[7\] is not among the 2 maps"):
        model.forward_intermediates(x, [7])


def test_intermediates_of_one_stage_are_its_blocks():
    model = tiny("deit")
    x = torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        maps = model.forward_intermediates(x, 2, intermediates_only=True)
        early = model.forward_intermediates(x, [1], stop_early=True, intermediates_only=True)
    assert [tuple(one.shape) for one in maps] == [(1, 16, 4, 2)] * 2
    assert torch.equal(early[0], maps[0])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"family": "vit"}, "family='vit' is unknown; choose one of deit, pvt, swin, cswin"),
        ({"heads": (1,)}, "heads has 1 entries, but dims has 2"),
        ({"blocks": ("AB", "A")}, r"blocks\[0\]='AB' must have 2 letters"),
        ({"image_size": (2, 2)}, r"image_size=\(2, 2\) leaves no token in stage 0"),
    ],
)
def test_configurations_are_checked(changes, text):
    with pytest.raises(ValueError, match=text):
        AgentTransformer(VisionConfig(**({"family": "pvt"} | TINY["pvt"] | changes)))


def test_unknown_names():
    with pytest.raises(ValueError, match="name='agent_vit' is unknown; choose one of agent_cswin_b"):
        create_model("agent_vit")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["agent_swin_t", "agent_cswin_t", "agent_swin_b_384", "agent_deit_b"])
def test_golden_weights_give_lively_logits(name):
    model = create_model(name).eval()
    load_published(model, published_weights(name))
    with torch.no_grad():
        logits = model(image(1, model.config.image_size[0]))
    assert 0.5 < float(logits.std()) < 3


@pytest.mark.parametrize("family", list(TINY))
def test_captured_whole(family):
    model = tiny(family)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)  # fills the caches
        captured = torch.compile(model, fullgraph=True, backend="eager")  # no break in the graph; nothing generated
        torch.testing.assert_close(captured(x), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_compiled():
    model = tiny("pvt", depths=(1, 1), blocks=("A", "A"))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), rtol=0, atol=1e-5)
