"""Pipelines that denoise with a transformer are calibrated like those with a UNet."""

from types import SimpleNamespace

import pytest
import torch
from tiny import make_vae
from tiny_denoisers import hunyuan_dit, pixart, stable_diffusion_3

import agentsd
from agentsd.schedule import ListedSteps
from agentsd.unet.listed import ListedController
from agentsd.unet.noise_levels import NoiseLevels


def reading_prompts(build):
    """A tiny pipeline that makes embeddings of a prompt's length, since it has no text encoder."""
    pipe, arguments = build()
    kind = type(pipe)

    def call(self, prompt, **others):
        moved = torch.Generator().manual_seed(len(prompt))
        given = {
            name: value + 0.5 * torch.randn(value.shape, generator=moved) if name.endswith("prompt_embeds") else value
            for name, value in arguments.items()
        }
        return kind.__call__(self, **{**given, **others})

    pipe.__class__ = type(kind.__name__, (kind,), {"__call__": call})
    return pipe


def with_pictures():
    pipe, arguments = stable_diffusion_3()
    pipe.register_modules(vae=make_vae())
    pipe.vae.register_to_config(shift_factor=0.0)
    pipe.vae_scale_factor = 2
    return pipe, {**arguments, "height": 16, "width": 16}


@pytest.mark.parametrize("build", [with_pictures, pixart, hunyuan_dit])
def test_what_is_found_runs_as_it_says(build):
    pipe = reading_prompts(build)
    found = agentsd.calibrate(
        pipe, ["red", "a blue cross"], num_inference_steps=12, calls=7, progress=False, cache=False
    )
    assert (found.calls, found.stock_calls, found.model) == ((7,), 12, type(pipe).__name__)

    def draw():
        noise = torch.Generator().manual_seed(1)
        return pipe("a blue cross", num_inference_steps=12, generator=noise, output_type="pt").images[0].clamp(0, 1)

    stock = draw()
    with agentsd.apply(pipe, found.schedule):
        error = (draw() - stock).square().mean()
    assert float(-10 * error.log10()) == pytest.approx(found.psnr[0], abs=0.1)


def test_a_tolerance_is_found_for_flow_matching():
    found = agentsd.calibrate(
        reading_prompts(with_pictures), ["red", "a blue cross"], num_inference_steps=12, tolerance=0.05, progress=False,
        cache=False,
    )  # fmt: skip
    assert found.schedule.skipping.tolerance is not None
    assert found.latent_error[0] < 0.1
    assert found.mean_calls < 12
    assert "held-out prompt;" in str(found)
    assert "range of 1" not in str(found)


def test_frames_are_refused():
    pipe = reading_prompts(with_pictures)
    kind = type(pipe)
    pipe.__class__ = type(
        "Frames",
        (kind,),
        {"__call__": lambda self, *a, **k: SimpleNamespace(frames=kind.__call__(self, *a, **k).images)},
    )
    with pytest.raises(ValueError, match="Frames makes no pictures, which calibration compares"):
        agentsd.calibrate(pipe, ["red"], num_inference_steps=12, calls=7, progress=False, cache=False)


def test_a_predicted_variance_counts_among_the_bytes_that_are_held():
    steps = ListedSteps(sigmas=(4.0, 2.0, 1.0, 0.5, 0.0), full=(0, 1, 3), weights=((1.5, -0.5),))
    listed = ListedController(NoiseLevels(steps.sigmas, "epsilon"), steps)
    sample, prediction = torch.ones(1, 4, 2, 2), torch.ones(1, 8, 2, 2)
    for index in range(2):
        listed.observe(index, sample, prediction)
    assert listed.nbytes == 2 * prediction.nbytes
