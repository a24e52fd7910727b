"""torch.compile(fullgraph=True): one graph per distinct setting, none per step, and the values of eager."""

import pytest
import torch
from probe import AGENTS, MERGE, SAMPLE, calm, unet_inputs
from tiny import make_one_level_unet, make_tiny_unet
from torch._dynamo.testing import CompileCounterWithBackend

import agentsd
from agentsd import MergedTokens, Phase, PooledAgents, Schedule, Skipping

STEPS = 10
SLOW = pytest.mark.slow
MIXED = Schedule((Phase(0.4, AGENTS), Phase(0.7, MERGE), Phase(1.0, None)))
FIRST_OF_ITS_KIND = [0, 4, 7]  # steps of MIXED whose settings are new


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def whole(unet, backend):
    return torch.compile(unet, fullgraph=True, backend=backend)


def in_place(unet, backend):
    unet.compile(fullgraph=True, backend=backend)
    return unet


def by_block(unet, backend):
    unet.compile_repeated_blocks(fullgraph=True, backend=backend)
    return unet


def run(unet, counter=None, *, steps=STEPS, height=16, width=16):
    """Return the outputs of one run of `steps` steps and the number of graphs known after each."""
    sample, text = unet_inputs(1, height, width)
    outputs, graphs = [], []
    with torch.no_grad():
        scheduler = calm(*torch.linspace(950, 50, steps).round().long().tolist())
        for t in scheduler.timesteps:
            outputs.append(unet(sample, t, text[:1], return_dict=False)[0])
            graphs.append(counter.frame_count if counter else 0)
    return outputs, graphs


def assert_close(one, other):
    for step, (left, right) in enumerate(zip(one, other, strict=True)):
        torch.testing.assert_close(
            left, right, rtol=1e-4, atol=1e-5, msg=lambda text, step=step: f"step {step}: {text}"
        )


@pytest.fixture
def eager():
    unet = make_one_level_unet()
    agentsd.apply(unet, MIXED)
    return run(unet)[0]


@pytest.mark.parametrize(("patch_first", "depth"), [(True, 1), pytest.param(False, 1, marks=SLOW), (True, 0)])
def test_one_graph_for_full_steps_and_one_for_skipped_ones(patch_first, depth):
    # Each step samples other tokens.
    skipping = Schedule((Phase(1.0, SAMPLE, 3),), skipping=Skipping(depth=depth, last_full=False))
    unet, twin, counter = make_tiny_unet(), make_tiny_unet(), CompileCounterWithBackend("eager")
    agentsd.apply(twin, skipping)
    if patch_first:
        agentsd.apply(unet, skipping)
    compiled = whole(unet, counter)
    if not patch_first:
        agentsd.apply(unet, skipping)
    outputs, graphs = run(compiled, counter, steps=7)
    assert graphs == [1, 2, 2, 2, 2, 2, 2]
    assert_close(outputs, run(twin, steps=7)[0])


@pytest.mark.parametrize(
    ("compiled", "patch_first"),
    [(whole, False), pytest.param(in_place, True, marks=SLOW)],
)
def test_one_graph_per_setting_and_none_per_step(compiled, patch_first, eager):
    unet, counter = make_one_level_unet(), CompileCounterWithBackend("eager")
    if patch_first:
        agentsd.apply(unet, MIXED)
        target = compiled(unet, counter)
    else:
        target = compiled(unet, counter)
        agentsd.apply(target, MIXED)
    outputs, graphs = run(target, counter)
    assert_close(outputs, eager)
    assert graphs == [sum(first <= step for first in FIRST_OF_ITS_KIND) for step in range(STEPS)]
    again, graphs = run(target, counter)  # coming back to earlier settings costs nothing
    assert_close(again, eager)
    assert set(graphs) == {3}


def test_compiled_blocks(eager):
    unet, counter = make_one_level_unet(), CompileCounterWithBackend("eager")
    agentsd.apply(unet, MIXED)
    outputs, graphs = run(by_block(unet, counter), counter)
    assert_close(outputs, eager)
    new = [step for step in range(STEPS) if graphs[step] > (graphs[step - 1] if step else 0)]
    assert new == FIRST_OF_ITS_KIND
    again, later = run(unet, counter)
    assert_close(again, eager)
    assert set(later) == {graphs[-1]}


@pytest.mark.parametrize("compiled", [whole, by_block])
def test_apply_and_remove_take_effect_after_compiling(compiled):
    unet = make_one_level_unet()
    target = compiled(unet, "eager")
    stock = run(target, steps=2)[0]
    other = make_one_level_unet()
    agentsd.apply(other, AGENTS)
    wanted = run(other, steps=2)[0]
    patch = agentsd.apply(target, AGENTS)
    outputs = run(target, steps=2)[0]
    assert_close(outputs, wanted)
    assert not torch.allclose(outputs[0], stock[0], rtol=1e-3)
    with patch.disabled():
        assert_close(run(target, steps=2)[0], stock)
    patch.remove()
    assert not any("_agentsd" in part.__dict__ for part in unet.modules())
    assert_close(run(target, steps=2)[0], stock)


# Presets stand for the others: test_sizes_are_dynamic_after_the_second.
@SLOW
@pytest.mark.parametrize("config", [MergedTokens(merge_ratio=0.3), PooledAgents()], ids=["merged", "pooled"])
def test_another_size_is_another_graph_with_the_right_values(config):
    unet, plain = make_one_level_unet(), make_one_level_unet()
    for each in (unet, plain):
        agentsd.apply(each, config)
    target = whole(unet, "eager")
    for size in ((16, 16), (17, 23)):
        outputs, _ = run(target, steps=2, height=size[0], width=size[1])
        assert_close(outputs, run(plain, steps=2, height=size[0], width=size[1])[0])


@pytest.mark.slow
def test_inductor(eager):
    unet = make_one_level_unet()
    agentsd.apply(unet, MIXED)
    outputs, _ = run(torch.compile(unet, fullgraph=True))
    for output, wanted in zip(outputs, eager, strict=True):
        torch.testing.assert_close(output, wanted, rtol=1e-3, atol=1e-4)


# Small ones: a convolution on the CPU has a graph of its own for more than 640 points, in stock too. Where 0, 1 or
# more tokens stay beside the agents, merging has a graph each; here 0 do.
SIDES = (16, 24, 20, 12, 22, 21)


def test_sizes_of_stock_are_dynamic_after_the_second():
    counter = CompileCounterWithBackend("eager")
    compiled = whole(make_one_level_unet(), counter)
    graphs = [run(compiled, counter, steps=1, height=side, width=side)[1][-1] for side in SIDES]
    assert graphs == [1, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(
    "schedule", ["balanced", pytest.param("gentle", marks=SLOW), "paper", pytest.param("prediction", marks=SLOW)]
)
def test_sizes_are_dynamic_after_the_second(schedule):
    # Two graphs a setting at most: one of the first size, one of all others.
    if schedule == "prediction":
        schedule = Schedule((Phase(1.0, None, 3),), skipping=Skipping(depth=0, forecast=0.2, last_full=False))
    unet, counter = make_one_level_unet(), CompileCounterWithBackend("eager")
    plain = make_one_level_unet()
    for each in (unet, plain):
        agentsd.apply(each, schedule)
    compiled, graphs = whole(unet, counter), []
    for side in SIDES:
        outputs, found = run(compiled, counter, steps=4, height=side, width=side)
        graphs.append(found[-1])
        assert_close(outputs, run(plain, steps=4, height=side, width=side)[0])
    assert graphs[1:] == [graphs[1]] * 5
    assert graphs[1] <= 4
