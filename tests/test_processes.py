"""The demo model under other processes: the conversion agrees with its formula."""

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


def test_the_processes_differ_from_the_models_own(own):
    for process in set(PROCESSES) - {"own"}:
        signal = demo_pipeline(process).scheduler.alphas_cumprod
        assert (signal - own.scheduler.alphas_cumprod).abs().max() > 0.05


def test_unknown_processes_are_refused():
    with pytest.raises(ValueError, match="process='sd3' is unknown; choose one of own, sd15, sd21-v, sdxl, zero-snr"):
        demo_pipeline("sd3")
