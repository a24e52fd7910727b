"""The promises: equal seeds give equal images, stock phases are stock bit for bit, and undoing leaves no trace."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.models.attention_processor import Attention
from probe import AGENTS, MERGE, MIXED, OFF, POOL, SAMPLE, assert_same, expected, snapshot, unet_inputs, watch
from tiny import draw, make_controlnet, make_sdxl_pipe, make_tiny_pipe, make_tiny_unet

import agentsd
from agentsd import PRESETS, MergedTokens, Phase, PooledAgents, Schedule, Skipping

SCHEDULES = pytest.mark.parametrize("schedule", [MIXED, PRESETS["balanced"]], ids=["mixed", "balanced"])
PICTURE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(9))


class Interruption(Exception):
    """Raised in the middle of a run."""


def interrupt(pipe, step, timestep, tensors):
    if step == 1:
        raise Interruption
    return tensors


# What may have run before on the same pipeline without any effect on what runs next.


def other_size(pipe):
    draw(pipe, seed=5, height=40, width=24)


def other_batch(pipe):
    draw(pipe, ["one", "two", "three"], seed=5, guidance_scale=1.0)


def other_scheduler(pipe):
    scheduler = pipe.scheduler
    pipe.scheduler = HeunDiscreteScheduler.from_config(scheduler.config)
    draw(pipe, seed=5, steps=3)
    pipe.scheduler = scheduler


def broken_run(pipe):
    with pytest.raises(Interruption):
        draw(pipe, seed=5, callback_on_step_end=interrupt)


def broken_call(pipe):
    sample, text = unet_inputs()
    with pytest.raises(RuntimeError), torch.no_grad():
        pipe.unet(sample, pipe.scheduler.timesteps[0], text[..., :5])  # fails inside, at the first cross-attention


def image_to_image(pipe):
    other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    draw(other, seed=5, steps=6, image=PICTURE, strength=0.5)


def direct_call(pipe):
    sample, text = unet_inputs()
    with torch.no_grad():
        for timestep in (500, torch.tensor(3), torch.tensor([7, 800]), pipe.scheduler.timesteps[-1]):
            pipe.unet(sample, timestep, text)


def global_seed(pipe):
    torch.manual_seed(123)
    torch.rand(17)


BEFORE = [
    other_size,
    other_batch,
    other_scheduler,
    broken_run,
    broken_call,
    image_to_image,
    direct_call,
    global_seed,
]


class TestSameSeedSameImage:
    @SCHEDULES
    @pytest.mark.parametrize("before", BEFORE, ids=lambda function: function.__name__)
    def test_whatever_ran_before(self, before, schedule, tiny_pipe):
        fresh = make_tiny_pipe()
        agentsd.apply(fresh, schedule)
        wanted = draw(fresh, steps=8)
        agentsd.apply(tiny_pipe, schedule)
        before(tiny_pipe)
        assert torch.equal(draw(tiny_pipe, steps=8), wanted)
        before(tiny_pipe)
        assert torch.equal(draw(tiny_pipe, steps=8), wanted)

    @SCHEDULES
    @pytest.mark.parametrize("before", BEFORE, ids=lambda function: function.__name__)
    def test_whatever_ran_before_image_to_image(self, before, schedule, tiny_pipe):
        def run(pipe):
            other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
            other.set_progress_bar_config(disable=True)
            return draw(other, steps=8, image=PICTURE, strength=0.5)

        fresh = make_tiny_pipe()
        agentsd.apply(fresh, schedule)
        wanted = run(fresh)
        agentsd.apply(tiny_pipe, schedule)
        before(tiny_pipe)
        draw(tiny_pipe, steps=8)
        assert torch.equal(run(tiny_pipe), wanted)

    @SCHEDULES
    @pytest.mark.parametrize("known", [True, False])
    def test_runs_of_another_pipeline_in_between_change_nothing(self, known, schedule, tiny_pipe):
        # A preview at every step: eight short runs on the same UNet while one long run lasts.
        preview = StableDiffusionPipeline(
            **{**tiny_pipe.components, "scheduler": EulerDiscreteScheduler()}, requires_safety_checker=False
        )
        preview.set_progress_bar_config(disable=True)
        for pipe in (preview, tiny_pipe) if known else (tiny_pipe,):
            agentsd.apply(pipe, schedule)
        wanted, small = draw(tiny_pipe, steps=8), draw(preview, seed=5, steps=3)
        shown = []

        def show(pipe, step, timestep, tensors):
            shown.append(draw(preview, seed=5, steps=3))
            return tensors

        assert torch.equal(draw(tiny_pipe, steps=8, callback_on_step_end=show), wanted)
        assert len(shown) == 8
        assert all(torch.equal(picture, small) for picture in shown)

    def test_loops_on_the_same_timesteps_do_not_depend_on_each_other(self, tiny_unet):
        scheduler = DDIMScheduler()
        scheduler.set_timesteps(8)
        sample, text = unet_inputs()
        agentsd.apply(tiny_unet, MIXED)

        def run(start):
            with watch(tiny_unet) as calls, torch.no_grad():
                for t in scheduler.timesteps[start:]:
                    tiny_unet(sample, t, text)
            return [call.config for call in calls]

        partly = run(4)
        whole = run(0)
        assert partly == [MIXED.at(i, 4) for i in range(4)]
        assert whole == [MIXED.at(i, 8) for i in range(8)]
        assert run(4) == partly
        assert run(0) == whole

    @pytest.mark.parametrize("config", [AGENTS, SAMPLE], ids=["pattern", "chosen"])
    def test_the_seed_decides_what_is_picked(self, config, tiny_pipe):
        images = []
        for seed in (0, 1, 0):
            agentsd.apply(tiny_pipe, config, seed=seed)
            images.append(draw(tiny_pipe, steps=2))
        assert torch.equal(images[0], images[2])
        assert not torch.equal(images[0], images[1])

    @pytest.mark.parametrize(
        ("config", "picked"),
        [(MergedTokens(), lambda level: level.pattern.destinations), (SAMPLE, lambda level: level.sample)],
        ids=["pattern", "chosen"],
    )
    def test_tokens_are_picked_anew_each_step_only_if_asked(self, config, picked, tiny_unet):
        sample, text = unet_inputs()
        for randomize, distinct in ((True, 4), (False, 1)):
            agentsd.apply(tiny_unet, replace(config, randomize=randomize))
            found = []
            hook = tiny_unet.register_forward_hook(
                lambda module, *_, found=found: found.append(
                    tuple(picked(module._agentsd.slot.latest.levels[0]).tolist())
                )
            )
            with torch.no_grad():
                for t in torch.tensor([800, 600, 400, 200]):
                    tiny_unet(sample, t, text)
            hook.remove()
            assert len(set(found)) == distinct

    @pytest.mark.parametrize("every", [2, 4, 8, 16])
    def test_who_looks_at_every_so_many_steps_alone_sees_other_agents_too(self, every, tiny_unet):
        agentsd.apply(tiny_unet, SAMPLE)
        chosen = [tiny_unet._agentsd.choices.sampled(step, 16, 16, 4, torch.device("cpu")) for step in range(64)]
        assert all(len(set(place)) == 16 for place in zip(*(each.tolist() for each in chosen), strict=True))
        seen = [len(set(place)) for place in zip(*(each.tolist() for each in chosen[::every]), strict=True)]
        assert sum(seen) / len(seen) > 0.8 * 16 * (1 - (1 - 1 / 16) ** (64 // every))  # as many as by chance

    def test_the_global_random_state_is_left_alone(self, tiny_unet):
        sample, text = unet_inputs()
        agentsd.apply(tiny_unet, "paper")
        before = torch.get_rng_state()
        with torch.no_grad():
            tiny_unet(sample, 900, text)
        assert torch.equal(torch.get_rng_state(), before)


class TestStockPhases:
    def test_a_schedule_of_none_is_stock(self, tiny_pipe):
        stock = draw(tiny_pipe)
        with agentsd.apply(tiny_pipe, OFF):
            assert torch.equal(draw(tiny_pipe), stock)

    @pytest.mark.parametrize(
        "schedule",
        [
            MIXED,
            Schedule((Phase(0.5, None), Phase(1.0, POOL))),
            Schedule((Phase(0.25, None), Phase(0.5, MERGE), Phase(1.0, None))),
        ],
    )
    def test_off_steps_are_stock_bit_for_bit_and_the_others_are_not(self, schedule, tiny_pipe):
        with agentsd.apply(tiny_pipe, schedule), watch(tiny_pipe.unet) as calls:
            draw(tiny_pipe, steps=8)
        assert [call.config for call in calls] == expected(schedule, calls)
        for call in calls:
            assert torch.equal(call.output, call.replay(tiny_pipe.unet)) == (call.config is None)

    def test_disabled_is_stock_and_ends(self, tiny_pipe):
        stock = draw(tiny_pipe, steps=3)
        patch = agentsd.apply(tiny_pipe, AGENTS)
        patched = draw(tiny_pipe, steps=3)
        with patch.disabled():
            assert torch.equal(draw(tiny_pipe, steps=3), stock)
            with patch.disabled():
                pass
            assert torch.equal(draw(tiny_pipe, steps=3), stock)
        with pytest.raises(Interruption), patch.disabled():
            raise Interruption
        assert torch.equal(draw(tiny_pipe, steps=3), patched)
        assert not torch.equal(patched, stock)

    def test_coarser_levels_have_as_many_agents_as_the_finest(self, tiny_unet):
        sample, text = unet_inputs()
        config = PooledAgents(stride=4, max_downsample=2)
        with agentsd.apply(tiny_unet, config) as patch, torch.no_grad():
            tiny_unet(sample, 900, text)
            levels = tiny_unet._agentsd.slot.latest.levels
            shown = patch.report().details()
        assert [(level.settings.stride, level.counts.agents) for level in levels.values()] == [(4, 16), (2, 16)]
        assert shown.count(", 16 agents") == 6

    def test_a_limit_on_agents_widens_their_cells(self, tiny_unet):
        sample, text = unet_inputs()
        limited, wide = (PooledAgents(**more) for more in (dict(stride=2, max_agents=16), dict(stride=4)))
        with torch.no_grad():
            with agentsd.apply(tiny_unet, limited) as patch:
                found = tiny_unet(sample, 900, text).sample
                assert "(stride 2, at most 16)" in str(patch.report())
                assert ", 16 agents" in patch.report().details()
            with agentsd.apply(tiny_unet, wide):
                assert tiny_unet(sample, 900, text).sample.equal(found)

    def test_layers_coarser_than_asked_stay_stock(self, tiny_unet):
        sample, text = unet_inputs()
        attentions = {name: m for name, m in tiny_unet.named_modules() if name.endswith(".attn1")}
        for max_downsample, patched in ((1, 3), (2, 6), (4, 7)):
            config = PooledAgents(stride=2, max_downsample=max_downsample)
            changed = set()
            hooks = []

            def compare(attn, args, kwargs, output, changed, name):
                stock = attn._agentsd.original(attn, args[0])
                if not torch.equal(stock, output):
                    changed.add(name)

            with agentsd.apply(tiny_unet, config), torch.no_grad():
                for name, attn in attentions.items():
                    hooks.append(
                        attn.register_forward_hook(
                            lambda *call, name=name, changed=changed: compare(*call, changed, name), with_kwargs=True
                        )
                    )
                tiny_unet(sample, 900, text)
            for hook in hooks:
                hook.remove()
            assert len(changed) == patched


def by_handle(pipe, patch):
    patch.remove()


def by_function(pipe, patch):
    agentsd.remove(pipe)


def by_unet(pipe, patch):
    agentsd.remove(pipe.unet)


def by_context(pipe, patch):
    with patch:
        pass


def by_exception(pipe, patch):
    with pytest.raises(Interruption), patch:
        draw(pipe, callback_on_step_end=interrupt)


class TestUndo:
    @pytest.mark.parametrize("undo", [by_handle, by_function, by_unet, by_context, by_exception])
    def test_leaves_no_trace(self, undo, tiny_pipe):
        stock = draw(tiny_pipe)
        before = snapshot(tiny_pipe.unet)
        patch = agentsd.apply(tiny_pipe, MIXED)
        assert not torch.equal(draw(tiny_pipe), stock)
        undo(tiny_pipe, patch)
        assert not patch.active
        assert_same(before, snapshot(tiny_pipe.unet))
        assert torch.equal(draw(tiny_pipe), stock)

    def test_the_snapshot_sees_a_patch(self, tiny_unet):
        before = snapshot(tiny_unet)
        agentsd.apply(tiny_unet)
        with pytest.raises(AssertionError):
            assert_same(before, snapshot(tiny_unet))

    def test_the_users_own_hooks_stay_in_their_order(self, tiny_unet):
        block = tiny_unet.down_blocks[0].attentions[0].transformer_blocks[0]
        for module in (tiny_unet, block):
            module.register_forward_pre_hook(lambda module, args: None)
            module.register_forward_hook(lambda module, args, output: None)
        before = snapshot(tiny_unet)
        patch = agentsd.apply(tiny_unet)
        patch.remove()
        assert_same(before, snapshot(tiny_unet))

    def test_twice_does_nothing_more(self, tiny_unet):
        before = snapshot(tiny_unet)
        agentsd.remove(tiny_unet)
        patch = agentsd.apply(tiny_unet)
        patch.remove()
        patch.remove()
        agentsd.remove(tiny_unet)
        assert_same(before, snapshot(tiny_unet))

    def test_state_dict_and_parameters_are_unchanged_while_patched(self, tiny_unet):
        before = {name: value.clone() for name, value in tiny_unet.state_dict().items()}
        modules = [name for name, _ in tiny_unet.named_modules()]
        agentsd.apply(tiny_unet)
        after = tiny_unet.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert [name for name, _ in tiny_unet.named_modules()] == modules
        tiny_unet.load_state_dict(make_tiny_unet(seed=1).state_dict())

    def test_config_is_unchanged_while_patched(self, tiny_pipe):
        unet, pipe = dict(tiny_pipe.unet.config), dict(tiny_pipe.config)
        agentsd.apply(tiny_pipe)
        draw(tiny_pipe, steps=1)
        assert dict(tiny_pipe.unet.config) == unet
        assert dict(tiny_pipe.config) == pipe


class TestApplyAgain:
    def test_the_second_replaces_the_first(self, tiny_pipe):
        other = make_tiny_pipe()
        before = snapshot(tiny_pipe.unet)
        agentsd.apply(other, MERGE)
        first = agentsd.apply(tiny_pipe, AGENTS)
        second = agentsd.apply(tiny_pipe, MERGE)
        assert (first.active, second.active) == (False, True)
        assert torch.equal(draw(tiny_pipe), draw(other))
        second.remove()
        assert_same(before, snapshot(tiny_pipe.unet))

    def test_the_first_handle_no_longer_removes(self, tiny_pipe):
        first = agentsd.apply(tiny_pipe, AGENTS)
        agentsd.apply(tiny_pipe, MERGE)
        wanted, before = draw(tiny_pipe), snapshot(tiny_pipe.unet)
        first.remove()
        with first:
            pass
        assert_same(before, snapshot(tiny_pipe.unet))
        assert torch.equal(draw(tiny_pipe), wanted)

    def test_hooks_and_processors_are_installed_once(self, tiny_unet):
        agentsd.apply(tiny_unet)
        once = {name: len(part._forward_pre_hooks) for name, part in tiny_unet.named_modules()}
        agentsd.apply(tiny_unet)
        assert {name: len(part._forward_pre_hooks) for name, part in tiny_unet.named_modules()} == once
        assert sum(once.values()) == 1 + 7

    def test_the_first_handle_can_still_switch_a_call_off(self, tiny_pipe):
        stock = draw(tiny_pipe, steps=2)
        first = agentsd.apply(tiny_pipe, AGENTS)
        agentsd.apply(tiny_pipe, MERGE)
        with first.disabled():
            assert torch.equal(draw(tiny_pipe, steps=2), stock)


class TestSeveralPipelines:
    def test_two_pipelines_are_independent(self):
        one, two = make_tiny_pipe(seed=0), make_tiny_pipe(seed=1)
        stock = draw(two)
        patch_one, patch_two = agentsd.apply(one, AGENTS), agentsd.apply(two, MERGE)
        wanted = draw(one)
        patch_two.remove()
        assert torch.equal(draw(two), stock)
        assert patch_one.active
        assert torch.equal(draw(one), wanted)

    def test_a_shared_unet_is_patched_for_both_and_restored_for_both(self, tiny_pipe):
        other = StableDiffusionImg2ImgPipeline.from_pipe(tiny_pipe)
        other.set_progress_bar_config(disable=True)
        arguments = dict(image=PICTURE, strength=0.5, steps=8)
        stock = draw(other, **arguments)
        agentsd.apply(tiny_pipe, MIXED)
        with watch(tiny_pipe.unet) as calls:
            assert not torch.equal(draw(other, **arguments), stock)
        assert [call.config for call in calls] == [MIXED.at(i, 4) for i in range(4)]
        agentsd.remove(other)
        assert torch.equal(draw(other, **arguments), stock)
        with pytest.raises(ValueError, match="is not patched"):
            agentsd.report(tiny_pipe)

    def test_both_pipelines_of_a_shared_unet_keep_their_schedulers_known(self, tiny_pipe):
        from diffusers import IPNDMScheduler  # its timesteps are one entry shorter than their memory

        other = StableDiffusionPipeline(
            **{**tiny_pipe.components, "scheduler": IPNDMScheduler()}, requires_safety_checker=False
        )
        other.set_progress_bar_config(disable=True)
        schedule = Schedule((Phase(0.5, MERGE), Phase(1.0, None)))
        agentsd.apply(other, schedule)
        agentsd.apply(tiny_pipe, schedule)
        for pipe in (other, tiny_pipe):
            with watch(pipe.unet) as calls:
                draw(pipe, steps=6)
            assert [call.config for call in calls] == [MERGE] * 3 + [None] * 3

    def test_the_patch_does_not_keep_the_pipeline_alive(self):
        import gc
        import weakref

        pipe = make_tiny_pipe()
        unet, seen = pipe.unet, weakref.ref(pipe)
        agentsd.apply(pipe)
        draw(pipe, steps=1)
        del pipe
        gc.collect()
        assert seen() is None
        agentsd.remove(unet)


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                dict(schedule=AGENTS, ratio=0.4),
                r"ratio=0\.4 .* does not go with schedule=MergedTokens\(.*with_merge_ratio",
            ),
            (dict(schedule="fast", ratio=0.4), r"ratio=0\.4 .* does not go with schedule='fast'. Leave schedule out"),
            (
                dict(schedule="balancd"),
                r"preset 'balancd' is unknown\. Did you mean 'balanced'\? The presets are paper, ",
            ),
            (dict(schedule="zzz"), r"preset 'zzz' is unknown\. The presets are paper, gentle, "),
            (dict(ratio=1.5), r"^ratio=1\.5 must be a number in \[0, 1\)"),
            (
                dict(schedule=0.4),
                r"schedule=0\.4 is a number\. .* write ratio=0\.4, as in agentsd\.apply\(pipe, ratio=",
            ),
            (
                dict(schedule=None),
                r"schedule=None must be the name of a preset \(paper, .*\), a Schedule, a Plan, or set",
            ),
            (dict(schedule=True), r"schedule=True must be the name of a preset"),
            (dict(seed=0.5), "seed=0.5 must be an integer"),
            (dict(seed=True), "seed=True must be an integer"),
        ],
    )
    def test_bad_arguments_are_named_and_change_nothing(self, arguments, message, tiny_pipe):
        before = snapshot(tiny_pipe.unet)
        with pytest.raises(ValueError, match=message):
            agentsd.apply(tiny_pipe, **arguments)
        assert_same(before, snapshot(tiny_pipe.unet))
        patch = agentsd.apply(tiny_pipe, MERGE)
        with pytest.raises(ValueError, match=message):
            agentsd.apply(tiny_pipe, **arguments)
        assert patch.active

    @pytest.mark.parametrize("function", [agentsd.apply, agentsd.remove, agentsd.report])
    @pytest.mark.parametrize("target", [None, "a/model", object()])
    def test_anything_else_is_a_type_error(self, function, target):
        with pytest.raises(TypeError, match=f"target={type(target).__name__} must be a diffusers pipeline with a UNet"):
            function(target)

    def test_report_on_a_stock_pipeline(self, tiny_pipe):
        with pytest.raises(ValueError, match=r"StableDiffusionPipeline is not patched; call agentsd.apply"):
            agentsd.report(tiny_pipe)

    @pytest.mark.parametrize(
        ("build", "message"),
        [
            (
                lambda: make_tiny_unet(
                    down_block_types=("SimpleCrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
                    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
                    up_block_types=("UpBlock2D", "UpBlock2D", "SimpleCrossAttnUpBlock2D"),
                ),
                "UNet2DConditionModel has no self-attention layer that agentsd can patch. Found: .*layers: ",
            ),
            (
                lambda: UNet2DModel(
                    block_out_channels=(8,),
                    down_block_types=("DownBlock2D",),
                    up_block_types=("UpBlock2D",),
                    norm_num_groups=4,
                    add_attention=False,
                ),
                "UNet2DModel has no self-attention layer .* Found: no attention layer at all. Attention changes in ",
            ),
            (lambda: torch.nn.Linear(2, 2), "Linear has no self-attention layer"),
        ],
        ids=["KandinskyLike", "NoAttention", "NoUNet"],
    )
    def test_nothing_to_patch_says_what_was_found(self, build, message):
        module = build()
        before = snapshot(module)
        with pytest.raises(ValueError, match=message):
            agentsd.apply(module, "gentle")
        assert_same(before, snapshot(module))

    @pytest.mark.parametrize("method", [(Attention, "set_processor"), (torch.nn.Module, "register_forward_pre_hook")])
    def test_a_failure_half_way_leaves_nothing_behind(self, method, monkeypatch, tiny_unet):
        owner, name = method
        original, calls = getattr(owner, name), []

        def fail_at_the_third(*args, **kwargs):
            calls.append(args)
            if len(calls) == 3:
                raise RuntimeError("no more")
            return original(*args, **kwargs)

        before = snapshot(tiny_unet)
        monkeypatch.setattr(owner, name, fail_at_the_third)
        with pytest.raises(RuntimeError, match="no more"):
            agentsd.apply(tiny_unet)
        monkeypatch.undo()
        assert_same(before, snapshot(tiny_unet))

    def test_a_second_apply_that_finds_nothing_leaves_nothing_half_patched(self, tiny_unet):
        class Foreign:
            def __call__(self, attn, hidden_states, *args, **kwargs):
                return hidden_states

        patch = agentsd.apply(tiny_unet)
        foreign = {name: Foreign() for name in tiny_unet.attn_processors}
        tiny_unet.set_attn_processor(dict(foreign))
        with pytest.raises(ValueError, match="processor Foreign is not one of diffusers' standard ones"):
            agentsd.apply(tiny_unet, "gentle")
        assert tiny_unet.attn_processors == foreign
        assert patch.active

    def test_other_code_may_take_the_processors_and_the_earlier_patch_still_skips_steps(self, tiny_unet):
        patch = agentsd.apply(tiny_unet)
        with pytest.raises(ValueError, match="depth=9 must be at most"):
            agentsd.apply(tiny_unet, Schedule.constant(None, 2, skipping=Skipping(depth=9)))
        assert patch.active
        assert agentsd.apply(tiny_unet, "paper").active
        assert not patch.active


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_call_that_raises_is_over_and_leaves_no_feature(error, tiny_unet):
    agentsd.apply(tiny_unet, Schedule.constant(SAMPLE, every=2))
    slot = tiny_unet.__dict__["_agentsd"].slot
    during = []

    def stop(*_):
        during.append(slot.read().levels)
        slot.put_feature(torch.zeros(1))
        raise error

    tiny_unet.conv_out.register_forward_pre_hook(stop)
    sample, text = unet_inputs()
    with pytest.raises(error):
        tiny_unet(sample, 900, text)
    assert during[0]
    assert not slot.read().levels
    assert slot.take_feature() is None


class TestReport:
    def test_names_the_layers_and_grids(self, tiny_unet):
        report = agentsd.apply(tiny_unet, AGENTS).report()
        assert [(layer.name.split(".attentions")[0], layer.downsample, layer.grid) for layer in report.layers] == [
            ("down_blocks.0", 1, (16, 16)),
            ("down_blocks.1", 2, (8, 8)),
            ("mid_block", 4, (4, 4)),
            ("up_blocks.1", 2, (8, 8)),
            ("up_blocks.1", 2, (8, 8)),
            ("up_blocks.2", 1, (16, 16)),
            ("up_blocks.2", 1, (16, 16)),
        ]
        assert len(report.skipped) == 7
        assert {reason for _, reason in report.skipped} == {"cross-attention"}
        assert "grid 16x16, 256 tokens, 256 kept, 16 agents" in report.details()

    def test_says_when_the_patch_is_gone(self, tiny_unet):
        patch = agentsd.apply(tiny_unet, AGENTS)
        later = agentsd.apply(tiny_unet, "paper")
        told = patch.report()
        assert not told.active
        assert all(layer.problem is None for layer in told.layers)
        assert "NOT IN FORCE: replaced by a later agentsd.apply" in str(told)
        assert later.report().active
        assert "NOT IN FORCE" not in str(later.report())

    def test_follows_the_size_of_the_last_call(self, tiny_unet):
        patch = agentsd.apply(tiny_unet, AGENTS)
        sample, text = unet_inputs(height=17, width=23)
        with torch.no_grad():
            tiny_unet(sample, 900, text)
        assert [layer.grid for layer in patch.report().layers[:3]] == [(17, 23), (9, 12), (5, 6)]
        assert all(layer.problem is None for layer in patch.report().layers)

    @pytest.mark.parametrize("make", [make_tiny_pipe, make_sdxl_pipe, make_controlnet])
    def test_every_attention_layer_is_in_it_once(self, make):
        target = make()
        report = agentsd.apply(target, AGENTS).report()
        denoiser = getattr(target, "unet", target)
        attentions = sorted(name for name, part in denoiser.named_modules() if isinstance(part, Attention))
        listed = [layer.name for layer in report.layers] + [name for name, _ in report.skipped]
        assert sorted(listed) == attentions

    def test_the_handle_prints_as_one_line(self, tiny_unet):
        patch = agentsd.apply(tiny_unet)
        assert repr(patch) == "Patch on UNet2DConditionModel: preset balanced"
        patch.remove()
        assert repr(patch) == "Patch on UNet2DConditionModel: removed"


def test_a_copy_is_patched_on_its_own(tiny_unet):
    sample, text = unet_inputs()
    agentsd.apply(tiny_unet, AGENTS)
    twin = copy.deepcopy(tiny_unet)
    with torch.no_grad():
        patched = tiny_unet(sample, 900, text).sample
        assert torch.equal(twin(sample, 900, text).sample, patched)
        agentsd.remove(tiny_unet)
        assert torch.equal(twin(sample, 900, text).sample, patched)
        agentsd.remove(twin)
        assert torch.equal(twin(sample, 900, text).sample, tiny_unet(sample, 900, text).sample)
        assert not torch.equal(tiny_unet(sample, 900, text).sample, patched)
    fresh = {
        name: set(part.__dict__) for name, part in UNet2DConditionModel.from_config(tiny_unet.config).named_modules()
    }
    assert {name: set(part.__dict__) - {"_is_hf_initialized"} for name, part in twin.named_modules()} == fresh
