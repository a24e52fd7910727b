"""`agentsd bench` runs every arm and writes complete rows (on a tiny architecture)."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from agentsd.bench.about import about_arm, about_preset
from agentsd.bench.architectures import ARCHITECTURES, TEXT_ENCODERS, VAE, random_pipeline, random_unet
from agentsd.bench.arm import Arm
from agentsd.bench.arms import RUN_ARMS, STEP_ARMS, TWINS
from agentsd.bench.rows import read_rows
from agentsd.bench.speed import CALLS, known_arms
from agentsd.cli.main import main as cli
from agentsd.planning.inputs import random_inputs
from agentsd.presets import PRESETS

TINY = {
    "sample_size": 16,
    "block_out_channels": (32, 32, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
}


TINY_VAE = {
    "block_out_channels": (8, 8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
CLIP = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def main(words):
    return cli(["bench", *words])


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr("agentsd.bench.architectures.ARCHITECTURES", {**ARCHITECTURES, "sd15": TINY})
    monkeypatch.setattr("agentsd.bench.architectures.TEXT_ENCODERS", {"sd15": (CLIP,)})
    monkeypatch.setattr("agentsd.bench.architectures.VAE", TINY_VAE)


def run(output, *words, code=0):
    settings = ["--rounds", "2", "--dtype", "float32", "--device", "cpu", "--output", str(output), *words]
    assert main(settings) == code
    return read_rows(output)


def check_rows(rows):
    for row in rows:
        assert len(row["seconds"]) == len(row["stock_seconds"]) == row["rounds"] == 2
        assert row["speedup_95"][0] <= row["speedup"] <= row["speedup_95"][1]
        assert row["weights"] == "random"
        assert (row["speedup"] == 1.0) or row["arm"] != "stock"


@pytest.mark.slow
def test_rows_of_steps(tmp_path):
    rows = run(tmp_path / "speed.jsonl", "--size", "256")
    assert [row["arm"] for row in rows] == list(STEP_ARMS)
    check_rows(rows)
    assert {row["benchmark"] for row in rows} == {"unet step"}
    assert "steps" not in rows[0]


@pytest.mark.slow
def test_rows_of_calls(tmp_path):
    rows = run(tmp_path / "speed.jsonl", "--size", "64", "--pipeline", "--steps", "3")
    assert [row["arm"] for row in rows] == list(CALLS)
    assert {"preset balanced", "DeepCache 3", "T-GATE"} <= {row["arm"] for row in rows}
    check_rows(rows)
    assert {(row["benchmark"], row["steps"]) for row in rows} == {("pipeline call", 3)}
    assert {row["arm"]: row["full_calls"] for row in rows if row["arm"] in ("stock", "full every 2 steps")} == {
        "stock": 3, "full every 2 steps": 2,
    }  # fmt: skip


def test_an_interrupted_benchmark_goes_on_where_it_was(tmp_path, capsys):
    output = tmp_path / "speed.jsonl"
    arms = ["--size", "64", "--group", "1", "--arms", "stock", "tomesd 0.5", "full step every 3, last layer"]
    assert run(output, *arms, "--limit-seconds", "0", code=1) == []
    assert "with 2 arms left" in capsys.readouterr().err
    first = run(output, *arms[:-1])
    with output.open("a") as file:
        file.write('{"arm": "cut o')  # a crash
    rows = run(output, *arms)
    assert rows[:2] == first
    assert [row["arm"] for row in rows] == ["stock", "tomesd 0.5", "full step every 3, last layer"]
    assert run(output, *arms) == rows
    capsys.readouterr()
    again = run(output, *arms, "--rounds", "3")
    assert [row["rounds"] for row in again] == [2, 2, 2, 3, 3, 3]
    assert len(run(output, *arms, "--again")) == 9


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dry-run"], "error: --dry-run is for the suite; add --suite gpu, or leave --dry-run out."),
        (["--minutes", "1"], "error: --minutes is for the suite;"),
        (["--output", "."], "error: --output '.' is a folder; name a file in it."),
    ],
)
def test_bad_words_are_refused_before_a_model_is_made(words, said, monkeypatch, capsys):
    monkeypatch.setattr("agentsd.bench.architectures.random_unet", lambda *_, **__: pytest.fail("made"))
    assert main(["--device", "cpu", *words]) == 2
    assert said in capsys.readouterr().err


def test_an_arm_that_fails_costs_no_other(tmp_path, monkeypatch, capsys):
    def refuse(pipe):
        raise ImportError("no such rival")

    arms = {**STEP_ARMS, "tomesd 0.5": Arm(refuse)}
    monkeypatch.setattr("agentsd.bench.speed.STEP_ARMS", arms)
    chosen = ["--size", "64", "--arms", "tomesd 0.5", "full step every 3, last layer"]
    rows = run(tmp_path / "speed.jsonl", *chosen, code=1)
    assert [row["arm"] for row in rows] == ["stock", "full step every 3, last layer"]
    assert "tomesd 0.5: left out, ImportError: no such rival" in capsys.readouterr().err


def test_twins_stand_beside_their_arms(tmp_path, monkeypatch, capsys):
    # Compiled arms have tests of their own (test_arms.py); here their names and rows count.
    monkeypatch.setitem(TWINS, ", compiled", lambda arm: replace(arm, settings="torch.compile"))
    words = ["--compile", "--channels-last", "--arms", "stock", "stock, compiled", "stock, channels last"]
    rows = run(tmp_path / "speed.jsonl", "--size", "64", *words)
    assert [(row["arm"], row["settings"]) for row in rows] == [
        ("stock", ""),
        ("stock, compiled", "torch.compile"),
        ("stock, channels last", "channels_last"),
    ]
    capsys.readouterr()
    assert main(["--compile", "--list"]) == 0
    listed = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert "key/value sampling, stride 4, compiled" in listed
    assert not any("channels last" in name for name in listed)
    assert main(["--arms", "deepcache 3"]) == 2
    error = capsys.readouterr().err
    assert "'deepcache 3' is unknown. Did you mean 'DeepCache 3'?" in error
    assert "(twins: --compile, --channels-last)" in error


def test_every_arm_and_preset_has_a_line():
    names = {*known_arms(calls=False, twins=tuple(TWINS)), *RUN_ARMS}
    assert all(about_arm(name) for name in names)
    assert all(about_preset(name) for name in PRESETS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "100"], "argument --size: '100' must be a multiple of 8"),
        (["--rounds", "0"], "argument --rounds: '0' must be a whole number of at least 1."),
        (["--batch", "x"], "argument --batch: 'x' must be a whole number of at least 1."),
        (["--steps", "0"], "argument --steps: '0' must be a whole number from 1 to 1000."),
        (["--architecture", "sdx"], "'sdx' is unknown. Did you mean 'sdxl'?"),
    ],
)
def test_bad_words_are_refused_by_name(words, message, capsys):
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_devices_that_are_missing_are_refused(capsys):
    assert main(["--device", "cuda:99"]) == 2
    assert "error: --device 'cuda:99' is not there: torch sees" in capsys.readouterr().err


def test_odd_batches_have_no_guidance(capsys):
    assert main(["--pipeline", "--batch", "3"]) == 2
    assert "even number of samples" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "millions"), [("sd15", 859.5), ("sd21", 865.9), ("sdxl", 2567.5)])
def test_architectures_are_the_public_ones(name, millions):
    """Parameter counts of the published checkpoints (859,520,964; 865,910,724; 2,567,463,684)."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(layers_per_block=2, **ARCHITECTURES[name])
    assert sum(parameter.numel() for parameter in unet.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    ("kind", "config", "number"),
    [
        (CLIPTextModel, TEXT_ENCODERS["sd15"][0], 123_060_480),
        (CLIPTextModel, TEXT_ENCODERS["sd21"][0], 340_387_840),
        (CLIPTextModelWithProjection, TEXT_ENCODERS["sdxl"][1], 694_659_840),
        (AutoencoderKL, VAE, 83_653_863),
    ],
)
def test_text_encoders_and_vae_are_the_public_ones(kind, config, number):
    with torch.device("meta"):
        model = kind(**config) if kind is AutoencoderKL else kind(CLIPTextConfig(vocab_size=49408, **config))
    assert sum(parameter.numel() for parameter in model.parameters()) == number


def test_a_random_pipeline_draws_finite_pictures(monkeypatch):
    pipe = random_pipeline("sd15", dtype=torch.bfloat16)
    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.bfloat16}
    pictures = pipe(["a red ring"] * 2, num_inference_steps=2, height=64, width=64, output_type="pt").images
    assert pictures.shape == (2, 3, 64, 64)
    assert torch.isfinite(pictures).all()
    again = random_pipeline("sd15", dtype=torch.bfloat16)
    assert torch.equal(
        pipe.text_encoder.get_input_embeddings().weight, again.text_encoder.get_input_embeddings().weight
    )
    xl = {**TINY, "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "cross_attention_dim": 64,
          "projection_class_embeddings_input_dim": 32 + 6 * 8}  # fmt: skip
    monkeypatch.setattr("agentsd.bench.architectures.ARCHITECTURES", {"sdxl": xl})
    monkeypatch.setattr("agentsd.bench.architectures.TEXT_ENCODERS", {"sdxl": (CLIP, {**CLIP, "projection_dim": 32})})
    pipe = random_pipeline("sdxl")
    pictures = pipe("a red ring", num_inference_steps=2, height=64, width=64, output_type="pt").images
    assert torch.isfinite(pictures).all()


def test_random_inputs_fit_the_architecture(monkeypatch):
    monkeypatch.setattr("agentsd.bench.architectures.ARCHITECTURES", {"tiny": TINY})
    unet = random_unet("tiny")
    assert unet(**random_inputs(unet, 16, 24, 3)).sample.shape == (3, 4, 16, 24)
