"""Every kind of pipeline: agent phases change the image, stock phases and undoing are stock bit for bit."""

import diffusers
import pytest
import torch
from diffusers import LCMScheduler
from probe import AGENTS, MERGE, MIXED, OFF, POOL, assert_same, expected, snapshot, unet_inputs, watch
from tiny import components, draw, make_controlnet, make_sdxl_pipe, make_tiny_pipe, make_tiny_unet

import agentsd
from agentsd import AgentConfig, Phase, Schedule

GENERATOR = torch.Generator().manual_seed(9)
PICTURE = torch.rand(1, 3, 32, 32, generator=GENERATOR)
MASK = (torch.rand(1, 1, 32, 32, generator=GENERATOR) > 0.5).float()
DEPTH = torch.rand(1, 32, 32, generator=GENERATOR)


def text_to_image():
    return make_tiny_pipe(), {}, 8


def image_to_image():
    return make_tiny_pipe(diffusers.StableDiffusionImg2ImgPipeline), dict(image=PICTURE, strength=0.5), 4


def inpaint():
    return make_tiny_pipe(diffusers.StableDiffusionInpaintPipeline), dict(image=PICTURE, mask_image=MASK), 8


def inpaint_nine_channels():
    pipe = make_tiny_pipe(diffusers.StableDiffusionInpaintPipeline, in_channels=9)
    return pipe, dict(image=PICTURE, mask_image=MASK, height=32, width=32), 8


def instruct_pix2pix():
    return make_tiny_pipe(diffusers.StableDiffusionInstructPix2PixPipeline, in_channels=8), dict(image=PICTURE), 8


def depth_to_image():
    parts = components(in_channels=5)
    del parts["safety_checker"]
    pipe = diffusers.StableDiffusionDepth2ImgPipeline(**parts, depth_estimator=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe, dict(image=PICTURE, depth_map=DEPTH, strength=1.0), 8


def latent_consistency():
    pipe = make_tiny_pipe(diffusers.LatentConsistencyModelPipeline, time_cond_proj_dim=8)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    return pipe, {}, 8


def controlnet():
    pipe = diffusers.StableDiffusionControlNetPipeline(
        **components(), controlnet=make_controlnet(), requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe, dict(image=PICTURE), 8


def controlnet_guess_mode():
    pipe, arguments, steps = controlnet()
    return pipe, dict(**arguments, guess_mode=True), steps


def sdxl():
    return make_sdxl_pipe(), {}, 8


KINDS = [
    text_to_image,
    image_to_image,
    inpaint,
    inpaint_nine_channels,
    instruct_pix2pix,
    depth_to_image,
    latent_consistency,
    controlnet,
    controlnet_guess_mode,
    sdxl,
]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


class TestEveryKind:
    @kinds
    def test_follows_its_schedule_and_comes_back(self, kind):
        pipe, arguments, number = kind()
        before = snapshot(pipe.unet)
        stock = draw(pipe, steps=8, **arguments)
        patch = agentsd.apply(pipe, schedule=MIXED)
        with watch(pipe.unet) as calls:
            patched = draw(pipe, steps=8, **arguments)
        assert len(calls) == number
        assert [call.config for call in calls] == expected(MIXED, calls)
        assert torch.isfinite(patched).all()
        assert patched.shape == stock.shape
        assert not torch.equal(patched, stock)
        assert not torch.allclose(patched, stock, rtol=1e-3)
        patch.remove()
        assert_same(before, snapshot(pipe.unet))
        for call in calls:
            assert torch.equal(call.output, call.replay(pipe.unet)) == (call.config is None)
        assert torch.equal(draw(pipe, steps=8, **arguments), stock)

    @kinds
    def test_no_schedule_is_stock(self, kind):
        pipe, arguments, _ = kind()
        stock = draw(pipe, steps=2, **arguments)
        agentsd.apply(pipe, schedule=OFF)
        assert torch.equal(draw(pipe, steps=2, **arguments), stock)

    @kinds
    def test_the_finest_level_with_attention_is_patched(self, kind):
        pipe, arguments, _ = kind()
        patch = agentsd.apply(pipe, config=POOL if kind is not sdxl else AgentConfig(agents="pool", stride=2))
        draw(pipe, steps=2, **arguments)
        report = patch.report()
        finest = [layer for layer in report.layers if layer.downsample == 1]
        prefixes, grid = ("down_blocks.0", "up_blocks.2"), (16, 16)
        if kind is sdxl:
            prefixes, grid = ("down_blocks.1", "up_blocks.1"), (8, 8)
        assert len(finest) == 3
        assert all(layer.name.startswith(prefixes) and layer.grid == grid for layer in finest)
        assert all(layer.problem is None for layer in report.layers)


class TestPerturbedAttentionGuidance:
    """PAG exchanges the processors of its own layers during the call and puts ours back after it."""

    def test_layers_that_it_does_not_take_are_patched(self):
        pipe = make_tiny_pipe(diffusers.StableDiffusionPAGPipeline)  # takes the middle block
        stock = draw(pipe, steps=8, pag_scale=3.0)
        before = snapshot(pipe.unet)
        patch = agentsd.apply(pipe, schedule=MIXED)
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
            agentsd.apply(each, schedule=MIXED)
        assert torch.equal(draw(pipe, steps=4, pag_scale=0.0), draw(plain, steps=4))


class TestControlNet:
    def test_it_is_left_alone_unless_it_is_the_target(self):
        pipe = controlnet()[0]
        before = snapshot(pipe.controlnet)
        agentsd.apply(pipe, config=AGENTS)
        assert_same(before, snapshot(pipe.controlnet))

    def test_it_can_be_the_target(self):
        pipe, arguments, _ = controlnet()
        stock = draw(pipe, steps=8, **arguments)
        unet, net = snapshot(pipe.unet), snapshot(pipe.controlnet)
        patch = agentsd.apply(pipe.controlnet, schedule=MIXED)
        assert_same(unet, snapshot(pipe.unet))
        assert [(layer.name.split(".a")[0], layer.downsample) for layer in patch.report().layers] == [
            ("down_blocks.0", 1),
            ("down_blocks.1", 2),
            ("mid_block", 4),
        ]
        with watch(pipe.controlnet) as calls:
            assert not torch.equal(draw(pipe, steps=8, **arguments), stock)
        assert [call.config for call in calls] == expected(MIXED, calls)
        patch.remove()
        assert_same(net, snapshot(pipe.controlnet))
        assert torch.equal(draw(pipe, steps=8, **arguments), stock)

    def test_the_default_preset_serves_it(self):
        # A ControlNet has no up blocks, so nothing to reuse: the default must not fail on a supported target.
        pipe, arguments, _ = controlnet()
        stock = draw(pipe, steps=8, **arguments)
        agentsd.apply(pipe.controlnet)
        assert not torch.equal(draw(pipe, steps=8, **arguments), stock)

    def test_both_at_once(self):
        pipe, arguments, _ = controlnet()
        agentsd.apply(pipe, schedule=MIXED)
        only_unet = draw(pipe, steps=8, **arguments)
        agentsd.apply(pipe.controlnet, schedule=MIXED)
        with watch(pipe.unet) as calls:
            assert not torch.equal(draw(pipe, steps=8, **arguments), only_unet)
        assert [call.config for call in calls] == expected(MIXED, calls)


class TestSizes:
    @pytest.mark.parametrize("size", [(17, 23), (16, 16), (5, 40), (31, 8), (4, 4), (33, 7)])
    @pytest.mark.parametrize("config", [AGENTS, POOL, MERGE], ids=["agents", "pool", "merge"])
    def test_any_size(self, size, config, tiny_pipe):
        latents = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(1))
        stock = draw(tiny_pipe, steps=2, latents=latents)
        patch = agentsd.apply(tiny_pipe, config=config)
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
            patch = agentsd.apply(tiny_unet, config=AGENTS)
            assert torch.equal(tiny_unet(sample, 900, text[:1]).sample, stock)
        assert f"stock (grid {size[0]}x{size[1]} holds no whole cell of stride 4)" in str(patch.report())

    def test_coarse_levels_too_small_for_a_cell_run_stock_while_fine_ones_do_not(self, tiny_unet):
        config = AgentConfig(stride=4, max_downsample=4)
        sample, text = unet_inputs(1, 12, 12)
        patch = agentsd.apply(tiny_unet, config=config)
        with torch.no_grad():
            tiny_unet(sample, 900, text[:1])
        text_report = str(patch.report())
        assert "mid_block.attentions.0.transformer_blocks.0.attn1: stock (grid 3x3 holds no whole cell" in text_report
        assert "grid 6x6, 36 tokens -> 36 features -> 1 agents" in text_report
        assert "grid 12x12, 144 tokens -> 144 features -> 9 agents" in text_report

    @pytest.mark.parametrize("guidance", [1.0, 7.5])
    @pytest.mark.parametrize("config", [AGENTS, POOL, MERGE], ids=["agents", "pool", "merge"])
    def test_an_image_does_not_depend_on_its_batch(self, config, guidance, tiny_pipe):
        agentsd.apply(tiny_pipe, config=config)
        latents = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
        prompts = ["one", "two", "three"]
        arguments = dict(steps=2, guidance_scale=guidance)
        together = draw(tiny_pipe, prompts, latents=latents, **arguments)
        assert together.shape == latents.shape
        for index, prompt in enumerate(prompts):
            alone = draw(tiny_pipe, prompt, latents=latents[index : index + 1], **arguments)
            torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-3, atol=1e-3)

    def test_several_images_per_prompt(self, tiny_pipe):
        agentsd.apply(tiny_pipe, schedule=MIXED)
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
        patch = agentsd.apply(pipe, config=AgentConfig(stride=2))
        assert not torch.equal(draw(pipe, steps=2), stock)
        report = patch.report()
        assert [(layer.downsample, layer.grid) for layer in report.layers] == (
            [(1, (8, 8))] + [(2, (4, 4))] * 2 + [(2, (4, 4))] * 2 + [(2, (4, 4))] * 4 + [(1, (8, 8))] * 2
        )
        assert "64 tokens -> 64 features -> 16 agents" in str(report)

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
        report = agentsd.apply(unet, config=AGENTS).report()
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
        report = agentsd.apply(unet, config=POOL).report()
        assert report.layers
        assert not [layer.name for layer in report.layers if "motion_modules" in layer.name]
        temporal = [reason for name, reason in report.skipped if "motion_modules" in name and name.endswith("attn1")]
        assert temporal
        assert set(temporal) == {"inside AnimateDiffTransformer3D, which does not attend over one image's grid"}


def test_the_phases_of_two_presets_differ_in_the_image(tiny_pipe):
    images = [draw(tiny_pipe)]
    for arguments in (dict(preset="paper"), dict(preset="balanced"), dict(preset="paper", ratio=0.1)):
        agentsd.apply(tiny_pipe, **arguments)
        images.append(draw(tiny_pipe))
    for one in range(len(images)):
        for other in range(one):
            assert not torch.equal(images[one], images[other])


def test_a_default_call_needs_no_argument(tiny_pipe):
    patch = agentsd.apply(tiny_pipe)
    assert patch.schedule == agentsd.preset_schedule() == agentsd.PRESETS[agentsd.DEFAULT_PRESET]
    assert agentsd.apply(tiny_pipe, 0.2).schedule == agentsd.preset_schedule(ratio=0.2)
    constant = Schedule((Phase(1.0, AGENTS),))
    assert agentsd.apply(tiny_pipe, config=AGENTS).schedule == constant
