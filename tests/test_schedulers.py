"""Which step a UNet call belongs to, for every scheduler and every way of calling: compared with counting the calls."""

import warnings

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline
from probe import AGENTS, MERGE, MIXED, POOL, expected, unet_inputs, watch
from tiny import draw, make_sdxl_pipe, make_tiny_pipe

import agentsd
from agentsd import MergedTokens, Phase, Schedule
from agentsd.attention.settings import Attention

# scheduler class, settings, calls of the UNet in 10 steps
SCHEDULERS = {
    "DDIM": ("DDIMScheduler", {}, 10),
    "DDIM-trailing": ("DDIMScheduler", dict(timestep_spacing="trailing"), 10),
    "DDPM": ("DDPMScheduler", {}, 10),
    "PNDM": ("PNDMScheduler", dict(skip_prk_steps=True), 11),
    "PNDM-prk": ("PNDMScheduler", dict(skip_prk_steps=False), 19),
    "Euler": ("EulerDiscreteScheduler", {}, 10),
    "Euler-karras": ("EulerDiscreteScheduler", dict(use_karras_sigmas=True), 10),
    "Euler-exponential": ("EulerDiscreteScheduler", dict(use_exponential_sigmas=True), 10),
    "Euler-continuous": (
        "EulerDiscreteScheduler",
        dict(timestep_type="continuous", prediction_type="v_prediction"),
        10,
    ),
    "EulerA": ("EulerAncestralDiscreteScheduler", {}, 10),
    "Heun": ("HeunDiscreteScheduler", {}, 19),
    "Heun-karras": ("HeunDiscreteScheduler", dict(use_karras_sigmas=True), 19),
    "KDPM2": ("KDPM2DiscreteScheduler", {}, 19),
    "KDPM2A": ("KDPM2AncestralDiscreteScheduler", {}, 19),
    "LMS": ("LMSDiscreteScheduler", {}, 10),
    "LMS-karras": ("LMSDiscreteScheduler", dict(use_karras_sigmas=True), 10),
    "CM": ("CMStochasticIterativeScheduler", {}, 10),
    "DPM++": ("DPMSolverMultistepScheduler", {}, 10),
    "DPM++-karras": ("DPMSolverMultistepScheduler", dict(use_karras_sigmas=True), 10),
    "DPM++-lu": ("DPMSolverMultistepScheduler", dict(use_lu_lambdas=True), 10),
    "DPM++-sde": ("DPMSolverMultistepScheduler", dict(algorithm_type="sde-dpmsolver++"), 10),
    "DPM++-single": ("DPMSolverSinglestepScheduler", {}, 10),
    "UniPC": ("UniPCMultistepScheduler", {}, 10),
    "UniPC-karras": ("UniPCMultistepScheduler", dict(use_karras_sigmas=True), 10),
    "DEIS": ("DEISMultistepScheduler", {}, 10),
    "LCM": ("LCMScheduler", {}, 10),
    "TCD": ("TCDScheduler", {}, 10),
    "SASolver": ("SASolverScheduler", {}, 10),
    "IPNDM": ("IPNDMScheduler", {}, 10),
    "EDM-Euler": ("EDMEulerScheduler", {}, 10),
    "EDM-DPM++": ("EDMDPMSolverMultistepScheduler", {}, 10),
    "DPM++-SDE": ("DPMSolverSDEScheduler", {}, 19),
}


def build(name):
    class_name, settings, calls = SCHEDULERS[name]
    if class_name == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    return getattr(diffusers, class_name)(**settings), calls


@pytest.fixture
def pipe(tiny_pipe):
    agentsd.apply(tiny_pipe, MIXED)
    return tiny_pipe


@pytest.fixture(scope="module")
def known():
    """A pipeline that was given to `apply`; tests change its scheduler alone."""
    pipe = make_tiny_pipe()
    agentsd.apply(pipe, MIXED)
    return pipe


@pytest.fixture(scope="module")
def unknown():
    """A pipeline whose UNet alone was given to `apply`."""
    pipe = make_tiny_pipe()
    agentsd.apply(pipe.unet, MIXED)
    return pipe


@pytest.mark.filterwarnings("ignore")
class TestEveryScheduler:
    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_the_schedule_follows_the_calls(self, name, known):
        pipe = known
        pipe.scheduler, number = build(name)
        for seed in (0, 1) if name in ("DDIM", "PNDM", "Heun", "KDPM2A") else (0,):  # and starts again
            with watch(pipe.unet) as calls:
                draw(pipe, seed=seed, steps=10, guidance_scale=1.0)
            assert len(calls) == number
            assert [call.config for call in calls] == expected(MIXED, calls)

    @pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "IPNDM"])  # its memory is one entry longer
    def test_without_knowing_the_scheduler(self, name, unknown):
        unknown.scheduler, number = build(name)
        with watch(unknown.unet) as calls:
            draw(unknown, steps=10, guidance_scale=1.0)
        assert len(calls) == number
        assert [call.config for call in calls] == expected(MIXED, calls)

    @pytest.mark.parametrize(
        "name", ["DDIM", "PNDM", "Euler", "Euler-karras", "Heun", "KDPM2", "KDPM2A", "DPM++", "UniPC", "LCM", "DDPM"]
    )
    def test_image_to_image_counts_from_where_it_enters(self, name, tiny_pipe):
        other = StableDiffusionImg2ImgPipeline.from_pipe(tiny_pipe)
        other.set_progress_bar_config(disable=True)
        other.scheduler, number = build(name)
        agentsd.apply(other, MIXED)
        for _ in range(2):
            with watch(other.unet) as calls:
                draw(other, steps=10, guidance_scale=1.0, image=torch.rand(1, 3, 32, 32), strength=0.5)
            assert number // 2 <= len(calls) <= number // 2 + 1
            assert [call.config for call in calls] == expected(MIXED, calls)

    @pytest.mark.parametrize("name", ["Heun", "PNDM-prk", "KDPM2A", "EDM-Euler"])
    def test_every_call_has_its_own_place(self, name, tiny_pipe):
        # Repeated and non-monotone timesteps: the phase boundary must fall between the right two calls.
        tiny_pipe.scheduler, number = build(name)
        for cut in range(1, 6):
            schedule = Schedule((Phase(cut / number, POOL), Phase(1.0, None)))
            agentsd.apply(tiny_pipe, schedule)
            with watch(tiny_pipe.unet) as calls:
                draw(tiny_pipe, steps=10, guidance_scale=1.0)
            assert [call.config for call in calls] == [POOL] * cut + [None] * (number - cut)


class TestPipelineArguments:
    def test_custom_timesteps(self, pipe):
        pipe.scheduler = diffusers.DPMSolverMultistepScheduler()
        with watch(pipe.unet) as calls:
            draw(pipe, timesteps=[999, 850, 600, 500, 120, 30, 10, 5])
        assert len(calls) == 8
        assert [call.config for call in calls] == expected(MIXED, calls)

    def test_custom_sigmas(self, pipe):
        pipe.scheduler = diffusers.EulerDiscreteScheduler()
        with watch(pipe.unet) as calls:
            draw(pipe, sigmas=[14.0, 7.0, 3.0, 1.0, 0.5, 0.0])
        assert len(calls) == 5
        assert [call.config for call in calls] == expected(MIXED, calls)

    @pytest.mark.parametrize("first", [AGENTS, None])
    def test_a_single_step_is_the_first_phase(self, first, tiny_pipe):
        agentsd.apply(tiny_pipe, Schedule((Phase(0.1, first), Phase(1.0, MERGE))))
        tiny_pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler(timestep_spacing="trailing")
        for _ in range(2):
            with watch(tiny_pipe.unet) as calls:
                draw(tiny_pipe, steps=1, guidance_scale=0.0)
            assert [call.config for call in calls] == [first]

    def test_denoising_start_counts_from_its_own_first_step(self):
        from diffusers import StableDiffusionXLImg2ImgPipeline

        base = make_sdxl_pipe()
        pipe = StableDiffusionXLImg2ImgPipeline(**base.components)
        agentsd.apply(pipe, Schedule((Phase(0.5, POOL), Phase(1.0, None))))
        image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with watch(pipe.unet) as calls:
            draw(pipe, steps=10, denoising_start=0.6, image=image)
        assert [call.config for call in calls] == [POOL] * 2 + [None] * 2

    def test_denoising_end_leaves_the_last_steps_of_the_schedule_out(self):
        pipe = make_sdxl_pipe()
        agentsd.apply(pipe, Schedule((Phase(0.4, POOL), Phase(1.0, None))))
        with watch(pipe.unet) as calls:
            draw(pipe, steps=10, denoising_end=0.8)
        assert [call.config for call in calls] == [POOL] * 4 + [None] * 4

    @pytest.mark.parametrize("guidance", [1.0, 7.5])
    def test_guidance_does_not_change_the_steps(self, guidance, pipe):
        with watch(pipe.unet) as calls:
            draw(pipe, steps=8, guidance_scale=guidance)
        assert calls[0].args[0].shape[0] == (2 if guidance > 1 else 1)
        assert [call.config for call in calls] == expected(MIXED, calls)

    def test_the_callback_stays_the_users(self, pipe):
        seen = []

        def callback(pipe, step, timestep, tensors):
            seen.append((step, int(timestep), sorted(tensors)))
            return tensors

        with watch(pipe.unet) as calls:
            draw(pipe, steps=4, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["latents"])
        assert [call.config for call in calls] == expected(MIXED, calls)
        assert seen == [(i, int(t), ["latents"]) for i, t in enumerate(pipe.scheduler.timesteps)]

    def test_a_new_scheduler_object_is_read_live(self, pipe):
        for scheduler in (diffusers.EulerDiscreteScheduler(), diffusers.HeunDiscreteScheduler(), DDIMScheduler()):
            pipe.scheduler = scheduler
            with watch(pipe.unet) as calls:
                draw(pipe, steps=6)
            assert [call.config for call in calls] == expected(MIXED, calls)

    def test_an_interrupted_run_and_the_next(self, pipe):
        def stop(pipe, step, timestep, tensors):
            pipe._interrupt = step == 2
            return tensors

        with watch(pipe.unet) as calls:
            draw(pipe, steps=8, callback_on_step_end=stop)
        assert [call.config for call in calls] == [MIXED.at(i, 8) for i in range(3)]
        with watch(pipe.unet) as calls:
            draw(pipe, steps=8)
        assert [call.config for call in calls] == expected(MIXED, calls)


def as_view(t):
    return t


def cloned(t):
    return t.clone()


def expanded(t):
    return t.expand(2)


def one_element(t):
    return t[None]


def repeated(t):
    return t.repeat(2)


def copied_as_float(t):
    return t.to(torch.float64)


class TestLoopsOfOnesOwn:
    @pytest.mark.parametrize("keywords", [False, True])
    @pytest.mark.parametrize("form", [as_view, cloned, expanded, one_element, repeated, copied_as_float])
    @pytest.mark.parametrize("scheduler", ["DDIM", "Euler-karras"])
    def test_timesteps_of_the_pipelines_scheduler(self, scheduler, form, keywords, pipe):
        pipe.scheduler, _ = build(scheduler)
        sample, text = unet_inputs()
        for _ in range(2):
            pipe.scheduler.set_timesteps(8)
            with watch(pipe.unet) as calls, torch.no_grad():
                for t in pipe.scheduler.timesteps:
                    if keywords:
                        pipe.unet(encoder_hidden_states=text, timestep=form(t), sample=sample)
                    else:
                        pipe.unet(sample, form(t), text)
            assert [call.config for call in calls] == expected(MIXED, calls)

    def test_copies_of_repeated_timesteps(self, pipe):
        pipe.scheduler, _ = build("Heun")
        pipe.scheduler.set_timesteps(8)
        sample, text = unet_inputs()
        with watch(pipe.unet) as calls, torch.no_grad():
            for t in pipe.scheduler.timesteps:
                pipe.unet(sample, t.clone(), text)
        assert [call.config for call in calls] == expected(MIXED, calls)

    def test_a_strided_view_as_the_schedulers_timesteps(self, pipe):
        sample, text = unet_inputs()
        pipe.scheduler.set_timesteps(16)
        pipe.scheduler.timesteps = pipe.scheduler.timesteps[::2]
        with watch(pipe.unet) as calls, torch.no_grad():
            for t in pipe.scheduler.timesteps:
                pipe.unet(sample, t, text)
        assert [call.config for call in calls] == expected(MIXED, calls)

    def test_two_calls_per_step(self, pipe):
        # Guidance as two calls at the same timestep instead of one batch of two.
        pipe.scheduler.set_timesteps(8)
        sample, text = unet_inputs()
        for form in (as_view, cloned):
            with watch(pipe.unet) as calls, torch.no_grad():
                for t in pipe.scheduler.timesteps:
                    for half in range(2):
                        pipe.unet(sample[half : half + 1], form(t), text[half : half + 1])
            assert [call.config for call in calls] == [MIXED.at(i // 2, 8) for i in range(16)]

    def test_timesteps_that_belong_to_no_scheduler(self, tiny_unet):
        sample, text = unet_inputs()
        agentsd.apply(tiny_unet, MIXED)
        with watch(tiny_unet) as calls, torch.no_grad():
            for t in torch.linspace(1.5, 0.1, 8):  # continuous noise levels
                tiny_unet(sample, t, text)
        assert [call.config for call in calls] == expected(MIXED, calls)

    @pytest.mark.parametrize(
        ("timestep", "config"),
        [
            (999, AGENTS),
            (750, AGENTS),
            (749, MERGE),
            (500, MERGE),
            (400, MERGE),
            (399, None),
            (0, None),
            (900.0, AGENTS),
            (np.float64(900.0), AGENTS),
            (np.int64(900), AGENTS),
            (torch.tensor(900), AGENTS),
            (torch.tensor([500]), MERGE),
            (torch.tensor([500, 500]), MERGE),
            (torch.tensor([900.0, 900.0]), AGENTS),
            (torch.tensor([500, 900]), None),  # samples at different steps (training): stock
            (torch.tensor([900, 899]), None),
        ],
        ids=lambda value: None if isinstance(value, Attention | None) else repr(value),
    )
    def test_a_bare_number_is_a_share_of_the_training_steps(self, timestep, config, tiny_unet):
        sample, text = unet_inputs()
        agentsd.apply(tiny_unet, MIXED)
        for positional in (True, False):
            with watch(tiny_unet) as calls, torch.no_grad():
                if positional:
                    tiny_unet(sample, timestep, text)
                else:
                    tiny_unet(sample=sample, timestep=timestep, encoder_hidden_states=text)
            assert [call.config for call in calls] == [config]

    def test_unequal_timesteps_are_stock_bit_for_bit(self, tiny_unet):
        sample, text = unet_inputs()
        timesteps = torch.tensor([500, 900])
        with torch.no_grad():
            stock = tiny_unet(sample, timesteps, text).sample
            agentsd.apply(tiny_unet, AGENTS)
            assert torch.equal(tiny_unet(sample, timesteps, text).sample, stock)
            equal = tiny_unet(sample, torch.tensor([900, 900]), text).sample
            assert torch.equal(equal, tiny_unet(sample, 900, text).sample)

    def test_a_call_without_a_timestep_fails_as_the_unet_does(self, tiny_unet):
        sample, text = unet_inputs()
        agentsd.apply(tiny_unet, AGENTS)
        with pytest.raises(TypeError, match="timestep"):
            tiny_unet(sample, encoder_hidden_states=text)
        with pytest.raises(TypeError, match="sample"):
            tiny_unet(timestep=500, encoder_hidden_states=text)

    def test_no_warning_in_ordinary_use(self, pipe):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            draw(pipe, steps=4)
            draw(pipe, steps=4, height=40, width=24)


def test_the_paper_preset_over_fifty_steps(tiny_pipe):
    # The official code counts i < 20 over 50 DDIM steps, 21 of 51 calls under PLMS.
    agentsd.apply(tiny_pipe, "paper")
    for name, number in (("DDIM", 20), ("PNDM", 21)):
        tiny_pipe.scheduler, _ = build(name)
        with watch(tiny_pipe.unet) as calls:
            draw(tiny_pipe, steps=50, guidance_scale=1.0)
        agents = [call.config.agent_ratio is not None for call in calls]
        assert agents == [True] * number + [False] * (len(calls) - number)
        assert calls[0].config == MergedTokens(merge_ratio=0.4, agent_ratio=0.95, stride=4)


def test_a_pipeline_that_is_gone_is_no_obstacle():
    pipe = make_tiny_pipe()
    unet = pipe.unet
    agentsd.apply(pipe, MIXED)
    draw(pipe, steps=2)
    del pipe
    other = make_tiny_pipe(seed=1)
    other.unet = unet
    with watch(unet) as calls:
        draw(other, steps=8)
    assert [call.config for call in calls] == expected(MIXED, calls)
