"""Rivals written from their equations: exact where they must be, and the UNet is restored."""

import pytest
import torch
from tiny import make_tiny_pipe

from agentsd.bench.skippers import SKIPPERS, AdaptiveDiffusion, EasyCache, Spectrum, Taylor, skipping_by


@pytest.mark.parametrize("order", [0, 1, 2])
def test_taylor_is_exact_for_polynomials_of_its_order(order):
    skipper = Taylor(20, every=3, order=order)
    for index in (0, 3, 6):
        skipper.observe(index, torch.zeros(1), torch.tensor([float(index**order)]))
    assert skipper.forecast(8, torch.zeros(1)).item() == pytest.approx(8.0**order)


def test_spectrum_follows_a_line_and_opens_its_window():
    skipper = Spectrum(50, ridge=1e-9)
    for index in range(5):
        skipper.observe(index, torch.zeros(1), torch.tensor([float(index)]))
    assert not skipper.needs_full(5, torch.zeros(1))
    assert skipper.needs_full(6, torch.zeros(1))
    assert skipper.forecast(5, torch.zeros(1)).item() == pytest.approx(5.0, abs=1e-3)


def test_adaptive_diffusion_looks_at_the_speed():
    steady, jumping = AdaptiveDiffusion(50), AdaptiveDiffusion(50)
    for index in range(4):
        for skipper in (steady, jumping):
            skipper.needs_full(index, torch.tensor([float(index)]))
            skipper.observe(index, torch.zeros(1), torch.zeros(1))
    assert not steady.needs_full(4, torch.tensor([4.0]))
    assert jumping.needs_full(4, torch.tensor([9.0]))


def test_easycache_repeats_the_difference():
    skipper = EasyCache(50)
    skipper.observe(0, torch.tensor([1.0]), torch.tensor([3.0]))
    assert skipper.forecast(1, torch.tensor([5.0])).item() == 7.0


@pytest.mark.parametrize("name", SKIPPERS)
def test_arms_skip_and_restore(name):
    pipe = make_tiny_pipe()
    before, keys = pipe.unet.forward, set(pipe.unet.__dict__)
    with skipping_by(pipe, SKIPPERS[name]):
        pipe("a", num_inference_steps=12, output_type="latent")
    assert pipe.unet.forward == before
    assert set(pipe.unet.__dict__) == keys
