"""Every kind of pipeline: agent phases change the image, stock phases and undoing are stock bit for bit."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import Attention
from matrix import KINDS, PICTURE, REFUSED, Kind, controlnet, run, sdxl_controlnet, table
from probe import (
    AGENTS,
    COPY,
    MERGE,
    MIXED,
    OFF,
    POOL,
    SAMPLE,
    assert_same,
    expected,
    may_miss_steps,
    snapshot,
    unet_inputs,
    watch,
)
from tiny import components, draw, make_controlnet, make_sdxl_pipe, make_tiny_pipe, make_tiny_unet

import agentsd
from agentsd import MergedTokens, Phase, PooledAgents, Schedule, Skipping
from agentsd.unet.noise import noise_source

kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.id, indirect=True)


@dataclass
class Built:
    """A pipeline of a kind, the arguments of its call, and what it makes by itself."""

    kind: Kind
    pipe: Any
    arguments: dict
    stock: torch.Tensor

    def run(self):
        return run(self.pipe, steps=self.kind.steps, **self.arguments)

    def run_patched(self):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            output = self.run()
        ours = [str(w.message) for w in caught if "agentsd" in str(w.message)]
        if self.kind.warns is None:
            assert not ours
        else:
            assert len(ours) == 1
            assert self.kind.warns in ours[0]
        return output

    @property
    def calls(self):
        return self.kind.calls or self.kind.steps


@pytest.fixture(scope="module")
def kind(request):
    """A built kind: the tests leave it stock, which is what they are about."""
    if request.param.id == "lora":
        pytest.importorskip("peft")
    pipe, arguments = request.param.build()
    built = Built(request.param, pipe, arguments, None)
    built.stock = built.run()
    return built


class TestEveryKind:
    @kinds
    def test_follows_its_schedule_and_comes_back(self, kind):
        unet = kind.pipe.unet
        before = snapshot(unet)
        patch = agentsd.apply(kind.pipe, MIXED)
        with watch(unet) as calls:
            patched = kind.run_patched()
        assert len(calls) == kind.calls
        assert [call.config for call in calls] == expected(MIXED, calls)
        assert {call.config for call in calls} == {AGENTS, MERGE, None}
        assert torch.isfinite(patched).all()
        assert patched.shape == kind.stock.shape
        assert not torch.allclose(patched, kind.stock, rtol=1e-3)
        patch.remove()
        assert_same(before, snapshot(unet))
        if kind.kind.warns is None:  # PAG's own processors are gone when a call is repeated
            for call in calls:
                assert torch.equal(call.output, call.replay(unet)) == (call.config is None)
        assert torch.equal(kind.run(), kind.stock)

    @kinds
    def test_no_schedule_is_stock(self, kind):
        with agentsd.apply(kind.pipe, OFF):
            assert torch.equal(kind.run(), kind.stock)

    @kinds
    def test_the_report_names_the_right_layers(self, kind):
        with agentsd.apply(kind.pipe, PooledAgents(stride=2)) as patch:
            kind.run()
            report = patch.report()
        finest = [layer for layer in report.layers if layer.downsample == 1]
        assert len(finest) == 3
        assert all(layer.name.startswith(kind.kind.finest) and layer.grid == kind.kind.grid for layer in finest)
        assert all(layer.problem is None for layer in report.layers)
        names = {layer.name for layer in report.layers}
        assert all(name.endswith("attn1") for name in names)
        assert not [name for name in names if "motion" in name or "temporal" in name]
        unet = kind.pipe.unet
        attentions = {name for name, part in unet.named_modules() if isinstance(part, Attention)}
        assert names | {name for name, _ in report.skipped} == attentions

    @kinds
    def test_skipped_steps(self, kind):
        if not kind.kind.skipping:
            with pytest.raises(ValueError, match=r"depth=1 runs the last layers of a UNet2DConditionModel"):
                agentsd.apply(kind.pipe, Schedule.constant(None, 2, skipping=Skipping(depth=1)))
            with agentsd.apply(kind.pipe, Schedule.constant(None, 2)) as patch:
                assert not torch.equal(kind.run_patched(), kind.stock)
                assert patch.report().last_run.skipped == 2
        else:
            schedule = Schedule.constant(POOL)
            with agentsd.apply(kind.pipe, schedule):
                whole = kind.run()
            for depth in (0, 1):
                middle = []
                hook = kind.pipe.unet.mid_block.register_forward_hook(
                    may_miss_steps(lambda *_, seen=middle: seen.append(1))
                )
                with agentsd.apply(
                    kind.pipe,
                    Schedule((Phase(1.0, POOL, 2),), skipping=Skipping(depth=depth, forecast=0.0, last_full=False)),
                ) as patch:
                    if depth == 0 and noise_source(kind.pipe.scheduler):
                        with pytest.warns(UserWarning, match="agentsd runs the last layer at skipped steps"):
                            skipped = kind.run()
                    else:
                        skipped = kind.run_patched()
                    assert patch.report().skipping_problem is None
                hook.remove()
                assert len(middle) == (kind.calls + 1) // 2
                assert torch.isfinite(skipped).all()
                assert not torch.equal(skipped, whole)
        assert torch.equal(kind.run(), kind.stock)


class TestRefused:
    @pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.build.__name__)
    def test_says_so_and_why(self, refused):
        if refused.build.__name__ == "already_tomesd":
            pytest.importorskip("tomesd")
        with pytest.raises(ValueError, match=refused.message):
            agentsd.apply(refused.build(), "gentle")


def test_the_docs_list_every_kind():
    page = (Path(__file__).parent.parent / "docs" / "pipelines.md").read_text(encoding="utf-8")
    assert table() in page, "docs/pipelines.md is out of date; run scripts/dev/pipelines.py"
    assert all(hasattr(diffusers, kind.pipeline) for kind in KINDS if " " not in kind.pipeline)


class TestRivals:
    """DeepCache skips layers as we do, tomesd merges tokens as we do: both work together, or the error says why not."""

    @pytest.fixture
    def helper(self, tiny_pipe):
        helper = pytest.importorskip("DeepCache").DeepCacheSDHelper(pipe=tiny_pipe)
        helper.set_params(cache_interval=2, cache_branch_id=0)
        return helper

    def test_deepcache_before_skipped_steps_is_refused(self, helper, tiny_pipe):
        helper.enable()
        cached = draw(tiny_pipe)
        for schedule in (agentsd.preset().with_skipping(2), Schedule.constant(POOL, every=2, skipping=COPY)):
            with pytest.raises(
                ValueError, match=r"cannot be skipped on top of DeepCache, .* use schedule\.with_skipping"
            ):
                agentsd.apply(tiny_pipe, schedule)
        assert torch.equal(draw(tiny_pipe), cached)

    def test_deepcache_before_a_preset_replaces_its_skipped_steps(self, helper, tiny_pipe):
        other = make_tiny_pipe()
        helper.enable()
        cached = draw(tiny_pipe)
        with pytest.warns(UserWarning, match="nothing to do here: DeepCache is enabled"):
            patch = agentsd.apply(tiny_pipe)
        assert torch.equal(draw(tiny_pipe), cached)
        assert "DeepCache is enabled and skips steps itself; the preset skips none" in str(patch.report())
        patch.remove()
        assert torch.equal(draw(tiny_pipe), cached)
        helper.disable()
        assert torch.equal(draw(tiny_pipe), draw(other))

    def test_deepcache_after_skipped_steps_is_reported(self, helper, tiny_pipe):
        patch = agentsd.apply(tiny_pipe, Schedule.constant(POOL, 2, skipping=COPY))
        alone = draw(tiny_pipe)
        helper.enable()
        with pytest.warns(UserWarning, match="does not skip steps: DeepCache is enabled"):
            both = draw(tiny_pipe)
        assert "DeepCache" in patch.report().skipping_problem
        wanted = make_tiny_pipe()
        agentsd.apply(wanted, POOL)
        theirs = type(helper)(pipe=wanted)
        theirs.set_params(cache_interval=2, cache_branch_id=0)
        theirs.enable()
        assert torch.equal(both, draw(wanted))
        helper.disable()
        assert torch.equal(draw(tiny_pipe), alone)
        patch.remove()
        assert torch.equal(draw(tiny_pipe), draw(make_tiny_pipe()))

    @pytest.mark.parametrize("every", [1, 2])
    def test_tomesd_afterwards_has_the_layers_that_it_takes_and_is_reported(self, every, tiny_pipe):
        tomesd = pytest.importorskip("tomesd")
        patch = agentsd.apply(
            tiny_pipe, Schedule.constant(PooledAgents(stride=4, max_downsample=2), every, skipping=COPY)
        )
        patched = draw(tiny_pipe)
        tomesd.apply_patch(tiny_pipe, ratio=0.5)  # of the finest level
        with pytest.warns(UserWarning, match="number of tokens differs from the expected grid: stock"):
            both = draw(tiny_pipe)
        assert torch.isfinite(both).all()
        problems = {layer.downsample: layer.problem for layer in patch.report().layers}
        assert "number of tokens differs" in problems[1]
        assert problems[2] is None
        tomesd.remove_patch(tiny_pipe)
        assert torch.equal(draw(tiny_pipe), patched)


class TestPerturbedAttentionGuidance:
    """PAG exchanges the processors of its own layers during the call and puts ours back after it."""

    def test_layers_that_it_does_not_take_are_patched(self):
        pipe = make_tiny_pipe(diffusers.StableDiffusionPAGPipeline)  # takes the middle block
        stock = draw(pipe, steps=8, pag_scale=3.0)
        before = snapshot(pipe.unet)
        patch = agentsd.apply(pipe, MIXED)
        while_patched = snapshot(pipe.unet)
        with pytest.warns(UserWarning, match="1 of the 7 attention processors") as caught, watch(pipe.unet) as calls:
            patched = draw(pipe, steps=8, pag_scale=3.0)
        assert len([w for w in caught if "agentsd" in str(w.message)]) == 1
        assert calls[0].args[0].shape[0] == 3
        assert [call.config for call in calls] == expected(MIXED, calls)
        assert not torch.equal(patched, stock)
        assert_same(while_patched, snapshot(pipe.unet))
        patch.remove()
        assert_same(before, snapshot(pipe.unet))
        assert torch.equal(draw(pipe, steps=8, pag_scale=3.0), stock)

    def test_without_pag_it_is_the_ordinary_pipeline(self):
        pipe = make_tiny_pipe(diffusers.StableDiffusionPAGPipeline)
        plain = make_tiny_pipe()
        for each in (pipe, plain):
            agentsd.apply(each, MIXED)
        assert torch.equal(draw(pipe, steps=4, pag_scale=0.0), draw(plain, steps=4))


class TestControlNet:
    @staticmethod
    def assert_runs_and_is_undone(pipe, arguments, stock, patch, net):
        with watch(pipe.controlnet) as calls:
            assert not torch.equal(draw(pipe, steps=8, **arguments), stock)
        assert [call.config for call in calls] == expected(MIXED, calls)
        patch.remove()
        assert_same(net, snapshot(pipe.controlnet))
        assert torch.equal(draw(pipe, steps=8, **arguments), stock)

    def test_it_is_left_alone_unless_it_is_the_target(self):
        pipe = controlnet()[0]
        before = snapshot(pipe.controlnet)
        agentsd.apply(pipe, AGENTS)
        assert_same(before, snapshot(pipe.controlnet))

    def test_it_can_be_the_target(self):
        pipe, arguments = controlnet()
        stock = draw(pipe, steps=8, **arguments)
        unet, net = snapshot(pipe.unet), snapshot(pipe.controlnet)
        patch = agentsd.apply(pipe.controlnet, MIXED)
        assert_same(unet, snapshot(pipe.unet))
        assert [(layer.name.split(".a")[0], layer.downsample) for layer in patch.report().layers] == [
            ("down_blocks.0", 1),
            ("down_blocks.1", 2),
            ("mid_block", 4),
        ]
        self.assert_runs_and_is_undone(pipe, arguments, stock, patch, net)

    @pytest.mark.parametrize("applied", [("pipe", "net"), ("net", "pipe")])
    @pytest.mark.parametrize("removed", [("pipe", "net"), ("net", "pipe")])
    def test_it_and_its_pipeline_are_undone_in_any_order(self, applied, removed):
        pipe, arguments = controlnet()
        stock = draw(pipe, steps=12, **arguments)
        targets = {"pipe": pipe, "net": pipe.controlnet}
        before = snapshot(pipe.controlnet), dict(pipe.controlnet.__dict__)
        for name in applied:
            agentsd.apply(targets[name], {"pipe": "balanced", "net": MIXED}[name])
        assert not torch.equal(draw(pipe, steps=12, **arguments), stock)
        for name in removed:
            agentsd.remove(targets[name])
        assert_same(before[0], snapshot(pipe.controlnet))
        assert pipe.controlnet.__dict__ == before[1]
        assert torch.equal(draw(pipe, steps=12, **arguments), stock)

    def test_the_default_preset_serves_it(self):
        # A ControlNet has no up blocks, so no steps to skip: the default must not fail on a supported target.
        pipe, arguments = controlnet()
        stock = draw(pipe, steps=8, **arguments)
        with pytest.warns(UserWarning, match="The preset 'gentle' skips none"):
            agentsd.apply(pipe.controlnet)
        assert torch.equal(draw(pipe, steps=8, **arguments), stock)
        agentsd.apply(pipe.controlnet, "gentle")
        assert not torch.equal(draw(pipe, steps=8, **arguments), stock)

    def test_that_of_sdxl_can_be_the_target(self):
        pipe, arguments = sdxl_controlnet()
        stock = draw(pipe, steps=8, **arguments)
        net = snapshot(pipe.controlnet)
        patch = agentsd.apply(pipe.controlnet, MIXED)
        assert {(layer.name.split(".a")[0], layer.downsample) for layer in patch.report().layers} == {
            ("down_blocks.1", 1), ("down_blocks.2", 2), ("mid_block", 2)
        }  # fmt: skip
        self.assert_runs_and_is_undone(pipe, arguments, stock, patch, net)

    def test_several_at_once_are_patched_one_by_one(self):
        first, second = make_controlnet(), make_controlnet()
        pipe = diffusers.StableDiffusionControlNetPipeline(
            **components(), controlnet=[first, second], requires_safety_checker=False
        )
        arguments = dict(image=[PICTURE, PICTURE])
        stock = draw(pipe, steps=8, **arguments)
        with pytest.raises(ValueError, match=r"holds several ControlNets; call agentsd.apply for each of its `.nets`"):
            agentsd.apply(pipe.controlnet)
        patches = [agentsd.apply(net, MIXED) for net in pipe.controlnet.nets]
        with watch(second) as calls:
            assert not torch.equal(draw(pipe, steps=8, **arguments), stock)
        assert [call.config for call in calls] == expected(MIXED, calls)
        for patch in patches:
            patch.remove()
        assert torch.equal(draw(pipe, steps=8, **arguments), stock)

    def test_both_at_once(self):
        pipe, arguments = controlnet()
        agentsd.apply(pipe, MIXED)
        only_unet = draw(pipe, steps=8, **arguments)
        agentsd.apply(pipe.controlnet, MIXED)
        with watch(pipe.unet) as calls:
            assert not torch.equal(draw(pipe, steps=8, **arguments), only_unet)
        assert [call.config for call in calls] == expected(MIXED, calls)


class TestSizes:
    @pytest.mark.parametrize("size", [(17, 23), (16, 16), (5, 40), (31, 8), (4, 4), (33, 7)])
    @pytest.mark.parametrize("config", [AGENTS, POOL, SAMPLE, MERGE], ids=["agents", "pool", "sample", "merge"])
    def test_any_size(self, size, config, tiny_pipe):
        latents = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(1))
        stock = draw(tiny_pipe, steps=2, latents=latents)
        patch = agentsd.apply(tiny_pipe, config)
        patched = draw(tiny_pipe, steps=2, latents=latents)
        assert patched.shape == stock.shape
        assert torch.isfinite(patched).all()
        assert not torch.equal(patched, stock)
        layers = patch.report().layers
        assert all(layer.problem is None for layer in layers)
        assert {layer.grid for layer in layers if layer.downsample == 1} == {size}

    @pytest.mark.parametrize("size", [(3, 3), (3, 20), (20, 2)])
    def test_a_grid_without_a_whole_cell_runs_stock_and_says_so(self, size, tiny_unet):
        sample, text = unet_inputs(1, *size)
        with torch.no_grad():
            stock = tiny_unet(sample, 900, text[:1]).sample
            patch = agentsd.apply(tiny_unet, AGENTS)
            assert torch.equal(tiny_unet(sample, 900, text[:1]).sample, stock)
        assert f"stock (grid {size[0]}x{size[1]} holds no whole cell of stride 4)" in patch.report().details()

    def test_a_grid_where_agents_would_not_pay_merges_alone_and_says_so(self, tiny_unet):
        agents = MergedTokens(merge_ratio=0.6, agent_ratio=0.81, stride=4)
        sample, text = unet_inputs(1, 5, 5)
        outputs = []
        for config in (agents, replace(agents, agent_ratio=None)):
            patch = agentsd.apply(tiny_unet, config)
            with torch.no_grad():
                outputs.append(tiny_unet(sample, 900, text[:1]).sample)
            if config is agents:
                assert "25 tokens, 10 kept, no agents (they would be half of" in patch.report().details()
        assert torch.equal(*outputs)

    def test_a_grid_where_nothing_would_be_saved_runs_stock_and_says_so(self, tiny_unet):
        sample, text = unet_inputs(1, 3, 3)
        with torch.no_grad():
            stock = tiny_unet(sample, 900, text[:1]).sample
            patch = agentsd.apply(tiny_unet, MergedTokens(agent_ratio=0.51, stride=2))
            assert torch.equal(tiny_unet(sample, 900, text[:1]).sample, stock)
        assert "stock (grid 3x3 is too small to save anything)" in patch.report().details()

    def test_coarse_levels_too_small_for_a_cell_run_stock_while_fine_ones_do_not(self, tiny_unet):
        config = MergedTokens(stride=4, max_downsample=4)
        sample, text = unet_inputs(1, 4, 4)
        patch = agentsd.apply(tiny_unet, config)
        with torch.no_grad():
            tiny_unet(sample, 900, text[:1])
        text_report = patch.report().details()
        assert "mid_block.attentions.0.transformer_blocks.0.attn1: stock (grid 1x1 holds no whole cell" in text_report
        assert "grid 2x2, 4 tokens, 4 kept, 1 agents" in text_report
        assert "grid 4x4, 16 tokens, 16 kept, 1 agents" in text_report

    @pytest.mark.parametrize("guidance", [1.0, 7.5])
    @pytest.mark.parametrize("config", [AGENTS, POOL, SAMPLE, MERGE], ids=["agents", "pool", "sample", "merge"])
    def test_an_image_does_not_depend_on_its_batch(self, config, guidance, tiny_pipe):
        agentsd.apply(tiny_pipe, config)
        latents = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
        prompts = ["one", "two", "three"]
        arguments = dict(steps=2, guidance_scale=guidance)
        together = draw(tiny_pipe, prompts, latents=latents, **arguments)
        assert together.shape == latents.shape
        for index, prompt in enumerate(prompts):
            alone = draw(tiny_pipe, prompt, latents=latents[index : index + 1], **arguments)
            torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-3, atol=1e-3)

    def test_several_images_per_prompt(self, tiny_pipe):
        agentsd.apply(tiny_pipe, MIXED)
        images = draw(tiny_pipe, num_images_per_prompt=3)
        assert images.shape[0] == 3
        assert not torch.allclose(images[0], images[1])

    def test_a_picture_comes_out(self, tiny_pipe):
        agentsd.apply(tiny_pipe)
        images = draw(tiny_pipe, output_type="np", height=40, width=24)
        assert images.shape == (1, 40, 24, 3)


class TestUnetShapes:
    def test_levels_are_counted_from_the_finest_with_attention(self):
        pipe = make_sdxl_pipe()
        stock = draw(pipe, steps=2)
        patch = agentsd.apply(pipe, MergedTokens(stride=2))
        assert not torch.equal(draw(pipe, steps=2), stock)
        report = patch.report()
        assert [(layer.downsample, layer.grid) for layer in report.layers] == (
            [(1, (8, 8))] + [(2, (4, 4))] * 2 + [(2, (4, 4))] * 2 + [(2, (4, 4))] * 4 + [(1, (8, 8))] * 2
        )
        assert "64 tokens, 64 kept, 16 agents" in report.details()

    def test_layers_that_are_cross_attention_are_not_taken(self):
        # The x4 upscaler's levels: both attentions of a block look at the text.
        unet = make_tiny_unet(only_cross_attention=(True, False, True))
        report = agentsd.apply(unet).report()
        assert [(layer.name.split(".a")[0], layer.downsample) for layer in report.layers] == [
            ("down_blocks.1", 1),
            ("mid_block", 2),
            ("up_blocks.1", 1),
            ("up_blocks.1", 1),
        ]
        assert len([name for name, reason in report.skipped if name.endswith("attn1")]) == 3

    @pytest.mark.parametrize("layers", [1, 2])
    def test_several_blocks_per_level(self, layers):
        unet = make_tiny_unet(layers_per_block=layers, transformer_layers_per_block=2, use_linear_projection=True)
        report = agentsd.apply(unet, AGENTS).report()
        assert len(report.layers) == 2 * (layers + layers + 1 + 2 * (layers + 1))
        sample, text = unet_inputs()
        with watch(unet) as calls, torch.no_grad():
            unet(sample, 900, text)
        assert calls[0].config == AGENTS

    def test_video_unets_give_only_their_spatial_layers(self):
        unet = diffusers.UNetMotionModel(
            sample_size=16,
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
            up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
            layers_per_block=1,
            num_attention_heads=2,
            motion_num_attention_heads=2,
            cross_attention_dim=32,
            norm_num_groups=8,
            motion_max_seq_length=8,
        )
        report = agentsd.apply(unet, POOL).report()
        assert report.layers
        assert not [layer.name for layer in report.layers if "motion_modules" in layer.name]
        temporal = [reason for name, reason in report.skipped if "motion_modules" in name and name.endswith("attn1")]
        assert temporal
        assert set(temporal) == {"inside AnimateDiffTransformer3D, not a Transformer2DModel of a UNet's blocks"}


def test_the_phases_of_two_presets_differ_in_the_image(tiny_pipe):
    images = [draw(tiny_pipe, steps=20)]
    for arguments in (dict(schedule="paper"), dict(schedule="balanced"), dict(schedule="paper", ratio=0.1)):
        agentsd.apply(tiny_pipe, **arguments)
        images.append(draw(tiny_pipe, steps=20))
    for one in range(len(images)):
        for other in range(one):
            assert not torch.equal(images[one], images[other])


def test_a_default_call_needs_no_argument(tiny_pipe):
    patch = agentsd.apply(tiny_pipe)
    assert patch.schedule == agentsd.preset() == agentsd.PRESETS["balanced"]
    assert agentsd.apply(tiny_pipe, ratio=0.2).schedule == agentsd.preset("paper").with_merge_ratio(0.2)
    constant = Schedule((Phase(1.0, AGENTS),))
    assert agentsd.apply(tiny_pipe, AGENTS).schedule == constant
