"""Plans: arithmetic on given times exactly, choices that follow from them, the cache, and use by apply."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from diffusers import LCMScheduler
from diffusers.models.attention_processor import AttnProcessor
from matrix import KINDS, controlnet, lora
from probe import COPY
from tiny import draw, make_one_level_unet, make_tiny_pipe, make_tiny_unet

import agentsd
import agentsd.planning.measuring
from agentsd import Phase, Plan, PooledAgents, Schedule, Skipping
from agentsd.planning.cache import cache_file
from agentsd.planning.plans import LayerTiming
from agentsd.presets import BY_SPEED

POOL = PooledAgents(stride=4, max_downsample=2)
FINE = LayerTiming(0, (64, 64), 5, 1, POOL, 0.4, 0.1)
COARSE = LayerTiming(1, (32, 32), 5, 0, POOL, 0.05, 0.06)


def made(schedule=None, *, shallow=None, timings=(FINE, COARSE)):
    return Plan(schedule or Schedule.constant(POOL), (64, 64), 2, 4.0, shallow, timings, "cpu", "torch.float32", "")


def test_levels_where_agents_lose_stay_stock():
    assert made().stock_levels(POOL) == {1}
    assert made().stock_levels(replace(POOL, stride=8)) == frozenset()


def test_prediction_is_the_stock_step_less_the_savings():
    assert made().predicted_seconds(0, 10) == pytest.approx(4.0 - 5 * 0.3)
    assert made().predicted_speedup() == pytest.approx(4.0 / 2.5)


def test_skipped_steps_count_the_outer_layers_alone():
    plan = made(Schedule.constant(POOL, every=2, skipping=COPY), shallow=0.6)
    assert plan.predicted_seconds(0, 4) == pytest.approx(2.5)
    assert plan.predicted_seconds(1, 4) == pytest.approx(0.6 - 0.3)
    assert plan.predicted_speedup(4) == pytest.approx(16 / 5.6)


def test_layers_that_seem_slower_than_their_step_do_not_make_its_time_negative():
    slow = replace(FINE, stock_seconds=1.4)  # 5 layers of it take 7 seconds, and the step takes 4
    plan = made(timings=(slow, COARSE))
    assert plan.predicted_seconds(0, 10) == pytest.approx(5 * 0.1)
    assert plan.predicted_speedup(10) == pytest.approx(4.0 / 0.5)


def test_stock_phases_cost_the_stock_step():
    plan = made(Schedule((Phase(0.5, None), Phase(1.0, POOL))))
    assert [plan.predicted_seconds(i, 4) for i in range(4)] == pytest.approx([4.0, 4.0, 2.5, 2.5])


def test_apply_follows_the_plan_and_says_so():
    pipe = make_tiny_pipe()
    plan = replace(agentsd.plan(pipe, POOL, cache=False), latent=(16, 16))
    losing = replace(plan, timings=tuple(replace(t, agent_seconds=2 * t.stock_seconds) for t in plan.timings))
    stock = draw(pipe)
    with agentsd.apply(pipe, losing) as patch:
        assert torch.equal(draw(pipe), stock)
        assert "the plan measured no gain here" in patch.report().details()
    winning = replace(plan, timings=tuple(replace(t, agent_seconds=t.stock_seconds / 2) for t in plan.timings))
    with agentsd.apply(pipe, POOL):
        everywhere = draw(pipe)
    with agentsd.apply(pipe, winning):
        assert torch.equal(draw(pipe), everywhere)
    assert not torch.equal(everywhere, stock)


def test_measured_plan_covers_every_shape():
    unet = make_tiny_unet()
    plan = agentsd.plan(unet, Schedule.constant(POOL, 2, skipping=COPY), cache=False)
    assert [(t.level, t.grid, t.layers, t.outer) for t in plan.timings] == [(0, (16, 16), 3, 1), (1, (8, 8), 3, 0)]
    assert all(t.stock_seconds > 0 and t.agent_seconds > 0 for t in plan.timings)
    assert 0 < plan.shallow_seconds < plan.step_seconds
    deeper = agentsd.plan(unet, Schedule.constant(POOL, 2, skipping=replace(COPY, depth=2)), cache=False)
    assert deeper.timings[0].outer == 3
    assert "predicted UNet speed-up" in str(plan)


def test_measurements_are_kept_and_used(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTSD_CACHE", str(tmp_path))
    unet = make_tiny_unet()
    first = agentsd.plan(unet, POOL)
    (path,) = (tmp_path / "plans").iterdir()
    assert len(json.loads(path.read_text())) == 3  # the step and two layer shapes
    monkeypatch.setattr(agentsd.planning.measuring, "interleave", None)  # any measurement would fail now
    assert agentsd.plan(unet, POOL) == first
    monkeypatch.undo()
    monkeypatch.setenv("AGENTSD_CACHE", str(tmp_path))
    agentsd.plan(unet, POOL, batch=1)
    assert len(list((tmp_path / "plans").iterdir())) == 2
    path.write_text("{")
    with pytest.warns(UserWarning, match="is not a cache of plans"):
        agentsd.plan(unet, POOL)
    assert json.loads(path.read_text())


def test_target_speedup_takes_the_gentlest_that_reaches_it(monkeypatch):
    speeds = dict(zip(BY_SPEED, (1.2, 1.5, 2.0, 3.0, 4.0), strict=True))

    def fake(unet, latent, batch, schedule, cache):
        name = next(name for name in BY_SPEED if agentsd.PRESETS[name] == schedule)
        return replace(made(timings=(replace(FINE, layers=0),)), step_seconds=speeds[name])

    monkeypatch.setattr(agentsd.planning.measuring, "_plan", fake)
    monkeypatch.setattr(Plan, "predicted_speedup", lambda self, steps=50: self.step_seconds)
    pipe = make_tiny_pipe()
    assert agentsd.plan(pipe, target_speedup=1.3).step_seconds == 1.5
    assert agentsd.plan(pipe, target_speedup=2.5).step_seconds == 3.0
    with pytest.raises(
        ValueError, match=r"target_speedup=5 is not reached here: gentle 1\.20x, quality 1\.50x, .* extreme 4\.00x"
    ):
        agentsd.plan(pipe, target_speedup=5)


def test_plan_for_another_size_warns_once():
    pipe = make_tiny_pipe()
    plan = agentsd.plan(pipe, POOL, cache=False)
    with agentsd.apply(pipe, plan), pytest.warns(UserWarning, match="16x16 latents on 24x16") as caught:
        draw(pipe, height=48, width=32, steps=3)
    assert len([w for w in caught if "latents on" in str(w.message)]) == 1


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda pipe: agentsd.plan(pipe, height=33), r"height=33 must be a multiple of 2, in pixels"),
        (lambda pipe: agentsd.plan(pipe, batch=0), r"batch=0 must be a whole number of at least 1"),
        (lambda pipe: agentsd.plan(pipe, target_speedup=2, ratio=0.1), r"target_speedup chooses the schedule"),
        (
            lambda pipe: agentsd.plan(pipe, Schedule.constant(POOL, 2, skipping=Skipping(depth=9))),
            r"depth=9 must be at most 2",
        ),
        (lambda pipe: agentsd.apply(pipe, made(), ratio=0.1), r"ratio=0\.1 .* does not go with schedule=Plan\("),
        (lambda pipe: made().predicted_speedup(0), r"steps=0 must be a whole number of at least 1"),
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


@pytest.fixture
def quick(monkeypatch):
    """Let every measurement run once, and no more."""
    real = agentsd.planning.measuring.interleave
    monkeypatch.setattr(
        agentsd.planning.measuring,
        "interleave",
        lambda run, arms, rounds, device: real(run, arms, rounds=1, warmup=0, device=device),
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.id)
def test_every_kind_of_pipeline_is_planned_or_refused(kind, quick):
    if kind.id == "lora":
        pytest.importorskip("peft")
    pipe, _ = kind.build()
    if kind.id in ("animate_diff", "stable_video"):
        with pytest.raises(ValueError, match=r"takes the frames of a video .* call agentsd\.apply with a preset"):
            agentsd.plan(pipe, POOL, cache=False)
        return
    plan = agentsd.plan(pipe, Schedule.constant(POOL, 2, skipping=COPY), cache=False)
    assert plan.timings[0].grid == kind.grid
    assert plan.shallow_seconds > 0
    agentsd.apply(pipe, plan).remove()


@pytest.mark.parametrize(
    "changes",
    [
        dict(class_embed_type="projection", projection_class_embeddings_input_dim=24),
        dict(class_embed_type="simple_projection", projection_class_embeddings_input_dim=24),
        dict(class_embed_type="timestep"),
        dict(class_embed_type="identity"),
        dict(encoder_hid_dim_type="text_proj", encoder_hid_dim=24),
        dict(addition_embed_type="text", addition_embed_type_num_heads=4),
    ],
)
def test_unets_that_want_more_inputs_are_planned(changes, quick):
    assert agentsd.plan(make_tiny_unet(**changes), Schedule.constant(POOL, 2), cache=False).timings


def test_a_controlnet_is_planned(quick):
    plan = agentsd.plan(controlnet()[0].controlnet, height=128, width=128, cache=False)
    assert not plan.schedule.skips_steps
    assert "steps not skipped: ControlNetModel is a ControlNet, which predicts no noise" in str(plan)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(encoder_hid_dim_type="image_proj"), r"image_embeds for encoder_hid_dim_type='image_proj'"),
        (dict(addition_embed_type="image"), r"image_embeds for addition_embed_type='image'"),
    ],
)
def test_inputs_that_cannot_be_made_up_are_named(changes, text):
    with pytest.raises(ValueError, match=text):
        agentsd.plan(make_tiny_unet(encoder_hid_dim=24, **changes), POOL, cache=False)


def test_an_unknown_ip_adapter_is_named():
    pipe = next(kind for kind in KINDS if kind.id == "ip_adapter").build()[0]
    pipe.unet.encoder_hid_proj.image_projection_layers[0] = torch.nn.Linear(8, 32)
    with pytest.raises(ValueError, match=r"image_embeds for an IP-Adapter with Linear"):
        agentsd.plan(pipe, POOL, cache=False)


def test_a_preset_loses_its_skipped_steps_where_apply_drops_them(quick):
    net = controlnet()[0].controlnet
    plan = agentsd.plan(net, "fast", cache=False, height=128, width=128)
    with agentsd.apply(net, "fast") as preset:
        assert plan.schedule == preset.schedule
        said = preset.report().skipping_problem
    with agentsd.apply(net, plan) as patch:
        assert patch.report().skipping_problem == said
    assert said == "ControlNetModel is a ControlNet, which predicts no noise; the preset skips no steps"
    with pytest.raises(ValueError, match=r"steps cannot be skipped: ControlNetModel is a ControlNet"):
        agentsd.plan(net, agentsd.preset("fast"), cache=False, height=128, width=128)


def test_a_scheduler_that_draws_fresh_noise_is_planned_with_the_layer_that_will_run(quick):
    pipe = make_tiny_pipe()
    schedule = Schedule((Phase(1.0, POOL, 3),), skipping=Skipping(forecast=0.0, last_full=False))
    assert agentsd.plan(pipe, schedule, cache=False).schedule == schedule
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    plan = agentsd.plan(pipe, schedule, cache=False)
    assert plan.schedule == replace(schedule, skipping=replace(schedule.skipping, depth=1))
    assert [timing.outer for timing in plan.timings] == [1, 0]


def test_a_step_that_runs_nothing_is_predicted_to_cost_next_to_nothing(quick):
    unet = make_tiny_unet()
    schedule = Schedule((Phase(1.0, None, 4),), skipping=Skipping(forecast=0.0))
    plan = agentsd.plan(unet, schedule, cache=False)
    assert 0 < plan.shallow_seconds < plan.step_seconds / 10
    assert plan.predicted_speedup(9) == pytest.approx(9 / 3, rel=0.2)
    with pytest.raises(ValueError, match=r"depth=1 must be at most 0"):
        agentsd.plan(make_one_level_unet(), Schedule.constant(None, 2, skipping=COPY), cache=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda unet: unet.set_attn_processor(AttnProcessor()),
        lambda unet: unet.fuse_qkv_projections(),
        lambda unet: unet.to(memory_format=torch.channels_last),
        lambda unet: unet.set_attention_slice(1),
    ],
)
def test_measurements_of_another_state_are_not_used(change, tmp_path, monkeypatch, quick):
    monkeypatch.setenv("AGENTSD_CACHE", str(tmp_path))
    unet = make_tiny_unet()
    agentsd.plan(unet, POOL)
    agentsd.plan(unet, POOL)
    assert len(list((tmp_path / "plans").iterdir())) == 1
    change(unet)
    agentsd.plan(unet, POOL)
    assert len(list((tmp_path / "plans").iterdir())) == 2


def test_measurements_with_a_lora_are_kept_apart(tmp_path, monkeypatch, quick):
    pytest.importorskip("peft")
    monkeypatch.setenv("AGENTSD_CACHE", str(tmp_path))
    pipe = lora()[0]
    for change in (lambda: None, pipe.unet.disable_adapters, pipe.unet.enable_adapters):
        change()
        agentsd.plan(pipe, POOL)
    assert len(list((tmp_path / "plans").iterdir())) == 2


@pytest.mark.parametrize("bad", [[], [1.0], [1.0, 2.0, 3.0], [0.0, 1.0], [-1.0, 1.0], [float("nan"), 1.0], 1.0, None])
def test_bad_measurements_are_made_anew(bad, tmp_path, monkeypatch, quick):
    monkeypatch.setenv("AGENTSD_CACHE", str(tmp_path))
    unet = make_tiny_unet()
    agentsd.plan(unet, POOL)
    (path,) = (tmp_path / "plans").iterdir()
    kept = json.loads(path.read_text())
    name = next(name for name, values in kept.items() if len(values) == 2)
    path.write_text(json.dumps({**kept, name: bad, "other": [2.0]}))
    with pytest.warns(UserWarning, match="agentsd measures anew: .* instead of 2 times"):
        plan = agentsd.plan(unet, POOL)
    again = json.loads(path.read_text())
    assert again[name] != bad
    assert len(again[name]) == 2
    assert {**again, name: None} == {**kept, name: None, "other": [2.0]}
    assert plan.predicted_speedup() > 0


def test_measurements_lie_in_the_users_cache_folder(monkeypatch, tmp_path):
    unet = make_tiny_unet()
    monkeypatch.setenv("AGENTSD_CACHE", str(tmp_path / "mine"))
    assert cache_file(unet, (16, 16), 2).parent == tmp_path / "mine" / "plans"
    monkeypatch.delenv("AGENTSD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert cache_file(unet, (16, 16), 2).parent == tmp_path / "agentsd" / "plans"
    assert cache_file(unet, (16, 16), 2) != cache_file(unet, (16, 16), 4)


def test_a_cache_that_is_no_file_is_told(tmp_path, monkeypatch, quick):
    monkeypatch.setenv("AGENTSD_CACHE", str(tmp_path))
    unet = make_tiny_unet()
    agentsd.plan(unet, POOL)
    (path,) = (tmp_path / "plans").iterdir()
    path.unlink()
    path.mkdir()
    with pytest.warns(UserWarning, match="measures anew") as caught:
        assert agentsd.plan(unet, POOL).timings
    assert ["measures anew" in str(w.message) for w in caught] == [True, False]
    assert "has not kept its measurements" in str(caught[1].message)
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing half-written beside it


def test_a_cache_that_cannot_be_written_leaves_the_plan(tmp_path, monkeypatch, quick):
    (tmp_path / "file").touch()
    monkeypatch.setenv("AGENTSD_CACHE", str(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match=r"has not kept its measurements: .*Set AGENTSD_CACHE"):
        assert agentsd.plan(make_tiny_unet(), POOL).timings


def test_two_writers_keep_both_measurements(tmp_path, monkeypatch, quick):
    monkeypatch.setenv("AGENTSD_CACHE", str(tmp_path))
    unet = make_tiny_unet()
    real = agentsd.planning.measuring._layer_seconds

    def other_plan_meanwhile(*arguments):
        monkeypatch.setattr(agentsd.planning.measuring, "_layer_seconds", real)
        agentsd.plan(unet, replace(POOL, stride=8))
        return real(*arguments)

    monkeypatch.setattr(agentsd.planning.measuring, "_layer_seconds", other_plan_meanwhile)
    agentsd.plan(unet, POOL)
    (path,) = (tmp_path / "plans").iterdir()
    assert len(json.loads(path.read_text())) == 5  # the step, and two layer shapes by two settings


def test_a_target_with_deepcache_cannot_be_planned():
    helper_module = pytest.importorskip("DeepCache")
    pipe = make_tiny_pipe()
    helper = helper_module.DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=2, cache_branch_id=0)
    helper.enable()
    with pytest.raises(ValueError, match=r"DeepCache is enabled on the target, so stock cannot be timed"):
        agentsd.plan(pipe)


def test_a_compiled_target_cannot_be_planned():
    unet = make_tiny_unet()
    with pytest.raises(ValueError, match=r"target is compiled"):
        agentsd.plan(torch.compile(unet))
    pipe = make_tiny_pipe()
    pipe.unet.up_blocks[0].compile()
    with pytest.raises(ValueError, match=r"target is compiled, .* call agentsd\.plan before it is compiled"):
        agentsd.plan(pipe)


def test_an_offloaded_target_cannot_be_planned_but_takes_a_plan(quick, recwarn):
    accelerate = pytest.importorskip("accelerate")
    unet = make_tiny_unet()
    plan = agentsd.plan(unet, POOL, cache=False)
    accelerate.cpu_offload(unet, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"target is offloaded: .* call agentsd\.plan before offloading is enabled"):
        agentsd.plan(unet)
    recwarn.clear()
    agentsd.apply(unet, plan).remove()
    assert not recwarn.list
    pipe = make_tiny_pipe()
    accelerate.cpu_offload_with_hook(pipe.unet, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"target is offloaded"):
        agentsd.plan(pipe)


def test_a_plan_fits_its_architecture_alone(quick):
    plan = agentsd.plan(make_tiny_unet(), POOL, cache=False)
    other = make_tiny_unet(block_out_channels=(16, 32, 64))
    with pytest.raises(
        ValueError, match=r"plan was measured on a UNet with other layers than this UNet2DConditionModel"
    ):
        agentsd.apply(other, plan)
    assert not other._forward_pre_hooks


@pytest.mark.parametrize(("field", "value"), [("device", "NVIDIA H100"), ("dtype", "torch.float16")])
def test_a_plan_from_elsewhere_warns(field, value, quick):
    unet = make_tiny_unet()
    plan = replace(agentsd.plan(unet, POOL, cache=False), **{field: value})
    with pytest.warns(UserWarning, match=rf"a plan made for {field} {value} on .* Make a plan for this {field}"):
        agentsd.apply(unet, plan)


def test_plan_for_another_batch_warns_once(quick):
    pipe = make_tiny_pipe()
    plan = agentsd.plan(pipe, POOL, cache=False)
    agentsd.apply(pipe, plan)
    draw(pipe, steps=3)
    with pytest.warns(UserWarning, match=r"measured with 2 samples a UNet call on 4") as seen:
        draw(pipe, num_images_per_prompt=2, steps=3)
    assert len([w for w in seen if "samples a UNet call" in str(w.message)]) == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (dict(target_speedup="2"), r"target_speedup='2' must be a number of at least 1"),
        (dict(target_speedup=-1), r"target_speedup=-1 must be a number of at least 1"),
        (dict(target_speedup=True), r"target_speedup=True must be a number of at least 1"),
        (dict(target_speedup=float("nan")), r"target_speedup=nan must be a number"),
        (dict(target_speedup=2, steps=2.5), r"steps=2\.5 must be a whole number of at least 1"),
        (dict(steps=20), r"steps=20 says for which run target_speedup shall hold"),
    ],
)
def test_arguments_are_checked_before_measuring(arguments, text, monkeypatch):
    monkeypatch.setattr(agentsd.planning.measuring, "interleave", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(ValueError, match=text):
        agentsd.plan(make_tiny_pipe(), cache=False, **arguments)


def test_a_tie_is_stocks():
    assert not replace(FINE, stock_seconds=1.0, agent_seconds=0.98).wins
    assert replace(FINE, stock_seconds=1.0, agent_seconds=0.96).wins


def test_a_plan_comes_back_from_json_exactly(quick):
    for schedule in ("paper", "fast", Schedule.constant(POOL)):
        plan = agentsd.plan(make_tiny_unet(), schedule, cache=False)
        assert Plan.from_json(plan.to_json()) == plan
    with pytest.raises(ValueError, match=r"plan has the unknown field 'speed'; Plan has schedule, latent"):
        Plan.from_json(json.dumps({**json.loads(plan.to_json()), "speed": 2}))
    data = json.loads(plan.to_json())
    data["timings"][0]["seconds"] = 1
    with pytest.raises(ValueError, match=r"timings\[0\] has the unknown field 'seconds'"):
        Plan.from_json(json.dumps(data))
    with pytest.raises(ValueError, match=r"plan has version=None; this agentsd reads version 1"):
        Plan.from_json("{}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(latent=[16]), r"latent=\[16\] must be a JSON list of height and width"),
        (dict(batch="x"), "batch='x' must be an integer of at least 1"),
        (dict(step_seconds=0), "step_seconds=0 must be seconds, above 0"),
        (dict(shallow_seconds="x"), "shallow_seconds='x' must be a finite number"),
        (dict(timing=dict(grid=5)), r"timings\[0\].grid=5 must be a JSON list"),
        (dict(timing=dict(layers=0)), r"timings\[0\].layers=0 must be an integer of at least 1"),
        (dict(timing=dict(stock_seconds="x")), r"timings\[0\].stock_seconds='x' must be a finite number"),
    ],
)
def test_fields_of_a_plan_are_checked_when_it_is_read(quick, changes, message):
    changes = dict(changes)
    data = json.loads(agentsd.plan(make_tiny_unet(), "paper", cache=False).to_json())
    data["timings"][0].update(changes.pop("timing", {}))
    with pytest.raises(ValueError, match=message):
        Plan.from_json(json.dumps({**data, **changes}))
