"""Guidance left out in part of the run: what an explicit account gives, half the samples, and exact elsewhere."""

import copy
import pickle
import warnings
from contextlib import contextmanager

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from matrix import KINDS, controlnet, run
from probe import may_miss_steps, unet_inputs
from tiny import draw, make_tiny_pipe, make_tiny_unet

import agentsd
from agentsd import Phase, PooledAgents, Schedule, Skipping
from agentsd.unet.guidance import conditional_half, for_both_halves, guidance_obstacle

POOL = PooledAgents(stride=4)


def interval(start, end, config=None, every=1, forecast=0.0, depth=1):
    phases = (Phase(1.0, config, every),)
    return Schedule(phases, Skipping(depth=depth, forecast=forecast, last_full=False), (start, end))


class Batches:
    """Samples of every pass of the UNet, and whether the whole of it ran."""

    def __init__(self, unet):
        self.seen = []
        self.full = []
        self.handles = [
            unet.conv_in.register_forward_hook(may_miss_steps(lambda *call: self.seen.append(call[1][0].shape[0]))),
            unet.mid_block.register_forward_hook(may_miss_steps(lambda *_: self.full.append(len(self.seen) - 1))),
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


@contextmanager
def conditional_alone(unet, unguided):
    """Put the conditional prediction instead of the unconditional one at the calls `unguided`."""
    call = -1

    def replace_output(_, __, output):
        nonlocal call
        call += 1
        if call not in unguided:
            return None
        conditional = output[0].chunk(2)[1]
        return (torch.cat([conditional, conditional]),)

    handle = unet.register_forward_hook(replace_output)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("start", "end", "unguided"),
    [(0.4, 1.0, {0, 1}), (0.0, 0.6, {3, 4}), (0.2, 0.8, {0, 4}), (0.5, 0.6, {0, 1, 2, 3, 4})],
)
def test_equals_the_explicit_account(start, end, unguided):
    pipe = make_tiny_pipe()
    with conditional_alone(pipe.unet, unguided):
        expected = draw(pipe, steps=5, guidance_scale=5.0)
    with agentsd.apply(pipe, interval(start, end)), Batches(pipe.unet) as batches:
        found = draw(pipe, steps=5, guidance_scale=5.0)
    assert batches.seen == [1 if i in unguided else 2 for i in range(5)]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, draw(pipe, steps=5, guidance_scale=5.0), atol=1e-3)


def test_the_whole_interval_is_stock_bit_for_bit():
    pipe = make_tiny_pipe()
    stock = draw(pipe, guidance_scale=5.0)
    with agentsd.apply(pipe, interval(0, 1)):
        assert draw(pipe, guidance_scale=5.0).equal(stock)


def test_a_run_without_guidance_is_left_alone():
    pipe = make_tiny_pipe()
    stock = draw(pipe, guidance_scale=1.0)
    with agentsd.apply(pipe, interval(0.5, 1)) as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw(pipe, guidance_scale=1.0).equal(stock)
        assert "problem" not in str(patch.report())


@pytest.mark.parametrize(("forecast", "depth"), [(0.0, 1), (0.5, 1), (0.5, 0)])
def test_the_missing_half_is_computed_where_guidance_sets_in(forecast, depth):
    pipe = make_tiny_pipe()
    with (
        agentsd.apply(pipe, interval(0.5, 1.0, POOL, 3, forecast, depth)) as patch,
        Batches(pipe.unet) as batches,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error", UserWarning)
        first = draw(pipe, steps=8, guidance_scale=5.0)
        assert batches.seen == ([1] * 4 + [2] * 4 if depth else [1, 1, 2, 2])
        assert batches.full == ([0, 3, 4, 6] if depth else [0, 1, 2, 3])
        assert draw(pipe, steps=8, guidance_scale=5.0).equal(first)
        assert patch.report().skipping_problem is None


@pytest.mark.parametrize("depth", [0, 1])
def test_skipping_goes_on_with_the_conditional_half_where_guidance_ends(depth):
    pipe = make_tiny_pipe()
    with (
        agentsd.apply(pipe, interval(0.0, 0.5, None, 3, 0.5, depth)),
        Batches(pipe.unet) as batches,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error", UserWarning)
        draw(pipe, steps=8, guidance_scale=5.0)
    assert batches.seen == ([2] * 4 + [1] * 4 if depth else [2, 2, 1])
    assert batches.full == ([0, 3, 6] if depth else [0, 1, 2])


def test_residuals_of_a_controlnet_do_not_count_as_changed_where_guidance_ends():
    pipe, arguments = controlnet()
    with agentsd.apply(pipe, Schedule.constant(None, 3, guidance_interval=(0.0, 0.5))) as patch:
        run(pipe, steps=20, **arguments)
        last = patch.report().last_run
    assert (last.full, last.forced) == (8, ())


def test_image_to_image_and_several_pictures():
    parts = make_tiny_pipe().components
    pipe = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    picture = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with agentsd.apply(pipe, interval(0.5, 1.0)), Batches(pipe.unet) as batches:
        draw(pipe, ["a ring", "a cross"], image=picture, strength=0.5, steps=8, guidance_scale=5.0)
    assert batches.seen == [2, 2, 4, 4]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.id)
@pytest.mark.filterwarnings("ignore")
def test_every_pipeline_leaves_it_out_or_says_why(kind):
    pipe, arguments = kind.build()
    with Batches(pipe.unet) as batches:
        stock = run(pipe, steps=kind.steps, **arguments)
    guided = getattr(pipe, "do_classifier_free_guidance", False)
    with agentsd.apply(pipe, interval(0.4, 1.0)) as patch:
        found = run(pipe, steps=kind.steps, **arguments)
        problem = patch.report().guidance_problem
    if problem is not None or not guided:
        assert found.equal(stock)
    else:
        with conditional_alone(pipe.unet, range(-(-len(batches.seen) * 2 // 5))):
            expected = run(pipe, steps=kind.steps, **arguments)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert not found.equal(stock)
    assert run(pipe, steps=kind.steps, **arguments).equal(stock)


def test_undo_copy_and_pickle():
    pipe = make_tiny_pipe()
    stock = draw(pipe, guidance_scale=5.0)
    before = set(pipe.unet.__dict__)
    patch = agentsd.apply(pipe, interval(0.5, 1.0))
    patched = draw(pipe, guidance_scale=5.0)
    for other in (copy.deepcopy(pipe.unet), pickle.loads(pickle.dumps(pipe.unet))):
        assert other.forward.args[0] is other
        agentsd.remove(other)
        assert set(other.__dict__) == before
    assert draw(pipe, guidance_scale=5.0).equal(patched)
    patch.remove()
    assert set(pipe.unet.__dict__) == before
    assert draw(pipe, guidance_scale=5.0).equal(stock)


def test_a_call_that_nobody_guides_is_whole_and_reported():
    unet = make_tiny_unet()
    sample, text = unet_inputs()
    stock = unet(sample, 900, text).sample
    with agentsd.apply(unet, interval(0.5, 1.0)) as patch:
        with pytest.warns(UserWarning, match="does not leave out guidance: no pipeline is known"):
            assert unet(sample, 900, text).sample.equal(stock)
        assert "problem: guidance not left out: no pipeline is known" in str(patch.report())
        assert "guidance from 50% to 100% of the run only" in str(patch.report())


def test_two_samples_are_not_taken_for_the_halves_of_one():
    """What the pipeline says is how it was called last; this loop does not guide."""
    pipe = make_tiny_pipe()
    samples, text = torch.randn(2, 4, 16, 16), torch.randn(2, 77, 32)
    with agentsd.apply(pipe, interval(0.0, 0.5)) as patch:
        draw(pipe, guidance_scale=5.0, steps=4)
        pipe.scheduler.set_timesteps(4)
        timesteps = pipe.scheduler.timesteps
        with torch.no_grad(), pytest.warns(UserWarning, match="halves of a call are different samples"):
            outputs = [pipe.unet(samples, t, text).sample for t in timesteps]
        assert "halves of a call are different samples" in str(patch.report())
    with torch.no_grad():
        assert all(outputs[i].equal(pipe.unet(samples, t, text).sample) for i, t in enumerate(timesteps))


def test_two_pictures_of_another_pipeline_without_guidance():
    pipe = make_tiny_pipe()
    other = StableDiffusionImg2ImgPipeline.from_pipe(pipe, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    pictures = torch.rand(2, 3, 32, 32)

    def draw_both():
        return draw(other, prompt=["a", "b"], image=pictures, strength=1.0, guidance_scale=1.0, steps=4)

    stock = draw_both()
    with agentsd.apply(pipe, interval(0.0, 0.5)):
        draw(pipe, guidance_scale=5.0, steps=4)
        with pytest.warns(UserWarning, match="halves of a call are different samples"):
            assert draw_both().equal(stock)


UNET = make_tiny_unet()


class Guiding:
    def __init__(self, guides):
        self.do_classifier_free_guidance = guides


class Editing(Guiding):
    image_guidance_scale = 1.5


def test_what_stands_in_the_way():
    assert guidance_obstacle(UNET, [Guiding(True)], 4) is None
    assert "samples of Linear are not laid out" in guidance_obstacle(torch.nn.Linear(1, 1), [Guiding(True)], 4)
    assert guidance_obstacle(UNET, [Guiding(False)], 4) == ""
    assert "differ in whether they guide" in guidance_obstacle(UNET, [Guiding(True), Editing(False)], 4)
    assert "differ in whether they guide" in guidance_obstacle(UNET, [Guiding(True), object()], 4)
    assert guidance_obstacle(UNET, [Editing(True)], 6) == "Editing guides by more than one other prediction"
    assert guidance_obstacle(UNET, [Guiding(True)], 3) == "a call with 3 samples has no halves"


def test_halves_reach_into_lists_and_dicts():
    text, time = torch.arange(4.0)[:, None], torch.arange(2.0)[:, None]
    residuals = [torch.arange(4.0), torch.arange(1.0)]
    half = conditional_half(
        {
            "sample": text,
            "added_cond_kwargs": {"time_ids": text, "other": time},
            "down_block_additional_residuals": residuals,
            "timestep": 5,
        }
    )
    assert half["sample"].flatten().tolist() == [2, 3]
    assert half["added_cond_kwargs"]["time_ids"].flatten().tolist() == [2, 3]
    assert half["added_cond_kwargs"]["other"] is time
    assert [one.tolist() for one in half["down_block_additional_residuals"]] == [[2, 3], [0]]
    assert half["timestep"] == 5
    assert for_both_halves((torch.tensor([[7.0]]), "rest"))[1] == "rest"


@pytest.mark.parametrize("value", [(0.5, 0.5), (-0.1, 1), (0, 1.1), 0.5, (0.1, "1"), (0.8, 0.2), (0, 0.5, 1)])
def test_bad_intervals_say_what_is_wrong(value):
    with pytest.raises(ValueError, match="guidance_interval="):
        Schedule((Phase(1.0, None),), guidance_interval=value)


def test_plans_refuse_what_they_do_not_time():
    with pytest.raises(ValueError, match=r"guidance_interval=\(0\.5, 1\.0\) is not covered by plans"):
        agentsd.plan(make_tiny_unet(), interval(0.5, 1.0), cache=False, height=128, width=128)
