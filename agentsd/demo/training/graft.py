"""Growing a UNet by an outer level: what it learnt on a coarse grid then serves on one twice as fine."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

# Where each of the five pixels that a stride-2 pair of 3 x 3 convolutions reaches lies in the kernel on the pooled
# grid. The sixth pixel of the pooled kernel's reach is out of theirs; its neighbour stands in for it.
_SPREAD = torch.tensor([[0.5, 0.5, 0, 0, 0], [0, 0, 0.5, 0.5, 0], [0, 0, 0, 0, 1.0]])


def _outward(name: str) -> str:
    """New name of an inner parameter: down blocks move one place on, up blocks keep theirs."""
    return re.sub(r"^down_blocks\.(\d+)", lambda match: f"down_blocks.{int(match[1]) + 1}", name)


@torch.no_grad()
def graft(inner: UNet2DConditionModel, outer: UNet2DConditionModel) -> None:
    """Put a trained UNet inside a fresh one that has one more level, in place.

    At first the outer UNet predicts, up to a pixel at borders of 2 x 2 cells, the upsampled prediction of the inner
    one for the pooled input: its own residual branches start at zero, its skip connections unused.

    Args:
        inner: The trained UNet.
        outer: A fresh one whose first two widths both equal the inner one's first.

    Raises:
        ValueError: The widths do not fit.
    """
    widths, wanted = list(outer.config.block_out_channels), list(inner.config.block_out_channels)
    if widths != [wanted[0], *wanted]:
        raise ValueError(f"block_out_channels={widths} of the outer UNet; it must be {[wanted[0], *wanted]}.")
    width, last = wanted[0], len(wanted)
    state, grown = inner.state_dict(), outer.state_dict()
    for name, value in state.items():
        if not name.startswith("conv_in."):
            grown[_outward(name)].copy_(value)

    # conv_in copies the latents with nine shifts; the downsampler sums the shifts to the inner conv_in on 2 x 2 means.
    channels = inner.config.in_channels
    down = "down_blocks.0.downsamplers.0.conv"
    kernel = torch.einsum("ocij,ip,jq->ocpq", state["conv_in.weight"], _SPREAD, _SPREAD)
    grown["conv_in.weight"][: 9 * channels].zero_()
    grown["conv_in.bias"].zero_()
    for channel in range(channels):
        for row in range(3):
            for column in range(3):
                grown["conv_in.weight"][9 * channel + 3 * row + column, channel, row, column] = 1
    grown[f"{down}.weight"].zero_()
    grown[f"{down}.bias"].copy_(state["conv_in.bias"])
    for row in range(5):
        for column in range(5):
            tap_row, tap_column = min(max(row - 1, 0), 2), min(max(column - 1, 0), 2)
            shift = 3 * (row - tap_row) + column - tap_column
            for channel in range(channels):
                source = 9 * channel + shift
                grown[f"{down}.weight"][:, source, tap_row, tap_column] = kernel[:, channel, row, column]

    upsampler = f"up_blocks.{last - 1}.upsamplers.0.conv"
    grown[f"{upsampler}.weight"].zero_()
    grown[f"{upsampler}.weight"][:, :, 1, 1] = torch.eye(width)
    grown[f"{upsampler}.bias"].zero_()
    for name, value in grown.items():
        if not name.startswith(("down_blocks.0.", f"up_blocks.{last}.")):
            continue
        if ".conv2." in name or ".proj_out." in name:
            value.zero_()
        if ".conv_shortcut." in name:
            value.zero_()
            if name.endswith("weight"):
                value[:, :width, 0, 0] = torch.eye(width)
    outer.load_state_dict(grown)
