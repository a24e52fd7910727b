"""scripts/dev/sweep.py: which points there are, what single layers lose, and what is kept."""

import json
import runpy
from pathlib import Path

import pytest
from tiny import make_tiny_pipe

from agentsd.bench.arms import RUN_ARMS
from agentsd.bench.front import drawer
from agentsd.bench.samples import Chunk
from agentsd.evaluation import demo_front

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "dev" / "sweep.py"
script = runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def pipe():
    return make_tiny_pipe()


@pytest.fixture
def run(tmp_path, tmp_path_factory, pipe, monkeypatch):
    folder = tmp_path_factory.mktemp("model")
    pipe.save_pretrained(folder)
    monkeypatch.setattr(demo_front, "model_path", lambda: folder)
    words = ["--prompts", "2", "--steps", "4", "--batch", "2", "--dtype", "float32", "--device", "cpu"]
    words += ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "sweep.jsonl"), "--stride", "4"]
    words += ["--agents", "pool", "--phase", "whole", "early", "--max-downsample", "1", "2"]

    def call(*more, code=0):
        assert script["main"]([*words, *more]) == code
        return [json.loads(line) for line in (tmp_path / "sweep.jsonl").read_text().splitlines()]

    return call


def points(*words):
    return script["settings_of"](script["parser"]().parse_args(list(words)))


def test_one_setting_at_a_time_or_all_combined(capsys):
    single = points()
    assert single[0] == script["Setting"](**script["CENTRE"])
    assert len(single) == 1 + sum(len(values) - 1 for values in script["AXES"].values())
    assert len(set(single)) == len(single)
    assert len(points("--product", "--stride", "4")) == 4 * 4 * 2 * 3 * 3 + 3 * 3  # sampled agents have no constants
    assert points("--stride", "4", "1", "--agents", "pool") == points("--stride", "4", "--agents", "pool")
    assert "stride=1 must be an integer of at least 2" in capsys.readouterr().err


def test_phases_say_when_agents_run():
    settings = {phase: script["Setting"](**{**script["CENTRE"], "phase": phase}) for phase in ("early", "late")}
    assert '{"until": 0.5, "every": 1},' in settings["late"].arm.settings
    assert '{"until": 1.0, "every": 1}]' in settings["early"].arm.settings


def test_layer_inputs_are_those_of_the_layers(pipe):
    draw = drawer(pipe, steps=4, guidance_scale=4.0, seed=0)
    hooks = len(pipe.unet._forward_pre_hooks)
    inputs = list(script["layer_inputs"](pipe, draw, Chunk(0, ("a red ring",)), 4))
    assert len(inputs) == 3 * 7
    assert len(pipe.unet._forward_pre_hooks) == hooks
    assert {(given.downsample, given.grid) for given in inputs} == {(1, (16, 16)), (2, (8, 8)), (4, (4, 4))}
    for given in inputs:
        assert given.tokens.shape == given.metric.shape == (2, given.grid[0] * given.grid[1], given.site.attn.query_dim)
    attention = script["Setting"](**script["CENTRE"]).attention
    first = script["layer_errors"](attention, inputs)
    assert list(first) == ["1"]
    assert 0 < first["1"] < 2


def test_a_sweep_goes_on_and_grows(run, capsys):
    assert run("--broadcast-exponent", "0.3", "--shortcut", "0.075", "--limit-seconds", "0", code=1) == []
    rows = run("--broadcast-exponent", "0.3", "--shortcut", "0.075")
    assert [(row["phase"], row["max_downsample"]) for row in rows] == [("whole", 1), ("early", 1), ("whole", 2)]
    assert all(row["psnr_db_median"] > 0 and len(row["ssim"]) == 2 for row in rows)
    assert sorted(rows[2]["layer_l2"]) == ["1", "2"]
    capsys.readouterr()
    more = run("--broadcast-exponent", "0.3", "1", "--shortcut", "0.075")
    assert [row for row in more if row["broadcast_exponent"] == 0.3] == rows
    assert capsys.readouterr().err.count("visit ") == 1


def test_single_layers_alone_draw_stock_only(run, capsys):
    rows = run("--layers-only", "--broadcast-exponent", "0.3", "--shortcut", "0.075")
    assert len(rows) == 3
    assert all("psnr_db" not in row for row in rows)
    assert "prompts from 0, stock" in capsys.readouterr().err
    assert RUN_ARMS["stock"].settings == ""
