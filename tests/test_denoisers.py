"""Every kind of denoiser skips steps: near stock, repeatably, undone exactly, and never from old conditions."""

import copy
import inspect
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import HeunDiscreteScheduler, PNDMScheduler, StableDiffusionPipeline
from matrix import (
    PICTURE,
    animate_diff,
    controlnet,
    controlnet_guess_mode,
    sdxl,
    sdxl_controlnet,
    sdxl_image_to_image,
    stable_video,
)
from probe import MERGE, POOL, assert_same, snapshot
from tiny import WIDTH, components
from tiny_denoisers import (
    SKIPPING,
    Skips,
    flux,
    flux_controlnet,
    flux_controlnet_true_guidance,
    hunyuan_controlnet,
    pixart,
    sd3_controlnet,
    stable_diffusion_3,
    wan,
    z_image,
)

import agentsd
from agentsd import Schedule, Skipping
from agentsd.schedule import ListedSteps
from agentsd.unet.adaptive import guidance_of
from agentsd.unet.controller import FEWEST_CALLS
from agentsd.unet.controlnets import CONTROL
from agentsd.unet.denoisers import denoiser_in, latent_part, layout_of
from agentsd.unet.noise_levels import noise_levels

STEPS = 20
kinds = pytest.mark.parametrize("kind", SKIPPING, ids=lambda kind: kind.id, indirect=True)


@dataclass
class Built:
    kind: Skips
    pipe: Any
    arguments: dict
    stock: torch.Tensor | None = None

    @property
    def denoiser(self):
        return denoiser_in(self.pipe)

    def run(self, **changes):
        generator = torch.Generator().manual_seed(0)
        arguments = {"num_inference_steps": STEPS, "output_type": "latent", **self.arguments, **changes}
        if "prompt" in inspect.signature(self.pipe.__call__).parameters and "prompt_embeds" not in arguments:
            arguments.setdefault("prompt", "a red circle")
        return self.pipe(generator=generator, **arguments)[0]

    def run_counted(self, **changes):
        counter = []
        forward = type(self.denoiser).forward

        def counted(*args, **kwargs):
            counter.append(1)
            return forward(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(self.denoiser), "forward", counted)
            return self.run(**changes), len(counter)


@pytest.fixture(scope="module")
def kind(request):
    built = Built(request.param, *request.param.build())
    built.stock = built.run()
    return built


def built(build) -> Built:
    return Built(None, *build())


@kinds
def test_steps_are_skipped_and_everything_comes_back(kind):
    before = snapshot(kind.denoiser)
    assert kind.run_counted()[1] == STEPS * kind.kind.calls
    with agentsd.apply(kind.pipe, tolerance=0.05) as patch:
        found, calls = kind.run_counted()
        assert patch.report().skipping_problem is None
        assert f"skipping alone: the layers of {type(kind.denoiser).__name__} are not patched" in str(patch.report())
        assert torch.equal(kind.run(), found), "equal seeds give equal pictures"
        # Calls of one step decide on their own, and a step with one full call counts as full.
        assert calls <= patch.report().last_run.full * kind.kind.calls
        assert calls < 0.75 * STEPS * kind.kind.calls
    assert 0 < (found - kind.stock).norm() < 0.1 * kind.stock.norm()
    assert_same(before, snapshot(kind.denoiser))
    assert torch.equal(kind.run(), kind.stock)


@kinds
def test_fixed_full_steps(kind):
    with agentsd.apply(kind.pipe, Schedule.constant(None, 2)) as patch:
        found, calls = kind.run_counted()
        problem = patch.report().skipping_problem
    if kind.kind.noisy:
        assert "adds fresh noise" in problem
        assert torch.equal(found, kind.stock)
    else:
        assert problem is None
        assert calls == (STEPS // 2 + 1) * kind.kind.calls
        assert not torch.equal(found, kind.stock)


# The noise of Stable Video Diffusion starts ten times higher, where a model without training is far from smooth.
@pytest.mark.parametrize(("build", "tolerance"), [(animate_diff, 0.05), (stable_video, 0.003), (sdxl, 0.05)])
def test_models_with_patched_layers_skip_within_a_tolerance(build, tolerance):
    one = built(build)
    stock = one.run()
    with agentsd.apply(one.pipe, tolerance=tolerance) as patch:
        found = one.run()
        assert patch.report().skipping_problem is None
        assert patch.report().last_run.skipped > STEPS // 4
    assert 0 < (found - stock).norm() < 0.1 * stock.norm()
    assert torch.equal(one.run(), stock)


@pytest.mark.parametrize(("end", "calls"), [(1.0, STEPS), (0.8, 16), (0.4, 8)])
def test_the_calls_before_denoising_end_are_the_run(end, calls):
    one, step, ran = built(sdxl), [0], []
    forward = type(one.pipe.unet).forward

    def noted(*args, **kwargs):
        ran.append(step[0])
        return forward(*args, **kwargs)

    def count(pipe, index, timestep, tensors):
        step[0] = index + 1
        return tensors

    with agentsd.apply(one.pipe, tolerance=1.0), pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(one.pipe.unet), "forward", noted)
        one.run(denoising_end=end, callback_on_step_end=count)
    if calls < FEWEST_CALLS:
        assert ran == list(range(calls))
    else:
        assert ran[:3] == [0, 1, 2]
        assert len(ran) < calls / 2


def test_denoising_start_skips_from_its_own_first_step():
    one = built(sdxl_image_to_image)
    one.arguments.pop("strength")
    stock = one.run(denoising_start=0.4)
    with agentsd.apply(one.pipe, tolerance=0.05) as patch:
        found = one.run(denoising_start=0.4)
        assert patch.report().last_run.full + patch.report().last_run.skipped == 12
        assert patch.report().last_run.skipped > 2
    assert 0 < (found - stock).norm() < 0.1 * stock.norm()


def test_noise_that_the_caller_asks_of_ddim_is_seen(tiny_pipe):
    one = Built(None, tiny_pipe, dict(prompt="a", eta=1.0))
    stock = one.run()
    with agentsd.apply(tiny_pipe, tolerance=0.5) as patch:
        found = one.run()
        assert patch.report().last_run.skipped > 2
    assert 0 < (found - stock).norm() < 0.5 * stock.norm()
    noisy = agentsd.apply(tiny_pipe, Schedule.constant(None, 2))
    with pytest.warns(UserWarning, match=r"adds fresh noise at every step \(eta=1\)"):
        one.run()
    noisy.remove()


def noise_levels_of(scheduler):
    scheduler.set_timesteps(STEPS)
    return noise_levels(scheduler).sigmas


class TestControlNets:
    """They rest where the denoiser's call is skipped, and come back when it is not."""

    @pytest.fixture(
        params=[
            controlnet,
            controlnet_guess_mode,
            sdxl_controlnet,
            sd3_controlnet,
            flux_controlnet,
            flux_controlnet_true_guidance,
            hunyuan_controlnet,
        ],
        ids=lambda build: build.__name__,
    )
    def one(self, request):
        return built(request.param)

    def counted(self, one, **changes):
        nets = []
        # The forward itself, and not a hook around it: a call that is left out does not reach it.
        inside = next(part for part in one.pipe.controlnet.modules() if isinstance(part, torch.nn.Linear))
        hook = inside.register_forward_hook(lambda *_: nets.append(1))
        found = one.run(**changes)
        hook.remove()
        return found, len(nets)

    def test_it_runs_at_full_steps_alone(self, one):
        rests = not one.arguments.get("guess_mode")  # there the pipeline makes other tensors of its residuals
        before = dict(one.pipe.controlnet.__dict__)
        stock, calls = self.counted(one)
        assert calls == STEPS
        with agentsd.apply(one.denoiser) as bare:  # the ControlNet is not known
            bare.attach(one.pipe)
            every, calls = self.counted(one)
            assert calls == STEPS
        with agentsd.apply(one.pipe) as patch:
            for _ in range(2):
                found, calls = self.counted(one)
                full = patch.report().last_run.full
                assert full < STEPS
                assert calls == (full if rests else STEPS)
                assert torch.equal(found, every), "what it leaves out is read by nobody"
            copied = copy.deepcopy(one.pipe)
        assert dict(one.pipe.controlnet.__dict__) == before
        assert torch.equal(one.run(), stock)
        agentsd.remove(copied)
        assert "forward" not in copied.controlnet.__dict__
        assert torch.equal(Built(None, copied, one.arguments).run(), stock)

    @pytest.mark.parametrize(
        ("build", "attention"),
        [(controlnet, None), (controlnet, MERGE), (sd3_controlnet, None), (flux_controlnet, None)],
    )
    def test_it_runs_after_all_where_a_condition_of_the_denoiser_alone_changes(self, build, attention):
        one, step = built(build), [0]
        if attention is not None:
            agentsd.apply(one.pipe.controlnet, attention)

        def change(pipe, index, timestep, tensors):
            step[0] = index
            return tensors

        def other(module, args, kwargs):
            return args, {**kwargs, "encoder_hidden_states": kwargs["encoder_hidden_states"] + (step[0] >= 5)}

        found = []
        for target in (one.denoiser, one.pipe):
            step[0] = 0
            with agentsd.apply(target, tolerance=0.1) as patch:
                patch.attach(one.pipe)
                hook = one.denoiser.register_forward_pre_hook(other, with_kwargs=True, prepend=True)
                with pytest.warns(UserWarning, match="encoder_hidden_states changed within the run"):
                    found.append(one.run(callback_on_step_end=change))
                hook.remove()
        assert torch.equal(*found)

    def test_a_run_that_stops_before_the_denoisers_call_leaves_nothing_to_the_next_one(self):
        one = built(controlnet)
        parts = {name: part for name, part in one.pipe.components.items() if name != "controlnet"}
        plain = Built(None, StableDiffusionPipeline(**parts, requires_safety_checker=False), {})
        plain.pipe.set_progress_bar_config(disable=True)
        with agentsd.apply(one.pipe, tolerance=0.1) as patch:
            patch.attach(plain.pipe)
            alone = plain.run()
            control = one.pipe.controlnet.__dict__[CONTROL]

            def stop(*_):
                if control.left_out:
                    raise KeyboardInterrupt

            hook = one.pipe.controlnet.register_forward_hook(stop)
            with pytest.raises(KeyboardInterrupt):
                one.run()
            hook.remove()
            assert torch.equal(plain.run(), alone)

    @pytest.mark.parametrize("begin", [6, 9, 11])
    def test_a_second_call_that_begins_within_the_run_gets_residuals_of_its_own_step(self, begin):
        one, found = built(controlnet), []
        scheduler = one.pipe.scheduler
        first, second = torch.randn(2, 1, 7, WIDTH, generator=torch.Generator().manual_seed(1))

        @torch.no_grad()
        def loop():
            scheduler.set_timesteps(STEPS)
            latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
            for index, t in enumerate(scheduler.timesteps):
                down, mid = one.pipe.controlnet(latent, t, first, PICTURE, return_dict=False)
                given = dict(down_block_additional_residuals=down, mid_block_additional_residual=mid)
                noise = one.denoiser(latent, t, first, **given).sample
                if index >= begin:
                    noise = (noise + one.denoiser(latent, t, second, **given).sample) / 2
                latent = scheduler.step(noise, t, latent).prev_sample
            return latent

        for target in (one.denoiser, one.pipe):
            with agentsd.apply(target, tolerance=0.3) as patch:
                patch.attach(one.pipe)
                found.append(loop())
        assert torch.equal(*found)

    @pytest.mark.parametrize("solver", [PNDMScheduler, HeunDiscreteScheduler])
    def test_its_calls_do_not_count_as_steps_where_timesteps_are_copied(self, solver):
        one, found = built(controlnet), []
        scheduler = one.pipe.scheduler = solver.from_config(one.pipe.scheduler.config)
        text = torch.randn(1, 7, WIDTH, generator=torch.Generator().manual_seed(1))

        @torch.no_grad()
        def loop():
            scheduler.set_timesteps(STEPS)
            latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
            for t in scheduler.timesteps:
                sample, copied = scheduler.scale_model_input(latent, t), t.clone()
                down, mid = one.pipe.controlnet(sample, copied, text, PICTURE, return_dict=False)
                given = dict(down_block_additional_residuals=down, mid_block_additional_residual=mid)
                latent = scheduler.step(one.denoiser(sample, copied, text, **given).sample, t, latent).prev_sample
            return latent

        for target in (one.denoiser, one.pipe):
            with agentsd.apply(target, tolerance=0.1) as patch:
                patch.attach(one.pipe)
                found.append(loop())
                last = patch.report().last_run
                assert last.full + last.skipped == len(scheduler.timesteps)
        assert torch.equal(*found)

    def test_it_rests_under_listed_full_steps_too(self):
        one = built(controlnet)
        levels = noise_levels_of(one.pipe.scheduler)
        full = (0, 1, 2, 3, 5, 8, 12, 16, 19)
        listed = Schedule.constant(None, skipping=Skipping(listed=ListedSteps(sigmas=levels, full=full)))
        with agentsd.apply(one.denoiser, listed) as bare:
            bare.attach(one.pipe)
            every = one.run()
        with agentsd.apply(one.pipe, listed):
            found, calls = self.counted(one)
        assert calls == len(full)
        assert torch.equal(found, every)

    def test_a_stray_call_of_it_does_not_begin_the_run_anew(self):
        one, last = built(controlnet), []

        def stray(pipe, index, timestep, tensors):
            if index == 8:
                with torch.no_grad():
                    pipe.controlnet(tensors["latents"], pipe.scheduler.timesteps[0], torch.zeros(1, 7, WIDTH), PICTURE)
            return tensors

        with agentsd.apply(one.pipe, tolerance=0.1) as patch:
            for changes in ({}, dict(callback_on_step_end=stray)):
                last.append((one.run(**changes), patch.report().last_run.full))
        assert torch.equal(last[0][0], last[1][0])
        assert last[0][1] == last[1][1]

    def test_no_residual_stays_after_a_run_or_a_reset(self):
        one = built(controlnet)
        with agentsd.apply(one.pipe, tolerance=0.1) as patch:
            control = one.pipe.controlnet.__dict__[CONTROL]
            one.run()
            assert control.left_out > 0
            assert control.local.held is None

            def stop(pipe, index, timestep, tensors):
                if index == 5:
                    raise KeyboardInterrupt
                return tensors

            with pytest.raises(KeyboardInterrupt):
                one.run(callback_on_step_end=stop)
            assert control.local.held is not None
            patch.reset()
            assert getattr(control.local, "held", None) is None

    @pytest.mark.parametrize("remove", [lambda one, patch: patch.remove(), lambda one, patch: agentsd.remove(one.pipe)])
    def test_a_removal_leaves_the_controlnet_to_the_pipeline_that_has_it_now(self, remove):
        one = built(controlnet)
        parts = {**components(seed=1), "controlnet": one.pipe.controlnet}
        other = Built(None, type(one.pipe)(**parts, requires_safety_checker=False), one.arguments)
        other.pipe.set_progress_bar_config(disable=True)
        earlier = agentsd.apply(one.pipe)
        with agentsd.apply(other.pipe) as patch:
            remove(one, earlier)
            agentsd.remove(one.pipe)  # not patched any more
            _, calls = self.counted(other)
            assert calls == patch.report().last_run.full < STEPS
        assert "forward" not in one.pipe.controlnet.__dict__
        assert CONTROL not in one.pipe.controlnet.__dict__

    def test_the_end_of_its_control_is_seen(self):
        one = built(controlnet)
        with agentsd.apply(one.pipe, tolerance=0.05) as patch:
            with pytest.warns(UserWarning, match="residual changed"):
                found = one.run(control_guidance_end=0.5)
            assert patch.report().last_run.skipped > 2
        stock = one.run(control_guidance_end=0.5)
        assert 0 < (found - stock).norm() < 0.2 * stock.norm()


def test_pictures_of_several_sizes_in_one_call_are_full_and_the_report_says_so():
    one = built(z_image)
    model = one.pipe.transformer
    samples = [torch.zeros(4, 1, 8, 8), torch.zeros(4, 1, 8, 16)]
    texts = one.arguments["prompt_embeds"] * 2
    with torch.inference_mode(), agentsd.apply(one.pipe, tolerance=0.05) as patch:
        found = model(samples, torch.full((2,), 0.5), texts, return_dict=False)[0]
        assert patch.report().skipping_problem == "the pictures of a call differ in size"
    stock = model(samples, torch.full((2,), 0.5), texts, return_dict=False)[0]
    assert all(torch.equal(*pair) for pair in zip(found, stock, strict=True))


@pytest.mark.parametrize("first", [False, True])
def test_guided_errors_take_the_half_that_a_pipeline_puts_first(first):
    pipe = SimpleNamespace(do_classifier_free_guidance=True, guidance_scale=3.0)
    one, other = torch.randn(2, 1, 4, 2, 2)
    guide = guidance_of([pipe], torch.zeros(2, 4, 2, 2), {}, conditional_first=first)
    expected = one + 3 * (one - other) if first else one + 3 * (other - one)
    assert torch.equal(guide(torch.cat([one, other])), expected)


def test_a_pipeline_with_two_denoisers_says_which_one_is_patched():
    one = built(wan)
    first = one.pipe.transformer
    torch.manual_seed(1)
    second = type(first).from_config(first.config).eval()
    one.pipe = type(one.pipe)(**{**one.pipe.components, "transformer_2": second}, boundary_ratio=0.6)
    one.pipe.set_progress_bar_config(disable=True)
    stock = one.run(num_inference_steps=40)
    line = (
        "not patched: transformer_2, a second denoiser: patch = agentsd.apply(pipe.transformer_2); patch.attach(pipe)"
    )
    with agentsd.apply(one.pipe, tolerance=0.05) as patch:
        assert line in str(patch.report())
        with agentsd.apply(second, tolerance=0.05) as other:
            other.attach(one.pipe)
            found = one.run(num_inference_steps=40)
            assert "transformer_2" not in str(patch.report()) + str(other.report())
            runs = [each.report().last_run for each in (patch, other)]
            assert all(run.skipped > 5 for run in runs)
            assert sum(run.skipped + run.full for run in runs) == 40
    assert 0 < (found - stock).norm() < 0.1 * stock.norm()
    assert torch.equal(one.run(num_inference_steps=40), stock)


@pytest.mark.parametrize("build", [stable_diffusion_3, flux, pixart])
@pytest.mark.parametrize("arguments", [dict(schedule="gentle"), dict(ratio=0.4), dict(schedule=POOL)])
def test_attention_is_refused_with_the_remedy(build, arguments):
    pipe, _ = build()
    before = snapshot(pipe.transformer)
    with pytest.raises(ValueError, match=r"no self-attention layer .* Found: .* use a preset with a tolerance"):
        agentsd.apply(pipe, **arguments)
    with pytest.raises(ValueError, match=r"depth=1 runs the last layers of a UNet2DConditionModel, and \w+ is none"):
        agentsd.apply(pipe, Schedule.constant(None, 2, skipping=agentsd.Skipping(depth=1)))
    assert_same(before, snapshot(pipe.transformer))


@pytest.mark.parametrize("name", ["encoder_hidden_states", "pooled_projections", "guidance", "img_ids"])
def test_changed_conditions_end_skipping(name):
    one, held = built(flux), [torch.zeros(())]

    def change(pipe, step, timestep, tensors):
        held[0] = held[0] + (step == 5)
        return tensors

    def other(module, args, kwargs):  # a new tensor at every step, after step 5 with other values
        return args, {**kwargs, name: kwargs[name] + held[0]}

    with agentsd.apply(one.pipe, tolerance=1.0) as patch:
        hook = one.pipe.transformer.register_forward_pre_hook(other, with_kwargs=True, prepend=True)
        with pytest.warns(UserWarning, match=f"{name} changed within the run"):
            one.run(callback_on_step_end=change)
        hook.remove()
        assert patch.report().last_run.forced == ((f"{name} changed within the run", 1),)
        assert patch.report().last_run.skipped > 5


def test_two_pipelines_on_one_denoiser_and_two_sizes_keep_their_state():
    one = built(flux)
    with agentsd.apply(one.pipe, tolerance=0.05) as patch:
        first = one.run()
        one.run(height=32, width=96)
        other = Built(None, type(one.pipe)(**one.pipe.components), one.arguments)
        other.pipe.scheduler = type(one.pipe.scheduler).from_config(one.pipe.scheduler.config)
        other.pipe.set_progress_bar_config(disable=True)
        other.run()  # its own scheduler is found, but not how it guides
        assert "call agentsd.apply on the pipeline" in patch.report().skipping_problem
        patch.attach(other.pipe)
        assert torch.equal(other.run(), first)
        assert torch.equal(one.run(), first)


def test_a_cache_of_diffusers_is_said():
    one = built(flux)
    one.pipe.transformer.enable_cache(first_block_cache())
    with pytest.raises(ValueError, match=r"on top of FirstBlockCache, .* disable_cache\(\)"):
        agentsd.apply(one.pipe, Schedule.constant(None, 2))
    with pytest.raises(ValueError, match="no self-attention layer"):
        agentsd.apply(one.pipe)
    one.pipe.transformer.disable_cache()
    stock = one.run()
    with agentsd.apply(one.pipe, tolerance=0.05) as patch:
        one.pipe.transformer.enable_cache(first_block_cache())
        with pytest.warns(UserWarning, match="FirstBlockCache is enabled and skips layers itself"):
            one.run()
        one.pipe.transformer.disable_cache()
        patch.remove()
    assert torch.equal(one.run(), stock)


def first_block_cache():
    from diffusers import FirstBlockCacheConfig

    return FirstBlockCacheConfig(threshold=0.1)


def test_a_denoiser_of_ones_own_is_read_from_its_signature():
    class Mine(torch.nn.Module):
        def forward(self, hidden_states, timestep, text=None):
            return (hidden_states,)

    assert layout_of(Mine()).sample == "hidden_states"
    with pytest.raises(ValueError, match=r"Linear has no self-attention layer"):
        agentsd.apply(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"steps cannot be skipped: Linear\.forward has no argument named 'timestep'"):
        agentsd.apply(torch.nn.Linear(2, 2), Schedule.constant(None, 2))


def test_the_parts_of_a_prediction():
    wide = torch.zeros(1, 9, 8, 8)
    assert latent_part(wide, torch.zeros(1, 4, 8, 8))[0].shape[1] == 4
    latent, mean, rest = latent_part(torch.zeros(2, 6, 3), torch.zeros(2, 6, 6))
    assert (latent.shape, mean.shape, rest[0], rest[1].shape) == ((2, 6, 3), (2, 6, 3), 2, (2, 6, 3))
