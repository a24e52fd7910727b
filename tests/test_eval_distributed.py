"""Several processes and machines: the results of one, whoever draws what, and clear words when one of them dies."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from evaluation_runs import (
    as_ranks,
    cheap_extractor,
    environment,
    kill_self,
    make_place,
    options,
    pictures,
    same_results,
    whole_run,
)
from PIL import Image

from agentsd.evaluation import measures
from agentsd.evaluation.drawing import Painter
from agentsd.evaluation.processes import process_group
from agentsd.evaluation.run import evaluate
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


def logged(capfd):
    return re.sub(r"\s+", " ", capfd.readouterr().err)


def test_two_processes_give_the_results_of_one(place, whole, tmp_path):
    given = options(place, tmp_path / "run")
    assert as_ranks(lambda: evaluate(given), lambda: evaluate(given)) == [0, 0]
    same_results(tmp_path / "run", whole)


def test_another_number_of_processes_goes_on(place, whole, tmp_path):
    given = options(place, tmp_path / "run")
    evaluate(given)
    for path in list((tmp_path / "run").glob("arms/*/00000[024].png")):
        path.unlink()
    assert as_ranks(*[lambda: evaluate(given)] * 3) == [0, 0, 0]
    same_results(tmp_path / "run", whole)


def test_a_process_without_work_is_no_trouble(place, tmp_path):
    # Three batches of one prompt, for stock, control and ours: two of five processes have nothing to do.
    given = options(place, tmp_path / "five", num=1, fewer_steps=(0,), reference=None)
    assert as_ranks(*[lambda: evaluate(given)] * 5) == [0] * 5
    evaluate(options(place, tmp_path / "one", num=1, fewer_steps=(0,), reference=None))
    same_results(tmp_path / "five", tmp_path / "one")


def test_a_dead_process_loses_nothing(place, whole, tmp_path, monkeypatch, capfd):
    given = options(place, tmp_path / "run")

    def dies():
        draw, count = Painter.draw, iter(range(10**6))

        def drawn(self, arm, places, **kwargs):
            if next(count) == 2:
                kill_self()
            return draw(self, arm, places, **kwargs)

        monkeypatch.setattr(Painter, "draw", drawn)
        evaluate(given)

    began = time.monotonic()
    assert as_ranks(lambda: evaluate(given), dies) == [1, -9]
    assert time.monotonic() - began < 60  # not the hours that a process waits for a living one
    text = logged(capfd)
    assert "Another of the 2 processes died or did not answer" in text
    assert "Every finished picture is kept: start the same command again" in text
    kept = pictures(tmp_path / "run")
    assert 4 <= len(kept) < 20
    evaluate(given)
    assert kept.items() <= pictures(tmp_path / "run").items()
    same_results(tmp_path / "run", whole)


def test_a_full_disk_of_one_process_stops_all_and_loses_nothing(place, whole, tmp_path, monkeypatch, capfd):
    given = options(place, tmp_path / "run")

    def has_no_room():
        synchronise, count = os.fsync, iter(range(10**6))

        def full(descriptor):
            if next(count) > 5:
                raise OSError(28, "No space left on device")
            synchronise(descriptor)

        monkeypatch.setattr(writing.os, "fsync", full)
        evaluate(given)

    assert as_ranks(lambda: evaluate(given), has_no_room) == [1, 1]
    text = logged(capfd)
    assert "UnfinishedError: process 1 of 2: The disk of" in text  # what process 0 says
    assert "UnfinishedError: The disk of" in text  # what process 1 says
    evaluate(given)
    same_results(tmp_path / "run", whole)


def test_bad_input_is_named_by_every_process(place, tmp_path, capfd):
    def wrong():
        evaluate(options(place, tmp_path / "run", reference="nothing"))

    assert as_ranks(wrong, wrong) == [1, 1]
    assert logged(capfd).count("ValueError: reference='nothing' does not exist") == 2


def test_processes_with_other_options_are_refused(place, tmp_path, capfd):
    works = [lambda seed=seed: evaluate(options(place, tmp_path / "run", seed=seed)) for seed in (0, 1)]
    assert as_ranks(*works) == [1, 1]
    assert "process 1 differs from process 0 in seed" in logged(capfd)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"arms": ("other:preset=fast",)}, "arm.other: "),
        ({"arms": ("ours:preset=extreme",)}, "arm.ours.schedule"),
        ({"reference": None}, "features: "),
        ({"reference": "other"}, "reference.sha256: "),
        ({"fewer_steps": (0,)}, "fewer_steps: "),
    ],
)
def test_processes_with_another_part_of_the_work_are_refused(place, tmp_path, monkeypatch, capfd, changes, named):
    if changes.get("reference") == "other":
        shutil.copytree(place / "real", tmp_path / "other")
        path = next((tmp_path / "other").iterdir())
        Image.new("RGB", (40, 40)).save(path)
        changes = {"reference": str(path.parent)}
    works = [lambda given=given: evaluate(options(place, tmp_path / "run", **given)) for given in ({}, changes)]
    assert as_ranks(*works) == [1, 1]
    text = logged(capfd)
    for rank, other in ((0, 1), (1, 0)):
        told = re.search(rf"ValueError: process {other} differs from process {rank} in (.*?); give all", text)
        assert told is not None, text
        assert named in told[1]
    assert not (tmp_path / "run").exists()


def test_machines_without_a_common_disk_say_how_to_go_on_and_merge(place, whole, tmp_path, capfd):
    works = [lambda name=name: evaluate(options(place, tmp_path / name)) for name in ("one", "other")]
    assert as_ranks(*works) == [1, 1]
    assert "Copy the other machines' folders beside it and start once more" in logged(capfd)
    one, other = (pictures(tmp_path / name) for name in ("one", "other"))
    assert len(one) + len(other) == 20
    evaluate(options(place, tmp_path / "one", merge=(tmp_path / "other",)))
    same_results(tmp_path / "one", whole)


def test_timing_is_for_one_process(place, tmp_path, capfd):
    given = options(place, tmp_path / "run", mode="timing")
    assert as_ranks(lambda: evaluate(given), lambda: evaluate(given)) == [1, 1]
    assert "mode='timing' measures one process alone; start one, not 2" in logged(capfd)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "two"}, r"WORLD_SIZE='two' must be a whole number; start the processes with torchrun"),
        ({"WORLD_SIZE": 2, "RANK": 2}, r"RANK=2 must lie below WORLD_SIZE=2"),
        ({"WORLD_SIZE": 2, "RANK": 1}, r"WORLD_SIZE=2 is set but MASTER_ADDR, MASTER_PORT is not"),
    ],
)
def test_half_an_environment_is_refused(monkeypatch, variables, message):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with environment(**variables), pytest.raises(ValueError, match=message), process_group():
        pass


def torchrun(port, node):
    """One of two machines with a process each."""
    return (
        *("torch.distributed.run", "--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1"),
        *("--master-addr=127.0.0.1", f"--master-port={port}"),
    )


def accelerate(port, node):
    """One machine with two processes; without --multi_gpu a machine that has no GPU would get a single one."""
    return (
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"),
        *("--mixed_precision=no", "--dynamo_backend=no", f"--main_process_port={port}"),
    )


def launch(place, output, *launcher):
    """Start a launcher on the script itself, as a user would, with features of no cost (no reference)."""
    command = [
        *(sys.executable, "-m", *launcher, str(ROOT / "scripts" / "fid_eval.py")),
        *("--output", str(output), "--captions", str(place / "captions.csv"), "--model", str(place / "model")),
        *("--steps", "2", "--batch", "2", "--arm", "ours:preset=paper", "--fewer-steps", "1", "--mode", "quality"),
        *("--resamples", "40", "--device", "cpu"),
    ]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "machines"), [(torchrun, 2), (accelerate, 1)])
def test_two_processes_started_by_a_launcher_give_the_results_of_one(place, tmp_path, launcher, machines):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = [launch(place, tmp_path / "two", *launcher(port, node)) for node in range(machines)]
    texts = [node.communicate(timeout=170)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0] * machines, "\n".join(texts)
    assert "\n".join(texts).count("report.html") == 1  # process 0 alone tells it
    assert "process 1: batches generated" in "\n".join(texts)  # two of a group, not two alone
    evaluate(options(place, tmp_path / "one", reference=None))
    same_results(tmp_path / "two", tmp_path / "one")
