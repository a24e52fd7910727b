"""AgentPipeline: the pipeline and its patch as one object."""

import copy
import pickle

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from probe import AGENTS, MERGE, MIXED, assert_same, expected, snapshot, watch
from tiny import draw, make_tiny_pipe

import agentsd
from agentsd import AgentPipeline


@pytest.fixture
def stock():
    return draw(make_tiny_pipe())


@pytest.fixture
def fast(tiny_pipe):
    return AgentPipeline(tiny_pipe, schedule=MIXED)


def test_equals_apply(fast):
    other = make_tiny_pipe()
    agentsd.apply(other, schedule=MIXED)
    assert torch.equal(draw(fast), draw(other))


def test_one_call_on_stock_attention(fast, stock):
    patched = draw(fast)
    assert torch.equal(draw(fast, agents=False), stock)
    assert torch.equal(draw(fast, agents=True), patched)
    assert not torch.equal(patched, stock)


def test_stock_attention_even_after_another_apply(fast, stock):
    agentsd.apply(fast.pipe, config=MERGE)
    assert torch.equal(draw(fast, agents=False), stock)


def test_a_failing_stock_call_does_not_leave_the_agents_off(fast):
    patched = draw(fast)
    with pytest.raises(ZeroDivisionError):
        draw(fast, agents=False, callback_on_step_end=lambda *_: 1 / 0)
    assert torch.equal(draw(fast), patched)


def test_remove_restores(stock):
    pipe = make_tiny_pipe()
    before = snapshot(pipe.unet)
    fast = AgentPipeline(pipe, 0.3, preset="paper", seed=4)
    assert fast.report().seed == 4
    assert fast.report().schedule == agentsd.preset_schedule("paper", 0.3)
    fast.remove()
    assert_same(before, snapshot(pipe.unet))
    assert torch.equal(draw(fast), stock)


def test_attributes_are_the_pipelines(fast):
    assert fast.unet is fast.pipe.unet
    assert fast.vae_scale_factor == 2
    assert fast.components.keys() == fast.pipe.components.keys()
    fast.set_progress_bar_config(disable=True, desc="x")
    assert fast.pipe._progress_bar_config["desc"] == "x"
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = fast.no_such_thing


def test_setting_an_attribute_sets_the_pipelines(fast):
    fast.scheduler = EulerDiscreteScheduler.from_config(fast.scheduler.config)
    assert isinstance(fast.pipe.scheduler, EulerDiscreteScheduler)
    with watch(fast.unet) as calls:
        draw(fast, steps=8)
    assert [call.config for call in calls] == expected(MIXED, calls)


def test_moving_returns_the_same_object(fast):
    assert fast.to(torch.float64) is fast
    assert fast.unet.dtype == torch.float64
    assert torch.isfinite(draw(fast, steps=2)).all()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda fast: pickle.loads(pickle.dumps(fast))])
def test_a_copy_works_on_its_own(duplicate, fast, stock):
    patched = draw(fast)
    twin = duplicate(fast)
    assert twin.unet is not fast.unet
    assert torch.equal(draw(twin), patched)
    assert torch.equal(draw(twin, agents=False), stock)
    twin.remove()
    assert torch.equal(draw(twin), stock)
    assert fast.patch.active
    assert torch.equal(draw(fast), patched)


def test_a_copy_still_knows_its_scheduler(fast):
    from diffusers import IPNDMScheduler  # its timesteps are one entry shorter than their memory

    fast.pipe.scheduler = IPNDMScheduler()
    for each in (fast, copy.deepcopy(fast)):
        with watch(each.unet) as calls:
            draw(each, steps=8)
        assert [call.config for call in calls] == expected(MIXED, calls)


def test_arguments_are_checked_as_by_apply(tiny_pipe):
    before = snapshot(tiny_pipe.unet)
    with pytest.raises(ValueError, match="config and ratio were given together"):
        AgentPipeline(tiny_pipe, 0.4, config=AGENTS)
    assert_same(before, snapshot(tiny_pipe.unet))
