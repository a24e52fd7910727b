"""scripts/dev/scaling.py: every arm at every grid, once, and the exponent of the cost."""

import runpy
from pathlib import Path

import pytest
import torch
from test_benchmark import TINY

from agentsd.bench.architectures import ARCHITECTURES, random_attention
from agentsd.bench.ratios import power_law
from agentsd.bench.rows import read_rows

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "dev" / "scaling.py"
script = runpy.run_path(str(SCRIPT))


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr("agentsd.bench.architectures.ARCHITECTURES", {**ARCHITECTURES, "sd15": TINY})
    words = ["--dtype", "float32", "--device", "cpu", "--rounds", "2", "--output", str(tmp_path / "scaling.jsonl")]

    def call(*more, code=0):
        assert script["main"]([*words, *more]) == code
        return read_rows(tmp_path / "scaling.jsonl")

    return call


def test_every_arm_is_measured_at_every_grid_once(run, capsys):
    assert run("--grid", "16", "32", "--limit-seconds", "-1", code=1) == []
    assert "before the grid 16" in capsys.readouterr().err
    rows = run("--grid", "16", "32")
    names = list(script["ARMS"])
    assert [(row["grid"], row["arm"]) for row in rows] == [(grid, name) for grid in (16, 32) for name in names]
    assert all(row["milliseconds"] > 0 and len(row["seconds"]) == 2 and row["layers"] == 5 for row in rows)
    told = capsys.readouterr().err.splitlines()
    assert sum("cost ~ N^" in line for line in told) == len(names)
    assert run("--grid", "16", "32") == rows
    assert len(run("--grid", "16", "--rounds", "3")) == len(rows) + len(names)


@pytest.mark.parametrize("name", ["pooled agents, at most 256", "key/value sampling, at most 256"])
def test_some_arms_keep_their_number_of_agents(name):
    for grid in (64, 96, 128, 160, 192):
        counts = script["ARMS"][name].count_tokens(grid, grid)
        assert 225 <= (counts.agents or counts.keys) <= 256


def test_coarser_levels_run_at_their_grids_stock_or_by_the_arm(run, monkeypatch):
    grids = []
    attend = script["main"].__globals__["attend"]
    monkeypatch.setitem(
        script["main"].__globals__,
        "attend",
        lambda *call: grids.append((call[3].height, call[1].shape[1])) or attend(*call),
    )
    rows = run("--grid", "32", "--levels", "2", "--layers", "1")
    assert [row["arm"] for row in rows] == list(script["ARMS_OF_ALL"])
    assert all(row["levels"] == 2 and row["layers"] == 2 for row in rows)
    assert set(grids) == {(32, 1024), (16, 256)}
    assert grids.count((32, 1024)) > grids.count((16, 256))  # one arm has agents on the finest level alone


def test_a_grid_without_a_cell_is_refused(run):
    with pytest.raises(ValueError, match="--grid 3 holds no whole cell of stride 4; give a larger one"):
        run("--grid", "3")


def test_curves_are_of_the_newest_rows_of_one_setup():
    row = {"arm": "stock", "grid": 64, "milliseconds": 1.0, "torch": "2"}
    rows = [{**row, "torch": "1", "grid": 32}, row, {**row, "grid": 16}, {**row, "milliseconds": 3.0}]
    assert script["curves"](rows) == {"stock": ([16, 64], [1.0, 3.0])}


def test_the_finest_layers_are_those_of_the_architecture():
    (layers,) = random_attention("sd15", dtype=torch.bfloat16).values()
    assert [(layer.query_dim, layer.heads) for layer in layers] == [(320, 8)] * 5
    assert {layer.to_q.weight.dtype for layer in layers} == {torch.bfloat16}
    assert not torch.equal(layers[0].to_q.weight, layers[1].to_q.weight)
    (xl,) = random_attention("sdxl", dtype=torch.bfloat16).values()
    assert [(layer.query_dim, layer.heads) for layer in xl] == [(640, 10)] * 10


def test_power_law_refuses_what_has_no_slope():
    with pytest.raises(ValueError, match="at two sizes or more"):
        power_law([4, 4], [1.0, 2.0])
