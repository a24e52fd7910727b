"""Plans: arithmetic on given times exactly, choices that follow from them, the cache, and use by apply."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import draw, make_tiny_pipe, make_tiny_unet

import agentsd
import agentsd.planning
from agentsd import FRONT, AgentConfig, Phase, Plan, Schedule
from agentsd.plans import LayerTiming

POOL = AgentConfig(agents="pool", stride=4, max_downsample=2)
FINE = LayerTiming(0, (64, 64), 5, 1, POOL, 0.4, 0.1)
COARSE = LayerTiming(1, (32, 32), 5, 0, POOL, 0.05, 0.06)


def made(schedule=None, *, shallow=None, timings=(FINE, COARSE)):
    return Plan(schedule or Schedule.constant(POOL), (64, 64), 2, 4.0, shallow, timings)


def test_levels_where_agents_lose_stay_stock():
    assert made().stock_levels(POOL) == {1}
    assert made().stock_levels(replace(POOL, stride=8)) == frozenset()


def test_prediction_is_the_stock_step_less_the_savings():
    assert made().predicted_seconds(0, 10) == pytest.approx(4.0 - 5 * 0.3)
    assert made().predicted_speedup() == pytest.approx(4.0 / 2.5)


def test_prediction_of_reuse_counts_the_outer_layers_alone():
    plan = made(Schedule.constant(POOL, reuse=2), shallow=0.6)
    assert plan.predicted_seconds(0, 4) == pytest.approx(2.5)
    assert plan.predicted_seconds(1, 4) == pytest.approx(0.6 - 0.3)
    assert plan.predicted_speedup(4) == pytest.approx(16 / 5.6)


def test_stock_phases_cost_the_stock_step():
    plan = made(Schedule((Phase(0.5, None), Phase(1.0, POOL))))
    assert [plan.predicted_seconds(i, 4) for i in range(4)] == pytest.approx([4.0, 4.0, 2.5, 2.5])


def test_apply_follows_the_plan_and_says_so():
    pipe = make_tiny_pipe()
    plan = replace(agentsd.plan(pipe, config=POOL, cache=False), latent=(16, 16))
    losing = replace(plan, timings=tuple(replace(t, agent_seconds=2 * t.stock_seconds) for t in plan.timings))
    stock = draw(pipe)
    with agentsd.apply(pipe, plan=losing) as patch:
        assert torch.equal(draw(pipe), stock)
        assert "the plan measured that these settings do not win here" in str(patch.report())
    winning = replace(plan, timings=tuple(replace(t, agent_seconds=t.stock_seconds / 2) for t in plan.timings))
    with agentsd.apply(pipe, config=POOL):
        everywhere = draw(pipe)
    with agentsd.apply(pipe, plan=winning):
        assert torch.equal(draw(pipe), everywhere)
    assert not torch.equal(everywhere, stock)


def test_measured_plan_covers_every_shape():
    unet = make_tiny_unet()
    plan = agentsd.plan(unet, config=POOL, reuse=2, cache=False)
    assert [(t.level, t.grid, t.layers, t.outer) for t in plan.timings] == [(0, (16, 16), 3, 1), (1, (8, 8), 3, 0)]
    assert all(t.stock_seconds > 0 and t.agent_seconds > 0 for t in plan.timings)
    assert 0 < plan.shallow_seconds < plan.step_seconds
    deeper = agentsd.plan(unet, config=POOL, reuse=2, reuse_depth=2, cache=False)
    assert deeper.timings[0].outer == 3
    assert "predicted UNet speed-up" in str(plan)


def test_measurements_are_kept_and_used(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTSD_CACHE", str(tmp_path))
    unet = make_tiny_unet()
    first = agentsd.plan(unet, config=POOL)
    (path,) = (tmp_path / "plans").iterdir()
    assert len(json.loads(path.read_text())) == 3  # the step and two layer shapes
    monkeypatch.setattr(agentsd.planning, "interleave", None)  # any measurement would fail now
    assert agentsd.plan(unet, config=POOL) == first
    monkeypatch.undo()
    monkeypatch.setenv("AGENTSD_CACHE", str(tmp_path))
    agentsd.plan(unet, batch=1, config=POOL)
    assert len(list((tmp_path / "plans").iterdir())) == 2
    path.write_text("{")
    with pytest.warns(UserWarning, match="is not a cache of plans"):
        agentsd.plan(unet, config=POOL)
    assert json.loads(path.read_text())


def test_target_speedup_takes_the_gentlest_that_reaches_it(monkeypatch):
    speeds = dict(zip(FRONT, (1.5, 2.0, 3.0, 4.0), strict=True))

    def fake(unet, latent, batch, schedule, cache):
        name = next(name for name in FRONT if agentsd.PRESETS[name] == schedule)
        return Plan(Schedule.constant(POOL), latent, batch, speeds[name], None, (replace(FINE, layers=0),))

    monkeypatch.setattr(agentsd.planning, "_plan", fake)
    monkeypatch.setattr(Plan, "predicted_speedup", lambda self, steps=50: self.step_seconds)
    pipe = make_tiny_pipe()
    assert agentsd.plan(pipe, target_speedup=1.2).step_seconds == 1.5
    assert agentsd.plan(pipe, target_speedup=2.5).step_seconds == 3.0
    with pytest.raises(ValueError, match=r"target_speedup=5 is not reached here: quality 1\.50x, .* extreme 4\.00x"):
        agentsd.plan(pipe, target_speedup=5)


def test_plan_for_another_size_warns_once():
    pipe = make_tiny_pipe()
    plan = agentsd.plan(pipe, config=POOL, cache=False)
    with agentsd.apply(pipe, plan=plan), pytest.warns(UserWarning, match="16x16 latents on 24x16") as caught:
        draw(pipe, height=48, width=32, steps=3)
    assert len([w for w in caught if "latents on" in str(w.message)]) == 1


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda pipe: agentsd.plan(pipe, height=33), r"height=33 must be a multiple of 2, in pixels"),
        (lambda pipe: agentsd.plan(pipe, batch=0), r"batch=0 must be a whole number of at least 1"),
        (lambda pipe: agentsd.plan(pipe, target_speedup=2, ratio=0.1), r"target_speedup chooses the schedule"),
        (lambda pipe: agentsd.plan(pipe, config=POOL, reuse=2, reuse_depth=9), r"reuse_depth=9 must be at most 2"),
        (lambda pipe: agentsd.apply(pipe, plan=made(), ratio=0.1), r"plan says everything"),
        (lambda pipe: agentsd.apply(pipe, plan="fast"), r"plan='fast' must be what agentsd\.plan returned"),
        (lambda pipe: made().predicted_speedup(0), r"steps=0 must be at least 1"),
    ],
)
def test_errors(call, text):
    with pytest.raises(ValueError, match=text):
        call(make_tiny_pipe())


def test_a_patched_target_cannot_be_planned():
    pipe = make_tiny_pipe()
    agentsd.apply(pipe)
    with pytest.raises(ValueError, match=r"target is patched, so stock cannot be timed"):
        agentsd.plan(pipe)
