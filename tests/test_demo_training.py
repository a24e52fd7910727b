"""Training of the demo on tiny configurations: tokenizer, text encoder, autoencoder, UNet stages, classifier."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsd.demo.attributes import (
    AttributeClassifier,
    attribute_accuracy,
    load_classifier,
    matches,
    picture_features,
    picture_scores,
    save_classifier,
    train_classifier,
)
from agentsd.demo.captions import caption, grammar_words, parse_caption
from agentsd.demo.checksums import broken_files
from agentsd.demo.scenes import COMBOS, combo_index, sample_scenes
from agentsd.demo.text import (
    QUESTIONS,
    answers,
    build_text_encoder,
    build_tokenizer,
    pretrain_text_encoder,
    token_ids,
)
from agentsd.demo.training.diffusion import Trainer, build_scheduler, build_unet, sample
from agentsd.demo.training.muon import Muon
from agentsd.demo.training.pool import FOCUS, build_pool, draw_batch, thumbnails
from agentsd.demo.training.recipe import Stage
from agentsd.demo.training.stages import assemble, export, text_function
from agentsd.demo.vae import build_vae, decode, encode, normalise_latents, to_pictures, to_tensor, train_vae


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def tiny(tokenizer, tmp_path_factory):
    """A tiny untrained world: pool of 8 scenes, text function, autoencoder, text encoder."""
    torch.manual_seed(0)
    vae = build_vae((8, 8, 8)).eval()
    encoder = build_text_encoder(tokenizer, hidden=32, layers=1, heads=2).eval()
    pool = build_pool(vae, 8, tmp_path_factory.mktemp("pool"), chunk=4)
    return pool, text_function(encoder, tokenizer), vae, encoder


def tiny_unet(seed: int = 0):
    torch.manual_seed(seed)
    return build_unet((16, 16, 16, 16), groups=8, text=32)


def digest(module: torch.nn.Module) -> str:
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in module.state_dict().values())).hexdigest()


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_tokenizer_survives_any_text(tokenizer, text):
    ids = token_ids(tokenizer, [text])
    assert ids.shape == (1, 77)
    assert 0 <= int(ids.min()) <= int(ids.max()) < len(tokenizer)
    assert int(ids[0, 0]) == tokenizer.bos_token_id
    assert tokenizer.eos_token_id in ids[0].tolist()


@settings(max_examples=30, deadline=None)
@given(text=st.text(alphabet="abcdefghijklmnopqrstuvwxyzäß漢🐱", min_size=1, max_size=12))
def test_tokenizer_loses_no_word(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text


def test_words_of_the_grammar_are_single_tokens(tokenizer):
    for word in grammar_words():
        assert len(tokenizer.tokenize(word)) == 1, word
    assert tokenizer.model_max_length == 77
    assert len(tokenizer) <= 2000


def test_answers_follow_the_caption():
    meaning = parse_caption("a red ring below a small blue cross on a striped gray background")
    said = {
        question: (None, *values)[answer]
        for (question, values), answer in zip(QUESTIONS.items(), answers(meaning), strict=True)
    }
    assert said["first colour"] == said["below colour"] == "red"
    assert said["above shape"] == said["second shape"] == "cross"
    assert said["second size"] == "small"
    assert said["first size"] is None
    assert said["centre colour"] is None
    assert (said["relation"], said["tone"], said["pattern"]) == ("below", "gray", "striped")


def test_text_pretraining_learns_and_repeats(tokenizer):
    def run(steps):
        torch.manual_seed(1)
        encoder = build_text_encoder(tokenizer, hidden=32, layers=1, heads=2)
        return pretrain_text_encoder(encoder, tokenizer, steps, batch=8, lr=3e-3), digest(encoder)

    assert run(2) == run(2)
    assert run(30)[0] > run(2)[0]


def test_autoencoder_training_repeats():
    first, second = (train_vae(2, batch=2, crop=32, pool=2) for _ in range(2))
    assert digest(first) == digest(second)


def test_pictures_round_trip_through_tensors():
    pictures = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    assert np.array_equal(to_pictures(to_tensor(pictures)), pictures)


def test_normalised_latents_are_white_and_decode_alike(tiny):
    from agentsd.demo.render import render_batch

    torch.manual_seed(2)
    vae = build_vae((8, 8, 8)).eval()
    pictures = render_batch(sample_scenes(6, seed=900))
    before = decode(vae, encode(vae, pictures))
    normalise_latents(vae, number=6, seed=900)
    latents = encode(vae, pictures)
    flat = latents.float().permute(1, 0, 2, 3).flatten(1)
    assert torch.allclose(flat.mean(dim=1), torch.zeros(4), atol=0.05)
    assert torch.allclose(torch.cov(flat), torch.eye(4), atol=0.1)
    assert np.abs(decode(vae, latents).astype(int) - before).mean() < 2


def test_pool_reuses_its_chunks(tiny, tmp_path):
    _, _, vae, _ = tiny
    first = build_pool(vae, 4, tmp_path, chunk=2)
    second = build_pool(None, 4, tmp_path, chunk=2)  # all chunks exist: the autoencoder is not needed
    assert torch.equal(first.latents, second.latents)
    assert first.latents.shape == (4, 4, 64, 64)
    assert first.thumbnails.shape == (4, 64, 64, 3)


def test_batches_depend_on_the_step_alone(tiny):
    pool = tiny[0]
    first, again = (draw_batch(pool, 3, size=10, grid=16, seed=1) for _ in range(2))
    other = draw_batch(pool, 4, size=10, grid=16, seed=1)
    assert torch.equal(first.noise, again.noise)
    assert first.texts == again.texts
    assert not torch.equal(first.noise, other.noise)
    assert sorted(int(t) // 100 for t in first.timesteps) == list(range(10))


def test_focus_draws_more_of_the_middle_timesteps(tiny):
    even = draw_batch(tiny[0], 0, size=1000, grid=16, seed=1).timesteps
    focused = draw_batch(tiny[0], 0, size=1000, grid=16, seed=1, focus=0.4).timesteps
    low, high = FOCUS
    inside = [int(((t >= low) & (t < high)).sum()) / 1000 for t in (even, focused)]
    assert inside == pytest.approx([0.55, 0.73], abs=0.02)
    assert 0 <= int(focused.min()) <= int(focused.max()) <= 999


def test_muon_fits_a_linear_map_and_takes_no_closure():
    torch.manual_seed(0)
    wanted, inputs = torch.randn(8, 12), torch.randn(64, 12)
    layer = torch.nn.Linear(12, 8, bias=False)
    optimiser = Muon(layer.parameters(), lr=0.03, weight_decay=0.0)

    def loss():
        return (layer(inputs) - inputs @ wanted.T).square().mean()

    before = loss().item()
    # A step moves weights by 0.2 * lr = 0.006 (root mean square) and they are about 1 away: 175 steps at the least.
    for _ in range(300):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    assert loss().item() < 0.05 * before
    with pytest.raises(ValueError, match="closure is given"):
        optimiser.step(lambda: 0.0)


def test_schedule_ends_in_noise():
    signal = build_scheduler().alphas_cumprod
    assert float(signal[-1]) < 1e-5
    assert float(signal[0]) > 0.999


@pytest.mark.parametrize("grid", [16, 32])
def test_each_stage_lowers_the_loss(tiny, grid):
    pool, encode_texts, _, _ = tiny
    stage = Stage("X", grid=grid, batch=2, steps=24, lr=3e-3, warmup=2)
    losses = Trainer(tiny_unet(), pool, encode_texts).run(stage)
    assert len(losses) == 24
    assert np.mean(losses[-8:]) < np.mean(losses[:3])


def test_resumption_is_exact(tiny, tmp_path):
    pool, encode_texts, _, _ = tiny
    stages = [
        Stage("A", 16, 2, steps=6, lr=1e-3, warmup=2),
        Stage("B", 32, 2, steps=4, lr=1e-3, muon_lr=1e-3, warmup=2, focus=0.4),
    ]
    whole = Trainer(tiny_unet(), pool, encode_texts)
    expected = [loss for stage in stages for loss in whole.run(stage)]

    losses = []
    for stage, stop in [(stages[0], 4), (stages[0], None), (stages[1], 1), (stages[1], None)]:
        part = Trainer(tiny_unet(seed=9), pool, encode_texts, checkpoint=tmp_path / "state.pt")
        if not (tmp_path / "state.pt").exists():
            part = Trainer(tiny_unet(), pool, encode_texts, checkpoint=tmp_path / "state.pt")
        part.resume()
        losses += part.run(stage, stop_after=stop)
    assert losses == expected
    assert digest(part.unet) == digest(whole.unet)
    assert digest(part.average) == digest(whole.average)
    assert part.run(stages[1]) == []
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def test_a_stage_without_length_is_refused():
    with pytest.raises(ValueError, match=r"steps=0 and minutes=0\.0 leave stage 'A' no length"):
        Stage("A", grid=16, batch=2, steps=0, lr=1e-3)


def test_learning_rate_rises_and_falls():
    stage = Stage("A", grid=16, batch=2, steps=100, lr=1e-3, warmup=10)
    rates = [stage.learning_rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[30] == 1.0
    assert 0.05 <= rates[-1] < 0.06


def test_sampling_repeats(tiny):
    _, encode_texts, _, _ = tiny
    unet = tiny_unet()
    first, second = (sample(unet, encode_texts, ["a red ring", "x"], grid=16, steps=3, seed=4) for _ in range(2))
    assert first.shape == (2, 4, 16, 16)
    assert torch.equal(first, second)


def test_export_keeps_what_lies_beside_the_pipeline(tiny, tokenizer, tmp_path, monkeypatch):
    from diffusers import StableDiffusionPipeline

    _, _, vae, encoder = tiny
    target = tmp_path / "model"
    target.mkdir()
    (target / "README.md").write_text("card")
    size = export(assemble(vae, encoder, tokenizer, tiny_unet()), target)
    assert (target / "README.md").read_text() == "card"
    assert size == sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert broken_files(target) == []
    assert (target / "tokenizer" / "merges.txt").read_text().startswith("#version")
    assert len(json.loads((target / "tokenizer" / "vocab.json").read_text())) == len(tokenizer)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pipeline = StableDiffusionPipeline.from_pretrained(target, torch_dtype=torch.float32, local_files_only=True)
    assert pipeline.unet.dtype == torch.float32
    weights = pipeline.text_encoder.state_dict()
    assert all(torch.equal(value.half(), weights[name].half()) for name, value in encoder.state_dict().items())
    assert token_ids(pipeline.tokenizer, ["a red ring"]).equal(token_ids(tokenizer, ["a red ring"]))
    vae.float()
    encoder.float()


def test_metric_on_hand_made_cases():
    scores = np.full((4, 30), -5, dtype=np.float32)
    ring, cross, square = combo_index("red", "ring"), combo_index("blue", "cross"), combo_index("red", "square")
    scores[0, ring] = 2  # right single
    scores[1, [ring, square]] = 3, 2  # the wanted one is only second
    scores[2, [ring, cross]] = 1, -1  # right pair, although one lies below 0
    scores[3, [ring, square]] = 1, 2  # half right is wrong
    wanted = [{("red", "ring")}, {("red", "square")}, {("red", "ring"), ("blue", "cross")}]
    wanted.append(wanted[2])
    assert matches(scores, wanted).tolist() == [True, False, True, False]
    assert attribute_accuracy(scores, wanted) == {"all": 0.5, "singles": 0.5, "pairs": 0.5}
    assert "pairs" not in attribute_accuracy(scores[:2], wanted[:2])
    with pytest.raises(ValueError, match="wanted has 1 entries for 4 pictures"):
        matches(scores, wanted[:1])
    with pytest.raises(ValueError, match=r"wanted\[1\] is empty"):
        matches(scores[:2], [{("red", "ring")}, set()])
    with pytest.raises(ValueError, match="shape='star' is unknown"):
        matches(scores[:1], [{("red", "star")}])


def test_classifier_trains_saves_and_loads(tiny, tmp_path):
    pool = tiny[0]
    model = train_classifier(pool, 40, batch=8, lr=5e-3)
    wanted = [{item.combo for item in scene.objects} for scene in pool.scenes]
    trained = attribute_accuracy(picture_scores(model, pool.thumbnails), wanted)["all"]
    assert trained > attribute_accuracy(picture_scores(AttributeClassifier(), pool.thumbnails), wanted)["all"]
    save_classifier(model, tmp_path)
    loaded = load_classifier(tmp_path)
    assert np.allclose(picture_scores(loaded, pool.thumbnails), picture_scores(model, pool.thumbnails), atol=0.2)
    assert picture_features(loaded, pool.thumbnails).shape == (8, 128)
    assert json.loads((tmp_path / "config.json").read_text())["classes"] == [list(combo) for combo in COMBOS]


def test_thumbnails_average_areas_and_refuse_odd_sizes():
    picture = np.zeros((1, 128, 128, 3), dtype=np.uint8)
    picture[:, ::2] = 200
    assert np.unique(thumbnails(picture)).tolist() == [100]
    with pytest.raises(ValueError, match="100 x 100 pixels"):
        thumbnails(np.zeros((1, 100, 100, 3), dtype=np.uint8))


def test_caption_tokens_fit_easily(tokenizer):
    texts = [caption(scene, np.random.default_rng(i)) for i, scene in enumerate(sample_scenes(200, seed=1))]
    assert max(len(ids) for ids in tokenizer(texts)["input_ids"]) < 40
