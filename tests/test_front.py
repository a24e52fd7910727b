"""Speed against quality: what is kept, what is run again, and what scripts/demo_front.py makes of it."""

import json
import math
import runpy
from pathlib import Path

import pytest
import torch
from tiny import make_tiny_pipe

from agentsd.bench.arm import RunArm
from agentsd.bench.arms import RUN_ARMS
from agentsd.bench.baselines import stock
from agentsd.bench.front import collect, measure, visits
from agentsd.bench.likeness import likeness, pairs
from agentsd.bench.samples import Chunk, Sample, Store, chunks, digest_of, identity
from agentsd.evaluation import demo_front

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
PARTS = chunks(["one", "two", "three"], 2)
ARMS = {"a": RunArm(stock, settings="first"), "b": RunArm(stock, fewer_steps=2.0)}


def sample(value=0.0, seconds=1.0, baseline=2.0):
    return Sample(torch.full((1, 4, 2, 2), value), seconds, baseline)


class Recorder:
    """Draws constant latents and writes down the calls."""

    def __init__(self, failing=()):
        self.calls = []
        self.failing = failing

    def draw(self, arm, chunk):
        name = next((name for name, known in ARMS.items() if known is arm), "stock")
        if name in self.failing:
            raise RuntimeError("does not run here")
        self.calls.append((name, chunk.start))
        return torch.full((len(chunk.prompts), 4, 2, 2), len(name))

    def measure(self, store, arms=ARMS, **settings):
        return measure(None, self.draw, arms, store, PARTS, **settings)


def test_a_sample_comes_back_as_it_was(tmp_path):
    store = Store(tmp_path, {"steps": 2})
    assert store.get("a", PARTS[0]) is None
    store.put("a", PARTS[0], sample(0.1, 1 / 3, 2 / 3))
    kept = Store(tmp_path, {"steps": 2}).get("a", PARTS[0])
    assert torch.equal(kept.latents, sample(0.1).latents)
    assert (kept.seconds, kept.stock_seconds) == (1 / 3, 2 / 3)
    assert [path.suffix for path in store.folder.rglob("*") if path.is_file()].count(".partial") == 0


@pytest.mark.parametrize(
    ("setup", "arm", "chunk"),
    [
        ({"steps": 3}, "a", PARTS[0]),
        ({"steps": 2}, "b", PARTS[0]),
        ({"steps": 2}, "a", PARTS[1]),
        ({"steps": 2}, "a", Chunk(0, ("one", "other"))),
        ({"steps": 2}, "a", Chunk(2, ("one", "two"))),
    ],
)
def test_another_setup_arm_or_chunk_is_another_sample(tmp_path, setup, arm, chunk):
    Store(tmp_path, {"steps": 2}).put("a", PARTS[0], sample())
    assert not Store(tmp_path, setup).has(arm, chunk)


def test_other_settings_of_an_arm_are_another_arm():
    assert len({identity("a", arm) for arm in (*ARMS.values(), RunArm(stock))}) == 3


def test_visits_turn_their_order_and_finish_a_group_before_the_next(tmp_path):
    store = Store(tmp_path, {})
    todo = list(visits(store, ARMS, PARTS, 1))
    assert [(visit.arms, visit.chunk.start, visit.forwards) for visit in todo] == [
        (("a",), 0, True),
        (("a",), 2, False),
        (("b",), 0, True),
        (("b",), 2, False),
    ]
    assert [visit.arms for visit in visits(store, ARMS, PARTS, 2)] == [("a", "b")] * 2
    assert [visit.arms for visit in visits(store, {}, PARTS, 2)] == [(), ()]


def test_pairs_are_measured_beside_stock_in_turning_order(tmp_path):
    recorder = Recorder()
    assert recorder.measure(Store(tmp_path, {}), group=2)
    assert recorder.calls == [("stock", 0), ("a", 0), ("b", 0), ("b", 2), ("a", 2), ("stock", 2)]


def test_an_interrupted_measurement_goes_on_and_arms_are_added(tmp_path):
    store, recorder, told = Store(tmp_path, {}), Recorder(), []
    assert not recorder.measure(store, limit_seconds=0, tell=told.append)
    assert recorder.calls == []
    assert told == ["stopped by the limit: 2 of 2 visits are left"]
    assert recorder.measure(store, {"a": ARMS["a"]})
    recorder.calls.clear()
    assert recorder.measure(store)
    assert recorder.calls == [("stock", 0), ("b", 0), ("b", 2), ("stock", 2)]
    recorder.calls.clear()
    assert recorder.measure(store)
    assert recorder.calls == []


def test_what_a_crash_left_is_measured_again(tmp_path):
    store, recorder = Store(tmp_path, {}), Recorder()
    recorder.measure(store, group=1)
    name = identity("b", ARMS["b"])
    for path in store.folder.glob("*/*.npz"):
        path.rename(path.with_suffix(".partial"))
        if not store.has(name, PARTS[1]):
            break
        path.with_suffix(".partial").rename(path)
    recorder.calls.clear()
    assert recorder.measure(store, group=1)
    assert recorder.calls == [("b", 2), ("stock", 2)]


def test_untimed_arms_need_stock_once(tmp_path):
    store, recorder = Store(tmp_path, {}), Recorder()
    assert recorder.measure(store, group=1, timed=False)
    assert [call for call in recorder.calls if call[0] == "stock"] == [("stock", 0), ("stock", 2)]
    assert math.isnan(store.get(identity("b", ARMS["b"]), PARTS[0]).stock_seconds)
    assert recorder.measure(store, group=2)  # to be timed now: all anew
    assert not any(math.isnan(store.get(name, PARTS[0]).stock_seconds) for name in ("stock", identity("b", ARMS["b"])))
    recorder.calls.clear()
    assert recorder.measure(store, group=2)
    assert recorder.calls == []


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("group", [1, 2])
def test_an_arm_that_fails_is_told_and_costs_no_other(tmp_path, warm, group):
    store, recorder, told = Store(tmp_path, {}), Recorder(failing=["a"]), []
    assert not recorder.measure(store, group=group, warm_up=recorder.draw if warm else None, tell=told.append)
    assert [line for line in told if "left out" in line] == ["a: left out, RuntimeError: does not run here"]
    assert list(collect(store, ARMS, PARTS)) == ["stock", "b"]


@pytest.mark.parametrize("warm", [True, False])
def test_stock_that_fails_ends_the_measurement(tmp_path, warm):
    recorder = Recorder(failing=["stock"])
    with pytest.raises(RuntimeError, match="does not run here"):
        recorder.measure(Store(tmp_path, {}), warm_up=recorder.draw if warm else None)


def test_stock_alone_is_drawn_where_the_only_arm_fails(tmp_path):
    store, recorder = Store(tmp_path, {}), Recorder(failing=["a"])
    assert not recorder.measure(store, {"a": ARMS["a"]})
    assert list(collect(store, ARMS, PARTS)) == ["stock"]


def test_only_complete_arms_are_collected(tmp_path):
    store = Store(tmp_path, {})
    store.put("stock", PARTS[0], sample())
    assert collect(store, ARMS, PARTS) == {}
    store.put("stock", PARTS[1], sample())
    store.put(identity("a", ARMS["a"]), PARTS[0], sample())
    assert list(collect(store, ARMS, PARTS)) == ["stock"]


def test_speed_is_paired_chunk_by_chunk():
    row = pairs([sample(seconds=1.0, baseline=2.0), sample(seconds=10.0, baseline=20.0)])
    assert (row["speedup"], row["rounds"]) == (2.0, 2)
    assert (row["seconds"], row["stock_seconds"]) == ([1.0, 10.0], [2.0, 20.0])


def test_speed_is_that_of_the_chunks_with_a_pair():
    row = pairs([sample(seconds=1.0, baseline=2.0), sample(seconds=10.0, baseline=math.nan)])
    assert (row["speedup"], row["rounds"], row["seconds"]) == (2.0, 1, [1.0])


def test_likeness_of_equal_pictures_and_of_others():
    pictures, latents = torch.rand(3, 3, 16, 16), torch.randn(3, 4, 4, 4)
    row = likeness(pictures, pictures, latents, latents)
    assert (row["psnr_db_median"], row["ssim_median"], row["latent_l2_median"]) == (None, 1.0, 0.0)
    other = likeness((pictures - 0.1).clamp(0, 1), pictures, 2 * latents, latents)
    assert other["psnr_db_p5"] == min(other["psnr_db"]) > 19
    assert other["latent_l2_median"] == 1.0
    json.dumps(other, allow_nan=False)


def test_other_weights_are_another_model(tmp_path):
    (tmp_path / "unet").mkdir()
    weights = tmp_path / "unet" / "model.safetensors"
    weights.write_bytes(b"1")
    before = digest_of(tmp_path)
    (tmp_path / "README.md").write_text("text")
    assert digest_of(tmp_path) == before
    weights.write_bytes(b"2")
    assert digest_of(tmp_path) != before


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_tiny_pipe(sample_size=32).save_pretrained(folder)  # 64 x 64 pixels, as the attribute classifier takes
    return folder


def test_the_demo_front_in_slices_is_the_demo_front_at_once(tmp_path, tiny_model, capsys, monkeypatch):
    script = runpy.run_path(str(SCRIPTS / "demo_front.py"))
    monkeypatch.setattr(demo_front, "model_path", lambda: tiny_model)
    words = ["--prompts", "3", "--steps", "2", "--batch", "2", "--dtype", "float32", "--device", "cpu"]
    words += ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "new" / "front.jsonl")]

    def run(*arms, more=(), code=0):
        assert script["main"]([*words, "--arms", *arms, *more]) == code
        return [json.loads(line) for line in (tmp_path / "new" / "front.jsonl").read_text().splitlines()]

    assert run("stock", "reuse 2", more=["--limit-seconds", "0"], code=1) == []
    assert "stopped by the limit: 2 of 2 visits are left" in capsys.readouterr().err
    first = run("stock", "reuse 2")
    assert [row["arm"] for row in first] == ["stock", "reuse 2"]
    rows = run("stock", "reuse 2", "stock A/A", "stock, steps / 2", "T-GATE")
    assert rows[:2] == first
    assert "visit 2 of 2: prompts from 2" in capsys.readouterr().err
    alike = {row["arm"]: row["psnr_db_median"] for row in rows}
    assert alike["stock"] is alike["stock A/A"] is None
    assert alike["stock, steps / 2"] is not None
    for row in rows:
        assert row["scheduler"] == "DDIMScheduler"
        assert len(row["seconds"]) == len(row["stock_seconds"]) == 2
        assert len(row["psnr_db"]) == len(row["ssim"]) == len(row["right_each"]) == 3
        assert row["size"] == 64
    other = run("stock", "stock, steps / 2", more=["--scheduler", "euler"])  # nothing kept is taken for it
    assert [row["scheduler"] for row in other] == ["EulerDiscreteScheduler"] * 2
    assert len(list((tmp_path / "work").iterdir())) == 2


def test_the_demo_front_times_the_first_prompts_and_draws_all(tmp_path, tiny_model, capsys, monkeypatch):
    script = runpy.run_path(str(SCRIPTS / "demo_front.py"))
    monkeypatch.setattr(demo_front, "model_path", lambda: tiny_model)
    words = ["--prompts", "3", "--steps", "1", "--batch", "1", "--dtype", "float32", "--device", "cpu"]
    words += ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "front.jsonl"), "--arms", "stock", "reuse 2"]
    assert script["main"]([*words, "--timed-prompts", "2"]) == 0
    for line in (tmp_path / "front.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert (row["rounds"], len(row["psnr_db"])) == (2, 3)
    with pytest.raises(SystemExit):
        script["main"]([*words, "--timed-prompts", "0"])
    assert "--timed-prompts 0: at least 1" in capsys.readouterr().err


def test_run_arms_draw_what_the_front_keeps():
    assert RUN_ARMS["stock"].run(lambda *args, num_inference_steps: num_inference_steps, num_inference_steps=25) == 25
    halved = RUN_ARMS["stock, steps / 2"]
    assert halved.run(lambda *args, num_inference_steps: num_inference_steps, num_inference_steps=25) == 12
