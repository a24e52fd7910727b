"""The tables come from the committed result files, each speed-up beside its baseline and settings."""

import json
import runpy
from pathlib import Path

import pytest

from agentsd.bench.arms import RUN_ARMS
from agentsd.bench.rows import read_rows
from agentsd.presets import BY_SPEED, PRESETS

ROOT = Path(__file__).resolve().parent.parent
tables = runpy.run_path(str(ROOT / "scripts" / "dev" / "tables.py"))
ROW = {
    "benchmark": "unet step",
    "architecture": "sd15",
    "arm": "stock",
    "settings": "",
    "size": 512,
    "batch": 2,
    "dtype": "bfloat16",
    "speedup": 1.0,
    "speedup_95": [1.0, 1.0],
    "rounds": 4,
    "seconds": [2.0, 2.5],
    "peak_bytes": 2**30,
    "device": "CPU",
    "device_type": "cpu",
    "threads": 2,
    "torch": "2",
    "diffusers": "0",
}


def arm(name="ours", **changes):
    settings = RUN_ARMS[name].settings if name in RUN_ARMS else ""
    return {**ROW, "arm": name, "settings": settings, "speedup": 2.0, "speedup_95": [1.9, 2.1], **changes}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setitem(tables["speed_rows"].__globals__, "ROOT", tmp_path)
    return tmp_path


def write(root, *rows, name="speed"):
    path = root / "results" / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_pages_are_up_to_date():
    assert tables["main"](["--check"]) == 0


def test_every_speed_stands_beside_its_baseline_and_settings():
    rows = tables["speed_rows"]()
    keys = {tables["key_of"](row, (*tables["SETUP"], "size")) for row in rows}
    assert keys == {tables["key_of"](row, (*tables["SETUP"], "size")) for row in rows if row["arm"] == "stock"}
    for row in read_rows(ROOT / "results" / "speed.jsonl"):
        assert {"dtype", "batch", "threads", "device", "torch", "diffusers", "weights", "speedup_95"} <= row.keys()


def test_the_newest_row_of_a_key_is_shown(root):
    write(root, ROW, arm(speedup=3.0), arm())
    table = tables["main_table"]()
    assert "| ours | 2.00x [1.90, 2.10] | 1.00 GiB |" in table
    assert "3.00x" not in table
    assert "| stock | 1.00x | 1.00 GiB |" in table
    assert "fused SDPA; 2 s at 512x512" in table


@pytest.mark.parametrize("twin", ["", ", compiled", ", channels last"])
def test_a_preset_that_has_changed_since_is_not_shown(root, twin):
    words = {"": "", ", compiled": "torch.compile ", ", channels last": "channels_last "}[twin]
    settings = words + RUN_ARMS["preset fast"].settings
    now, before = (
        arm(f"preset fast{twin}", settings=settings),
        arm(f"preset fast{twin}", settings=words + "others", speedup=9.0),
    )
    calls = {"benchmark": "pipeline call", "steps": 20}
    write(root, {**ROW, **calls}, {**now, **calls}, {**before, **calls})
    assert f"| preset fast{twin} | 2.00x [1.90, 2.10] |" in tables["other_tables"]()  # the older row is the true one
    write(root, {**ROW, **calls}, {**before, **calls}, arm("ours", settings="others", **calls))
    assert "preset fast" not in tables["other_tables"]()
    assert "| ours |" in tables["other_tables"]()
    shown = {"psnr_db_median": 31.24, "ssim_median": 0.98765, "latent_l2_median": 0.1, "prompts": 8, "steps": 20,
             "guidance_scale": 4.0, "attribute_accuracy": {}, "right": 1, "right_each": [1]}  # fmt: skip
    write(root, {**ROW, **shown}, {**before, **shown}, arm("tomesd 0.5", **shown), name="demo/arms")
    assert "preset fast" not in tables["demo_table"]()


def test_a_plan_of_a_preset_that_has_changed_since_is_not_shown(root):
    row = {
        **ROW,
        "preset": "fast", "steps": 6, "predicted": 2.0, "measured": 2.0, "measured_95": [1.9, 2.1], "error": 0.0,
        "unplanned": 2.0, "stock_levels": [], "settings": RUN_ARMS["preset fast"].settings,
    }  # fmt: skip
    write(root, {**row, "size": 256}, {**row, "settings": "others"}, {**row, "preset": "gentle"}, name="plans")
    lines = tables["plans_table"]().splitlines()
    assert [line.split(" | ")[:2] for line in lines if line.startswith("| fast")] == [["| fast", "256x256"]]
    assert not [line for line in lines if line.startswith("| gentle")]


def test_every_preset_is_shown_with_the_settings_of_today():
    rows = tables["speed_rows"]() + tables["current_rows"]("demo/arms")
    shown = {row["arm"]: row["settings"] for row in rows if row["arm"] in RUN_ARMS and row["arm"].startswith("preset ")}
    assert shown == {name: RUN_ARMS[name].settings for name in shown}
    gauged = {row["settings"] for row in read_rows(ROOT / "results" / "gauge.jsonl")}
    measured = {name for name in BY_SPEED if PRESETS[name].to_json() in gauged or f"preset {name}" in shown}
    assert measured == set(BY_SPEED), "presets without a measurement under their settings of today"


def test_the_readme_shows_some_arms_in_an_order_of_its_own(root):
    write(root, ROW, arm("a"), arm("b"), arm("stock A/A"), arm("c"))
    table = tables["main_table"](("stock", "c", "a"))
    assert [line.split(" | ")[0] for line in table.splitlines()[2:5]] == ["| stock", "| c", "| a"]
    assert "| b |" not in table
    assert "A/A" not in table
    assert "stock A/A shows the noise" in tables["main_table"]()


def test_the_arms_of_the_readme_were_measured():
    assert {row["arm"] for row in read_rows(ROOT / "results" / "speed.jsonl")} >= set(tables["SHORT"])


def test_sizes_stand_side_by_side(root):
    write(root, ROW, arm(), {**ROW, "size": 768}, arm(size=768, rounds=6, peak_bytes=None))
    table = tables["main_table"]()
    assert table.startswith("| one UNet step | 512x512 | 768x768 | memory 512x512 | memory 768x768 |")
    assert "| ours | 2.00x [1.90, 2.10] | 2.00x [1.90, 2.10] | 1.00 GiB |  |" in table
    assert "median of 4 to 6 paired ratios" in table
    assert tables["other_tables"]() == ""


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"dtype": "float32"}, "### UNet step, sd15, float32, CPU"),
        ({"architecture": "sdxl"}, "### UNet step, sdxl, bfloat16, CPU"),
        ({"benchmark": "pipeline call", "steps": 20}, "### pipeline call, sd15, bfloat16, 20 steps, CPU"),
        ({"device": "H200", "device_type": "cuda"}, "### UNet step, sd15, bfloat16, H200"),
        ({"size": 1024}, "### UNet step, sd15, bfloat16, CPU"),
    ],
)
def test_every_setup_has_a_table_of_its_own(root, changes, title):
    write(root, ROW, arm(), {**ROW, **changes}, arm("theirs", **changes))
    assert "theirs" not in tables["main_table"]()
    others = tables["other_tables"]()
    assert others.startswith(title)
    assert others.count("###") == 1
    assert "theirs" in others
    assert "ours" not in others


def test_the_main_setup_is_the_one_measured_last(root):
    write(root, ROW, arm("old"), {**ROW, "torch": "3"}, arm("new", torch="3"))
    assert "new" in tables["main_table"]()
    assert "old" in tables["other_tables"]()


def test_a_speed_up_without_its_baseline_is_refused(root):
    write(root, ROW, arm(size=768))
    with pytest.raises(ValueError, match=r"sizes \[768\] of sd15 have no row for stock"):
        tables["main_table"]()
    with pytest.raises(ValueError, match="mix set-ups"):
        tables["speed_table"]([ROW, {**ROW, "threads": 8}])


def test_no_results_make_no_table(root):
    names = ("main_table", "other_tables", "demo_table", "scaling_table")
    assert [tables[name]() for name in names] == [""] * 4


def test_the_gpu_table_has_a_column_for_each_architecture_and_size(root):
    assert tables["h200_table"]() == ""
    large = {"architecture": "sdxl", "size": 1024}
    rival, whole = arm("DeepCache 3"), arm("stock", benchmark="pipeline call", steps=20)
    write(root, ROW, rival, {**ROW, **large}, {**rival, **large, "speedup": 3.0}, whole, name="speed-h200")
    lines = tables["h200_table"]().splitlines()
    assert lines[0] == "| one UNet step | sd15 512x512 | sdxl 1024x1024 |"
    assert lines[2:4] == ["| stock | 1.00x | 1.00x |", "| DeepCache 3 | 2.00x [1.90, 2.10] | 3.00x [1.90, 2.10] |"]
    write(root, ROW, {**rival, **large}, name="speed-h200")
    with pytest.raises(ValueError, match="have no row for stock"):
        tables["h200_table"]()


def test_the_demo_table(root):
    row = {
        **arm(),
        "prompts": 4, "steps": 25, "guidance_scale": 4.0, "size": 256,
        "psnr_db_median": 30.04, "ssim_median": 0.98, "latent_l2_median": 0.0123,
        "attribute_accuracy": {"all": 0.5, "singles": 0.5},
    }  # fmt: skip
    write(root, {**row, "arm": "stock", "psnr_db_median": None}, row, name="demo/arms")
    lines = tables["demo_table"]().splitlines()
    assert lines[2] == "| stock | 2.00x | equal | 0.980 | 0.012 | 50% |  |"
    assert lines[3] == "| ours | 2.00x [1.90, 2.10] | 30.0 dB | 0.980 | 0.012 | 50% |  |"


def test_the_scaling_table(root):
    row = {**ROW, "grid": 64, "milliseconds": 10.0, "layers": 5}
    more = {**row, "grid": 128, "milliseconds": 160.0}
    old = {**row, "torch": "1", "arm": "old"}
    write(root, old, row, more, {**row, "arm": "ours"}, {**more, "arm": "ours", "milliseconds": 41.23}, name="scaling")
    lines = tables["scaling_table"]().splitlines()
    assert lines[0] == "| self-attention, finest level | 64x64 | 128x128 | cost ~ N^p |"
    assert lines[2:4] == ["| stock | 10 ms | 160 ms | p = 2.00 |", "| ours | 10 ms | 41.23 ms | p = 1.02 |"]
    assert len(lines) == 6
    coarse = {"levels": 4, "layers": 4}
    write(root, row, more, *({**each, **coarse} for each in (row, more)), row, name="scaling")
    heads = [line for line in tables["scaling_table"]().splitlines() if line.startswith("| self-attention")]
    assert [head.split(" | ")[0] for head in heads] == [
        "| self-attention, finest level",
        "| self-attention, 4 finest levels",
    ]
