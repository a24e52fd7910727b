"""scripts/dev/plots.py draws every combination with something to compare, and equal results give equal files."""

import json
import runpy
from pathlib import Path

import pytest

from agentsd.bench.gauge_tables import PRESETS_BY_TOLERANCE
from agentsd.presets import PRESETS
from agentsd.unet.controller import RULES

pytest.importorskip("matplotlib")
SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "dev" / "plots.py"
plots = runpy.run_path(str(SCRIPT))


def row(combination, arm, calls, psnr):
    settings = PRESETS[PRESETS_BY_TOLERANCE[arm]].to_json() if arm in PRESETS_BY_TOLERANCE else ""
    return {"combination": combination, "arm": arm, "settings": settings, "rules": RULES, "calls": [calls] * 2,
            "stock_calls": [20] * 2, "pictures": 2, "psnr_stock": [psnr, psnr + 2]}  # fmt: skip


ROWS = [
    row("a", "stock", 20, 120.0), row("a", "tolerance 0.03", 12, 44.0), row("a", "tolerance 0.06", 10, 40.0),
    row("a", "UniPC, 12 steps", 12, 38.0), row("a", "every 2, order 1 (TaylorSeer)", 11, 30.0),
    row("alone", "stock", 20, 120.0), row("alone", "tolerance 0.03", 12, 44.0),
    row("short", "tolerance 0.03", 20, 120.0), row("short", "Spectrum", 9, 20.0),
]  # fmt: skip
COSTS = [
    {"arm": arm, "grid": grid, "milliseconds": float(grid) ** power, "layers": 5, "architecture": "sd15", "batch": 2,
     "dtype": "bfloat16", "device": "a device"}
    for arm, power in (("stock", 4), ("ours", 2)) for grid in (64, 128)
]  # fmt: skip


def test_families():
    names = {"tolerance 0.03": "agentsd", "UniPC, 12 steps": "fewer steps of another solver", "Spectrum": "Spectrum",
             "every 3, order 2 (TaylorSeer)": "TaylorSeer", "AdaptiveDiffusion 0.01": "AdaptiveDiffusion",
             "calibrated, 12 calls": "agentsd, calibrated list"}  # fmt: skip
    assert {arm: plots["family"](arm) for arm in names} == names


def test_combinations_with_something_to_compare_have_a_panel_and_all_share_a_legend():
    figure = plots["gauge"](ROWS)
    assert [ax.get_title() for ax in figure.axes] == ["a: stock has 20 calls"]
    assert "median over 2 prompts" in figure.get_suptitle()
    (legend,) = figure.legends
    words = [text.get_text() for text in legend.get_texts()]
    assert words == ["agentsd", "fewer steps of another solver", "TaylorSeer"]
    lines = [line for line in figure.axes[0].lines if line.get_label() == "agentsd"]
    assert [tuple(map(float, (*line.get_xdata(), *line.get_ydata()))) for line in lines] == [(12, 45), (10, 41)]


def test_presets_that_have_changed_since_are_not_drawn():
    changed = [{**row, "settings": "others"} if row["arm"] == "tolerance 0.06" else row for row in ROWS]
    lines = [line for line in plots["gauge"](changed).axes[0].lines if line.get_label() == "agentsd"]
    assert len(lines) == 1


def test_every_line_of_costs_says_how_much_faster():
    (ax,) = plots["scaling"](COSTS).axes
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    assert words == ["stock, N^2.00", "ours, N^1.00, 16384.0x faster at 1024 px"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["4096\n512 px", "16384\n1024 px"]


def test_equal_results_give_equal_files(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    assert plots["main"](["--results", str(results), "--output", str(tmp_path / "none")]) == 1
    for name, rows in (("gauge", ROWS), ("scaling", COSTS)):
        (results / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for folder in ("one", "two"):
        assert plots["main"](["--results", str(results), "--output", str(tmp_path / folder)]) == 0
    for name in ("gauge.png", "scaling.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
