"""plan_check.py measures what it predicts (on a tiny architecture); what it measured is as good as we say."""

import runpy
from pathlib import Path

import pytest
from test_benchmark import TINY

from agentsd.bench.architectures import ARCHITECTURES
from agentsd.bench.rows import read_rows

ROOT = Path(__file__).resolve().parent.parent
main = runpy.run_path(str(ROOT / "scripts" / "dev" / "plan_check.py"))["main"]


def test_rows_hold_prediction_and_measurement(tmp_path, monkeypatch):
    monkeypatch.setattr("agentsd.bench.architectures.ARCHITECTURES", {**ARCHITECTURES, "sd15": TINY})
    output = tmp_path / "plans.jsonl"
    words = ["--size", "128", "192", "--preset", "balanced", "paper", "--rounds", "2", "--dtype", "float32"]
    assert main([*words, "--device", "cpu", "--output", str(output)]) == 0
    rows = read_rows(output)
    assert [(row["size"], row["preset"]) for row in rows] == [
        (128, "balanced"), (128, "paper"), (192, "balanced"), (192, "paper")
    ]  # fmt: skip
    for row in rows:
        assert row["error"] == pytest.approx(row["predicted"] / row["measured"] - 1, abs=2e-4)
        assert row["measured_95"][0] <= row["measured"] <= row["measured_95"][1]


def test_the_committed_predictions_came_true():
    rows = read_rows(ROOT / "results" / "plans.jsonl")
    assert rows
    for row in rows:
        assert row["error"] == pytest.approx(row["predicted"] / row["measured"] - 1, abs=2e-4)
        assert abs(row["error"]) <= 0.1


def test_the_default_preset_pays_without_a_plan_at_each_committed_size():
    rows = [row for row in read_rows(ROOT / "results" / "plans.jsonl") if row["preset"] == "balanced"]
    assert len({row["size"] for row in rows}) >= 3
    assert min(row["unplanned"] for row in rows) >= 1
