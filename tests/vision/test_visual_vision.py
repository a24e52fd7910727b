"""Recorded maps are those that the layer attends with."""

import numpy as np
import pytest
import torch
from test_models_vision import tiny

from agentsd.vision import AgentAttention
from agentsd.vision.data import scene_pictures
from agentsd.vision.example import example_model
from agentsd.vision.functional import split_heads
from agentsd.vision.training import evaluate
from agentsd.vision.visual import attention_maps, draw_agents, draw_curves, draw_map, record


@pytest.mark.parametrize("family", ["deit", "pvt"])
def test_maps_give_the_layers_output(family):
    model = tiny(family, heads=(1,) if family == "deit" else (1, 2))  # one head: the mean is the map
    layer = model.stages[0].blocks[0].attn
    layer.proj = torch.nn.Identity()
    seen_input = []
    layer.register_forward_pre_hook(lambda module, inputs: seen_input.append(inputs[0]))
    layer.dwc = None
    outputs = []
    layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad(), record(model) as seen:
        model(torch.randn(1, 3, 64, 64))
    (maps,) = seen
    lead = int(family == "deit")
    value = split_heads(layer.qkv(seen_input[0]).chunk(3, dim=-1)[2], 1)[0, 0, lead:]
    torch.testing.assert_close(maps.spread.sum(-1), torch.ones_like(maps.spread[..., 0]))
    if not lead:
        gathered = maps.gather[0] @ value
        torch.testing.assert_close(maps.spread[0] @ gathered, outputs[0][0], rtol=0, atol=1e-5)
    else:
        assert (maps.gather.sum(-1) < 1).all()  # the class token takes the rest


def test_nothing_is_left_behind():
    model = tiny("pvt")
    with record(model, "stages.1.blocks.0.attn") as seen:
        model(torch.randn(1, 3, 64, 64))
    model(torch.randn(1, 3, 64, 64))
    assert [one.layer for one in seen] == ["stages.1.blocks.0.attn"]
    with pytest.raises(ValueError, match=r"layer='head' has no agents; choose one of stages\.0"), record(model, "head"):
        pass
    reduced = AgentAttention(8, 1, grid=(4, 4), reduction=2, agents=4)
    with pytest.raises(ValueError, match="reduction=2: the keys of this layer are no tokens"):
        attention_maps(reduced, torch.randn(1, 16, 8), (4, 4))


def test_drawing():
    pytest.importorskip("matplotlib").use("Agg")
    model = example_model()
    with torch.no_grad(), record(model) as seen:
        model(torch.randn(1, 3, 48, 48))
    picture = np.zeros((48, 48, 3))
    assert len(draw_agents(seen[0], picture).collections[0].get_offsets()) == 9
    axes = draw_map(seen[0].gather[0, 4], seen[0], picture, title="gathers from")
    assert axes.get_title() == "gathers from"
    assert len(axes.images) == 2


def test_curves():
    pytest.importorskip("matplotlib").use("Agg")
    rows = [
        {"kind": "curve", "arm": arm, "step": step, "exact": share + seed / 10}
        for arm, share in (("agent", 0.5), ("softmax", 0.25))
        for step in (100, 200)
        for seed in (0, 2)
    ]
    axes = draw_curves([*rows, {"kind": "run", "arm": "agent"}])
    assert [line.get_label() for line in axes.lines] == ["agent", "softmax"]
    np.testing.assert_allclose(axes.lines[1].get_ydata(), [0.35, 0.35])


def test_the_example_has_learned():
    measured = evaluate(example_model(), scene_pictures(100, 48, seed=7, held_out=True))
    assert measured["exact"] > 0.6
    assert measured["relation"] > 0.95
