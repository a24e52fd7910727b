"""scripts/dev/plots.py plots the cost of self-attention against tokens."""

import json
import runpy
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "dev" / "plots.py"
plots = runpy.run_path(str(SCRIPT))


def test_equal_results_give_equal_files(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    assert plots["main"](["--results", str(results), "--output", str(tmp_path / "none")]) == 1
    costs = [
        {"arm": arm, "grid": grid, "milliseconds": float(grid), "layers": 5, "architecture": "sd15", "batch": 2,
         "dtype": "bfloat16", "device": "a device"}
        for arm in ("stock", "ours") for grid in (64, 128)
    ]  # fmt: skip
    (results / "scaling.jsonl").write_text("".join(json.dumps(row) + "\n" for row in costs))
    for folder in ("one", "two"):
        assert plots["main"](["--results", str(results), "--output", str(tmp_path / folder)]) == 0
    assert (tmp_path / "one" / "scaling.png").read_bytes() == (tmp_path / "two" / "scaling.png").read_bytes()
