"""PSNR, SSIM and relative distance against their definitions."""

import math

import pytest
import torch
import torch.nn.functional as F

from agentsd.bench.metrics import psnr, relative_l2, ssim


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(3, 3, 24, 17, generator=generator)
    noise = torch.randn(reference.shape, generator=generator) * torch.tensor([0.0, 0.05, 0.3]).view(3, 1, 1, 1)
    return (reference + noise).clamp(0, 1), reference


def explicit_ssim(one, other):
    """Wang et al. 2004, with the picture mirrored at its borders."""
    along = torch.exp(-((torch.arange(11.0) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(along, along) / along.sum() ** 2

    def blur(x):
        x = F.pad(x, (5, 5, 5, 5), mode="reflect")
        return F.conv2d(x.flatten(0, 1)[:, None], window[None, None]).squeeze(1).unflatten(0, x.shape[:2])

    m1, m2 = blur(one), blur(other)
    v1, v2, cov = blur(one * one) - m1 * m1, blur(other * other) - m2 * m2, blur(one * other) - m1 * m2
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * m1 * m2 + c1) * (2 * cov + c2) / ((m1**2 + m2**2 + c1) * (v1 + v2 + c2))).mean((1, 2, 3))


def test_psnr_is_that_of_each_picture(pair):
    pictures, reference = pair
    measured = psnr(pictures, reference)
    assert math.isinf(measured[0])
    for i in (1, 2):
        error = (pictures[i] - reference[i]).square().mean()
        torch.testing.assert_close(measured[i], -10 * error.log10())


def test_ssim_is_that_of_the_paper(pair):
    torch.testing.assert_close(ssim(*pair), explicit_ssim(*pair), atol=1e-4, rtol=0)
    assert float(ssim(*pair)[0]) == pytest.approx(1.0)


def test_pictures_do_not_depend_on_their_batch(pair):
    pictures, reference = pair
    for metric in (psnr, ssim, relative_l2):
        alone = torch.cat([metric(pictures[i : i + 1], reference[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(metric(pictures, reference), alone)


def test_half_precision_is_measured_in_single():
    reference = torch.full((1, 3, 16, 16), 0.5, dtype=torch.float16)
    assert psnr(reference + 0.25, reference).dtype == torch.float32


def test_relative_l2_of_latents():
    reference = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(relative_l2(reference * 1.25, reference), torch.tensor([0.25, 0.25]))


def test_errors_say_what_is_wrong():
    good = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"pictures has shape \(1, 3, 16, 16\), the reference \(2, 3, 16, 16\)"):
        psnr(good, torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match=r"pictures has shape \(1, 1, 16, 16\); it must be \[B, 3, H, W\]"):
        ssim(good[:, :1], good[:, :1])
    with pytest.raises(ValueError, match=r"reference holds values from 0 to 255; they must lie in \[0, 1\]"):
        psnr(good, torch.linspace(0, 255, good.numel()).view_as(good))
    with pytest.raises(ValueError, match=r"pictures holds values from nan"):
        psnr(good / 0, good)
    with pytest.raises(ValueError, match=r"pictures of 8x16 are smaller than SSIM's window of 11x11"):
        ssim(good[:, :, :8], good[:, :, :8])
    with pytest.raises(ValueError, match="latents has shape"):
        relative_l2(good, good[:, :, :8])
