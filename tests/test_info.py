"""`agentsd info` and the figures that come with the package."""

import json
from pathlib import Path

import pytest

import agentsd
from agentsd.bench.rows import read_rows
from agentsd.cli.info import MEASURED, collect, current_figures, describe, read_measured, summarise
from agentsd.cli.main import main
from agentsd.presets import PRESETS

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "results" / "demo" / "arms.jsonl"


def row(name, **changes):
    preset = agentsd.PRESETS.get(name.removeprefix("preset "))
    settings = dict(
        arm=name,
        settings="" if preset is None else preset.to_json(),
        speedup=2.0,
        speedup_95=[1.9, 2.1],
        psnr_db_median=30.04,
        ssim_median=0.9,
        attribute_accuracy={"singles": 1.0, "pairs": 0.75},
        weights="bundled demo model",
        steps=25,
        threads=2,
    )
    return {**settings, **changes}


def test_it_tells_versions_devices_presets_and_the_model(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"agentsd {agentsd.__version__}, Python 3.")
    assert f"diffusers {__import__('diffusers').__version__}" in text
    assert "cpu, " in text
    assert all(f"  {name}" in text for name in agentsd.PRESETS)
    assert "balanced (default)" in text
    assert "demo model: complete (" in text


def test_json_says_the_same(capsys):
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(collect()))


@pytest.mark.parametrize("arguments", [[], ["help"], ["info", "--yaml"]])
def test_other_commands_are_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: agentsd" in capsys.readouterr().err


def test_a_damaged_model_is_told_and_fails(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("agentsd.demo.MODEL_PATH", tmp_path)
    assert main(["info"]) == 1
    assert "demo model: " in capsys.readouterr().out
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "SHA256SUMS").write_text("00  model_index.json\n")
    assert main(["info"]) == 1
    assert "demo model: changed: model_index.json (" in capsys.readouterr().out


class TestFigures:
    def test_presets_are_taken_out_of_the_rows(self):
        found = summarise([row("stock"), row("preset fast"), row("preset paper", speedup=1.1)], "a.jsonl")
        assert list(found["presets"]) == ["fast", "paper"]
        assert found["presets"]["paper"]["speedup"] == 1.1
        assert found["setup"] == {"weights": "bundled demo model", "steps": 25, "threads": 2}
        assert json.loads(json.dumps(found)) == found

    def test_two_setups_are_refused(self):
        with pytest.raises(ValueError, match=r"rows of a\.jsonl were measured with different set-ups"):
            summarise([row("preset fast"), row("preset paper", threads=1)], "a.jsonl")

    def test_they_are_told_with_what_they_were_measured_with(self):
        facts = collect()
        measured = summarise([row("preset fast"), row("preset paper", psnr_db_median=None)], "a.jsonl")
        facts["presets"] = {name: current_figures(name, measured) for name in agentsd.PRESETS}
        facts["measured_with"] = measured["setup"]
        text = describe(facts)
        assert "2.00x the speed of stock [1.90, 2.10], 30.0 dB PSNR to stock, SSIM 0.900" in text
        assert "2.00x the speed of stock [1.90, 2.10], equal pictures" in text
        assert text.count("measured: ") == 2  # gentle has no figures for the settings of now
        assert "measured with: weights bundled demo model, steps 25, threads 2" in text

    def test_figures_of_other_settings_are_not_told(self):
        measured = summarise([row("preset fast", settings="Schedule()")], "a.jsonl")
        assert current_figures("fast", measured) is None
        assert current_figures("quality", measured) is None

    @pytest.mark.parametrize(("text", "message"), [("{", "is no JSON: .* run scripts/dev"), ("[]", "a list")])
    def test_a_broken_file_is_an_error(self, text, message, tmp_path):
        (tmp_path / "m.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_measured(tmp_path / "m.json")

    def test_presets_without_a_tolerance_have_figures(self):
        assert MEASURED.exists()
        figures = collect()["presets"]
        fixed = {name for name in figures if PRESETS[name].skipping.tolerance is None}
        assert fixed
        assert all(figures[name] for name in fixed), "measure again, then run scripts/dev/measured.py"
        assert "balanced (default): skips steps within a relative error of 0.03" in describe(collect())

    def test_the_committed_file_is_that_of_the_results(self):
        assert read_measured() == summarise(read_rows(SOURCE), "results/demo/arms.jsonl"), "run scripts/dev/measured.py"
