"""`agentsd bench --suite gpu`, rehearsed on a CPU; its probes; its order."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny import draw

import agentsd
from agentsd import Schedule
from agentsd.bench import probes
from agentsd.bench.gpu_cells import EVERY_2, gpu_cells, rehearsal_cells, suite_arms
from agentsd.bench.probes import kernels, probe
from agentsd.bench.rows import read_rows
from agentsd.bench.speed import KEY
from agentsd.cli.main import main


def rehearse(folder, *words):
    return main(["bench", "--suite", "gpu", "--dry-run", "--device", "cpu", "--output", str(folder), *words])


@pytest.mark.slow
def test_a_rehearsal_measures_every_kind(tmp_path, capsys):
    assert rehearse(tmp_path) == 0
    assert "tiny 64, float32, batch 2, pipeline call: preset balanced " in capsys.readouterr().out
    rows = read_rows(tmp_path / "speed.jsonl")
    arms = {(row["benchmark"], row["architecture"], row["arm"]) for row in rows}
    assert {("unet step", "tiny", "stock, CUDA graphs"), ("pipeline call", "tiny", "preset balanced")} <= arms
    assert all(row["host_seconds"] > 0 for row in rows if "compile" not in row["settings"])


def test_a_suite_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    calls, kernel = (next(cell for cell in rehearsal_cells() if cell.kind == kind) for kind in ("call", "kernels"))
    cells = (replace(calls, arms=("stock", EVERY_2)), replace(kernel, architecture="tiny"))
    monkeypatch.setattr("agentsd.bench.gpu_cells.rehearsal_cells", lambda: cells)  # what takes a second
    assert rehearse(tmp_path, "--minutes", "0.001") == 1
    assert "no time left" in capsys.readouterr().err
    assert rehearse(tmp_path) == 0
    shown = capsys.readouterr().out
    assert "tiny 64, float32, batch 2, pipeline call: full every 2 steps " in shown
    assert "UNet in full at 4 of 6 steps" in shown
    rows = read_rows(tmp_path / "speed.jsonl")
    assert [row["arm"] for row in rows] == ["stock", EVERY_2]
    assert all(row[key] is not None for row in rows for key in KEY)
    (profile,) = read_rows(tmp_path / "kernels.jsonl")
    assert profile["kernels"][0]["ms"] > 0
    monkeypatch.setattr("agentsd.bench.gpu_suite.random_pipeline", lambda *_, **__: pytest.fail("built"))
    assert rehearse(tmp_path) == 0
    assert read_rows(tmp_path / "speed.jsonl") == rows


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "cpu"], "error: --suite gpu needs a CUDA device, and this is cpu; rehearse it with --dry-run."),
        (["--dry-run", "--minutes", "0"], "error: --minutes 0.0 must be above 0."),
        (["--dry-run", "--output", __file__], "is a file; name a folder."),
        (["--dry-run", "--size", "64"], "error: --size has no effect on --suite gpu; leave one of them out."),
        (["--dry-run", "--compile"], "error: --compile or --channels-last has no effect on --suite gpu;"),
    ],
)
def test_bad_words_are_refused(words, said, capsys):
    assert main(["bench", "--suite", "gpu", *words]) == 2
    assert said in capsys.readouterr().err


def test_every_arm_of_the_suite_is_known_and_what_matters_comes_first():
    for cells in (gpu_cells(), rehearsal_cells()):
        for cell in cells:
            assert cell.arms[0] == "stock" or cell.kind == "kernels"
            assert set(cell.arms) <= suite_arms(cell.kind).keys(), cell
            assert all(cell.kind != "step" or cell.size % 64 == 0 for cell in cells)
    first = [cell.architecture for cell in gpu_cells()[:5]]
    assert {"sd15", "sdxl"} <= set(first)
    assert {cell.dtype for cell in gpu_cells()} == {"float16", "bfloat16"}
    assert {cell.pictures for cell in gpu_cells()} == {1, 4}
    assert sum(cell.seconds for cell in gpu_cells()[:8]) < 9 * 60


def test_a_probe_counts_full_calls_and_leaves_no_hook(tiny_pipe):
    with agentsd.apply(tiny_pipe, Schedule.constant(None, 3)):
        hooks = len(tiny_pipe.unet._forward_pre_hooks)
        row = probe(tiny_pipe.unet, partial(draw, tiny_pipe, steps=7))
        assert len(tiny_pipe.unet._forward_pre_hooks) == hooks
    assert (row["unet_calls"], row["full_calls"]) == (7, 3)
    assert row["host_seconds"] > row["host_seconds_skipped"] > 0
    assert "waits_full" not in row  # a CPU has no device to wait for


def test_a_synchronisation_in_a_skipped_step_is_found(tiny_pipe, monkeypatch):
    """The part for CUDA, with a device whose every read is a synchronisation."""
    mode = ["default"]
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda name: mode.__setitem__(0, name))

    def read(*_):
        if mode[0] == "error":
            raise RuntimeError(probes._SYNC)

    with agentsd.apply(tiny_pipe, Schedule.constant(None, 3)):
        handle = tiny_pipe.unet.register_forward_pre_hook(read)
        run = partial(draw, tiny_pipe, steps=7)
        with probes.watched(tiny_pipe.unet) as calls:
            run()
        monkeypatch.setattr(probes, "_is_cuda", lambda device: True)
        assert probes._without_wait(tiny_pipe.unet, run, calls) is False
        handle.remove()
        assert probes._without_wait(tiny_pipe.unet, run, calls) is True
    assert mode == ["default"]


def test_channels_last_leaves_the_strides_of_before(tiny_pipe):
    before = [weight.stride() for weight in tiny_pipe.unet.parameters()]
    with suite_arms("step")["stock, channels last"].enter(tiny_pipe):
        assert [weight.stride() for weight in tiny_pipe.unet.parameters()] != before
    assert [weight.stride() for weight in tiny_pipe.unet.parameters()] == before


def test_kernels_are_named_and_plain_data():
    found = kernels(lambda: torch.ones(64, 64) @ torch.ones(64, 64), "cpu")
    assert any("mm" in one["name"] for one in found)
    assert json.loads(json.dumps(found)) == found
