"""The demo's variational autoencoder: 256 x 256 pictures to 4 x 64 x 64 latents."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from agentsd.demo.render import render_batch
from agentsd.demo.scenes import sample_scenes
from agentsd.system.precision import cpu_autocast

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

logger = logging.getLogger(__name__)

LATENT_FACTOR = 4
ALIGNED_CHANNELS = 3  # latent channels held close to the pooled red, green and blue


def build_vae(channels: tuple[int, ...] = (16, 32, 64)) -> AutoencoderKL:
    """Build the untrained autoencoder.

    Args:
        channels: Width of each block; three blocks make the latents a quarter of the picture's side.

    Returns:
        The model, in fp32, initialised from torch's global generator.
    """
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=256,
        scaling_factor=1.0,
    )


def to_tensor(pictures: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Pictures (n, h, w, 3) uint8 to a tensor (n, 3, h, w) in [-1, 1].

    >>> to_tensor(np.zeros((1, 2, 2, 3), dtype=np.uint8)).min().item()
    -1.0
    """
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    """The inverse of ``to_tensor``, rounding and clipping."""
    pixels = ((tensor.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    result: npt.NDArray[np.uint8] = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    return result


def _gradient_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    difference = output - target
    across = (difference[..., :, 1:] - difference[..., :, :-1]).abs().mean()
    return across + (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()


def vae_loss(vae: AutoencoderKL, pictures: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Training loss: L1, L1 of the gradients, a slight KL, and alignment of latents with pooled colours.

    The alignment makes averages of latents mean averages of colours, and the diffusion model can be trained
    on pooled latents first.

    Args:
        vae: The autoencoder.
        pictures: (n, 3, h, w) in [-1, 1].
        noise: Standard normal, the shape of the latents.

    Returns:
        The scalar loss.
    """
    posterior = vae.encode(pictures).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    output = vae.decode(mean + torch.exp(0.5 * logvar) * noise).sample.float()
    pooled = F.avg_pool2d(pictures, LATENT_FACTOR)
    alignment = F.mse_loss(mean[:, :ALIGNED_CHANNELS], 2 * pooled)
    divergence = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    loss: torch.Tensor = (
        F.l1_loss(output, pictures)
        + F.mse_loss(output, pictures)
        + 0.5 * _gradient_loss(output, pictures)
        + 0.1 * alignment
        + 3e-4 * divergence
    )
    return loss


def train_vae(
    steps: int, *, seed: int = 0, batch: int = 8, crop: int = 128, pool: int = 800, lr: float = 2e-3
) -> AutoencoderKL:
    """Train the autoencoder on crops of rendered scenes.

    Args:
        steps: Optimiser steps.
        seed: Seed of initialisation, scenes, crops and noise.
        batch: Crops a step.
        crop: Side of a crop in pixels, a multiple of 4 and at most 256.
        pool: Scenes rendered for the purpose.
        lr: Peak learning rate; it falls to a hundredth along a cosine.

    Returns:
        The trained model in fp32, without scaling factor.
    """
    torch.manual_seed(seed)
    vae = build_vae().to(memory_format=torch.channels_last)
    vae.train()
    pictures = render_batch(sample_scenes(pool, seed=1000 + seed))
    optimiser = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=lr, total_steps=steps, pct_start=min(0.1, 50 / steps), final_div_factor=4.0
    )
    rng = np.random.default_rng((seed, 17))
    generator = torch.Generator().manual_seed(seed)
    began = time.monotonic()
    for step in range(steps):
        corners = rng.integers(0, pictures.shape[1] - crop + 1, size=(batch, 2))
        chosen = rng.integers(0, len(pictures), size=batch)
        crops = np.stack([pictures[i, r : r + crop, c : c + crop] for i, (r, c) in zip(chosen, corners, strict=True)])
        inputs = to_tensor(crops).contiguous(memory_format=torch.channels_last)
        side = crop // LATENT_FACTOR
        noise = torch.randn(batch, 4, side, side, generator=generator)
        with cpu_autocast():
            loss = vae_loss(vae, inputs, noise)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            logger.info("vae step %d/%d loss %.4f, %.0f s", step, steps, loss.item(), time.monotonic() - began)
    return vae.eval()


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: npt.NDArray[np.uint8], batch: int = 8) -> torch.Tensor:
    """Unscaled latent means (n, 4, h/4, w/4), fp16, of pictures (n, h, w, 3) uint8."""
    parts = []
    for start in range(0, len(pictures), batch):
        inputs = to_tensor(pictures[start : start + batch]).contiguous(memory_format=torch.channels_last)
        with cpu_autocast():
            parts.append(vae.encode(inputs).latent_dist.mean.contiguous().half())
    return torch.cat(parts)


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: torch.Tensor, batch: int = 8) -> npt.NDArray[np.uint8]:
    """Pictures (n, 4h, 4w, 3) uint8 of unscaled latents (n, 4, h, w)."""
    parts = []
    for start in range(0, len(latents), batch):
        with cpu_autocast():
            parts.append(to_pictures(vae.decode(latents[start : start + batch].float()).sample))
    return np.concatenate(parts)


def reconstruction_psnr(vae: AutoencoderKL, number: int = 32, seed: int = 77) -> float:
    """Mean peak signal-to-noise ratio in dB of encode-decode round trips over held-out scenes."""
    pictures = render_batch(sample_scenes(number, seed=seed, held_out=True))
    restored = decode(vae, encode(vae, pictures).float())
    errors = ((restored.astype(np.float64) - pictures) ** 2).mean(axis=(1, 2, 3))
    return float((10 * np.log10(255.0**2 / errors)).mean())


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, number: int = 200, seed: int = 900) -> None:
    """Rewrite the 1 x 1 quantisation convolutions in place: latents then have mean 0 and covariance 1.

    The symmetric (ZCA) whitening stays as near the aligned colours as any can; it lifts the hue of small objects,
    which raw latents drown in the brightness of the background, to the variance that diffusion decides first.

    Args:
        vae: The trained autoencoder; what it reconstructs does not change.
        number: Scenes over which the moments are taken.
        seed: Seed of these scenes.
    """
    latents = encode(vae, render_batch(sample_scenes(number, seed=seed))).double()
    flat = latents.permute(1, 0, 2, 3).flatten(1)
    mean = flat.mean(dim=1)
    values, vectors = torch.linalg.eigh(torch.cov(flat))
    logger.info("latent mean %s, principal variances %s", mean.tolist(), values.tolist())
    whiten = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    colour = vectors @ torch.diag(values.sqrt()) @ vectors.T
    quant, post = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    weight, bias = quant.weight.double(), quant.bias.double()
    weight[:channels] = torch.einsum("ij,jkhw->ikhw", whiten, weight[:channels])
    bias[:channels] = whiten @ (bias[:channels] - mean)
    bias[channels:] += 2 * torch.log(torch.diag(whiten))  # about right for the posterior's width, unused here
    quant.weight.copy_(weight)
    quant.bias.copy_(bias)
    post.bias.copy_(post.bias.double() + post.weight.double().flatten(1) @ mean)
    post.weight.copy_(torch.einsum("ikhw,kj->ijhw", post.weight.double(), colour))
