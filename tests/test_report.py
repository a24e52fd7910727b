"""A report is short, true and plain data."""

import json
from dataclasses import replace

import pytest
from tiny import draw, make_sdxl_pipe

import agentsd
from agentsd import Phase, SampledKeys, Schedule, Skipping
from agentsd.unet.report import Report

SAMPLED = SampledKeys(stride=2, min_keys=1)


def test_a_run_under_a_tolerance_in_five_lines(tiny_pipe):
    with agentsd.apply(tiny_pipe, "extreme") as patch:
        assert str(patch.report()).splitlines() == [
            "agentsd on UNet2DConditionModel: preset extreme",
            "  steps: skipped while the relative error of the final latent is predicted to stay within 0.12",
            "  attention: stock",
            "  last run: none yet",
            "  report.details() lists the layers",
        ]
        draw(tiny_pipe, steps=4)
        assert "  last run: 4 steps, all full; below 10 steps nothing is skipped" in str(patch.report()).splitlines()


def test_fixed_full_steps_are_said_in_words_and_timed(tiny_pipe):
    schedule = Schedule((Phase(0.5, SAMPLED, 3), Phase(1.0, None, 2)))
    with agentsd.apply(tiny_pipe, schedule, seed=3) as patch:
        draw(tiny_pipe, steps=12)
        lines = str(patch.report()).splitlines()
        run = patch.report().last_run
    assert (
        lines[1]
        == "  steps: full every 3 until 50%, every 2 until the end, and at the last; no layer runs at the others"
    )
    assert lines[2].startswith(
        "  attention: sampled keys and values (stride 2, at least 1), levels down to /1 until 50%"
    )
    assert lines[2].endswith("then stock attention until the end; in 3 of 7 layers, seed 3")
    assert lines[3] == f"  last run: {run}"
    assert run.full_seconds > run.skipped_seconds > 0
    assert lines[4].startswith("  time: a full step took ")
    assert lines[4].endswith("x faster than 12 full steps")


@pytest.mark.parametrize("name", agentsd.PRESETS)
def test_every_preset_is_short_on_a_large_model(name):
    patch = agentsd.apply(make_sdxl_pipe(), name)
    report = patch.report()
    assert len(str(report).splitlines()) <= 8
    assert all(layer.name in report.details() for layer in report.layers)
    assert repr(patch) == f"Patch on UNet2DConditionModel: preset {name}"


def test_many_problems_are_cut_to_eight_lines(tiny_pipe):
    with agentsd.apply(tiny_pipe, replace(agentsd.preset("paper"), guidance_interval=(0.2, 1.0))) as patch:
        pass
    report = patch.report()
    layers = tuple(replace(layer, problem=f"reason {i}") for i, layer in enumerate(report.layers))
    shown = str(replace(report, layers=layers, skipping_problem="no scheduler")).splitlines()
    assert len(shown) == 8
    assert shown[0].endswith("NOT IN FORCE: removed; this was its last state")
    assert "  problem: steps not skipped: no scheduler" in shown
    assert shown[-2].startswith("  and more problems (")


def test_the_dictionary_is_json_and_complete(tiny_pipe):
    with agentsd.apply(tiny_pipe, Schedule.constant(SAMPLED, 2)) as patch:
        draw(tiny_pipe, steps=5)
        found = json.loads(json.dumps(patch.report().to_dict()))
    assert found["last_run"] | {"full_seconds": 0, "skipped_seconds": 0} == {
        "full": 3, "skipped": 2, "stock": 0, "forced": [], "full_seconds": 0, "skipped_seconds": 0,
        "partial": [], "calls": 3,
    }  # fmt: skip
    assert Schedule.from_json(json.dumps({"version": 1, **found["schedule"]})) == Schedule.constant(SAMPLED, 2)
    assert len(found["layers"]) == 7
    assert found.keys() >= {field for field in Report.__dataclass_fields__ if field in ("target", "active", "seed")}


def test_settings_print_what_is_not_their_default():
    assert (
        repr(agentsd.PRESETS["balanced"]) == "Schedule(phases=(Phase(until=1.0),), skipping=Skipping(tolerance=0.03))"
    )
    assert repr(SampledKeys()) == "SampledKeys()"
    for preset in agentsd.PRESETS.values():
        names = {"Schedule": Schedule, "Phase": Phase, "Skipping": Skipping, "SampledKeys": SampledKeys}
        assert eval(repr(preset), names | {"MergedTokens": agentsd.MergedTokens}) == preset
