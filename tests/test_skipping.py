"""Skipped steps: equal to DeepCache and to an explicit account, in every kind of call, and exactly undone."""

import copy
import gc
import pickle
import warnings

import pytest
import torch
from DeepCache import DeepCacheSDHelper
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    UNet2DConditionModel,
)
from probe import COPY, calm, may_miss_steps
from tiny import draw, make_one_level_unet, make_tiny_pipe, make_tiny_unet

import agentsd
from agentsd import Phase, PooledAgents, Schedule, Skipping
from agentsd.unet.runs import Cached
from agentsd.unet.shallow import max_depth
from agentsd.unet.skipping import obstacle
from agentsd.unet.steps import Position

# Layers of a down block (an up block has one more) and how many layers run at skipped steps; Stable Diffusion has two.
DEPTHS = pytest.mark.parametrize(("layers", "depth"), [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3)])
DEPTHS_AND_NONE = pytest.mark.parametrize(("layers", "depth"), [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (2, 3)])
POOL = PooledAgents(stride=4)


def every(interval, depth=1, config=None):
    return Schedule((Phase(1.0, config, interval),), skipping=Skipping(depth=depth, forecast=0.0, last_full=False))


class Calls:
    """Counts runs of the middle block (whole UNet) and of the UNet."""

    def __init__(self, unet):
        self.full = self.all = 0
        self.handles = [
            unet.mid_block.register_forward_hook(may_miss_steps(self._full)),
            unet.register_forward_hook(self._any),
        ]

    def _full(self, *_):
        self.full += 1

    def _any(self, *_):
        self.all += 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


@DEPTHS
@pytest.mark.parametrize("interval", [2, 3])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_equals_deepcache(interval, layers, depth, guidance):
    pipe = make_tiny_pipe(layers_per_block=layers)
    outputs = []
    pipe.unet.register_forward_hook(lambda *call: outputs.append(call[-1][0]))

    def steps():
        outputs.clear()
        draw(pipe, steps=7, guidance_scale=guidance)
        return torch.stack(outputs)

    helper = DeepCacheSDHelper(pipe=pipe)
    # DeepCache counts the layers of a branch from 0 and in threes, also where the last up block has two.
    helper.set_params(cache_interval=interval, cache_branch_id=depth - 1)
    helper.enable()
    expected = steps()
    helper.disable()
    with agentsd.apply(pipe, every(interval, depth)):
        ours = steps()
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours[-1], steps()[-1], atol=1e-3)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler])
def test_whole_unet_runs_every_third_call(scheduler):
    pipe = make_tiny_pipe()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    with agentsd.apply(pipe, every(3)), Calls(pipe.unet) as calls:
        draw(pipe, steps=10)
        assert calls.full == -(-calls.all // 3)
        draw(pipe, steps=10)
        assert calls.full == 2 * -(-calls.all // 2 // 3)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize(("forecast", "last_full"), [(0.1, False), (1.0, False), (0.25, True)])
def test_forecast_follows_the_last_change(forecast, last_full, guidance):
    pipe = make_tiny_pipe()
    schedule = Schedule(
        (Phase(0.25, None), Phase(1.0, None, 3)), skipping=Skipping(depth=1, forecast=forecast, last_full=last_full)
    )
    with agentsd.apply(pipe, schedule):
        kept, started = {}, {}
        unet = pipe.unet
        runtime = unet._agentsd
        unet.up_blocks[-1].attentions[-2].register_forward_hook(
            may_miss_steps(lambda *call: kept.__setitem__(len(kept) + len(started), call[-1][0].clone()))
        )

        def look(*_):
            feature = runtime.slot.read().feature
            if feature is not None:
                started[len(kept) + len(started)] = feature.clone()

        unet.register_forward_pre_hook(look)
        draw(pipe, steps=7, guidance_scale=guidance)
    # Full: 0, 1, 4, and the last if asked; the others continue the change between the two full steps before them.
    assert sorted(kept) == [0, 1, 4, 6][: 4 if last_full else 3]
    skipped = [(2, 1, 0), (3, 1, 0), (5, 4, 1), (6, 4, 1)][: 3 if last_full else 4]
    assert sorted(started) == [index for index, _, _ in skipped]
    for index, last, before in skipped:
        share = (index / 7) ** ((index - last + last - before) / 2 / (forecast * 7))
        expected = kept[last] + share * (index - last) / (last - before) * (kept[last] - kept[before])
        torch.testing.assert_close(started[index], expected, atol=1e-5, rtol=1e-5)


def test_forecast_starts_anew_in_every_run():
    pipe = make_tiny_pipe()
    with agentsd.apply(pipe, Schedule.constant(POOL, every=2, skipping=Skipping(depth=1, last_full=False))):
        first = draw(pipe, steps=5)
        other = draw(pipe, steps=5, prompt="another prompt")
        assert draw(pipe, steps=5).equal(first)
        assert not other.equal(first)


def test_what_has_not_changed_yet_is_used_as_it_is():
    feature, slope = torch.randn(2, 3), torch.randn(2, 3)
    schedule = Schedule.constant(None, every=4, skipping=Skipping(depth=1, forecast=1.0, last_full=False))
    weight = schedule.forecast_at(7, 8, gap=2, distance=3)
    forecast = Cached(feature, 4, change=2 * slope, gap=2).at(Position(7, 8), schedule)
    torch.testing.assert_close(forecast, feature + 3 * weight * slope)
    assert Cached(feature, 4).at(Position(7, 8), schedule) is feature


def test_a_refused_patch_leaves_the_one_before():
    pipe = make_tiny_pipe()
    patch = agentsd.apply(pipe, POOL)
    patched = draw(pipe)
    with pytest.raises(ValueError, match="depth=9 must be at most 2"):
        agentsd.apply(pipe, Schedule.constant(None, 2, skipping=Skipping(depth=9)))
    assert patch.active
    assert draw(pipe).equal(patched)


@pytest.mark.parametrize("forecast", [-0.1, 1.5, float("nan"), "half", (0.0, 1.0), None, True])
def test_forecast_must_be_a_share(forecast):
    with pytest.raises(ValueError, match="forecast="):
        Schedule.constant(None, every=2, skipping=Skipping(depth=1, forecast=forecast, last_full=False))


@DEPTHS_AND_NONE
@pytest.mark.parametrize("keywords", [False, True])
def test_a_step_on_its_own_feature_is_the_full_step(layers, depth, keywords):
    """With the same input at every step nothing is lost: the cached feature equals the one that would be computed."""
    unet = make_tiny_unet(layers_per_block=layers)
    sample, context = torch.randn(2, 4, 16, 16), torch.randn(2, 77, 32)

    def call(t):
        if keywords:
            return unet(encoder_hidden_states=context, return_dict=False, timestep=t, sample=sample)[0]
        return unet(sample, t, context).sample

    with torch.no_grad():
        stock = unet(sample, 500, context).sample
        with agentsd.apply(unet, every(3, depth)), Calls(unet) as calls:
            outputs = [call(t) for t in torch.tensor([500, 500, 500])]
            assert (calls.full, calls.all) == (1, 3)
    assert torch.equal(outputs[0], stock)
    for output in outputs[1:]:
        torch.testing.assert_close(output, stock)


@pytest.mark.parametrize("return_dict", [False, True])
def test_at_depth_zero_nothing_runs_and_the_prediction_is_forecast(return_dict):
    unet = make_tiny_unet()
    context, scheduler = torch.randn(2, 77, 32), calm(900, 700, 500, 300, 100)
    samples = torch.randn(5, 2, 4, 16, 16)
    layers = []
    for module in (unet.conv_in, unet.time_embedding, unet.conv_out):
        module.register_forward_hook(may_miss_steps(lambda *_: layers.append(1)))
    schedule = Schedule((Phase(1.0, POOL, 2),), skipping=Skipping(forecast=0.3, last_full=False))

    def run():
        for t, sample in zip(scheduler.timesteps, samples, strict=True):
            layers.clear()
            output = unet(sample, t, context, return_dict=return_dict)
            yield output.sample if return_dict else output[0], len(layers)

    with torch.no_grad(), agentsd.apply(unet, Schedule.constant(POOL)):
        whole = [output for output, _ in run()]
    with torch.no_grad(), agentsd.apply(unet, schedule) as patch:
        outputs, ran = zip(*run(), strict=True)
        assert "full step every 2 steps, skipped steps run no layer, forecast 0.3" in patch.report().details()
    assert ran == (3, 0, 3, 0, 3)
    for index in (0, 2, 4):
        assert torch.equal(outputs[index], whole[index])
    assert torch.equal(outputs[1], whole[0])
    weight = 0.6 ** ((2 + 1) / 2 / (0.3 * 5))
    torch.testing.assert_close(outputs[3], whole[2] + weight / 2 * (whole[2] - whole[0]))


def test_a_prediction_that_the_caller_changes_is_not_the_one_kept():
    unet = make_tiny_unet()
    sample, context = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 32)
    with torch.no_grad(), agentsd.apply(unet, every(3, 0)):
        scheduler = calm(900, 600, 300)
        first, *others = [unet(sample, t, context).sample for t in scheduler.timesteps]
        expected = first.clone()
        with agentsd.apply(unet, every(3, 0)):
            for t in scheduler.timesteps:
                output = unet(sample, t, context).sample
                assert torch.equal(output, expected)
                output.zero_()
    assert all(torch.equal(other, expected) for other in others)


@pytest.mark.parametrize(
    ("scheduler", "changes", "noisy"),
    [
        (EulerAncestralDiscreteScheduler, {}, True),
        (LCMScheduler, {}, True),
        (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, True),
        (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}, False),
        (EulerDiscreteScheduler, {}, False),
    ],
)
def test_fresh_noise_is_seen_by_the_last_layer(scheduler, changes, noisy):
    pipe = make_tiny_pipe()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **changes)
    pictures = {}
    for depth in (0, 1):
        with agentsd.apply(pipe, every(3, depth)) as patch, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pictures[depth] = draw(pipe, steps=6)
            told = [str(warning.message) for warning in caught if "agentsd" in str(warning.message)]
            text = f"{scheduler.__name__} adds fresh noise at every step"
            assert [text in message for message in told] == [True] * (noisy and depth == 0)
            assert (text in str(patch.report())) == (noisy and depth == 0)
            assert (patch.report().noise_problem is not None) == (noisy and depth == 0)
    assert torch.equal(pictures[0], pictures[1]) == noisy


def test_a_scheduler_that_is_swapped_is_seen_and_one_that_nobody_named_too():
    pipe = make_tiny_pipe()
    calm, noisy = (kind.from_config(pipe.scheduler.config) for kind in (EulerDiscreteScheduler, LCMScheduler))
    with agentsd.apply(pipe.unet, every(3, 0)) as patch:
        for known in (False, True):
            for pipe.scheduler in (calm, noisy):
                if known:
                    patch.attach(pipe)
                layers = []
                hook = pipe.unet.conv_out.register_forward_hook(may_miss_steps(lambda *_, seen=layers: seen.append(1)))
                draw(pipe, steps=6)
                hook.remove()
                assert len(layers) == (6 if pipe.scheduler is noisy else 2)


def test_where_no_layer_can_run_alone_fresh_noise_makes_every_step_whole():
    pipe = make_tiny_pipe()
    pipe.unet = make_one_level_unet()
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    assert max_depth(pipe.unet) == 0
    layers = []
    pipe.unet.conv_out.register_forward_hook(may_miss_steps(lambda *_: layers.append(1)))
    with agentsd.apply(pipe, every(3, 0)) as patch:
        with pytest.warns(UserWarning, match="does not skip steps: LCMScheduler adds fresh noise"):
            draw(pipe, steps=6)
        assert len(layers) == 6
        assert "steps not skipped: LCMScheduler adds fresh noise" in str(patch.report())


def test_depth_zero_wants_nothing_of_the_last_up_block():
    """Its last up block is of a kind whose layers cannot run alone."""
    unet = make_tiny_unet(
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    )
    assert max_depth(unet) == 0
    with agentsd.apply(unet, every(2, 0)) as patch:
        assert patch.schedule.skips_steps
    with pytest.raises(ValueError, match=r"depth=1 must be at most 0 for this UNet2DConditionModel"):
        agentsd.apply(unet, every(2, 1))


def test_a_controlnet_has_no_prediction_to_skip():
    net = ControlNetModel.from_unet(make_tiny_unet())
    with pytest.raises(ValueError, match=r"steps cannot be skipped: ControlNetModel is a ControlNet, which predicts"):
        agentsd.apply(net, every(2, 0))
    with agentsd.apply(net, "balanced") as patch:
        assert not patch.schedule.skips_steps
        said = "ControlNetModel is a ControlNet, which predicts no noise; the preset skips no steps"
        assert f"steps not skipped: {said}" in str(patch.report())


def test_agents_and_skipping_together_change_the_layers_that_run():
    pipe = make_tiny_pipe()
    pictures = {}
    for name, schedule in {"skipping": every(3), "both": every(3, config=POOL)}.items():
        with agentsd.apply(pipe, schedule):
            pictures[name] = draw(pipe, steps=6)
    assert not torch.allclose(pictures["skipping"], pictures["both"], atol=1e-4)


def test_whole_steps_count_from_the_last_one_across_phases():
    schedule = Schedule((Phase(0.4, None, 2), Phase(1.0, None, 4)), skipping=COPY)
    assert [i for i in range(11) if schedule.is_full(i, 11)] == [0, 2, 4, 8]
    assert [i for i in range(10) if schedule.is_full(i, 10)] == [0, 2, 6]
    dense = Schedule((Phase(0.5, None, 4), Phase(1.0, None, 1)), skipping=COPY)
    assert [i for i in range(6) if dense.is_full(i, 6)] == [0, 3, 4, 5]


def test_nothing_leaks_between_runs_sizes_and_strengths():
    pipe = make_tiny_pipe()
    img2img = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    img2img.set_progress_bar_config(disable=True)
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def half(pipe):
        return pipe(
            "a", image=picture, strength=0.5, num_inference_steps=8, output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip

    with agentsd.apply(pipe, every(3)):
        alone = draw(pipe, steps=7)
    with agentsd.apply(pipe, every(3)):
        half_alone = half(img2img)
    with agentsd.apply(pipe, every(3)), Calls(pipe.unet) as calls:
        draw(pipe, steps=5, height=48, width=32)
        pipe.unet(torch.randn(1, 4, 8, 8), 5, torch.randn(1, 77, 32))
        assert torch.equal(half(img2img), half_alone)
        with pytest.raises(RuntimeError, match="stop"):
            draw(pipe, steps=7, callback_on_step_end=_stop)
        assert torch.equal(draw(pipe, steps=7), alone)
        before = calls.full
        half(img2img)
        assert calls.full - before == 2  # 4 steps of 8: full at the first of them and at the fourth


def _stop(pipe, step, timestep, kwargs):
    if step == 3:
        raise RuntimeError("stop")
    return kwargs


@pytest.mark.parametrize("depth", [0, 1])
def test_two_pipes_take_turns_on_one_unet(depth):
    unet = make_tiny_unet()
    context = torch.randn(1, 77, 32)
    inputs = [torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    runs = [torch.tensor([900, 600, 300, 0]), torch.tensor([800, 500, 200, 100])]

    def steps(which):
        return [unet(inputs[which], t, context).sample for t in runs[which]]

    with torch.no_grad(), agentsd.apply(unet, every(2, depth)):
        apart = [steps(0), steps(1)]
    runs = [run.clone() for run in runs]
    with torch.no_grad(), agentsd.apply(unet, every(2, depth)):
        turns = [[unet(inputs[i], runs[i][k], context).sample for i in range(2)] for k in range(4)]
    for k in range(4):
        for i in range(2):
            assert torch.equal(turns[k][i], apart[i][k])


@pytest.mark.parametrize("depth", [0, 1])
def test_one_call_per_guidance_branch(depth):
    """Modular pipelines call the UNet for each guidance branch; every branch must use its own feature."""
    unet = make_tiny_unet()
    sample = torch.randn(1, 4, 16, 16)
    contexts = torch.randn(2, 77, 32)
    with torch.no_grad(), agentsd.apply(unet, every(2, depth)), Calls(unet) as calls:
        together = [unet(sample.expand(2, -1, -1, -1), t, contexts).sample for t in torch.tensor([900, 600, 300])]
        apart = [[unet(sample, t, contexts[i : i + 1]).sample for i in range(2)] for t in torch.tensor([900, 600, 300])]
        assert (calls.full, calls.all) == (2 + 4, 3 + 6)
    for whole, branches in zip(together, apart, strict=True):
        torch.testing.assert_close(torch.cat(branches), whole, atol=1e-5, rtol=1e-5)


def test_one_call_per_view_with_one_context():
    """Panoramas: which view is which is told by order, once two steps had as many calls."""
    unet = make_tiny_unet()
    views, context = torch.randn(3, 1, 4, 16, 16), torch.randn(1, 77, 32)
    timesteps = torch.tensor([900, 700, 500, 300])

    def run(views):
        return [[unet(view, t, context).sample for view in views] for t in timesteps.clone()]

    with torch.no_grad(), agentsd.apply(unet, every(3)), Calls(unet) as calls:
        alone = [run([view]) for view in views]
        assert calls.full == 3 * 2
        together = run(views)
        assert calls.full == 6 + 3 * 3  # steps 0 and 3, and step 1, which counts
    for i in range(3):
        assert torch.equal(together[0][i], alone[i][0][0])
        with torch.no_grad():
            assert torch.equal(together[1][i], unet(views[i], timesteps[1], context).sample)
        assert torch.equal(together[3][i], alone[i][3][0])


@pytest.mark.parametrize("same_context", [True, False])
def test_a_call_to_warm_up_on_the_first_timestep_leaves_no_feature_to_the_run(same_context):
    unet = make_tiny_unet()
    sample, other, context = torch.randn(1, 4, 16, 16), torch.randn(1, 4, 16, 16), torch.randn(1, 77, 32)
    timesteps = torch.tensor([900, 700, 500, 300])
    with torch.no_grad():
        stock = [unet(sample, t, context).sample for t in timesteps]
        with agentsd.apply(unet, every(3)):
            alone = [unet(sample, t, context).sample for t in timesteps.clone()]
        with agentsd.apply(unet, every(3)):
            unet(other, timesteps[0], context if same_context else torch.randn(1, 77, 32))
            outputs = [unet(sample, t, context).sample for t in timesteps]
    assert torch.equal(outputs[0], stock[0])
    assert torch.equal(outputs[1], stock[1] if same_context else alone[1])
    distances = [(mine - right).norm() / (far - right).norm() for mine, right, far in
                 zip(outputs[1:3], stock[1:3], alone[1:3], strict=True)]  # fmt: skip
    assert max(distances) < 1.5  # as near to stock as without that call, and not the other sample's


def test_timesteps_in_no_order_are_no_run():
    """A batch of random timesteps, for losses or classification: every sample is its own."""
    unet = make_tiny_unet()
    samples, context = torch.randn(6, 1, 4, 16, 16), torch.randn(1, 77, 32)
    timesteps = torch.tensor([100, 900, 500, 300, 700, 200])
    with torch.no_grad():
        stock = [unet(sample, t, context).sample for sample, t in zip(samples, timesteps, strict=True)]
        with agentsd.apply(unet, every(3)) as patch:
            with pytest.warns(UserWarning, match="does not skip .* the timestep is .* one of many in no order"):
                outputs = [unet(sample, t, context).sample for sample, t in zip(samples, timesteps, strict=True)]
            assert "its run is unknown" in str(patch.report())
    assert all(map(torch.equal, outputs, stock))


def test_a_bare_number_is_reported():
    unet = make_tiny_unet()
    with torch.no_grad(), agentsd.apply(unet, every(3)) as patch:
        with pytest.warns(UserWarning, match="does not skip steps: the timestep is a number"):
            unet(torch.randn(1, 4, 16, 16), 900, torch.randn(1, 77, 32))
        assert "the timestep is a number" in str(patch.report())


def test_gradients_taken_through_the_unet_are_those_of_stock():
    unet = make_tiny_unet()
    sample, context = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 32)

    def gradients():
        found = []
        for t in torch.tensor([900, 600, 300]):
            leaf = sample.clone().requires_grad_()
            found += torch.autograd.grad(unet(leaf, t, context).sample.square().sum(), leaf)
        return found

    stock = gradients()
    with agentsd.apply(unet, every(3)) as patch:
        with pytest.warns(UserWarning, match="gradients are taken through the UNet"):
            patched = gradients()
        assert "gradients are taken through the UNet" in str(patch.report())
    assert all(map(torch.equal, patched, stock))


class TestMemory:
    """Features are let go of with their run; the handle of a removed patch holds none."""

    FEATURE = (2, 16, 16, 16)  # what enters the last up layer, with guidance

    def held(self):
        gc.collect()
        return sum(torch.is_tensor(thing) and tuple(thing.shape) == self.FEATURE for thing in gc.get_objects())

    @pytest.mark.parametrize("steps", [4, *(pytest.param(more, marks=pytest.mark.slow) for more in (5, 6))])
    def test_none_after_a_run(self, steps, tiny_pipe):
        before = self.held()
        patch = agentsd.apply(tiny_pipe, every(3))
        seen = []
        draw(tiny_pipe, steps=steps, callback_on_step_end=lambda *call: seen.append(self.held()) or call[3])
        assert max(seen) > before  # else nothing is watched here
        assert self.held() == before
        assert patch.active

    def test_one_run_at_most_of_those_interrupted(self, tiny_pipe):
        def interrupt(pipe, step, *rest):
            pipe._interrupt = step == 1
            return rest[-1]

        before = self.held()
        patch = agentsd.apply(tiny_pipe, every(3))
        for _ in range(4):
            draw(tiny_pipe, steps=6, callback_on_step_end=interrupt)
        assert self.held() <= before + 1
        patch.remove()
        assert self.held() == before
        assert not patch.active


@DEPTHS_AND_NONE
def test_controlnet_residuals_reach_the_layers_that_run(layers, depth):
    unet = make_tiny_unet(layers_per_block=layers)
    sample, context = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 32)
    shapes = [(16, 16, 16)] * (1 + layers) + [(16, 8, 8)] + [(32, 8, 8)] * layers + [(32, 4, 4)] * (1 + layers)
    residuals = {
        "down_block_additional_residuals": [torch.randn(1, *shape) for shape in shapes],
        "mid_block_additional_residual": torch.randn(1, 32, 4, 4),
    }
    with torch.no_grad():
        stock = unet(sample, 500, context, **residuals).sample
        with agentsd.apply(unet, every(2, depth)), Calls(unet) as calls:
            outputs = [unet(sample, t, context, **residuals).sample for t in torch.tensor([500, 500])]
            assert calls.full == 1
    torch.testing.assert_close(outputs[1], stock)


@DEPTHS_AND_NONE
def test_adapter_residuals_reach_the_layers_that_run(layers, depth):
    unet = make_tiny_unet(layers_per_block=layers)
    sample, context = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 32)
    residuals = [torch.randn(1, 16, 16, 16), torch.randn(1, 32, 8, 8), torch.randn(1, 32, 4, 4)]
    with torch.no_grad():
        stock = unet(sample, 500, context, down_intrablock_additional_residuals=list(residuals)).sample
        with agentsd.apply(unet, every(2, depth)), Calls(unet) as calls:
            outputs = [
                unet(sample, t, context, down_intrablock_additional_residuals=list(residuals)).sample
                for t in torch.tensor([500, 500])
            ]
            assert calls.full == 1
    torch.testing.assert_close(outputs[1], stock)


def test_calls_that_cannot_skip_run_the_whole_unet_and_are_reported():
    unet = make_tiny_unet()
    sample, context = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 32)
    reason = "adapter residuals came by the deprecated argument"

    def residuals():
        return [torch.zeros(1, 16, 16, 16), torch.zeros(1, 32, 8, 8), torch.zeros(1, 32, 4, 4)]

    with torch.no_grad(), agentsd.apply(unet, every(2)) as patch, Calls(unet) as calls:
        timesteps = torch.tensor([600, 300])
        unet(sample, timesteps[0], context)
        with pytest.warns(UserWarning, match=reason):
            unet(sample, timesteps[1], context, down_block_additional_residuals=residuals())
        assert calls.full == 2
        assert reason in str(patch.report())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"attention_mask": torch.ones(1, 256)}, "attention_mask was given"),
        ({"cross_attention_kwargs": {"gligen": {}}}, "GLIGEN objects were given"),
        ({"down_block_additional_residuals": []}, "adapter residuals came by the deprecated argument"),
        ({"cross_attention_kwargs": {"scale": 1.0}, "class_labels": None}, None),
    ],
)
def test_obstacles(arguments, reason):
    arguments = {"sample": torch.zeros(1, 4, 16, 16), **arguments}
    found = obstacle(make_tiny_unet(), arguments, 1)
    assert found is None if reason is None else reason in found
    assert obstacle(make_tiny_unet(), arguments, 0) is None  # no layer runs that would have to know of them


def test_training_and_freeu_on_the_last_block_are_obstacles():
    unet = make_tiny_unet()
    assert [obstacle(unet.train(), {}, depth) for depth in (0, 1)] == ["the UNet is being trained"] * 2
    small = make_tiny_unet(
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(2, 4),
    )
    small.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert obstacle(small, {}, 0) is None
    assert obstacle(small, {}, 1) == "FreeU changes the last up block"


def test_batch_that_changes_within_a_run_runs_the_whole_unet():
    unet = make_tiny_unet()
    context = torch.randn(2, 77, 32)
    with torch.no_grad(), agentsd.apply(unet, every(3)), Calls(unet) as calls:
        timesteps = torch.tensor([600, 300, 100])
        unet(torch.randn(2, 4, 16, 16), timesteps[0], context)
        with pytest.warns(UserWarning, match="the batch or picture size changed"):
            unet(torch.randn(1, 4, 16, 16), timesteps[1], context[:1])
        unet(torch.randn(1, 4, 16, 16), timesteps[2], context[:1])
        assert calls.full == 2


def test_lora_scale_holds_in_skipped_steps():
    peft = pytest.importorskip("peft")
    pipe = make_tiny_pipe()
    pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "a")
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=3, cache_branch_id=0)
    pictures = {}
    for scale in (0.3, 1.0):
        helper.enable()
        expected = draw(pipe, steps=4, cross_attention_kwargs={"scale": scale})
        helper.disable()
        with agentsd.apply(pipe, every(3)):
            pictures[scale] = draw(pipe, steps=4, cross_attention_kwargs={"scale": scale})
        torch.testing.assert_close(pictures[scale], expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(pictures[0.3], pictures[1.0], atol=1e-4)


def test_undo_is_exact():
    pipe = make_tiny_pipe()
    stock = draw(pipe)
    keys = {name: set(module.__dict__) for name, module in pipe.unet.named_modules()}
    patch = agentsd.apply(pipe, agentsd.preset().with_skipping(3))
    assert not torch.equal(draw(pipe), stock)
    patch.remove()
    assert torch.equal(draw(pipe), stock)
    assert {name: set(module.__dict__) for name, module in pipe.unet.named_modules()} == keys
    assert pipe.unet.forward.__func__ is UNet2DConditionModel.forward
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pipe.unet.modules())


def test_copies_run_their_own_weights():
    pipe = make_tiny_pipe()
    stock = draw(pipe)
    agentsd.apply(pipe, agentsd.preset().with_skipping(2))
    patched = draw(pipe)
    for twin in (copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        assert torch.equal(draw(twin), patched)
        with torch.no_grad():
            for parameter in twin.unet.parameters():
                parameter.zero_()
        assert not draw_unet(twin.unet).any()
        agentsd.remove(twin)
    assert torch.equal(draw(pipe), patched)
    agentsd.remove(pipe)
    assert torch.equal(draw(pipe), stock)


def draw_unet(unet):
    with torch.no_grad():
        timesteps = torch.tensor([500, 400])
        outputs = [unet(torch.ones(1, 4, 16, 16), t, torch.ones(1, 77, 32)).sample for t in timesteps]
    return torch.stack(outputs)


def test_disabled_patch_skips_nothing():
    pipe = make_tiny_pipe()
    stock = draw(pipe)
    with agentsd.apply(pipe, agentsd.preset().with_skipping(2)) as patch, patch.disabled():
        assert torch.equal(draw(pipe), stock)


def test_accelerate_hook_on_top_survives_undo():
    from accelerate import cpu_offload_with_hook

    pipe = make_tiny_pipe()
    stock = draw(pipe)
    patch = agentsd.apply(pipe, agentsd.preset().with_skipping(2))
    patched = draw(pipe)
    cpu_offload_with_hook(pipe.unet, execution_device="cpu")
    assert torch.equal(draw(pipe), patched)
    patch.remove()
    assert torch.equal(draw(pipe), stock)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda unet: agentsd.preset().with_skipping(0), r"every=0 must be an integer of at least 1"),
        (
            lambda unet: agentsd.apply(unet, Schedule.constant(None, 3, skipping=Skipping(depth=3))),
            r"depth=3 must be at most 2",
        ),
    ],
)
def test_errors_leave_the_unet_stock(call, text):
    unet = make_tiny_unet()
    with pytest.raises(ValueError, match=text):
        call(unet)
    assert "_agentsd" not in unet.__dict__


def test_sdxl_like_unet_without_attention_at_the_finest_level():
    unet = make_tiny_unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )
    assert max_depth(unet) == 2
    sample, context = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 32)
    with torch.no_grad():
        stock = unet(sample, 500, context).sample
        with agentsd.apply(unet, every(2, 2)):
            outputs = [unet(sample, t, context).sample for t in torch.tensor([500, 500])]
    torch.testing.assert_close(outputs[1], stock)
