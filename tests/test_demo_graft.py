"""Growing a UNet by an outer level."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from agentsd.demo.training.diffusion import build_unet
from agentsd.demo.training.graft import graft

INNER = (40, 48, 48)  # nine shifts of four latent channels need at least 36


@pytest.fixture(scope="module")
def grown():
    torch.manual_seed(0)
    inner, outer = (
        build_unet(widths, groups=8, text=32).eval().requires_grad_(False) for widths in (INNER, (INNER[0], *INNER))
    )
    graft(inner, outer)
    return inner, outer


def test_inner_levels_see_what_they_saw(grown):
    inner, outer = grown
    cells = torch.randn(1, 4, 8, 8)
    seen = []
    handles = [
        inner.conv_in.register_forward_hook(lambda _m, _i, output: seen.append(output)),
        outer.down_blocks[0].downsamplers[0].register_forward_hook(lambda _m, _i, output: seen.append(output)),
    ]
    text = torch.randn(1, 5, 32)
    inner(cells, 10, encoder_hidden_states=text)
    outer(F.interpolate(cells, scale_factor=2.0), 10, encoder_hidden_states=text)
    for handle in handles:
        handle.remove()
    assert torch.allclose(seen[0], seen[1], atol=1e-5)


def test_last_features_are_the_inner_ones_upsampled(grown):
    inner, outer = grown
    cells, text, seen = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 32), []
    handles = [
        unet.conv_norm_out.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0])) for unet in grown
    ]
    inner(cells, 10, encoder_hidden_states=text)
    outer(F.interpolate(cells, scale_factor=2.0), 10, encoder_hidden_states=text)
    for handle in handles:
        handle.remove()
    assert torch.allclose(F.interpolate(seen[0], scale_factor=2.0), seen[1], atol=1e-4)


def test_widths_must_fit():
    inner, outer = build_unet((40, 48), groups=8, text=32), build_unet((48, 48, 48), groups=8, text=32)
    with pytest.raises(ValueError, match=r"block_out_channels=\[48, 48, 48\] of the outer UNet; it must be"):
        graft(inner, outer)
