"""The demo model under other processes: the conversion agrees with its formula."""

import math

import pytest
import torch

from agentsd.demo.processes import PROCESSES, demo_pipeline, log_snr_of


@pytest.fixture(scope="module")
def own():
    return demo_pipeline("own")


@pytest.mark.parametrize("process", ["sd15", "sd21-v", "sdxl", "zero-snr"])
def test_predictions_agree_with_the_model_at_equal_noise(own, process):
    pipe = demo_pipeline(process)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 4, 16, 16, generator=generator)
    context = torch.randn(1, 77, own.text_encoder.config.hidden_size, generator=generator)
    ours, theirs = log_snr_of(own.scheduler), log_snr_of(pipe.scheduler)
    for timestep in (50, 500, 900):
        # The timestep of the model between whose neighbours the asked ratio lies, by a search of its own.
        low = int((ours > theirs[timestep]).sum()) - 1
        share = (ours[low] - theirs[timestep]) / (ours[low] - ours[low + 1])
        with torch.no_grad():
            velocity = own.unet(sample, float(low + share), context).sample
            found = pipe.unet(sample, timestep, context).sample
        alpha, sigma = theirs[timestep].sigmoid().sqrt(), (-theirs[timestep]).sigmoid().sqrt()
        if PROCESSES[process][1]["prediction_type"] == "epsilon":
            velocity = alpha * velocity + sigma * sample
        torch.testing.assert_close(found, velocity.float(), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_velocity_of_flow_matching_is_noise_less_picture(own, share):
    pipe = demo_pipeline("flow")
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 4, 16, 16, generator=generator)  # (1 - share) x0 + share n
    context = torch.randn(1, 77, own.text_encoder.config.hidden_size, generator=generator)
    ours = log_snr_of(own.scheduler)
    asked = 2 * math.log((1 - share) / share)
    low = int((ours > asked).sum()) - 1
    step = low + float((ours[low] - asked) / (ours[low] - ours[low + 1]))
    scale = math.hypot(1 - share, share)
    alpha, sigma = (1 - share) / scale, share / scale
    with torch.no_grad():
        velocity = own.unet(sample / scale, step, context).sample
        found = pipe.unet(sample, torch.tensor(1000 * share), context).sample
    picture, noise = alpha * sample / scale - sigma * velocity, sigma * sample / scale + alpha * velocity
    torch.testing.assert_close((1 - share) * picture + share * noise, sample, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, noise - picture, atol=2e-3, rtol=2e-3)


def test_the_processes_differ_from_the_models_own(own):
    for process in set(PROCESSES) - {"own"}:
        ours, theirs = log_snr_of(own.scheduler), log_snr_of(demo_pipeline(process).scheduler)
        assert (ours - theirs[: len(ours)]).abs().max() > 0.05


def test_unknown_processes_are_refused():
    with pytest.raises(ValueError, match=r"process='sd3' is unknown; choose one of own, sd15, .* zero-snr, flow"):
        demo_pipeline("sd3")
