"""Baselines of equal UNet calls run, and AYS has its published timesteps."""

import pytest
from diffusers import DDIMScheduler
from diffusers.schedulers import AysSchedules
from tiny import make_tiny_pipe

from agentsd.bench.solvers import SOLVERS, ays_timesteps

SD15 = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


@pytest.mark.parametrize(("sdxl", "name"), [(False, "StableDiffusionTimesteps"), (True, "StableDiffusionXLTimesteps")])
def test_ays_has_its_published_timesteps(sdxl, name):
    found = ays_timesteps(DDIMScheduler(**SD15), 10, sdxl)
    assert max(abs(one - other) for one, other in zip(found, AysSchedules[name], strict=True)) <= 6


def test_ays_interpolates_other_numbers():
    found = ays_timesteps(DDIMScheduler(**SD15), 19, False)
    assert found == sorted(set(found), reverse=True)
    assert found[::2] == ays_timesteps(DDIMScheduler(**SD15), 10, False)


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_run(name):
    pipe = make_tiny_pipe()
    solver = SOLVERS[name]
    pipe.scheduler = solver.make(pipe.scheduler.config)
    length = {"num_inference_steps": 6}
    if solver.timesteps is not None:
        length = {"timesteps": solver.timesteps(pipe.scheduler, 6, False)}
    calls = []
    pipe.unet.conv_in.register_forward_hook(lambda *_: calls.append(1))
    assert pipe("a", output_type="latent", **length).images.isfinite().all()
    assert len(calls) == 6
