"""The tables come from the committed result files, each speed-up beside its baseline and settings."""

import json
import runpy
from functools import partial
from pathlib import Path

import pytest

from agentsd.bench import batch_tables
from agentsd.bench.arms import RUN_ARMS
from agentsd.bench.cost_tables import plans_table, scaling_table
from agentsd.bench.currency import facts_of
from agentsd.bench.demo_tables import demo_table
from agentsd.bench.gauge_tables import (
    PRESETS_BY_TOLERANCE,
    every_table,
    gauge_table,
    lists_table,
    promise_table,
    rivals_table,
    solvers_table,
)
from agentsd.bench.rows import key_of, read_rows
from agentsd.bench.speed_tables import (
    SETUP,
    current_rows,
    h200_table,
    main_table,
    other_tables,
    speed_rows,
    speed_table,
)
from agentsd.bench.strip_tables import (
    FEWER_ARMS,
    SCHEDULES,
    parts_table,
    presets_table,
    strip_rows,
)
from agentsd.presets import BY_SPEED, PRESETS
from agentsd.unet.controller import RULES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
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
def root(tmp_path):
    return tmp_path


def write(root, *rows, name="speed"):
    path = root / "results" / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_pages_are_up_to_date():
    assert tables["main"](["--check"]) == 0


def test_every_speed_stands_beside_its_baseline_and_settings():
    rows = speed_rows(RESULTS)
    keys = {key_of(row, (*SETUP, "size")) for row in rows}
    assert keys == {key_of(row, (*SETUP, "size")) for row in rows if row["arm"] == "stock"}
    for row in read_rows(RESULTS / "speed.jsonl"):
        assert {"dtype", "batch", "threads", "device", "torch", "diffusers", "weights", "speedup_95"} <= row.keys()


def test_the_newest_row_of_a_key_is_shown(root):
    write(root, ROW, arm(speedup=3.0), arm())
    table = main_table(root / "results")
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
    assert f"| preset fast{twin} | 2.00x [1.90, 2.10] |" in other_tables(root / "results")  # the older row is true
    write(root, {**ROW, **calls}, {**before, **calls}, arm("ours", settings="others", **calls))
    assert "preset fast" not in other_tables(root / "results")
    assert "| ours |" in other_tables(root / "results")
    shown = {"psnr_db_median": 31.24, "ssim_median": 0.98765, "latent_l2_median": 0.1, "prompts": 8, "steps": 20,
             "guidance_scale": 4.0, "attribute_accuracy": {}, "right": 1, "right_each": [1]}  # fmt: skip
    write(root, {**ROW, **shown}, {**before, **shown}, arm("tomesd 0.5", **shown), name="demo/arms")
    assert "preset fast" not in demo_table(root / "results")


def test_a_plan_of_a_preset_that_has_changed_since_is_not_shown(root):
    row = {
        **ROW,
        "preset": "fast", "steps": 6, "predicted": 2.0, "measured": 2.0, "measured_95": [1.9, 2.1], "error": 0.0,
        "unplanned": 2.0, "stock_levels": [], "settings": RUN_ARMS["preset fast"].settings,
    }  # fmt: skip
    write(root, {**row, "size": 256}, {**row, "settings": "others"}, {**row, "preset": "gentle"}, name="plans")
    lines = plans_table(root / "results").splitlines()
    assert [line.split(" | ")[:2] for line in lines if line.startswith("| fast")] == [["| fast", "256x256"]]
    assert not [line for line in lines if line.startswith("| gentle")]


GAUGED = {
    "combination": "sd15, DPM++ 2M Karras, 25", "calls": [14, 16], "stock_calls": [25, 25], "pictures": 2, "steps": 25,
    "guidance": 7.5, "psnr_stock": [40.0, 44.0], "psnr_converged": [30.0, 32.0], "latent_error": [0.01, 0.03],
    "dtype": "float32", "device": "a GPU", "torch": "2", "diffusers": "0", "settings": "",
}  # fmt: skip


def gauged(arm, **changes):
    ours = arm in PRESETS_BY_TOLERANCE
    settings = {"settings": PRESETS[PRESETS_BY_TOLERANCE[arm]].to_json(), "rules": RULES} if ours else {}
    return {**GAUGED, "arm": arm, **settings, **changes}


def timed(arm, number, seconds, **changes):
    schedule = SCHEDULES.get(arm)
    return {
        "arm": arm, "number": number, "calls": 25, "cpu_seconds": seconds, "psnr_db": None if arm == "stock" else 40.0,
        **facts_of(schedule), "device": "a CPU", "torch": "2", **changes,
    }  # fmt: skip


@pytest.mark.parametrize("make", [gauge_table, promise_table, every_table])
def test_a_gauged_preset_that_has_changed_since_is_not_shown(make):
    stock, now = gauged("stock", calls=[25, 25]), gauged("tolerance 0.03")
    before = {**now, "settings": PRESETS["fast"].to_json(), "calls": [3, 3]}
    shown = make([stock, now, before])  # the newer row is not of the preset as it is now
    assert "15.0" in shown
    assert "| 3.0" not in shown
    assert "15.0" not in make([stock, before])
    assert "3.0 (" not in make([stock, before])
    assert "15.0" not in make([stock, {**now, "rules": RULES - 1}])
    assert "15.0" not in make([stock, {field: value for field, value in now.items() if field != "rules"}])


def test_a_gauged_tolerance_that_is_no_preset_is_shown_under_the_rules_of_today():
    settings = PRESETS["balanced"].with_tolerance(0.07).to_json()
    row = gauged("tolerance 0.07", settings=settings, rules=RULES)
    assert "| tolerance 0.07 | 15.0 " in every_table([row])
    for changes in ({"rules": RULES - 1}, {"settings": PRESETS["balanced"].to_json()}):
        assert "tolerance 0.07" not in every_table([gauged("stock"), {**row, **changes}])


def test_tolerances_stand_beside_lists_in_the_order_of_their_calls():
    rows = [gauged("stock", calls=[25, 25]), gauged("tolerance 0.03"), gauged("calibrated, 16 calls", calls=[16, 16])]
    lines = lists_table(rows, GAUGED["combination"]).splitlines()[2:]
    assert lines == [
        "| listed, 16 calls | 16.0 | 0.020 (0.030) | 42.0 (40.0) dB |",
        "| decided at run time, tolerance 0.03 | 15.0 (14 to 16) | 0.020 (0.030) | 42.0 (40.0) dB |",
    ]
    assert lists_table(rows[:2], GAUGED["combination"]) == ""


@pytest.mark.parametrize("make", [gauge_table, promise_table, every_table, partial(solvers_table, combinations=["b"])])
def test_combinations_that_were_gauged_elsewhere_are_marked(make):
    rows = [gauged("stock", calls=[25, 25]), gauged("tolerance 0.03")]
    rows += [{**row, "combination": "b", "pictures": 8, "device": "a CPU"} for row in rows]
    shown = make(rows)
    assert r"| b\* |" in shown
    assert r"2 held-out prompts, a GPU, torch 2, diffusers 0. \*8 held-out prompts, a CPU, torch 2" in shown


@pytest.mark.parametrize(
    ("steps", "shown"), [((15, 16), "33.0"), ((17, 16), "43.0 (43.0) dB, 16 steps"), ((14, 19), "| -")]
)
def test_other_solvers_have_as_many_calls_or_a_few_more(steps, shown):
    near = {14: 63.0, 15: 33.0, 16: 43.0, 17: 53.0, 19: 53.0}
    solvers = [gauged(f"UniPC, {number} steps", psnr_stock=[near[number]] * 2) for number in steps]
    made = gauge_table([gauged("stock", calls=[25, 25]), gauged("tolerance 0.03"), *solvers])
    assert shown in made
    assert not [other for other in ("33.0", "43.0", "53.0", "63.0") if other in made and other not in shown]


def test_the_nearest_rival_takes_at_most_a_fifth_more_calls():
    rows = [
        gauged("stock", calls=[25, 25]),
        gauged("tolerance 0.03", calls=[10, 10]),
        gauged("Spectrum", calls=[9, 9], psnr_stock=[30.0, 30.0], psnr_converged=[34.0, 34.0]),
        gauged("SADA", calls=[12, 12], psnr_stock=[33.0, 33.0], psnr_converged=[31.0, 31.0]),
        gauged("EasyCache 0.05", calls=[13, 13], psnr_stock=[60.0, 60.0]),
    ]
    line = rivals_table(rows).splitlines()[2]
    assert "SADA, 12.0 calls: 33.0 (33.0) dB | Spectrum, 9.0 calls: 34.0 (34.0) dB" in line
    assert rivals_table(rows[:2]) == ""
    more = gauged("tolerance 0.03", calls=[11, 11, 11], pictures=3)  # the rivals saw other prompts
    assert rivals_table([*rows, more]).splitlines()[2] == line
    same = gauged("tolerance 0.03", calls=[25, 25], stock_calls=[25, 25])  # nothing was skipped
    assert rivals_table([rows[0], same, rows[2]]) == ""


@pytest.mark.parametrize("make", [gauge_table, partial(solvers_table, combinations=[GAUGED["combination"]])])
def test_a_solver_that_was_gauged_elsewhere_is_marked(make):
    solver = gauged("UniPC, 15 steps", device="a CPU", psnr_stock=[30.0, 32.0])
    shown = make([gauged("stock", calls=[25, 25]), gauged("tolerance 0.03"), solver])
    assert r"| 31.0 (30.0) dB\* |" in shown
    assert r"| sd15, DPM++ 2M Karras, 25 |" in shown


def test_presets_stand_with_calls_likeness_and_time(root):
    rows = [gauged("stock", calls=[25, 25], psnr_stock=[120.0, 120.0]), gauged("tolerance 0.03")]
    write(root, *(timed("stock", n, 10.0) for n in (0, 1)), timed("balanced", 0, 4.0), timed("balanced", 1, 5.0),
          name="demo/strip")  # fmt: skip
    lines = presets_table(rows, strip_rows(root / "results")).splitlines()
    assert lines[2] == "| stock | 25.0 | 1.00x (10.0 s) | equal | 31.0 (30.0) dB |"
    assert lines[3] == "| `balanced` | 15.0 | 2.22x [2.00, 2.50] | 42.0 (40.0) dB | 31.0 (30.0) dB |"
    assert "ratio of the times of 2 prompts" in lines[-1]
    write(root, timed("stock", 0, 10.0), timed("balanced", 0, 4.0, settings="others"), name="demo/strip")
    assert "| `balanced` | 15.0 | - |" in presets_table(rows, strip_rows(root / "results"))
    write(root, timed("stock", 0, 10.0), timed("balanced", 0, 4.0, rules=RULES - 1), name="demo/strip")
    assert "| `balanced` | 15.0 | - |" in presets_table(rows, strip_rows(root / "results"))
    assert presets_table([], strip_rows(root / "results")) == ""


def test_parts_stand_alone_and_together(root):
    arms = ("stock", "key/value sampling alone", "balanced", "balanced + key/value sampling")
    rows = [timed(arm, 0, 12.0 / (index + 1)) for index, arm in enumerate(arms)]
    write(root, *rows, name="demo/strip")
    lines = parts_table(strip_rows(root / "results")).splitlines()
    assert lines[5] == "| balanced + key/value sampling | 25.0 | 4.00x [4.00, 4.00] | 40.0 (40.0) dB |"
    write(root, *rows[:3], {**rows[3], "settings": PRESETS["balanced"].to_json()}, name="demo/strip")
    assert parts_table(strip_rows(root / "results")) == ""


def test_the_strip_has_every_arm_for_every_prompt():
    rows = strip_rows(RESULTS)
    assert {row["arm"] for row in rows} == {*SCHEDULES, *FEWER_ARMS}
    assert {(row["arm"], row["number"]) for row in rows} == {
        (arm, number) for arm in (*SCHEDULES, *FEWER_ARMS) for number in {row["number"] for row in rows}
    }


def test_every_preset_is_shown_with_the_settings_of_today():
    rows = speed_rows(RESULTS) + current_rows(RESULTS, "demo/arms")
    shown = {row["arm"]: row["settings"] for row in rows if row["arm"] in RUN_ARMS and row["arm"].startswith("preset ")}
    assert shown == {name: RUN_ARMS[name].settings for name in shown}
    gauged = {row["settings"] for row in read_rows(RESULTS / "gauge.jsonl")}
    measured = {name for name in BY_SPEED if PRESETS[name].to_json() in gauged or f"preset {name}" in shown}
    assert measured == set(BY_SPEED), "presets without a measurement under their settings of today"


def test_the_readme_shows_some_arms_in_an_order_of_its_own(root):
    write(root, ROW, arm("a"), arm("b"), arm("stock A/A"), arm("c"))
    table = main_table(root / "results", ("stock", "c", "a"))
    assert [line.split(" | ")[0] for line in table.splitlines()[2:5]] == ["| stock", "| c", "| a"]
    assert "| b |" not in table
    assert "A/A" not in table
    assert "stock A/A shows the noise" in main_table(root / "results")


def test_the_arms_of_the_readme_were_measured():
    assert {row["arm"] for row in read_rows(RESULTS / "speed.jsonl")} >= set(tables["SHORT"])


def test_sizes_stand_side_by_side(root):
    write(root, ROW, arm(), {**ROW, "size": 768}, arm(size=768, rounds=6, peak_bytes=None))
    table = main_table(root / "results")
    assert table.startswith("| one UNet step | 512x512 | 768x768 | memory 512x512 | memory 768x768 |")
    assert "| ours | 2.00x [1.90, 2.10] | 2.00x [1.90, 2.10] | 1.00 GiB |  |" in table
    assert "median of 4 to 6 paired ratios" in table
    assert other_tables(root / "results") == ""


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
    assert "theirs" not in main_table(root / "results")
    others = other_tables(root / "results")
    assert others.startswith(title)
    assert others.count("###") == 1
    assert "theirs" in others
    assert "ours" not in others


def test_the_main_setup_is_the_one_measured_last(root):
    write(root, ROW, arm("old"), {**ROW, "torch": "3"}, arm("new", torch="3"))
    assert "new" in main_table(root / "results")
    assert "old" in other_tables(root / "results")


def test_a_speed_up_without_its_baseline_is_refused(root):
    write(root, ROW, arm(size=768))
    with pytest.raises(ValueError, match=r"sizes \[768\] of sd15 have no row for stock"):
        main_table(root / "results")
    with pytest.raises(ValueError, match="mix set-ups"):
        speed_table([ROW, {**ROW, "threads": 8}])


def test_no_results_make_no_table(root):
    for make in (main_table, other_tables, demo_table, scaling_table, plans_table):
        assert make(root / "results") == ""


def test_the_gpu_table_has_a_column_for_each_architecture_and_size(root):
    assert h200_table(root / "results", ("stock", "DeepCache 3")) == ""
    large = {"architecture": "sdxl", "size": 1024}
    rival, whole = arm("DeepCache 3"), arm("stock", benchmark="pipeline call", steps=20)
    write(root, ROW, rival, {**ROW, **large}, {**rival, **large, "speedup": 3.0}, whole, name="speed-h200")
    lines = h200_table(root / "results", ("stock", "DeepCache 3")).splitlines()
    assert lines[0] == "| one UNet step | sd15 512x512 | sdxl 1024x1024 |"
    assert lines[2:4] == ["| stock | 1.00x | 1.00x |", "| DeepCache 3 | 2.00x [1.90, 2.10] | 3.00x [1.90, 2.10] |"]
    write(root, ROW, {**rival, **large}, name="speed-h200")
    with pytest.raises(ValueError, match="have no row for stock"):
        h200_table(root / "results", ("stock", "DeepCache 3"))


def test_the_demo_table(root):
    row = {
        **arm(),
        "prompts": 4, "steps": 25, "guidance_scale": 4.0, "size": 256,
        "psnr_db_median": 30.04, "ssim_median": 0.98, "latent_l2_median": 0.0123,
        "attribute_accuracy": {"all": 0.5, "singles": 0.5},
    }  # fmt: skip
    write(root, {**row, "arm": "stock", "psnr_db_median": None}, row, name="demo/arms")
    lines = demo_table(root / "results").splitlines()
    assert lines[2] == "| stock | 2.00x | equal | 0.980 | 0.012 | 50% |  |"
    assert lines[3] == "| ours | 2.00x [1.90, 2.10] | 30.0 dB | 0.980 | 0.012 | 50% |  |"


def test_the_scaling_table(root):
    row = {**ROW, "grid": 64, "milliseconds": 10.0, "layers": 5}
    more = {**row, "grid": 128, "milliseconds": 160.0}
    old = {**row, "torch": "1", "arm": "old"}
    write(root, old, row, more, {**row, "arm": "ours"}, {**more, "arm": "ours", "milliseconds": 41.23}, name="scaling")
    lines = scaling_table(root / "results").splitlines()
    assert lines[0] == "| self-attention, finest level | 64x64 | 128x128 | cost ~ N^p |"
    assert lines[2:4] == ["| stock | 10 ms | 160 ms | p = 2.00 |", "| ours | 10 ms | 41.23 ms | p = 1.02 |"]
    assert len(lines) == 6
    coarse = {"levels": 4, "layers": 4}
    write(root, row, more, *({**each, **coarse} for each in (row, more)), row, name="scaling")
    heads = [line for line in scaling_table(root / "results").splitlines() if line.startswith("| self-attention")]
    assert [head.split(" | ")[0] for head in heads] == [
        "| self-attention, finest level",
        "| self-attention, 4 finest levels",
    ]


def test_batches_are_compared_with_stock_of_the_same_batches(tmp_path):
    facts = {"dtype": "float32", "guidance": 7.5, "batch": 4, "threads": 1, "device": "a CPU", "torch": "2"}
    facts["device_type"] = "cpu"
    rows = [
        {**facts, "combination": "sdxl, Euler, 30", "number": number, **settings, "calls": calls, "unet_launches": runs,
         "seconds": [seconds, seconds], "psnr_stock": [near] * 4}
        for number in range(2)
        for settings, calls, runs, seconds, near in zip(
            batch_tables.ARMS.values(), (30, 12, 10.5), (30, 12, 20), (60.0, 30.0 - 5 * number, 20.0),
            (120.0, 45.0, 44.0), strict=True,
        )
    ]  # fmt: skip
    old = {**rows[1], "settings": rows[1]["settings"].replace("0.03", "0.05"), "number": 7}
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/batches.jsonl").write_text("\n".join(json.dumps(row) for row in [*rows, old]))
    lines = batch_tables.batch_table(batch_tables.batch_rows(tmp_path)).splitlines()
    assert lines[2] == "| sdxl, Euler, 30 | stock | 30.0 | 30.0 | 1.00x | equal |"
    assert lines[3] == "| sdxl, Euler, 30 | balanced | 12.0 | 12.0 | 2.18x [2.00, 2.40] | 45.0 (45.0) dB |"
    assert lines[4] == "| sdxl, Euler, 30 | balanced, by picture | 10.5 | 20.0 | 3.00x [3.00, 3.00] | 44.0 (44.0) dB |"
    assert "2 batches of 4 pictures" in lines[-1]
