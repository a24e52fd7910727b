"""Rivals written from their equations: exact where they must be, and the UNet is restored."""

import pytest
import torch
from diffusers import DDIMScheduler
from tiny import make_tiny_pipe

from agentsd.bench.latent_rules import LtcAccel, Sada
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


def started(rule, scheduler=None, steps=20):
    scheduler = DDIMScheduler() if scheduler is None else scheduler
    scheduler.set_timesteps(steps)
    rule.begin(scheduler)
    return rule


@pytest.mark.parametrize("bend", [1.0, -1.0])
def test_sada_decides_by_the_sign_of_its_product(bend):
    rule = started(Sada(20))
    sample = torch.zeros(1, 1, 1, 1)
    for index, flow in enumerate((0.0, 0.0, bend), start=2):
        # The noise that gives this flow at a sample of 0.
        sigma = rule.levels.scales(index)[1]
        noise = torch.full_like(sample, 2 * sigma * flow / rule.levels.beta(index))
        rule.observe(index, sample, noise)
    stepped = -0.625 * bend / 20  # the second difference of the flow is `bend`
    assert rule.needs_full(5, torch.full_like(sample, stepped + 0.1 * bend))
    assert not rule.needs_full(5, torch.full_like(sample, stepped - 0.1 * bend))
    sigma = rule.levels.scales(5)[1]
    found = rule.forecast(5, sample)
    assert found.item() == pytest.approx((0 - (stepped - sigma * float(noise))) / sigma, rel=1e-4)


def test_sada_ends_with_a_cubic_through_pictures():
    rule = started(Sada(20))
    sample = torch.zeros(1, 1, 1, 1)
    for index in (7, 8, 9, 10):
        alpha, sigma = rule.levels.scales(index)
        picture = (rule.levels.timesteps[index] / 1000) ** 3
        rule.observe(index, sample, torch.full_like(sample, -alpha * picture / sigma))
    assert [rule.needs_full(index, sample) for index in (10, 11, 13, 14, 19)] == [True, False, False, True, True]
    alpha, sigma = rule.levels.scales(11)
    expected = -alpha * (rule.levels.timesteps[11] / 1000) ** 3 / sigma
    assert rule.forecast(11, sample).item() == pytest.approx(expected, rel=1e-3)


def test_ltc_moves_the_latent_by_its_last_change():
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    rule = started(LtcAccel(20), scheduler)
    generator = torch.Generator().manual_seed(0)
    samples = [torch.randn(1, 4, 2, 2, generator=generator) for _ in range(8)]
    full = [rule.needs_full(index, sample) for index, sample in enumerate(samples[:7])]
    assert full == [True] * 6 + [False]
    older, newer = samples[5] - samples[4], samples[6] - samples[5]
    snr = [1 / sigma for sigma in rule.levels.sigmas[:-1]]
    before = (snr[6] - snr[5]) / (snr[5] - snr[4])
    scale = float((newer * older).sum() / (before * older.square().sum()))
    expected = samples[6] + scale * (snr[7] - snr[6]) / (snr[6] - snr[5]) * newer
    moved = scheduler.step(rule.forecast(6, samples[6]), scheduler.timesteps[6], samples[6]).prev_sample
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=1e-4)
    assert rule.needs_full(7, samples[7]), "every second step is whole"


@pytest.mark.parametrize("name", SKIPPERS)
def test_arms_skip_and_restore(name):
    pipe = make_tiny_pipe()
    before, keys = pipe.unet.forward, set(pipe.unet.__dict__)
    with skipping_by(pipe, SKIPPERS[name]):
        pipe("a", num_inference_steps=12, output_type="latent")
    assert pipe.unet.forward == before
    assert set(pipe.unet.__dict__) == keys
