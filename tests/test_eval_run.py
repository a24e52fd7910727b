"""Whole evaluations of a tiny model: what is drawn, what is kept, and that no kill and no batch changes it."""

import argparse
import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from evaluation_runs import (
    CAPTIONS,
    SIDE,
    cheap_extractor,
    forked,
    kill_self,
    make_place,
    options,
    pictures,
    same_results,
    whole_run,
)
from PIL import Image

import agentsd.evaluation.run as module
from agentsd.bench.store import UnfinishedError, read_json
from agentsd.cli import evaluate as evaluate_command
from agentsd.cli.main import main as cli
from agentsd.evaluation import claims, measures, timing
from agentsd.evaluation.arms import base_arms, no_faster, parse_arm, with_equal_time
from agentsd.evaluation.drawing import Painter, picture_seed, scheduler_settings
from agentsd.evaluation.manifest import ManifestMismatchError
from agentsd.evaluation.options import Options, class_prompts, prompts_of, read_class_names
from agentsd.evaluation.protocols import CLASSES
from agentsd.evaluation.reference import fitted, make_reference
from agentsd.evaluation.run import evaluate
from agentsd.evaluation.store import Store
from agentsd.system import timing as bench_timing
from agentsd.system import writing

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with model, captions and reference."""
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """Return the folder of a run that nothing disturbed."""
    return whole_run(place, tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(autouse=True)
def _cheap_features(monkeypatch):
    monkeypatch.setattr(measures, "make_extractor", cheap_extractor)


def script():
    made = argparse.ArgumentParser()
    evaluate_command.add_arguments(made)
    return SimpleNamespace(main=lambda words: cli(["evaluate", *words]), parser=lambda: made)


# --- a whole run ---


def test_a_run_draws_every_arm_and_reports_every_figure(whole):
    results = read_json(whole / "results.json")
    assert list(results["arms"]) == ["stock", "stock A/A", "ours", "stock, 1 steps"]
    assert {name: arm["role"] for name, arm in results["arms"].items()} == {
        "stock": "stock",
        "stock A/A": "control",
        "ours": "candidate",
        "stock, 1 steps": "equal time",
    }
    assert len(pictures(whole)) == 4 * len(CAPTIONS)
    ours = results["arms"]["ours"]["metrics"]
    assert set(ours) == {
        "psnr_db", "ssim", "latent_l2", "fd_quarters", "kd_quarters", "delta_fd_quarters", "delta_kd_quarters",
    }  # fmt: skip
    for name, entry in ours.items():
        assert entry["n"] == 5, name
        assert entry["method"], name
    assert "low" not in ours["fd_quarters"]  # no interval of an absolute distance
    assert ours["delta_fd_quarters"]["low"] <= ours["delta_fd_quarters"]["high"]
    assert ours["psnr_db"]["value"] < 60
    for name in ("per_image.csv", "table.md", "report.html", "grid-ours.png", "manifest.json"):
        assert (whole / name).is_file(), name


def test_the_control_equals_stock(whole):
    metrics = read_json(whole / "results.json")["arms"]["stock A/A"]["metrics"]
    assert metrics["psnr_db"]["equal_pictures"] == 5
    assert metrics["psnr_db"]["value"] is None  # infinite
    assert (metrics["ssim"]["value"], metrics["latent_l2"]["value"]) == (1, 0)
    assert [metrics["delta_fd_quarters"][key] for key in ("low", "value", "high")] == [0, 0, 0]


def test_small_and_tiny_runs_are_stamped(whole):
    results = read_json(whole / "results.json")
    assert any("Plumbing test" in stamp for stamp in results["stamps"])
    assert any("n=5 < 2048: FD is biased high, KD is noisy" in stamp for stamp in results["stamps"])
    assert any("not FID, not KID" in stamp for stamp in results["stamps"])
    assert not any("fid" in arm["metrics"] for arm in results["arms"].values())


def test_every_picture_has_a_line_with_its_seed_and_prompt(whole):
    with open(whole / "per_image.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    ours = [row for row in rows if row["arm"] == "ours"]
    assert [row["prompt"] for row in ours] == CAPTIONS
    assert [row["image_id"] for row in ours] == ["100", "101", "102", "103", "104"]
    assert int(ours[1]["seed"]) == picture_seed(0, 101)
    assert float(ours[0]["psnr_db"]) > 0
    assert [row["psnr_db"] for row in rows if row["arm"] == "stock"] == [""] * 5


def test_a_picture_holds_what_made_it(whole):
    with Image.open(Store(whole).picture_path("ours", 2)) as picture:
        record = json.loads(picture.text["agentsd"])
        assert picture.size == (SIDE, SIDE)
    assert (record["index"], record["image_id"], record["seed"]) == (2, "102", picture_seed(0, 102))


# --- going on ---


def draws_of(monkeypatch):
    """Return a list that fills with what is drawn from now on."""
    drawn = []
    original = Painter.draw

    def draw(self, arm, places, **kwargs):
        drawn.append((arm.name, list(places)))
        return original(self, arm, places, **kwargs)

    monkeypatch.setattr(Painter, "draw", draw)
    return drawn


def test_a_second_start_draws_what_is_missing_or_damaged_alone(place, whole, tmp_path, monkeypatch):
    evaluate(options(place, tmp_path / "run"))
    there = Store(tmp_path / "run")
    there.picture_path("ours", 0).unlink()
    path = there.picture_path("stock", 3)
    path.write_bytes(path.read_bytes()[:-30])
    drawn = draws_of(monkeypatch)
    evaluate(options(place, tmp_path / "run"))
    # Whole batches, so that even rounding stays the same.
    assert drawn == [("stock", [2, 3]), ("ours", [0, 1])]
    same_results(tmp_path / "run", whole)
    drawn.clear()
    evaluate(options(place, tmp_path / "run"))
    assert drawn == []


def kill_a_run(place, folder, monkeypatch, now):
    """Start a run that is killed instead of putting the first file in its place of which `now(path)` is true."""
    replace_file = os.replace

    def replaced(source, target):
        if now(Path(target)):
            kill_self()
        replace_file(source, target)

    def killed():
        monkeypatch.setattr(writing.os, "replace", replaced)
        evaluate(options(place, folder))

    assert forked(killed) == [-9]


@pytest.mark.parametrize("moment", [1, 10, 38, 52])
def test_a_kill_at_any_moment_changes_nothing(place, whole, tmp_path, monkeypatch, moment):
    count = iter(range(1, 10**6))
    kill_a_run(place, tmp_path / "run", monkeypatch, lambda path: next(count) == moment)
    evaluate(options(place, tmp_path / "run"))
    same_results(tmp_path / "run", whole)
    assert not list((tmp_path / "run").rglob(".*.partial"))


@pytest.mark.parametrize("name", ["results.json", "per_image.csv", "report.html"])
def test_a_kill_while_the_report_is_written_changes_nothing(place, whole, tmp_path, monkeypatch, name):
    kill_a_run(place, tmp_path / "run", monkeypatch, lambda path: path.name == name)
    assert not (tmp_path / "run" / name).exists()
    drawn = draws_of(monkeypatch)
    evaluate(options(place, tmp_path / "run"))
    assert drawn == []
    same_results(tmp_path / "run", whole)
    assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


def test_a_full_disk_ends_with_code_3_and_loses_nothing(place, whole, tmp_path, monkeypatch, capsys):
    given = options(place, tmp_path / "run")
    synchronise, count = os.fsync, iter(range(10**6))

    def full(descriptor):
        if next(count) > 15:
            raise OSError(28, "No space left on device")
        synchronise(descriptor)

    monkeypatch.setattr(module, "Options", lambda **kwargs: given)
    with monkeypatch.context() as patch:
        patch.setattr(writing.os, "fsync", full)
        with pytest.raises(UnfinishedError, match=r"is full .* every finished picture is kept"):
            evaluate(given)
    kept = pictures(tmp_path / "run")
    assert len(kept) >= 4
    evaluate(given)
    assert kept.items() <= pictures(tmp_path / "run").items()
    same_results(tmp_path / "run", whole)


def test_other_settings_are_refused_with_code_2_and_the_keys(place, tmp_path, capsys):
    evaluate(options(place, tmp_path / "run", arms=("ours:preset=paper",), num=2))
    for changes, keys in (
        ({"seed": 1}, {"seed"}),
        ({"guidance_scale": 3.0}, {"guidance_scale"}),
        ({"num": 3}, {"num", "prompts_sha256"}),
        ({"scheduler": "euler"}, {"scheduler.class", "scheduler.sha256"}),
        ({"dtype": "bfloat16"}, {"dtype", "weights_sha256"}),
        ({"batch": 1}, {"batch"}),
    ):
        with pytest.raises(ManifestMismatchError) as caught:
            evaluate(options(place, tmp_path / "run", **({"num": 2} | changes)))
        assert set(caught.value.keys) == keys
    with pytest.raises(ManifestMismatchError) as caught:
        evaluate(options(place, tmp_path / "run", num=2, arms=("ours:preset=extreme",)))
    assert any(key.startswith("schedule") for key in caught.value.keys)
    code = script().main(
        f"--output {tmp_path / 'run'} --captions {place / 'captions.csv'} --model {place / 'model'} --num 2 --steps 2 "
        "--batch 2 --seed 5 --mode quality --device cpu".split()
    )
    assert code == 2
    assert "seed: 0 there, 5 now" in capsys.readouterr().err


def test_stock_serves_another_arm_in_the_same_folder(place, tmp_path, monkeypatch):
    evaluate(options(place, tmp_path / "run", num=2))
    drawn = draws_of(monkeypatch)
    outcome = evaluate(options(place, tmp_path / "run", num=2, arms=("other:preset=quality",)))
    assert drawn == [("other", [0, 1])]
    assert "ours" not in outcome.results["arms"]


def test_pictures_of_another_machine_are_merged(place, whole, tmp_path):
    evaluate(options(place, tmp_path / "one"))
    for path in (tmp_path / "one" / "arms" / "ours").glob("*.png"):
        path.unlink()
    evaluate(options(place, tmp_path / "other", merge=(tmp_path / "one", whole)))
    same_results(tmp_path / "other", whole)
    with pytest.raises(ValueError, match=r"holds no manifest\.json"):
        evaluate(options(place, tmp_path / "third", merge=(tmp_path / "nothing",)))
    with pytest.raises(ValueError, match=r"other settings: seed differ"):
        evaluate(options(place, tmp_path / "fourth", seed=1, merge=(whole,)))


def test_another_arm_of_the_same_name_is_not_merged(place, whole, tmp_path):
    given = options(place, tmp_path / "run", num=5, arms=("ours:preset=quality",))
    with pytest.raises(ValueError, match=r"merge='.*' has another arm 'ours' \(schedule\..* there, .* here"):
        evaluate(replace(given, merge=(whole,)))
    assert not (tmp_path / "run" / "arms").exists()  # else the folder could not go on with its own arm


def test_steps_that_are_not_fewer_are_refused(place, tmp_path):
    with pytest.raises(ValueError, match=r"fewer_steps=\(1, 2\) must lie below the 2 steps of stock"):
        evaluate(options(place, tmp_path / "run", fewer_steps=(1, 2)))


def test_a_pipeline_without_unet_is_refused(place, tmp_path, monkeypatch):
    monkeypatch.setattr("agentsd.evaluation.session.load_pipeline", lambda *_: type("FluxPipeline", (), {})())
    with pytest.raises(ValueError, match=r"model='.*' is a FluxPipeline, which has no UNet"):
        evaluate(options(place, tmp_path / "run"))


# --- seeds and batches ---


def test_pictures_do_not_hang_on_the_batch(place, whole, tmp_path):
    evaluate(options(place, tmp_path / "run", batch=1))
    one, two = Store(tmp_path / "run"), Store(whole)
    for arm in ("stock", "ours"):
        for index in range(len(CAPTIONS)):  # kept in float16: one unit of it is 0.1% of the value
            assert np.allclose(one.latent(arm, index), two.latent(arm, index), rtol=2e-3, atol=5e-3), (arm, index)
            apart = one.picture(arm, index).astype(int) - two.picture(arm, index)
            assert np.abs(apart).max() <= 1, (arm, index)


def test_a_picture_hangs_on_its_image_id_not_on_its_place(place, whole, tmp_path):
    lines = (place / "captions.csv").read_text().splitlines()
    (tmp_path / "turned.csv").write_text("\n".join([lines[0], *lines[:0:-1]]))
    evaluate(options(place, tmp_path / "run", captions=str(tmp_path / "turned.csv"), batch=1))
    turned, straight = Store(tmp_path / "run"), Store(whole)
    for index in range(len(CAPTIONS)):
        apart = turned.picture("stock", index).astype(int) - straight.picture("stock", len(CAPTIONS) - 1 - index)
        assert np.abs(apart).max() <= 1


def test_seeds_differ_by_id_noise_and_base():
    seeds = {picture_seed(base, image, noise) for base in range(5) for image in range(50) for noise in range(3)}
    assert len(seeds) == 5 * 50 * 3
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert picture_seed(0, 139) == picture_seed(0, "139")


def test_other_noise_makes_another_picture(place, tmp_path):
    arms = ("again:noise=1", "same:noise=0")
    outcome = evaluate(options(place, tmp_path / "run", num=2, arms=arms, fewer_steps=(0,)))
    metrics = {name: arm["metrics"] for name, arm in outcome.results["arms"].items()}
    assert metrics["same"]["psnr_db"]["equal_pictures"] == 2
    assert metrics["again"]["psnr_db"]["equal_pictures"] == 0


# --- times ---


def test_times_are_taken_apart_and_kept(place, tmp_path, monkeypatch):
    given = options(place, tmp_path / "run", num=2, mode="all", timing_prompts=2, fewer_steps=())
    results = evaluate(given).results
    steps = read_json(tmp_path / "run" / "equal_time.json")
    assert all(1 <= fewer <= 2 for fewer in steps.values())
    taken = read_json(tmp_path / "run" / "timing.json")
    assert taken["order"] == "ABBA"
    assert taken["environment"] == bench_timing.environment() | {"threads": 1, "dtype": "float32"}
    assert taken["arms"]["stock"]["attention"] == ["AttnProcessor2_0"]
    assert "AgentAttnProcessor" in taken["arms"]["ours"]["attention"]
    assert not any(row["compiled"] for row in taken["arms"].values())
    for name, arm in results["arms"].items():
        row = taken["arms"][name]
        assert len(row["seconds"]) == 4
        assert len(row["unet_seconds"]) == 2
        # Passes apart, on a machine that may be busy: a wrong unit still shows.
        assert 0 < min(row["unet_seconds"]) < 10 * max(row["seconds"])
        gain = arm["speed"]["speedup"]
        assert (gain["n"], gain["method"]) == (2, "median of paired ratios, range of 2")
        assert gain["low"] <= gain["median"] <= gain["high"]
        assert gain["log_iqr"] >= 0
        assert list(arm["speed"].get("time_ratio", {})) == list(arm.get("equals", []))
        assert arm["speed"]["peak_bytes"] > 10**6
        assert arm["speed"]["peak_reserved_bytes"] is None  # nothing is reserved on a CPU
    assert results["arms"]["stock"]["speed"]["speedup"]["median"] == 1
    assert (tmp_path / "run" / "pareto.svg").is_file()
    drawn = draws_of(monkeypatch)
    assert evaluate(given).results == results  # the times are kept, and so are the steps of equal time
    assert drawn == []
    evaluate(replace(given, mode="timing", retime=True))
    assert {name for name, _ in drawn} == set(results["arms"])


VERSIONS = """NVRM version: NVIDIA UNIX {}  Sat Aug 19 01:15:15 UTC 2023
GCC version:  gcc version 11.4.0
"""


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        (VERSIONS.format("x86_64 Kernel Module  535.104.05"), "535.104.05"),
        (VERSIONS.format("Open Kernel Module for x86_64  550.54"), "550.54"),
        ("something else", None),
        (None, None),
    ],
)
def test_on_cuda_the_environment_names_driver_cuda_and_cudnn(tmp_path, monkeypatch, text, driver):
    path = tmp_path / "version"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(
        bench_timing, "Path", lambda name: path if name == "/proc/driver/nvidia/version" else Path(name)
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 90501)
    on_cpu, on_cuda = bench_timing.environment("cpu"), bench_timing.environment("cuda:0")
    assert {name: on_cuda.get(name, "none") for name in on_cuda.keys() - on_cpu.keys()} == {
        "driver": driver, "cuda": "12.6", "cudnn": 90501,
    }  # fmt: skip
    # Rows and plans that were measured on a CPU are found by these.
    assert list(on_cpu) == ["device", "device_type", "threads", "cores", "torch", "diffusers", "python"]


def test_on_cuda_times_name_the_backends_of_fused_attention(monkeypatch):
    for name, enabled in (("flash", True), ("mem_efficient", False), ("math", True)):
        monkeypatch.setattr(torch.backends.cuda, f"{name}_sdp_enabled", lambda enabled=enabled: enabled)
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: True, raising=False)
    assert timing._sdpa(torch.device("cuda", 0)) == {"sdpa": ["flash", "math", "cudnn"]}
    monkeypatch.delattr(torch.backends.cuda, "cudnn_sdp_enabled")  # before torch 2.5
    assert timing._sdpa(torch.device("cuda", 0)) == {"sdpa": ["flash", "math"]}
    assert timing._sdpa(torch.device("cpu")) == {}


@pytest.mark.parametrize("fixed", [0.0, 1.0, 20.0])
def test_equal_time_counts_what_a_call_costs_without_steps(monkeypatch, tiny_pipe, fixed):
    """The speed-up alone would say 12 or 18 of 20 steps where the fixed cost is 1 or 20 s."""
    now = [0.0]
    monkeypatch.setattr(bench_timing.time, "perf_counter", lambda: now[0])
    arms = base_arms(["ours:steps=10"], 20)  # stands for an arm that takes the time of 10 of stock's steps

    def draw(arm, places):
        now[0] += fixed + 0.2 * arm.steps

    steps = timing.equal_time_steps(tiny_pipe, arms, draw)
    assert steps == {"stock A/A": 20, "ours": 10}


def test_a_clock_without_slope_is_told(caplog):
    assert timing.steps_of_time((20, 1.0), (7, 1.1), 0.5) == 10
    assert "too noisy to measure a step" in caplog.text
    assert timing.steps_of_time((20, 5.0), (7, 2.4), 0.1) == 1
    assert timing.steps_of_time((20, 5.0), (7, 2.4), 9.0) == 20
    assert timing.steps_of_time((1, 5.0), (1, 5.0), 9.0) == 1


def test_ratios_of_few_are_a_range_and_of_more_an_interval():
    ratios = [2.0, 3.0, 2.5, 2.2, 2.7]
    for n in range(1, 6):
        few = timing._ratio(ratios[:n], [1.0] * n)
        assert (few["low"], few["high"]) == pytest.approx((min(ratios[:n]), max(ratios[:n])))
        assert few["method"] == f"median of paired ratios, range of {n}"
    few = timing._ratio(ratios[:3], [1.0] * 3)
    assert few["log_iqr"] == pytest.approx(np.subtract(*np.percentile(np.log([2, 3, 2.5]), [75, 25])))
    many = timing._ratio([2.0, 3.0] * 6, [1.0] * 12)
    assert many["method"] == "median of paired ratios, 95% interval"
    assert timing._ratio([2.0], [1.0])["log_iqr"] == 0


def test_compiling_is_told(tiny_pipe):
    assert timing.is_compiled(tiny_pipe.unet) is False
    tiny_pipe.unet.mid_block.compile(backend="eager")
    assert timing.is_compiled(tiny_pipe.unet) is True


def test_timing_alone_draws_no_files(place, tmp_path):
    outcome = evaluate(options(place, tmp_path / "run", num=2, mode="timing", timing_prompts=1))
    assert not (tmp_path / "run" / "arms").exists()
    assert outcome.results["arms"]["ours"]["speed"]["unet_speedup"]["n"] == 1
    assert "speed-up" in (tmp_path / "run" / "table.md").read_text()


def test_times_are_those_of_the_batch_that_is_told(place, tmp_path, monkeypatch):
    drawn = draws_of(monkeypatch)
    given = options(place, tmp_path / "run", num=3, batch=2, mode="timing", timing_prompts=1, fewer_steps=())
    results = evaluate(given).results
    assert {len(places) for _, places in drawn} == {2}
    assert (results["timing"]["batch"], results["timing"]["prompts"]) == (2, 1)
    timing = read_json(tmp_path / "run" / "timing.json")
    for row in timing["arms"].values():
        assert row["seconds_median"] == pytest.approx(np.median(row["seconds"]) / 2)
    drawn.clear()
    evaluate(options(place, tmp_path / "few", num=1, batch=2, mode="timing", timing_prompts=1, reference=None))
    assert {len(places) for _, places in drawn} == {1}  # as the pictures are drawn


def test_other_timing_prompts_are_timed_anew(place, tmp_path, monkeypatch):
    given = options(place, tmp_path / "run", num=2, mode="timing", timing_prompts=1, fewer_steps=(0,))
    timed = []

    def time_arms(*args):
        timed.append(args[-1].prompts)
        return made_up_times(*args)

    monkeypatch.setattr(module, "time_arms", time_arms)
    for changes, prompts in (({}, 1), ({}, 1), ({"timing_prompts": 2}, 2), ({"mode": "quality"}, 2)):
        # Pictures alone take the times that are there, however many.
        assert evaluate(replace(given, **changes)).results["timing"]["prompts"] == prompts
    assert timed == [1, 2]


def made_up_times(pipe, arms, draw, plan):
    """What `time_arms` returns, in no time."""
    gain = {"median": 1.0, "low": 1.0, "high": 1.0, "n": plan.prompts, "log_iqr": 0.0, "method": "made up"}
    memory = {"peak_bytes": 1, "peak_reserved_bytes": None, "attention": [], "compiled": False}
    row = {"seconds": [1.0], "seconds_median": 1.0, "speedup": gain, "unet_speedup": gain, "patching_seconds": 0.0}
    return {
        "prompts": plan.prompts,
        "batch": plan.batch,
        "environment": bench_timing.environment(),
        "arms": {arm.name: row | memory for arm in arms},
    }


def test_timing_keeps_the_figures_of_pictures_that_are_there(place, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "time_arms", made_up_times)
    shutil.copytree(whole, tmp_path / "run")
    before = read_json(whole / "results.json")
    given = options(place, tmp_path / "run", mode="timing", timing_prompts=1)
    evaluate(given)
    results = read_json(tmp_path / "run" / "results.json")
    for name, arm in results["arms"].items():
        assert arm.pop("speed")["speedup"]["n"] == 1
        assert arm == before["arms"][name]
    assert results["reference"] == before["reference"]
    assert (tmp_path / "run" / "pareto.svg").is_file()
    assert (tmp_path / "run" / "grid-ours.png").read_bytes() == (whole / "grid-ours.png").read_bytes()


@pytest.mark.parametrize("loss", ["other arm", "picture", "measure"])
def test_timing_takes_no_figures_of_other_pictures_and_leaves_no_stale_plot(place, whole, tmp_path, monkeypatch, loss):
    monkeypatch.setattr(module, "time_arms", made_up_times)
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "pareto.svg").write_text("old")
    given = options(place, run, mode="timing", timing_prompts=1)
    if loss == "other arm":
        given = replace(given, arms=("ours:preset=extreme",))
    elif loss == "picture":
        Store(run).picture_path("ours", 1).unlink()
    else:
        next((run / "measures" / "ours").glob("features*/*.npz")).unlink()
    results = evaluate(given).results
    assert all(arm["metrics"] == {} and "speed" in arm for arm in results["arms"].values())
    assert (results["reference"], results["extractor"]) == (None, None)
    assert not list(run.glob("pareto.*"))
    assert not list(run.glob("grid-*"))
    assert pictures(run)  # of the earlier run, still there


def test_the_networks_of_the_metrics_do_not_count_in_the_memory_of_the_arms(place, tmp_path, monkeypatch):
    networks, alive = [], []

    def make_extractor(*args):
        network = torch.nn.Linear(2, 2)
        networks.append(weakref.ref(network))
        cheap = cheap_extractor()
        return replace(cheap, function=lambda shown: cheap.function(shown) + 0 * network.bias.sum().item())

    def make_clip(model, device):
        network = torch.nn.Linear(2, 2)
        networks.append(weakref.ref(network))
        return measures.Clip(lambda shown, texts: shown.mean(axis=(1, 2, 3)) + 0 * network.bias.sum().item(), {})

    def timed(*args):
        alive.extend(network() is not None for network in networks)
        return made_up_times(*args)

    monkeypatch.setattr(measures, "make_extractor", make_extractor)
    monkeypatch.setattr(measures, "make_clip", make_clip)
    monkeypatch.setattr(module, "time_arms", timed)
    given = options(place, tmp_path / "run", num=2, mode="all", timing_prompts=1, clip_model="x", fewer_steps=(0,))
    results = evaluate(given).results
    assert alive == [False, False]
    assert results["extractor"]["name"] == "quarters"
    assert {"fd_quarters", "clip_score"} <= results["arms"]["ours"]["metrics"].keys()


# --- what is refused before anything is drawn ---


def damaged(place, tmp_path):
    shutil.copytree(place / "real", tmp_path / "real")
    path = tmp_path / "real" / "000000000103.png"
    path.write_bytes(path.read_bytes()[:-200])
    return {"reference": str(tmp_path / "real")}


def damaged_jpeg(place, tmp_path):
    given = damaged(place, tmp_path)
    for path in (tmp_path / "real").iterdir():
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path.with_suffix(".jpg"))
        path.unlink()
    path = tmp_path / "real" / "000000000103.jpg"
    path.write_bytes(path.read_bytes()[:-20])
    return given


def moments(place, tmp_path, mu=None, sigma=None):
    mu, sigma = np.zeros(12) if mu is None else mu, np.eye(12) if sigma is None else sigma
    np.savez(tmp_path / "real.npz", mu=mu, sigma=sigma)
    return {"reference": str(tmp_path / "real.npz")}


EARLY = {
    "damaged picture": (damaged, r"000000000103.png' is no picture that can be read: .*; replace or remove it"),
    "damaged jpeg": (damaged_jpeg, r"000000000103.jpg' is no picture that can be read: .*truncated"),
    "one prompt": (lambda *_: {"num": 1}, r"num=1 is too few for a distance; give --num 2 or more"),
    "dimension": (
        lambda *places: moments(*places, np.zeros(3), np.eye(3)),
        r"statistics have 3 features, quarters 12; .* give --inception-weights",
    ),
    "not finite": (
        lambda *places: moments(*places, sigma=np.full((12, 12), np.nan)),
        r"real.npz' holds values that are not finite",
    ),
    "negative": (
        lambda *places: moments(*places, sigma=np.diag([1.0] * 11 + [-0.5])),
        r"real.npz' holds a sigma with an eigenvalue of -0.5; a covariance has none below 0: compute mu and sigma anew",
    ),
    "not symmetric": (
        lambda *places: moments(*places, sigma=np.eye(12) + np.eye(12, k=1)),
        r"holds a sigma that differs from its transpose by up to 1; it must be the covariance",
    ),
    "no features": (lambda *places: moments(*places, np.zeros(0), np.zeros((0, 0))), r"holds mu \(0,\) and sigma"),
}


@pytest.mark.parametrize("case", EARLY)
def test_what_cannot_be_measured_is_refused_before_anything_is_drawn(place, tmp_path, case):
    changes, message = EARLY[case]
    with pytest.raises(ValueError, match=message):
        evaluate(options(place, tmp_path / "run", **changes(place, tmp_path)))
    assert not (tmp_path / "run").exists()


def test_features_that_take_no_pictures_of_this_size_are_refused_before_anything_is_drawn(place, tmp_path, monkeypatch):
    monkeypatch.undo()  # the demo's own features
    with pytest.raises(ValueError, match=r"64"):
        evaluate(options(place, tmp_path / "run", features="demo"))
    assert not (tmp_path / "run").exists()


# --- what is told ---


def test_prompts_that_the_text_encoder_cuts_are_told_once(place, tmp_path, caplog):
    path = tmp_path / "long.csv"
    path.write_text(f"image_id,prompt\n7,{'word ' * 60}\n8,short\n9,{'w' * 76}\n10,{'w' * 75}\n")
    with caplog.at_level("WARNING", "agentsd"):
        evaluate(options(place, tmp_path / "run", captions=str(path), reference=None, fewer_steps=(0,)))
    told = [record.getMessage() for record in caplog.records if "text encoder" in record.getMessage()]
    assert told == ["2 of 4 prompts are longer than the model's text encoder reads and are cut, image ids 7, 9"]


# --- references ---


def test_a_folder_named_as_coco_names_it_is_paired(place):
    prompts = prompts_of(options(place, Path("run")))
    reference = make_reference(str(place / "real"), prompts, (SIDE, SIDE))
    assert reference.paired
    assert reference.number == 5
    expected = fitted(place / "real" / "000000000103.png", (SIDE, SIDE), "center")
    assert np.array_equal(reference.pictures([3])[0], expected)


def test_a_folder_of_other_pictures_is_held_fixed(place, tmp_path):
    for i in range(4):
        Image.new("L" if i == 2 else "RGB", (20 + i, 30), (40 * i if i == 2 else (40 * i, 0, 90))).save(
            tmp_path / f"photo{i}.png"
        )
    outcome = evaluate(options(place, tmp_path / "run", reference=str(tmp_path), fewer_steps=(0,)))
    assert outcome.results["reference"]["paired"] is False
    assert "reference fixed" in outcome.results["arms"]["ours"]["metrics"]["delta_fd_quarters"]["method"]
    assert any("hold it fixed" in stamp for stamp in outcome.results["stamps"])


def test_moments_give_a_frechet_distance_alone(place, tmp_path):
    np.savez(tmp_path / "real.npz", mu=np.full(12, 100.0), sigma=np.eye(12) * 400)
    outcome = evaluate(options(place, tmp_path / "run", reference=str(tmp_path / "real.npz"), fewer_steps=(0,)))
    metrics = outcome.results["arms"]["ours"]["metrics"]
    assert {"fd_quarters", "delta_fd_quarters"} <= metrics.keys()
    assert "kd_quarters" not in metrics
    np.savez(tmp_path / "wrong.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(ValueError, match=r"statistics have 3 features, quarters 12"):
        evaluate(options(place, tmp_path / "run", reference=str(tmp_path / "wrong.npz"), fewer_steps=(0,)))
    np.savez(tmp_path / "words.npz", mu=np.array(["a"]), sigma=np.eye(1))
    with pytest.raises(ValueError, match=r"reference='.*words\.npz' must be a \.npz file with the arrays mu and sigma"):
        make_reference(str(tmp_path / "words.npz"), [], (SIDE, SIDE))


def test_center_cuts_and_stretch_distorts(tmp_path):
    picture = np.zeros((10, 30, 3), dtype=np.uint8)
    picture[:, :10] = 255
    Image.fromarray(picture).save(tmp_path / "wide.png")
    assert fitted(tmp_path / "wide.png", (16, 16), "center").max() < 40
    assert fitted(tmp_path / "wide.png", (16, 16), "stretch")[:, :4].min() > 215


def picture(path):
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (40, 40), "red").save(path)


def test_prompts_without_a_picture_are_told(place, tmp_path, caplog):
    for number in (100, 102):
        picture(tmp_path / f"{number}.png")
    with caplog.at_level("WARNING", "agentsd"):
        reference = make_reference(str(tmp_path), prompts_of(options(place, Path("run"))), (SIDE, SIDE))
    assert not reference.paired
    assert "not paired: 3 of 5 prompts have no picture named by their image id" in caplog.text
    assert "(101, 103, 104)" in caplog.text


def test_sub_folders_are_read(place, tmp_path):
    for place_of, number in (("b", 100), ("a", 101), ("a", 102)):
        picture(tmp_path / place_of / f"val_{number:08d}.JPEG")
    prompts = prompts_of(options(place, Path("run"), num=3))
    reference = make_reference(str(tmp_path), prompts, (SIDE, SIDE))
    assert (reference.paired, reference.number) == (True, 3)
    (tmp_path / "b" / "val_00000100.JPEG").rename(tmp_path / "a" / "val_00000100.JPEG")
    moved = make_reference(str(tmp_path), prompts, (SIDE, SIDE))
    assert moved.config["sha256"] != reference.config["sha256"]


def test_two_pictures_of_one_prompt_are_refused(place, tmp_path):
    for number in (100, 101):
        picture(tmp_path / f"{number}.png")
    picture(tmp_path / "other" / "COCO_val2014_000000000101.png")
    prompts = prompts_of(options(place, Path("run")))
    message = r"101.png and other/COCO_val2014_000000000101.png could both be the picture of image_id=101; keep one"
    with pytest.raises(ValueError, match=message):
        make_reference(str(tmp_path), prompts[:2], (SIDE, SIDE))
    # Class folders may repeat numbers where nothing is paired by them.
    assert make_reference(str(tmp_path), prompts, (SIDE, SIDE)).number == 3


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing", r"reference='nothing' does not exist; give 'demo', a folder of pictures, or a \.npz file"),
        ("demo", r"reference='demo' belongs to captions='demo' alone"),
        ("empty", r"holds 0 pictures .*give two or more"),
        ("bad.npz", r"must be a \.npz file with the arrays mu and sigma"),
    ],
)
def test_a_bad_reference_is_named(place, tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "bad.npz", mean=np.zeros(2))
    with pytest.raises(ValueError, match=message):
        make_reference(source, prompts_of(options(place, Path("run"))), (SIDE, SIDE))


def test_demo_captions_have_their_scenes_and_attributes(tmp_path, monkeypatch):
    monkeypatch.undo()  # the demo's own features
    place = make_place(tmp_path)
    given = options(
        place, tmp_path / "run", captions="demo", reference="demo", num=4, size=64, fewer_steps=(0,), batch=4
    )
    outcome = evaluate(given)
    metrics = outcome.results["arms"]["ours"]["metrics"]
    assert {"fd_demo", "delta_fd_demo", "kd_demo", "attribute_accuracy", "delta_attribute_accuracy"} <= metrics.keys()
    assert outcome.results["extractor"]["name"] == "agentsd-demo"
    assert "FD(demo)" in (tmp_path / "run" / "table.md").read_text()


# --- arms, options, protocols ---


def test_arms_are_read():
    arm = parse_arm("mine: preset=paper, ratio=0.2, steps=30, noise=2", 50)
    assert (arm.name, arm.steps, arm.noise, arm.schedule.at(0, 50).merge_ratio) == ("mine", 30, 2, 0.2)
    assert parse_arm("fast", 20).schedule == parse_arm("x:preset=fast", 20).schedule
    rival = parse_arm("ToDo:rival=K/V downsampling 2 (ToDo)", 20)
    assert (rival.rival, rival.schedule) == ("K/V downsampling 2 (ToDo)", None)
    assert parse_arm("p:rival=pooled agents, stride 4", 20).rival == "pooled agents, stride 4"
    assert [arm.name for arm in base_arms([], 20)] == ["stock", "stock A/A", "balanced"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("strange", r"arm='strange' cannot be read; write --arm NAME:key=value"),
        ("x:", r"cannot be read"),
        (":preset=fast", r"cannot be read"),
        ("x:speed=3", r"cannot be read \(unknown: speed\)"),
        ("x:preset=fastest", r"arm='x:preset=fastest': preset 'fastest' is unknown\. Did you mean 'fast'"),
        ("x:every=0", r"arm='x:every=0': every=0 must be"),
        ("x:steps=many", r"steps='many' must be a whole number"),
        ("x:steps=0", r"steps=0 must be a whole number from 1 to 1000"),
        ("x:noise=-1", r"noise=-1 must be 0"),
        ("x:rival=nobody", r"rival='nobody' is unknown; choose one of"),
        ("x:rival=T-GATE,every=2", r"rival replaces every"),
    ],
)
def test_an_arm_that_cannot_be_read_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_arm(text, 20)


def test_arms_need_names_of_their_own():
    with pytest.raises(ValueError, match=r"arm='Fast' has the name or folder of the arm 'fast'; rename one"):
        base_arms(["fast", "Fast:preset=extreme"], 20)
    with pytest.raises(ValueError, match=r"has the name or folder of the arm 'stock'"):
        base_arms(["stock:preset=fast"], 20)


def test_arms_of_equal_time_are_drawn_once_and_only_where_there_are_fewer_steps():
    arms, measured = base_arms(["a:preset=fast", "b:preset=extreme"], 20), {8: ["a", "b"], 20: ["c"]}
    found = with_equal_time(arms, measured)
    assert [(arm.name, arm.equals) for arm in found[4:]] == [("stock, 8 steps", ("a", "b"))]
    assert no_faster(arms, measured) == ["c"]
    assert no_faster(arms, {8: [], 20: []}) == []  # the user's own choice


def test_an_arm_no_faster_than_stock_is_told_and_has_no_arm_of_equal_time(place, tmp_path, monkeypatch):
    said = "takes the time of all of stock's steps or more"
    monkeypatch.setattr(claims, "equal_time_steps", lambda pipe, arms, *rest: {"ours": 2, "quick": 1})
    given = options(place, tmp_path / "run", num=1, arms=("ours:preset=gentle", "quick:preset=fast"), reference=None)
    for _ in range(2):  # the second time from what was kept
        results = evaluate(replace(given, fewer_steps=())).results
        assert [stamp.split(" ")[0] for stamp in results["stamps"] if said in stamp] == ["ours"]
        assert results["arms"]["stock, 1 steps"]["equals"] == ["quick"]
    assert not any(said in stamp for stamp in evaluate(replace(given, fewer_steps=(0,))).results["stamps"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "fast"}, r"mode='fast' is unknown; choose one of all, quality, timing"),
        ({"num": 0}, r"num=0 must be a whole number of at least 1"),
        ({"batch": True}, r"batch=True must be a whole number"),
        ({"crop": "left"}, r"crop='left' is unknown; choose one of center, stretch"),
        ({"protocol": "mine"}, r"protocol='mine' is unknown; choose one of paper, coco2017-5k"),
        ({"wait_hours": 0}, r"wait_hours=0 must be above 0"),
        ({"wait_hours": math.inf}, r"wait_hours=inf must be above 0 and at most 10000"),
        ({"class_names": Path("x")}, r"class_names='x' belongs to --protocol paper"),
        ({"features": "demo", "inception_weights": Path("x")}, r"features='demo' uses no inception_weights"),
        (
            {"inception_weights": Path("x")},
            r"inception_weights='x' is for distances; give --reference or --to-stock",
        ),
        ({"features": "demo"}, r"features='demo' is for distances; give --reference"),
        ({"lpips_weights": Path("x")}, r"lpips_weights='x' is for LPIPS; give --lpips"),
        ({"protocol": "paper"}, r"reference is missing: --protocol paper is about FID; give --reference, or --mode"),
        ({"protocol": "coco2017-5k", "captions": "x"}, r"reference is missing: --protocol coco2017-5k"),
        ({"protocol": "paper", "reference": "x", "captions": "y"}, r"captions='y' contradicts --protocol paper"),
        ({"retime": True, "mode": "quality"}, r"retime=True measures times, which mode='quality' leaves out"),
    ],
)
def test_a_bad_option_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Options(output=Path("run"), **changes)


def test_a_protocol_fills_in_and_refuses_what_contradicts_it():
    given = Options(output=Path("run"), protocol="paper", class_names=Path("x"), reference="x").completed()
    assert (given.num, given.steps, given.guidance_scale, given.size, given.scheduler) == (2000, 50, 7.5, 512, "pndm")
    with pytest.raises(ValueError, match=r"steps=20 contradicts --protocol paper, which has 50; leave one out"):
        Options(output=Path("run"), protocol="paper", steps=20, mode="timing").completed()
    for protocol, number in (("paper", 2000), ("coco2017-5k", 5000)):
        with pytest.raises(ValueError, match=rf"num=10 contradicts --protocol {protocol}, which has {number}"):
            Options(output=Path("run"), protocol=protocol, num=10, reference="x").completed()
        given = Options(output=Path("run"), protocol=protocol, num=number, model="mine", reference="x")
        assert given.completed().model == "mine"


def test_the_protocol_of_likeness_to_stock_needs_no_real_pictures():
    given = Options(output=Path("run"), protocol="sada", captions="x").completed()
    assert (given.lpips, given.to_stock, given.reference, given.scheduler) == (True, True, None, "dpm++")
    assert given.chosen_features() == "inception"
    with pytest.raises(ValueError, match="steps=25 contradicts --protocol sada"):
        Options(output=Path("run"), protocol="sada", captions="x", steps=25).completed()


def test_distances_to_stock_need_no_reference(place, tmp_path, monkeypatch):
    from agentsd.bench.lpips import Lpips

    monkeypatch.setattr(measures, "make_lpips", lambda weights: Lpips())
    given = options(
        place,
        tmp_path / "run",
        reference=None,
        to_stock=True,
        lpips=True,
        fewer_steps=(0,),
        arms=("ours:preset=paper",),
    )
    outcome = evaluate(given)
    arms = outcome.results["arms"]
    assert arms["ours"]["metrics"]["fd_quarters_to_stock"]["value"] > 0
    assert arms["stock A/A"]["metrics"]["fd_quarters_to_stock"]["value"] == pytest.approx(0, abs=1e-9)
    assert arms["ours"]["metrics"]["lpips"]["value"] > 0
    assert "lpips" not in arms["stock"]["metrics"]
    table = (outcome.folder / "table.md").read_text()
    assert "FD(quarters) to stock" in table
    assert "| LPIPS |" in table


def test_the_paper_protocol_wants_class_names(tmp_path):
    given = Options(output=tmp_path, protocol="paper", reference="x").completed()
    with pytest.raises(ValueError, match=r"class_names is missing: .* give --class-names FILE"):
        prompts_of(given)
    names = [f"thing {i}" for i in range(CLASSES)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    (tmp_path / "names.json").write_text(json.dumps({str(i): name for i, name in enumerate(names)}))
    assert read_class_names(tmp_path / "names.txt") == read_class_names(tmp_path / "names.json") == names
    prompts = prompts_of(replace(given, class_names=tmp_path / "names.txt"))
    assert len(prompts) == 2000
    assert len({prompt.image_id for prompt in prompts}) == 2000
    assert prompts[1007].text == "A high quality photograph of a thing 7."
    (tmp_path / "half.json").write_text('["\\ud800"]')
    (tmp_path / "deep.json").write_text("[" * 200_000)
    for name in ("half", "deep"):
        with pytest.raises(ValueError, match=rf"class_names='.*{name}.json' cannot be read"):
            read_class_names(tmp_path / f"{name}.json")
    (tmp_path / "few.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match=r"holds 2 names; it must hold the 1000 of ImageNet-1k"):
        read_class_names(tmp_path / "few.txt")


def test_class_prompts_cover_the_classes_evenly():
    assert [prompt.image_id for prompt in class_prompts(["a", "b"])] == ["0-0", "1-0", "0-1", "1-1"]


def test_the_coco_protocol_pins_its_captions(tmp_path):
    (tmp_path / "captions.json").write_text("{}")
    protocol = Options(output=tmp_path, protocol="coco2017-5k", reference="x").completed()
    given = replace(protocol, captions=str(tmp_path / "captions.json"))
    with pytest.raises(ValueError, match=r"has the SHA-256 44136fa3.* needs captions_val2017\.json"):
        prompts_of(given)
    with pytest.raises(ValueError, match=r"captions='demo' are not those of --protocol coco2017-5k"):
        prompts_of(protocol)


def test_ids_must_differ(tiny_pipe):
    from agentsd.evaluation.captions import Prompt
    from agentsd.evaluation.drawing import Painter
    from agentsd.pictures.settings import Settings

    with pytest.raises(ValueError, match=r"image_id='7' occurs twice"):
        Painter(tiny_pipe, [Prompt(0, 7, "a"), Prompt(1, "7", "b")], Settings(prompt=""))


def test_every_option_has_an_argument():
    actions = {action.dest for action in script().parser()._actions} - {"help"}
    assert actions == set(Options.names())


def test_the_page_of_the_docs_names_no_unknown_option():
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    launchers = {"--nproc-per-node", "--nnodes", "--node-rank", "--master-addr", "--master-port", "--multi_gpu"}
    launchers |= {"--num_machines", "--machine_rank", "--main_process_ip", "--main_process_port", "--num_processes"}
    launchers |= {"--mixed_precision", "--dynamo_backend"}
    known = {option for action in script().parser()._actions for option in action.option_strings}
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", page))
    assert {"--arm", "--merge", "--protocol"} <= named
    assert named <= known | launchers


def test_bad_input_ends_with_code_2(tmp_path, capsys):
    assert script().main(["--output", str(tmp_path / "run"), "--model", str(tmp_path / "none")]) == 2
    assert "agentsd evaluate: error: --model " in capsys.readouterr().err
    folder = tmp_path / "pictures"
    folder.mkdir()
    file = tmp_path / "some.png"
    file.touch()
    for words, message in (
        (["--num", "0"], "error: --num 0 must be"),
        (["--seed", "-1"], "error: --seed -1 must be a whole number"),
        (["--size", "100"], "error: --size 100 must be a multiple of 8"),
        (["--fewer-steps", "-1"], "error: --fewer-steps (-1,) must be steps from 1"),
        (["--output", str(file)], "is a file; name a folder."),
        (["--reference", str(tmp_path / "none")], "does not exist; give 'demo', a folder"),
        (["--reference", str(folder)], "holds 0 pictures"),
    ):
        assert script().main(["--output", str(tmp_path / "run"), *words]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_clip_scores_and_their_difference_are_reported(place, tmp_path, monkeypatch):
    def make_clip(model, device):
        return measures.Clip(lambda shown, texts: shown.mean(axis=(1, 2, 3)) / 10 + len(texts[0]), {"model": model})

    monkeypatch.setattr(measures, "make_clip", make_clip)
    outcome = evaluate(options(place, tmp_path / "run", num=2, clip_model="some/clip", fewer_steps=(0,)))
    metrics = outcome.results["arms"]["ours"]["metrics"]
    assert metrics["delta_clip_score"]["low"] <= metrics["delta_clip_score"]["value"]
    assert outcome.results["clip"] == {"model": "some/clip"}


def test_the_hash_of_a_scheduler_leaves_out_what_diffusers_lists_in_random_order():
    first, second = (DPMSolverMultistepScheduler.from_config({"beta_end": 0.02}) for _ in range(2))
    names = first.config["_use_default_values"]
    assert len(names) > 1
    second.register_to_config(_use_default_values=names[::-1])
    assert scheduler_settings(first) == scheduler_settings(second)
    assert scheduler_settings(first)["beta_end"] == 0.02
    trained = DPMSolverMultistepScheduler(trained_betas=np.full(3, 0.5))
    assert scheduler_settings(trained)["trained_betas"] == [0.5] * 3


@pytest.mark.slow
def test_a_start_in_another_process_goes_on(place, tmp_path):
    # Real models name only part of their scheduler's settings; diffusers lists the others in the order of a set.
    shutil.copytree(place / "model", tmp_path / "model")
    path = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    kept = {key: value for key, value in read_json(path).items() if key in ("_class_name", "beta_end", "steps_offset")}
    path.write_text(json.dumps(kept))
    command = [
        *(sys.executable, ROOT / "scripts" / "fid_eval.py", "--output", tmp_path / "run", "--device", "cpu"),
        *("--captions", place / "captions.csv", "--model", tmp_path / "model", "--num", "1", "--steps", "2"),
        *("--arm", "fast", "--fewer-steps", "0", "--mode", "quality", "--resamples", "20", "--scheduler", "dpm++"),
    ]
    for seed in ("1", "2"):
        variables = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=170)
        assert ended.returncode == 0, ended.stderr
    assert "3 of 3 pictures are there" in ended.stderr
