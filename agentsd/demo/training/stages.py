"""The whole training of the demo model, phase by phase in a work folder, and its export."""

from __future__ import annotations

import json
import logging
import pathlib
import shutil
from typing import TYPE_CHECKING

import torch

from agentsd.demo.checksums import write_checksums
from agentsd.demo.text import (
    build_text_encoder,
    build_tokenizer,
    pretrain_text_encoder,
    token_ids,
    write_slow_tokenizer_files,
)
from agentsd.demo.training.diffusion import (
    FINEST_GRID,
    INNER_CHANNELS,
    TextFunction,
    Trainer,
    build_scheduler,
    build_unet,
)
from agentsd.demo.training.graft import graft
from agentsd.demo.training.pool import Pool, build_pool
from agentsd.demo.training.recipe import STAGES, Stage
from agentsd.demo.vae import normalise_latents, reconstruction_psnr, train_vae
from agentsd.system.writing import write_whole

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

logger = logging.getLogger(__name__)

VAE_STEPS = 1200
TEXT_STEPS = 800
POOL_SCENES = 7_000


def text_function(encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> TextFunction:
    """Captions to hidden states (n, 77, width) by a frozen encoder, as the pipeline computes them."""

    @torch.no_grad()
    def encode_texts(texts: list[str]) -> torch.Tensor:
        states: torch.Tensor = encoder(token_ids(tokenizer, texts)).last_hidden_state
        return states

    return encode_texts


def _record(folder: pathlib.Path, **numbers: float) -> None:
    path = folder / "record.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    write_whole(path, json.dumps(known | numbers, indent=1))


def replace_folder(source: pathlib.Path, target: pathlib.Path) -> None:
    """Replace a folder by a complete one by two renames on one file system."""
    retired = target.with_name(target.name + ".old")
    shutil.rmtree(retired, ignore_errors=True)
    if target.exists():
        target.rename(retired)
    source.rename(target)
    shutil.rmtree(retired, ignore_errors=True)


def prepare_vae(folder: pathlib.Path, steps: int = VAE_STEPS) -> AutoencoderKL:
    """Load the normalised autoencoder from the work folder, or train it there."""
    from diffusers import AutoencoderKL

    raw, final = folder / "vae_raw", folder / "vae"
    if not final.exists():
        if not raw.exists():
            vae = train_vae(steps)
            vae.save_pretrained(raw.with_name("vae_raw.partial"))
            replace_folder(raw.with_name("vae_raw.partial"), raw)
        vae = AutoencoderKL.from_pretrained(raw).eval()
        normalise_latents(vae)
        psnr = reconstruction_psnr(vae)
        logger.info("vae: %.2f dB on held-out scenes", psnr)
        _record(folder, vae_psnr_db=psnr)
        vae.save_pretrained(final.with_name("vae.partial"))
        replace_folder(final.with_name("vae.partial"), final)
    return AutoencoderKL.from_pretrained(final).eval().to(memory_format=torch.channels_last)


def prepare_text(folder: pathlib.Path, steps: int = TEXT_STEPS) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """Load the text encoder and tokenizer from the work folder, or train them there."""
    from transformers import CLIPTextModel

    tokenizer = build_tokenizer()
    final = folder / "text_encoder"
    if not final.exists():
        torch.manual_seed(3)
        encoder = build_text_encoder(tokenizer)
        right = pretrain_text_encoder(encoder, tokenizer, steps)
        logger.info("text encoder: %.4f of the questions right", right)
        _record(folder, text_questions_right=right)
        encoder.save_pretrained(final.with_name("text_encoder.partial"))
        replace_folder(final.with_name("text_encoder.partial"), final)
    encoder = CLIPTextModel.from_pretrained(final).eval()
    encoder.requires_grad_(False)
    return encoder, tokenizer


def assemble(
    vae: AutoencoderKL, encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """Join the parts to a StableDiffusionPipeline without safety checker."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(pipeline: StableDiffusionPipeline, target: pathlib.Path) -> int:
    """Write the pipeline as a diffusers folder with fp16 weights; files already there that it lacks are kept.

    Args:
        pipeline: The pipeline; its weights are rounded to fp16 in place.
        target: The folder, replaced in one step.

    Returns:
        Size of the folder in bytes.
    """
    fresh = target.with_name(target.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(fresh, safe_serialization=True)
    write_slow_tokenizer_files(fresh / "tokenizer")
    # transformers loads in the dtype that the folder names, diffusers in fp32: without this they would not fit.
    text_config = fresh / "text_encoder" / "config.json"
    text_config.write_text(json.dumps(json.loads(text_config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    name_weights_for_all(fresh / "text_encoder" / "model.safetensors")
    if target.exists():
        for kept in target.iterdir():  # the model card and the attribute classifier
            place = fresh / kept.name
            if not place.exists():
                (shutil.copytree if kept.is_dir() else shutil.copy2)(kept, place)
    write_checksums(fresh)
    replace_folder(fresh, target)
    return sum(file.stat().st_size for file in target.rglob("*") if file.is_file())


def name_weights_for_all(file: pathlib.Path) -> None:
    """Put `text_model.` before the names of a text encoder's weights, as the checkpoints of Stable Diffusion have it.

    transformers 5 writes them without, and transformers 4 then draws random weights in their place; both read these.
    """
    from safetensors.torch import load_file, save_file

    weights = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})


def train_unet(
    folder: pathlib.Path, pool: Pool, encode_texts: TextFunction, stages: tuple[Stage, ...]
) -> UNet2DConditionModel:
    """Run the coarse stages on the inner UNet, graft it into one with a 64 x 64 level, and run the fine stages on that.

    Args:
        folder: Work folder with the checkpoints coarse.pt and fine.pt.
        pool: Training pool.
        encode_texts: Captions to hidden states.
        stages: The stages; those below grid 64 come first.

    Returns:
        The averaged weights.
    """
    torch.manual_seed(4)
    coarse = Trainer(build_unet(INNER_CHANNELS), pool, encode_texts, checkpoint=folder / "coarse.pt")
    coarse.resume()
    for stage in stages:
        if stage.grid < FINEST_GRID:
            coarse.run(stage)
    outer = build_unet()
    graft(coarse.average, outer)
    fine = Trainer(outer, pool, encode_texts, checkpoint=folder / "fine.pt")
    fine.resume()
    for stage in stages:
        if stage.grid == FINEST_GRID:
            fine.run(stage)
    return fine.average


def train_demo(
    folder: pathlib.Path, target: pathlib.Path, *, stages: tuple[Stage, ...] = STAGES, scenes: int = POOL_SCENES
) -> None:
    """Train every part that the work folder lacks, resuming where it stopped, and export the pipeline.

    Args:
        folder: Work folder: checkpoints, latents, record.json.
        target: Where the pipeline is exported.
        stages: The UNet's stages.
        scenes: Size of the training pool.
    """
    from agentsd.demo.attributes import prepare_classifier

    folder.mkdir(parents=True, exist_ok=True)
    vae = prepare_vae(folder)
    encoder, tokenizer = prepare_text(folder)
    pool = build_pool(vae, scenes, folder / "pool")
    prepare_classifier(pool, target)
    unet = train_unet(folder, pool, text_function(encoder, tokenizer), stages)
    size = export(assemble(vae, encoder, tokenizer, unet), target)
    logger.info("exported to %s, %.1f MB", target, size / 1e6)


__all__ = ["Pool", "assemble", "export", "prepare_text", "prepare_vae", "text_function", "train_demo", "train_unet"]
