"""The training pool: latents and thumbnails of rendered scenes, computed once, and random batches of it."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from agentsd.demo.captions import caption
from agentsd.demo.render import render_batch
from agentsd.demo.scenes import Scene, sample_scenes
from agentsd.demo.vae import encode
from agentsd.system.writing import whole_file

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

logger = logging.getLogger(__name__)

THUMBNAIL = 64  # pixels: what the attribute classifier sees


@dataclasses.dataclass(frozen=True)
class Pool:
    """Scenes with their latents (n, 4, 64, 64) fp16 and thumbnails (n, 64, 64, 3) uint8."""

    scenes: list[Scene]
    latents: torch.Tensor
    thumbnails: npt.NDArray[np.uint8]


def thumbnails(pictures: npt.NDArray[np.uint8], side: int = THUMBNAIL) -> npt.NDArray[np.uint8]:
    """Area-downsample square pictures (n, h, h, 3) uint8 to (n, side, side, 3).

    Raises:
        ValueError: The pictures' side is no multiple of ``side``.

    >>> thumbnails(np.zeros((2, 256, 256, 3), dtype=np.uint8)).shape
    (2, 64, 64, 3)
    """
    number, height, width, channels = pictures.shape
    if height != width or height % side:
        raise ValueError(f"pictures of {height} x {width} pixels; they must be square, with a multiple of {side}.")
    factor = height // side
    blocks = pictures.reshape(number, side, factor, side, factor, channels)
    result: npt.NDArray[np.uint8] = np.round(blocks.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)
    return result


def save_atomically(path: pathlib.Path, array: npt.NDArray[np.generic]) -> None:
    """Write an array as .npy whole: a reader sees the old file or the new one, never a part."""
    with whole_file(path) as file:
        np.save(file, array)


def build_pool(vae: AutoencoderKL, number: int, folder: pathlib.Path, *, seed: int = 5, chunk: int = 500) -> Pool:
    """Render and encode ``number`` training scenes, in resumable chunks on disk.

    Args:
        vae: The normalised autoencoder.
        number: Scenes; rounded up to whole chunks.
        folder: Where the chunks lie; existing ones are kept.
        seed: Seed of the scenes.
        chunk: Scenes a file.

    Returns:
        The pool.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = -(-number // chunk)
    scenes = sample_scenes(count * chunk, seed=seed)
    latents, thumbs = [], []
    for index in range(count):
        latent_file, thumb_file = folder / f"latents-{index}.npy", folder / f"thumbs-{index}.npy"
        if not (latent_file.exists() and thumb_file.exists()):
            pictures = render_batch(scenes[index * chunk : (index + 1) * chunk])
            save_atomically(thumb_file, thumbnails(pictures))
            save_atomically(latent_file, encode(vae, pictures).numpy())
            logger.info("pool: %d of %d scenes", (index + 1) * chunk, count * chunk)
        latents.append(torch.from_numpy(np.load(latent_file)))
        thumbs.append(np.load(thumb_file))
    return Pool(scenes, torch.cat(latents), np.concatenate(thumbs))


@dataclasses.dataclass(frozen=True)
class Batch:
    """One training step's inputs: clean latents, noise, timesteps and captions."""

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    texts: list[str]


FOCUS = (150, 700)  # timesteps at which shapes are decided; later ones fix colours, earlier ones texture


def draw_batch(
    pool: Pool,
    step: int,
    *,
    size: int,
    grid: int,
    seed: int,
    focus: float = 0.0,
    noise: float = 1.0,
    dropout: float = 0.1,
) -> Batch:
    """Draw the batch of a step; it depends on the arguments alone, and resuming needs no generator state.

    Args:
        pool: The pool.
        step: Number of the step.
        size: Pictures in the batch.
        grid: Side of the latents, by average pooling.
        seed: Seed of the run.
        focus: Share of timesteps from ``FOCUS`` instead of from all.
        noise: Standard deviation of the noise; a half is what is left of unit noise after pooling 2 x 2.
        dropout: Share of captions replaced by the empty one, for classifier-free guidance.

    Returns:
        The batch; timesteps are stratified within it.
    """
    rng = np.random.default_rng((seed, grid, step))
    chosen = rng.integers(0, len(pool.scenes), size=size)
    texts = ["" if rng.random() < dropout else caption(pool.scenes[i], rng) for i in chosen]
    latents = pool.latents[torch.from_numpy(chosen)].float()
    if grid != latents.shape[-1]:
        latents = F.avg_pool2d(latents, latents.shape[-1] // grid)
    strata = (rng.permutation(size) + rng.random(size)) / size
    low, high = FOCUS
    shares = [0.0, (1 - focus) * low / 1000, (1 - focus) * high / 1000 + focus, 1.0]
    timesteps = torch.from_numpy(np.interp(strata, shares, [0, low, high, 1000]).astype(np.int64))
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    return Batch(latents, noise * torch.randn(latents.shape, generator=generator), timesteps, texts)
