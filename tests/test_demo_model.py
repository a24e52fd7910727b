"""The shipped demo model: it loads offline, is small, and draws what it is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from agentsd.demo import MODEL_PATH, held_out_prompts, model_path
from agentsd.demo.attributes import attribute_accuracy, load_classifier, picture_features, picture_scores
from agentsd.demo.captions import held_out_scenes, parse_caption
from agentsd.demo.checksums import broken_files, write_checksums
from agentsd.demo.render import render_batch
from agentsd.demo.text import build_tokenizer, token_ids
from agentsd.demo.vae import reconstruction_psnr

RESULTS = Path(__file__).resolve().parent.parent / "results"


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusionPipeline

    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HUB_OFFLINE", "1")
    pipe = StableDiffusionPipeline.from_pretrained(model_path(), torch_dtype=torch.float32, local_files_only=True)
    patch.undo()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_folder_is_complete_and_small():
    assert model_path() == MODEL_PATH
    size = sum(file.stat().st_size for file in MODEL_PATH.rglob("*") if file.is_file())
    assert size <= 40e6
    card = (MODEL_PATH / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    assert "license: apache-2.0" in card


def test_its_card_says_what_was_measured():
    found = json.loads((RESULTS / "demo" / "attribute_accuracy.json").read_text(encoding="utf-8"))
    drawn, real = found["generated"], found["real_renderings"]
    assert drawn["singles"] >= 0.9
    assert drawn["pairs"] >= 0.75
    card = " ".join((MODEL_PATH / "README.md").read_text(encoding="utf-8").split())
    assert found["scheduler"] == "DDIMScheduler"
    settings = f"DDIM, {found['steps']} steps, guidance {found['guidance']:g}, {found['dtype']}"
    assert f"On {found['prompts']} held-out prompts ({settings};" in card
    assert f"| of a single object | {drawn['singles']:.0%} | {real['singles']:.0%} |" in card
    assert f"| of both objects of a pair | {drawn['pairs']:.0%} | {real['pairs']:.0%} |" in card


def test_its_files_are_those_listed():
    assert broken_files(MODEL_PATH) == [], "if that is meant: agentsd.demo.checksums.write_checksums(model_path())"


def test_its_text_encoder_is_named_as_transformers_4_and_5_read_it():
    with safe_open(MODEL_PATH / "text_encoder" / "model.safetensors", "pt") as file:
        assert all(name.startswith("text_model.") for name in file.keys())  # noqa: SIM118


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda folder: (folder / "a" / "b").write_bytes(b"2"), ["changed: a/b"]),
        (lambda folder: (folder / "a" / "b").unlink(), ["missing: a/b"]),
        (lambda folder: (folder / "c").touch(), ["not listed: c"]),
        (lambda folder: (folder / "README.md").write_text("new"), []),
    ],
)
def test_damage_is_found(damage, found, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"1")
    write_checksums(tmp_path)
    damage(tmp_path)
    assert broken_files(tmp_path) == found


def test_it_draws_as_loaded_without_a_dtype():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(model_path())
    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float32}
    pipe.set_progress_bar_config(disable=True)
    pipe("a red ring", num_inference_steps=1, height=64, width=64, output_type="latent")


def test_missing_model_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr("agentsd.demo.MODEL_PATH", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"train one with scripts/dev/train_demo\.py"):
        model_path()


def test_geometry_is_that_of_stable_diffusion(pipeline):
    assert pipeline.unet.config.sample_size == 64
    assert pipeline.vae_scale_factor == 4
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.scheduler.config.timestep_spacing == "trailing"
    assert token_ids(pipeline.tokenizer, held_out_prompts(8)).equal(token_ids(build_tokenizer(), held_out_prompts(8)))


def test_autoencoder_keeps_the_picture(pipeline):
    assert reconstruction_psnr(pipeline.vae, number=6) > 32


def test_classifier_reads_real_renderings():
    held_out = held_out_scenes(60, seed=9)
    pictures = render_batch([scene for _, scene in held_out])
    classifier = load_classifier()
    accuracy = attribute_accuracy(
        picture_scores(classifier, pictures), [parse_caption(text).combos for text, _ in held_out]
    )
    assert accuracy["all"] > 0.96
    features = picture_features(classifier, pictures)
    assert features.shape == (60, 128)
    assert np.isfinite(features).all()


def test_model_draws_held_out_objects(pipeline):
    """A few pictures at a quarter of the steps: a broken export would get none right, the full model nearly all."""
    prompts = held_out_prompts(3, seed=1)[::2]
    pictures = pipeline(
        prompts,
        num_inference_steps=12,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(i) for i in range(len(prompts))],
        output_type="np",
    ).images
    assert pictures.shape == (2, 256, 256, 3)
    scores = picture_scores(load_classifier(), np.round(pictures * 255).astype(np.uint8))
    assert attribute_accuracy(scores, [parse_caption(prompt).combos for prompt in prompts])["all"] >= 0.5


def test_any_words_run(pipeline):
    pictures = pipeline(["a naïve cat 🐱"], num_inference_steps=1, guidance_scale=1.0, output_type="np").images
    assert np.isfinite(pictures).all()
