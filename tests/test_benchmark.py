"""scripts/benchmark.py runs every arm and writes complete rows (on a tiny architecture)."""

import json
import runpy
from pathlib import Path

import pytest
from diffusers import UNet2DConditionModel

from agentsd.architectures import ARCHITECTURES, random_inputs, random_unet
from agentsd.arms import STEP_ARMS

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "benchmark.py"
TINY = {
    "sample_size": 16,
    "block_out_channels": (32, 32, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
}


def test_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("agentsd.architectures.ARCHITECTURES", {**ARCHITECTURES, "sd15": TINY})
    output = tmp_path / "speed.jsonl"
    settings = ["--size", "256", "--rounds", "2", "--dtype", "float32", "--output", str(output)]
    assert runpy.run_path(str(SCRIPT))["main"](settings) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["arm"] for row in rows] == list(STEP_ARMS)
    for row in rows:
        assert len(row["seconds"]) == 2
        assert row["speedup_95"][0] <= row["speedup"] <= row["speedup_95"][1]
        assert row["weights"] == "random"
    assert rows[0]["speedup"] == 1.0


@pytest.mark.parametrize(("name", "millions"), [("sd15", 859.5), ("sd21", 865.9), ("sdxl", 2567.5)])
def test_architectures_are_the_public_ones(name, millions):
    """Parameter counts of the published checkpoints (859,520,964; 865,910,724; 2,567,463,684)."""
    import torch

    with torch.device("meta"):
        unet = UNet2DConditionModel(layers_per_block=2, **ARCHITECTURES[name])
    assert sum(parameter.numel() for parameter in unet.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_random_inputs_fit_the_architecture(monkeypatch):
    monkeypatch.setattr("agentsd.architectures.ARCHITECTURES", {"tiny": TINY})
    unet = random_unet("tiny")
    assert unet(**random_inputs(unet, 16, 24, 3)).sample.shape == (3, 4, 16, 24)
