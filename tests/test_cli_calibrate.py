"""`agentsd calibrate`, and drawing with the file that it writes."""

import pytest
from tiny import make_tiny_pipe

import agentsd
from agentsd.calibration.store import Runs
from agentsd.cli.main import main
from agentsd.pictures.files import read_record
from agentsd.pictures.settings import Settings


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    make_tiny_pipe().save_pretrained(folder)
    return folder


@pytest.fixture
def run(model, tmp_path, capsys, monkeypatch):
    """Run a command on the tiny model in a folder of its own; returns code, stdout, stderr."""
    monkeypatch.setenv("AGENTSD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def call(command, *arguments):
        capsys.readouterr()
        code = main([command, *map(str, arguments), "--device", "cpu", "--model", str(model)])
        done = capsys.readouterr()
        return code, done.out, done.err

    return call


def test_a_calibration_is_said_in_words_written_and_drawn_with(run, tmp_path):
    code, out, err = run("calibrate", "--steps", 12, "--calls", 7, "--prompt", "a", "--prompt", "b")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].endswith(", DDIMScheduler, 12 steps, for 7 calls")
    assert lines[1].startswith("  steps: 7 of 12 listed as full")
    assert lines[2] == "  calls: 7.0 instead of 12, 1.71 times fewer"
    assert lines[4].startswith("  error of the final latent: 0.")
    assert lines[-1] == (
        "outputs/calibration.json: the calibration; agentsd generate --schedule outputs/calibration.json draws with it"
    )
    found = agentsd.Calibration.from_json((tmp_path / "outputs" / "calibration.json").read_bytes())

    draw = ("generate", "--prompt", "a", "--schedule", "outputs/calibration.json", "--output", "a.png", "--force")
    code, out, err = run(*draw, "--steps", 12)
    assert (code, "warning" in err) == (0, False)
    assert out.endswith("7 of 12 steps full\n")
    settings = Settings.from_dict(read_record(tmp_path / "a.png")["settings"])
    assert (settings.label, settings.schedule) == ("calibration", found.schedule)

    _, out, err = run(*draw, "--steps", 13, "--scheduler", "euler")
    assert "warning: calibration skipped no step: full steps are listed for 12 calls from noise level" in err
    assert "was calibrated for another run: scheduler is 'EulerDiscreteScheduler' here and 'DDIMSched" in err
    assert "; steps is 13 here and 12 in the calibration." in err
    assert out.endswith("13 of 13 steps full\n")


def test_a_comparison_takes_a_calibration(run, tmp_path):
    assert run("calibrate", "--steps", 12, "--tolerance", 0.1, "--prompt", "a", "--output", "mine.json")[0] == 0
    code, out, _ = run("compare", "--prompt", "a", "--steps", 12, "--schedule", "mine.json", "--output", "a.png")
    assert code == 0
    assert "a.png: mine is " in out


@pytest.mark.parametrize("command", ["generate", "compare"])
def test_a_run_without_a_skipped_step_says_why(run, command):
    _, _, err = run(command, "--prompt", "a", "--prompt", "b", "--steps", 4, "--preset", "fast")
    warning = "warning: fast skipped no step: the run has 4 steps, and agentsd skips none below 10."
    assert err.count(warning) == 1
    assert warning in run(command, "--prompt", "a", "--steps", 4, "--preset", "fast", "--json", "--force")[2]
    assert "skipped no step" not in run(command, "--prompt", "a", "--steps", 4, "--preset", "gentle", "--force")[2]


def test_other_settings_of_one_solver_are_named_one_by_one(model):
    pipe = make_tiny_pipe()
    found = agentsd.calibrate(pipe, ["a"], num_inference_steps=12, calls=8, progress=False, cache=False)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, steps_offset=7)
    assert found.differences(pipe) == ["steps_offset of the scheduler is 7 here and 1 in the calibration"]


def test_a_stopped_calibration_says_that_it_goes_on(run, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Runs, "get", stop)
    code, _, err = run("calibrate", "--steps", 12, "--prompt", "a")
    assert code == 130
    assert "finished pictures are kept: the same command goes on where it was\nagentsd calibrate: stopped\n" in err
    assert "finished pictures" not in run("calibrate", "--steps", 12, "--prompt", "a", "--no-cache")[2]


@pytest.mark.parametrize(
    ("words", "said", "pictures"),
    [
        (["--guidance-scale", "nan"], "--guidance-scale nan must lie in [0, 100]", 0),
        (["--tolerance", "5"], "--tolerance 5.0 must lie in (0, 1]", 0),
        (["--lpips", "0.1"], "LPIPS weights", 0),
        (["--output", "."], "--output '.' is a folder; name a file in it", 0),
        (["--output", "/proc/no/a.json"], "--output '/proc/no/a.json' cannot be written", 0),
        (["--prompts-file", "absent.txt"], "--prompts-file 'absent.txt' cannot be read", 0),
        (["--calls", "8", "--worst"], "--calls 8 lists so many full steps; it goes neither with", 0),
        (["--calls", "30"], "--calls 30 must lie in [4, 16] for runs of 16 calls", 1),
        (["--steps", "5"], "--steps 5 makes 5 calls, and a tolerance skips none below 10", 1),
    ],
)
def test_bad_input_ends_with_2_before_the_work(run, monkeypatch, tmp_path, words, said, pictures):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))  # no weights there
    made, get = [], Runs.get
    monkeypatch.setattr(Runs, "get", lambda *given: made.append(1) or get(*given))
    code, out, err = run("calibrate", "--steps", 16, *words)
    assert (code, out) == (2, "")
    assert f"agentsd calibrate: error: {said}" in err.replace("\r", "\n")
    assert len(made) == pictures


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ('{"version": 1}', "neither of the two"),
        ("no JSON", "neither of the two"),
        ("[1]", "neither of the two"),
        ("[" * 100_000, "neither of the two"),
        ('{"version": 1, "schedule": {}, "timings": []}', "a plan, which only agentsd.apply takes"),
    ],
)
def test_a_file_that_is_neither_names_both(run, tmp_path, text, held):
    (tmp_path / "a.json").write_text(text)
    code, _, err = run("generate", "--prompt", "a", "--schedule", "a.json")
    assert code == 2
    assert "must hold a schedule (the text that Schedule.to_json() returned) or a calibration (the file that" in err
    assert err.endswith(f"it holds {held}.\n")


def test_a_damaged_calibration_names_the_field(run, tmp_path):
    (tmp_path / "a.json").write_text('{"version": 1, "schedule": {}, "held_out": []}')
    _, _, err = run("generate", "--prompt", "a", "--schedule", "a.json")
    assert "error: --schedule a.json: calibration lacks the field 'target'" in err
