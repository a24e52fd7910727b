"""The README's tables come from the committed result files."""

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
tables = runpy.run_path(str(ROOT / "scripts" / "tables.py"))


def test_readme_is_up_to_date():
    assert tables["main"](["--check"]) == 0


def test_every_speed_stands_beside_its_baseline_and_settings():
    rows = tables["rows_of"](ROOT / "results" / "speed.jsonl")
    for size in {row["size"] for row in rows}:
        assert "stock" in {row["arm"] for row in rows if row["size"] == size}
    for row in rows:
        assert {"dtype", "batch", "threads", "device", "torch", "diffusers", "weights", "speedup_95"} <= row.keys()


def test_rows_of_different_setups_are_not_mixed(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    row = dict.fromkeys(("architecture", "batch", "dtype", "device", "threads", "torch", "diffusers"), "x")
    rows = [row, {**row, "threads": 8}]
    (tmp_path / "results" / "speed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setitem(tables["speed_table"].__globals__, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=r"results/speed\.jsonl mixes set-ups"):
        tables["speed_table"]()
