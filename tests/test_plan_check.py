"""scripts/plan_check.py measures what it predicts (on a tiny architecture)."""

import runpy
from pathlib import Path

import pytest
from test_benchmark import TINY

from agentsd.architectures import ARCHITECTURES
from agentsd.rows import read_rows

main = runpy.run_path(str(Path(__file__).resolve().parent.parent / "scripts" / "plan_check.py"))["main"]


def test_rows_hold_prediction_and_measurement(tmp_path, monkeypatch):
    monkeypatch.setattr("agentsd.architectures.ARCHITECTURES", {**ARCHITECTURES, "sd15": TINY})
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
