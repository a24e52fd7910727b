"""`agentsd generate` and `agentsd compare`, in process, on a tiny saved pipeline."""

import dataclasses
import json
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tiny import make_tiny_pipe

import agentsd
from agentsd.cli.drawing import summary
from agentsd.cli.main import main as cli
from agentsd.pictures import files
from agentsd.pictures.compare import Comparison, compare, side_by_side
from agentsd.pictures.files import plan_files, read_record, write_picture
from agentsd.pictures.generate import generate
from agentsd.pictures.loading import choose_device, find_model, load_pipeline
from agentsd.pictures.settings import DEMO, SCHEDULERS, Settings, plan_pictures, with_model_defaults
from agentsd.system import writing


def main(words):
    return cli(["generate", *words])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    make_tiny_pipe().save_pretrained(folder)
    return folder


@pytest.fixture
def run(model, tmp_path, capsys):
    """Run the command line on the tiny model, on the CPU, writing into tmp_path; returns code, stdout, stderr."""

    def call(*arguments, output=tmp_path / "out", given_model=model):
        capsys.readouterr()
        argv = [*map(str, arguments), "--device", "cpu", "--output", str(output)]
        code = main([*argv, "--model", str(given_model)] if given_model else argv)
        done = capsys.readouterr()
        return code, done.out, done.err

    return call


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_makes_a_picture_with_its_settings_inside(run, tmp_path, model):
    code, out, _ = run("--prompt", "a red circle", "--steps", 4, "--seed", 3, "--preset", "paper", "--ratio", 0.2)
    (path,) = (tmp_path / "out").glob("*")
    assert code == 0
    assert path.name == "0000-a-red-circle-seed3-paper-ratio-0.2.png"
    assert str(path) in out
    assert pixels(path).shape == (32, 32, 3)
    record = read_record(path)
    settings = Settings.from_dict(record["settings"])
    assert settings == Settings(
        prompt="a red circle",
        model=str(model),
        steps=4,
        guidance_scale=7.5,  # the pipeline's default, spelt out
        height=32,
        width=32,
        seed=3,
        schedule=agentsd.preset("paper").with_merge_ratio(0.2),
        label="paper, ratio 0.2",
    )
    assert record["environment"]["agentsd"] == agentsd.__version__
    assert record["environment"]["torch"] == torch.__version__


def test_is_what_the_library_draws(run, tmp_path, model):
    run("--prompt", "a red circle", "--steps", 4, "--seed", 3, output=tmp_path / "a.png")
    pipe = make_tiny_pipe()
    with agentsd.apply(pipe):
        image = pipe("a red circle", num_inference_steps=4, generator=torch.Generator().manual_seed(3)).images[0]
    assert np.array_equal(pixels(tmp_path / "a.png"), np.asarray(image))


@pytest.mark.parametrize("arm", [["--stock"], ["--preset", "paper", "--agents-seed", "5"], ["--every", "2"]])
def test_a_picture_can_be_made_again_from_its_file(run, tmp_path, arm):
    first, again, other = (tmp_path / name for name in ("first.png", "again.png", "other.png"))
    given = ["--prompt", "zwei Füße", "--negative-prompt", "blurry", "--steps", 3, "--seed", 7, "--width", 48]
    run(*given, "--scheduler", "euler-a", *arm, output=first)
    code, _, _ = run("--from-png", first, output=again, given_model=None)
    assert code == 0
    assert np.array_equal(pixels(first), pixels(again))
    assert read_record(first)["settings"] == read_record(again)["settings"]
    run("--from-png", first, "--seed", 8, output=other, given_model=None)
    assert not np.array_equal(pixels(first), pixels(other))
    assert read_record(other)["settings"] == {**read_record(first)["settings"], "seed": 8}


@pytest.mark.parametrize(
    ("options", "label", "schedule"),
    [
        (["--ratio", 0.3], "paper, every 2, ratio 0.3", agentsd.preset("paper").with_merge_ratio(0.3).with_skipping(2)),
        (["--every", 3], "paper, ratio 0.2, every 3", agentsd.preset("paper").with_merge_ratio(0.2).with_skipping(3)),
        (
            ["--depth", 2],
            "paper, ratio 0.2, every 2, depth 2",
            dataclasses.replace(
                agentsd.preset("paper").with_merge_ratio(0.2).with_skipping(2), skipping=agentsd.Skipping(depth=2)
            ),
        ),
        (["--preset", "fast", "--every", 3], "fast, every 3", agentsd.PRESETS["fast"].with_skipping(3)),
        (
            ["--tolerance", 0.02],
            "paper, ratio 0.2, tolerance 0.02",
            agentsd.preset("paper").with_merge_ratio(0.2).with_tolerance(0.02),
        ),
    ],
)
def test_changes_are_made_to_the_recorded_schedule(run, tmp_path, options, label, schedule):
    first, changed = tmp_path / "first.png", tmp_path / "changed.png"
    agents = ["--preset", "paper", "--ratio", 0.2, "--every", 2]
    run("--prompt", "a ring", "--steps", 2, *agents, output=first)
    assert run("--from-png", first, *options, output=changed, given_model=None)[0] == 0
    settings = Settings.from_dict(read_record(changed)["settings"])
    assert (settings.label, settings.schedule) == (label, schedule)


def test_a_tolerance_and_a_schedule_from_a_file(run, tmp_path):
    first, second, file = tmp_path / "first.png", tmp_path / "second.png", tmp_path / "mine.json"
    assert run("--prompt", "a ring", "--steps", 2, "--tolerance", 0.02, output=first)[0] == 0
    mine = agentsd.preset("gentle").with_tolerance(0.02)
    file.write_text(mine.to_json(), encoding="utf-8")
    assert run("--prompt", "a ring", "--steps", 2, "--schedule", file, output=second)[0] == 0
    settings = [Settings.from_dict(read_record(path)["settings"]) for path in (first, second)]
    assert [(one.label, one.schedule) for one in settings] == [
        ("tolerance 0.02", agentsd.preset("balanced").with_tolerance(0.02)),
        ("mine", mine),
    ]


def test_changes_to_a_stock_picture_are_made_to_the_default_preset(run, tmp_path):
    first, changed = tmp_path / "first.png", tmp_path / "changed.png"
    run("--prompt", "a ring", "--steps", 2, "--stock", output=first)
    assert run("--from-png", first, "--every", 2, output=changed, given_model=None)[0] == 0
    assert read_record(changed)["settings"]["label"] == "balanced, every 2"


def test_a_change_that_does_not_fit_the_recorded_schedule_is_refused(run, tmp_path):
    first = tmp_path / "first.png"
    run("--prompt", "a ring", "--steps", 2, "--preset", "paper", output=first)
    code, _, err = run("--from-png", first, "--ratio", 0, output=tmp_path / "b.png", given_model=None)
    assert code == 2
    assert "error: --ratio 0.0 does not fit the schedule 'paper': part of the run merges" in err


def test_a_stock_picture_is_compared_with_the_default_preset(run, tmp_path):
    first, both = tmp_path / "first.png", tmp_path / "both.png"
    run("--prompt", "a ring", "--steps", 2, "--stock", output=first)
    code, _, _ = run("--from-png", first, "--compare", output=both, given_model=None)
    assert code == 0
    assert read_record(both)["settings"]["label"] == "balanced"


def test_prompts_come_in_order_and_do_not_depend_on_the_batch(run, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeffa ring\n\n  a cross  \n", encoding="utf-8")
    arguments = ["--prompt", "a circle", "--prompts-file", prompts, "--num-images", 2, "--steps", 3, "--json"]
    code, out, _ = run(*arguments)
    rows = json.loads(out)["pictures"]
    assert code == 0
    assert [row["settings"]["prompt"] for row in rows] == [p for p in ("a circle", "a ring", "a cross") for _ in "12"]
    assert [row["settings"]["seed"] for row in rows] == list(range(6))
    _, out, _ = run(*arguments, "--batch-size", 4, output=tmp_path / "batched")
    batched = json.loads(out)["pictures"]
    assert [row["batch_size"] for row in batched] == [4, 4, 4, 4, 2, 2]
    for one, other in zip(rows, batched, strict=True):
        assert np.abs(pixels(one["path"]).astype(int) - pixels(other["path"])).max() <= 1
    assert len({pixels(row["path"]).tobytes() for row in rows}) == 6


def test_under_a_tolerance_too_a_picture_does_not_depend_on_its_batch(run, tmp_path):
    arguments = ["--prompt", "a circle", "--prompt", "a ring", "--steps", 20, "--tolerance", 0.05, "--json"]
    _, out, _ = run(*arguments)
    rows = json.loads(out)["pictures"]
    code, out, err = run(*arguments, "--batch-size", 2, output=tmp_path / "batched")
    assert code == 0
    assert "share their full steps" not in err
    for one, other in zip(rows, json.loads(out)["pictures"], strict=True):
        assert np.abs(pixels(one["path"]).astype(int) - pixels(other["path"])).max() <= 1
        assert one["settings"]["schedule"] == other["settings"]["schedule"]


def test_comparison_holds_both_pictures_and_its_numbers(run, tmp_path):
    path = tmp_path / "both.png"
    given = ["--prompt", "a red circle", "--steps", 5]
    code, out, _ = run(*given, "--compare", "--preset", "paper", output=path)
    assert code == 0
    for words in (" dB PSNR", "SSIM", "32x32, 5 steps, float32", f"torch {torch.__version__}", "CPU threads"):
        assert words in out
    run(*given, "--stock", output=tmp_path / "stock.png")
    run(*given, "--preset", "paper", output=tmp_path / "paper.png")
    whole = pixels(path)
    assert contains(whole[:, : whole.shape[1] // 2], pixels(tmp_path / "stock.png"))
    assert contains(whole[:, whole.shape[1] // 2 :], pixels(tmp_path / "paper.png"))
    record = read_record(path)
    assert len(record["stock_seconds"]) == len(record["agentsd_seconds"]) == 2
    ratio = math.sqrt(math.prod(record["stock_seconds"]) / math.prod(record["agentsd_seconds"]))
    assert record["speed_ratio"] == pytest.approx(ratio, rel=0.05)
    assert record["psnr_db"] > 10
    assert 0 < record["ssim"] <= 1


def contains(whole, part):
    height, width = part.shape[:2]
    return any(
        np.array_equal(whole[y : y + height, x : x + width], part)
        for y in range(whole.shape[0] - height + 1)
        for x in range(whole.shape[1] - width + 1)
    )


def test_a_comparison_is_repeated_as_one(run, tmp_path):
    run("--prompt", "a ring", "--steps", 3, "--compare", output=tmp_path / "a.png")
    code, out, _ = run("--from-png", tmp_path / "a.png", "--json", output=tmp_path / "b.png", given_model=None)
    result = json.loads(out)
    assert (code, result["kind"]) == (0, "comparison")
    assert result["pictures"][0]["psnr_db"] == read_record(tmp_path / "a.png")["psnr_db"]


def test_nothing_but_json_on_stdout(run):
    _, out, err = run("--prompt", "a ring", "--steps", 3, "--compare", "--json")
    row = json.loads(out)["pictures"][0]
    assert Path(row["path"]).is_file()
    assert row["settings"]["schedule"]["phases"][-1]["until"] == 1.0
    assert "picture 1 of 1" in err


def test_refuses_to_overwrite_before_drawing(run, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"precious")
    monkeypatch.setattr("diffusers.AutoPipelineForText2Image.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    code, out, err = run("--prompt", "a ring", output=path)
    assert (code, out) == (2, "")
    assert f"output {str(path)!r} exists; name another output, or add --force to replace it." in err
    assert path.read_bytes() == b"precious"
    monkeypatch.undo()
    assert run("--prompt", "a ring", "--steps", 2, "--force", output=path)[0] == 0
    assert pixels(path).shape == (32, 32, 3)
    assert [file.name for file in tmp_path.iterdir() if file.name.endswith(".partial")] == []


def test_output_that_cannot_be_written_is_told_before_drawing(run, tmp_path, monkeypatch):
    def no_right(*_, **kwargs):
        raise PermissionError(13, "Permission denied", str(kwargs["dir"]))

    monkeypatch.setattr(files.tempfile, "TemporaryFile", no_right)  # root may write everywhere
    monkeypatch.setattr("agentsd.pictures.generate.generate", lambda *_: pytest.fail("drawn"))
    code, out, err = run("--prompt", "a ring", output=tmp_path / "new" / "a.png")
    assert (code, out) == (2, "")
    assert "cannot be written: [Errno 13] Permission denied" in err
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("arm", [[], ["--compare"]])
def test_a_full_disk_ends_with_2_and_one_line(run, tmp_path, monkeypatch, arm):
    def fail(self, target, **_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    code, _, err = run("--prompt", "a ring", "--steps", 2, *arm, output=tmp_path / "a.png")
    assert code == 2
    assert (
        err.strip()
        .splitlines()[-1]
        .endswith("agentsd generate: error: a picture cannot be written: [Errno 28] No space left on device.")
    )


def test_a_pipeline_without_a_unet_ends_with_2(run, tmp_path, monkeypatch):
    def strange(*_):
        raise TypeError("target=DiTPipeline must be a diffusers pipeline with a UNet,\nor the UNet itself.")

    monkeypatch.setattr("agentsd.pictures.loading.load_pipeline", strange)
    code, _, err = run("--prompt", "a ring", output=tmp_path / "a.png")
    assert (code, err) == (
        2,
        "agentsd generate: error: target=DiTPipeline must be a diffusers pipeline with a UNet, or the UNet itself.\n",
    )


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"precious")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(writing.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_picture(path, Image.new("RGB", (16, 16)), {})
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.png", b"precious")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "prompt is missing; give one or more prompts, or a file of prompts."),
        (["--prompt", "a", "--steps", "0"], "--steps 0 must be a whole number from 1 to 1000."),
        (["--prompt", "a", "--height", "33"], "--height 33 must be a multiple of 8 of at least 16 pixels."),
        (["--prompt", "a", "--width", "8"], "--width 8 must be a multiple of 8 of at least 16 pixels."),
        (["--prompt", "a", "--guidance-scale", "-1"], "--guidance-scale -1.0 must lie in [0, 100]"),
        (["--prompt", "a", "--guidance-scale", "nan"], "--guidance-scale nan must lie in [0, 100]"),
        (["--prompt", "a", "--seed", "-1"], "--seed -1 must be a whole number from 0 to 2**63 - 1."),
        (["--prompt", "a", "--num-images", "0"], "--num-images 0 must be a whole number of at least 1."),
        (["--prompt", "a", "--batch-size", "0"], "--batch-size 0 must be a whole number of at least 1."),
        (["--prompt", "a", "--preset", "paper", "--ratio", "1.5"], "error: --ratio 1.5 must be a number in [0, 1)"),
        (
            ["--prompt", "a", "--preset", "paper", "--ratio", "0"],
            "error: --ratio 0.0 does not fit the schedule 'paper': part of",
        ),
        (["--prompt", "a", "--every", "0"], "--every 0 must be an integer of at least 1."),
        (["--prompt", "a", "--tolerance", "7"], "--tolerance 7.0 must lie in (0, 1]"),
        (["--prompt", "a", "--tolerance", "0.1", "--every", "2"], "--tolerance 0.1 and every=2 contradict each other"),
        (["--prompt", "a", "--schedule", "no-such.json"], "--schedule no-such.json cannot be read: No such file"),
        (["--prompt", "a", "--schedule", "LICENSE"], "--schedule LICENSE must hold a schedule (the"),
        (["--prompt", "a", "--schedule", "a.json", "--preset", "fast"], "--schedule contradicts --preset fast"),
        (["--prompt", "a", "--stock", "--compare"], "--stock contradicts --compare; leave one of them out."),
        (["--prompt", "a", "--stock", "--ratio", "0.2"], "--stock contradicts --ratio; leave one of them out."),
        (["--prompts-file", "no-such.txt"], "--prompts-file 'no-such.txt' cannot be read as UTF-8 text"),
        (["--from-png", "no-such.png"], "--from-png 'no-such.png' cannot be read"),
    ],
)
def test_bad_input_ends_with_2_and_says_why(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--scheduler", "eulre"],
            "argument --scheduler: 'eulre' is unknown. Did you mean 'euler'? Choose one of ddim",
        ),
        (["--preset", "Balanced"], "argument --preset: 'Balanced' is unknown. Did you mean 'balanced'?"),
        (["--dtype", "float8"], "argument --dtype: 'float8' is unknown. Did you mean 'float"),
        (["--steps", "ten"], "argument --steps: invalid int value: 'ten'"),
    ],
)
def test_bad_choices_end_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--prompt", "a", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_model_that_cannot_be_loaded_says_what_to_do(run, tmp_path, monkeypatch):
    def error(given):
        code, out, err = run("--prompt", "a", given_model=given)
        assert (code, out) == (2, "")
        return err

    assert "does not exist as a folder and is no hub id (owner/name)" in error(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert "is a folder without model_index.json" in error(tmp_path / "empty")
    (tmp_path / "v1.safetensors").touch()
    assert "is a file; a diffusers folder or hub id is needed" in error(tmp_path / "v1.safetensors")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert "Is the folder complete?" in error(tmp_path / "broken")

    def unreachable(*_, **__):
        raise OSError("We couldn't connect to 'https://huggingface.co'\nto load this model")

    monkeypatch.setattr("diffusers.AutoPipelineForText2Image.from_pretrained", unreachable)
    message = error("somebody/some-model")
    assert (
        "--model 'somebody/some-model' cannot be loaded from the Hugging Face hub: OSError: We couldn't con" in message
    )
    assert "without network give a local diffusers folder" in message
    monkeypatch.setattr("agentsd.demo.MODEL_PATH", tmp_path / "untrained")
    with pytest.raises(ValueError, match=r"model='demo': .*untrained holds no model.* Or give another --model"):
        find_model(DEMO)


def test_files_are_checked_before_the_work(tmp_path):
    one, two = plan_pictures(Settings(prompt="x"), ["a", "b"])
    for output, pictures, message in (
        (tmp_path / "a.jpg", [one], r"must end in \.png"),
        (tmp_path / "a.png", [one, two], r"is one file for 2 pictures; name a folder"),
        (Path(__file__) / "a.png", [one], r"which is not a folder"),
        (Path(__file__), [one], r"which is not a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            plan_files(output, pictures, "picture")
    assert plan_files(tmp_path / "v1.5", [one, two], "comparison") == [
        tmp_path / "v1.5" / "0000-a-seed0-compare.png",
        tmp_path / "v1.5" / "0001-b-seed1-compare.png",
    ]
    hostile = dataclasses.replace(one, prompt="../../" + "/etc " * 60, label="../x")
    (path,) = plan_files(tmp_path, [hostile], "picture")
    assert path.parent == tmp_path
    assert len(path.name) < 100


def test_records_of_other_files_are_refused(tmp_path):
    plain, strange, newer = (tmp_path / name for name in ("plain.png", "strange.png", "newer.png"))
    Image.new("RGB", (16, 16)).save(plain)
    with pytest.raises(ValueError, match="holds no settings; it must be a PNG that agentsd or A1111 wrote"):
        read_record(plain)
    info = PngInfo()
    info.add_text("agentsd", "[1, 2")
    Image.new("RGB", (16, 16)).save(strange, pnginfo=info)
    with pytest.raises(ValueError, match="holds settings that cannot be understood"):
        read_record(strange)
    write_picture(newer, Image.new("RGB", (16, 16)), {"settings": {"prompt": "a", "sparkle": 3}})
    with pytest.raises(ValueError, match=r"settings are not of this version of agentsd: .*sparkle"):
        Settings.from_dict(read_record(newer)["settings"])


def test_pngs_that_take_too_much_are_refused_by_name(tmp_path):
    deep, long, large = (tmp_path / name for name in ("deep.png", "long.png", "large.png"))
    for path, text, compressed in ((deep, "[" * 100_000, False), (long, "x" * (2**20 + 1), True)):
        info = PngInfo()
        info.add_text("agentsd", text, zip=compressed)
        Image.new("RGB", (16, 16)).save(path, pnginfo=info)
    head = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    large.write_bytes(start + deep.read_bytes()[33:])
    for path, words in (
        (deep, "holds settings that cannot be understood"),
        (long, "cannot be read"),
        (large, "cannot be read"),
    ):
        with pytest.raises(ValueError, match=rf"from_png='.*{path.name}' {words}"):
            read_record(path)


def test_demo_settings_hold_for_the_demo_alone():
    demo = with_model_defaults(Settings(prompt="a"))
    assert (demo.steps, demo.guidance_scale) == (50, 4.0)
    assert with_model_defaults(Settings(prompt="a", steps=9, guidance_scale=1.0)).steps == 9
    other = Settings(prompt="a", model="owner/name")
    assert with_model_defaults(other) == other


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
def test_every_scheduler_draws(model, scheduler):
    settings = Settings(prompt="a", model=str(model), steps=4, scheduler=scheduler)
    pipe = load_pipeline(settings, torch.device("cpu"))
    assert type(pipe.scheduler).__name__ == SCHEDULERS[scheduler][0]
    with agentsd.apply(pipe):
        assert generate(pipe, [settings])[0].size == (32, 32)


def test_comparing_leaves_the_pipeline_unpatched():
    pipe = make_tiny_pipe()
    before = {name: type(processor) for name, processor in pipe.unet.attn_processors.items()}
    ran = []
    schedule = agentsd.preset("paper")
    compare(pipe, Settings(prompt="a", steps=2, schedule=schedule), on_run=lambda: ran.append(1))
    assert {name: type(processor) for name, processor in pipe.unet.attn_processors.items()} == before
    assert len(ran) == 4
    with pytest.raises(ValueError, match="schedule=None has nothing to compare"):
        compare(pipe, Settings(prompt="a", steps=2))


def test_equal_pictures_are_said_to_be_equal():
    picture = Image.new("RGB", (32, 32), "red")
    same = Comparison(picture, picture, (2.0, 2.0), (1.0, 1.0), math.inf, 1.0)
    assert same.to_dict()["psnr_db"] is None
    assert same.speed_ratio == pytest.approx(2.0)
    assert side_by_side(same, "a label that is much, much, much too long for the picture" * 2).size == (664, 88)


def test_devices():
    assert choose_device("auto").type in ("cuda", "mps", "cpu")
    with pytest.raises(ValueError, match="device='gpu' is unknown; use auto, cpu, cuda"):
        choose_device("gpu")
    with pytest.raises(ValueError, match="device='cuda:99' is not there: torch sees"):
        choose_device("cuda:99")


A1111 = """a castle, (masterpiece:1.2)
by the sea
Negative prompt: blurry,
ugly
Steps: 4, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 123, Size: 36x32, Model hash: 6ce0161689, \
Model: v1-5, Clip skip: 2, TI hashes: "a: 1, b: 2", Version: v1.10.1"""


def a1111_png(path, text=A1111):
    info = PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (16, 16)).save(path, pnginfo=info)
    return path


def test_settings_of_a1111_are_taken_over_and_the_rest_is_named(run, tmp_path, model):
    code, _, err = run("--from-png", a1111_png(tmp_path / "theirs.png"), output=tmp_path / "ours.png")
    assert code == 0
    settings = Settings.from_dict(read_record(tmp_path / "ours.png")["settings"])
    assert settings == Settings(
        prompt="a castle, (masterpiece:1.2)\nby the sea",
        negative_prompt="blurry,\nugly",
        model=str(model),
        steps=4,
        guidance_scale=6.5,
        width=32,
        height=32,
        seed=123,
        scheduler="dpm++-karras",
        schedule=agentsd.preset(),
        label="balanced",
    )
    assert "noise comes from another generator with the same seed" in err
    assert "the model 'v1-5' is not in the PNG; give it as --model" in err
    assert "not taken over: Clip skip 2, TI hashes a: 1, b: 2\n" in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a ring\nSteps: x, Seed: 1", "error: parameters: Steps 'x' must be a number."),
        ("a ring", "error: parameters of the PNG have no line 'Steps: ..., Sampler: ...'"),
        ("a ring\nSteps: 2, Size: big", "error: parameters: Size 'big' must be WIDTHxHEIGHT."),
        ("a ring\nSteps: 0", "error: --steps 0 must be a whole number from 1 to 1000."),
    ],
)
def test_bad_settings_of_a1111_end_with_2(run, tmp_path, text, said):
    code, _, err = run("--from-png", a1111_png(tmp_path / "theirs.png", text))
    assert code == 2
    assert said in err


def test_a_sampler_that_has_no_counterpart_is_said(run, tmp_path):
    path = a1111_png(tmp_path / "theirs.png", "a ring\nSteps: 2, Sampler: Restart, Seed: 1")
    code, _, err = run("--from-png", path, "--steps", 1, output=tmp_path / "ours.png")
    assert code == 0
    assert "the sampler 'Restart' has no counterpart; the model's own is used." in err


def test_words_that_the_demo_model_does_not_know_are_named(tmp_path, model, monkeypatch, capsys):
    monkeypatch.setattr("agentsd.demo.model_path", lambda: model)
    words = ["--device", "cpu", "--steps", "1", "--output", str(tmp_path / "a.png")]
    assert main(["--prompt", "A red ring riding a horse", *words]) == 0
    err = capsys.readouterr().err
    assert "warning: the demo model does not know 'riding', 'horse'. It knows the colours red, orange" in err
    assert main(["--prompt", "a red ring", *words, "--force"]) == 0
    assert "does not know" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")])  # fmt: skip
def test_out_of_memory_suggests_a_size(run, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("agentsd.pictures.generate.generate", fail)
    code, _, err = run("--prompt", "a ring", "--width", 1024, "--height", 768, "--steps", 1)
    assert code == 2
    assert "memory of this device does not suffice. Try --width 512 --height 384." in err


def test_a_defect_keeps_its_traceback(run, monkeypatch):
    def fail(*_, **__):
        raise KeyError("a defect")

    monkeypatch.setattr("agentsd.pictures.generate.generate", fail)
    with pytest.raises(KeyError):
        run("--prompt", "a ring", "--steps", 1)


def test_a_prompt_that_is_cut_is_said(run):
    code, _, err = run("--prompt", "ring " * 100, "--steps", 1)
    assert code == 0
    assert "warning: prompt 1 has 402 tokens; the model reads the first 77." in err


def test_compare_is_a_command(model, tmp_path, capsys):
    words = ["--prompt", "a ring", "--model", str(model), "--device", "cpu", "--steps", "2"]
    assert cli(["compare", *words, "--output", str(tmp_path / "both.png")]) == 0
    out = capsys.readouterr().out
    assert read_record(tmp_path / "both.png")["kind"] == "comparison"
    assert "balanced is " in out
    assert out.count("PSNR") + out.count("equal pictures") == 1  # one picture has no median


def test_several_presets_stand_in_one_picture(run, tmp_path):
    words = ["--prompt", "a ring", "--prompt", "a cross", "--steps", 2, "--preset", "paper", "--preset", "gentle"]
    code, out, _ = run(*words, "--compare", "--json", output=tmp_path / "many")
    rows = json.loads(out)["pictures"]
    assert code == 0
    assert [row["settings"]["label"] for row in rows] == ["paper", "gentle"] * 2
    assert rows[0]["path"] == rows[1]["path"] != rows[2]["path"]
    assert pixels(rows[0]["path"]).shape[1] == 3 * 320 + 4 * 8
    assert [row["settings"]["label"] for row in read_record(rows[0]["path"])["others"]] == ["gentle"]
    code, _, err = run(*words, output=tmp_path / "one")
    assert code == 2
    assert "--preset is given 2 times; give one, or compare them with agentsd compare." in err


def test_a_comparison_is_repeated_with_all_its_arms(run, tmp_path):
    first, again = tmp_path / "first.png", tmp_path / "again"
    words = ["--prompt", "a ring", "--steps", 2, "--preset", "paper", "--preset", "gentle", "--compare"]
    assert run(*words, output=first)[0] == 0

    def labels(*changes):
        code, out, _ = run("--from-png", first, *changes, "--json", "--force", output=again, given_model=None)
        assert code == 0
        return [row["settings"]["label"] for row in json.loads(out)["pictures"]]

    assert labels() == ["paper", "gentle"]
    assert labels("--every", 2) == ["paper, every 2", "gentle, every 2"]
    assert labels("--preset", "fast") == ["fast"]
    assert labels("--stock") == ["stock"]


def test_a_median_of_some_equal_pictures_is_not_called_equal():
    settings = {"label": "fast", "width": 8, "height": 8, "steps": 9, "dtype": "float32"}
    row = {"settings": settings, "speed_ratio": 2.0}
    equal, other = {**row, "psnr_db": None, "ssim": 1.0}, {**row, "psnr_db": 20.0, "ssim": 0.6}
    environment = dict.fromkeys(("device", "threads", "torch", "diffusers"), "")

    def first_line(*rows):
        return summary(rows, environment).splitlines()[0].partition("faster, ")[2]

    assert first_line(equal, other) == "1 of them equal, the least alike 20.0 dB"
    assert first_line(equal, equal) == "equal pictures"
    assert first_line(equal, other, other) == "20.0 dB PSNR, SSIM 0.600, the least alike 20.0 dB"


def test_a_comparison_has_no_batches(run):
    code, _, err = run("--prompt", "a", "--compare", "--batch-size", 2)
    assert code == 2
    assert "error: --batch-size 2: a comparison times one picture at a time; leave it out." in err


def test_a_stride_does_not_change_a_preset_with_its_own(capsys, tmp_path):
    assert cli(["plan", "--preset", "paper", "--stride", "4", "--output", str(tmp_path / "plan.json")]) == 2
    assert "error: --stride 4 contradicts --preset paper, which has an attention of its own;" in capsys.readouterr().err


def test_a_plan_is_said_in_words_and_written(model, tmp_path, capsys):
    path = tmp_path / "plan.json"
    assert cli(["plan", "--model", str(model), "--device", "cpu", "--stride", "2", "--output", str(path)]) == 0
    assert agentsd.Plan.from_json(path.read_text()).dtype == "torch.float32"
    assert "a full UNet step takes " in capsys.readouterr().out
