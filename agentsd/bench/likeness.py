"""What a front says of an arm, as fields of a row: paired speed-up, and likeness to stock."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from agentsd.bench.metrics import psnr, relative_l2, ssim
from agentsd.bench.ratios import speedup
from agentsd.bench.rows import Row
from agentsd.bench.samples import Sample


def pairs(samples: Sequence[Sample]) -> Row:
    """Return the paired speed-up of an arm as fields of a row, with the times of every chunk that has a pair.

    Example:
        >>> pairs([Sample(torch.zeros(1), 1.0, 2.0), Sample(torch.zeros(1), 2.0, 4.0)])["speedup"]
        2.0
    """
    timed = [sample for sample in samples if not math.isnan(sample.stock_seconds)]
    baseline, own = [sample.stock_seconds for sample in timed], [sample.seconds for sample in timed]
    gain = speedup(baseline, own)
    return {
        "speedup": round(gain.median, 4),
        "speedup_95": [round(gain.low, 4), round(gain.high, 4)],
        "rounds": gain.pairs,
        "seconds": [round(second, 4) for second in own],
        "stock_seconds": [round(second, 4) for second in baseline],
    }


@torch.inference_mode()
def decode(pipe: Any, latents: Tensor) -> Tensor:
    """Return the pictures of latents, [B, 3, H, W] in [0, 1], eight at a time.

    Args:
        pipe: A pipeline with a VAE.
        latents: Latents, [B, C, h, w].
    """
    vae, parts = pipe.vae, []
    for part in latents.split(8):
        scaled = part.to(vae.device, vae.dtype) / vae.config.scaling_factor
        parts.append((vae.decode(scaled).sample.float().cpu() / 2 + 0.5).clamp(0, 1))
    return torch.cat(parts)


def likeness(pictures: Tensor, reference: Tensor, latents: Tensor, reference_latents: Tensor) -> Row:
    """Return how near pictures and latents are to the stock ones of the same seeds, as fields of a row.

    Args:
        pictures: Pictures, [B, 3, H, W] in [0, 1].
        reference: The stock pictures.
        latents: Their latents.
        reference_latents: The stock latents.

    Returns:
        Medians, and the 5% quantile of PSNR; `None` stands for the infinite PSNR of equal pictures.
    """
    decibels, similarity = psnr(pictures, reference), ssim(pictures, reference)
    return {
        "psnr_db_median": _finite(decibels.median().item()),
        "psnr_db_p5": _finite(decibels.sort().values[int(0.05 * len(decibels))].item()),
        "ssim_median": round(similarity.median().item(), 4),
        "latent_l2_median": round(relative_l2(latents, reference_latents).median().item(), 4),
        "psnr_db": [_finite(value) for value in decibels.tolist()],
        "ssim": [round(value, 4) for value in similarity.tolist()],
    }


def _finite(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None
