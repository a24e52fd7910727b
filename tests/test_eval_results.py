"""The schema of `results.json`, and the committed evaluations: their tables are theirs, their presets today's."""

from pathlib import Path

import pytest
from evaluation_runs import make_place, whole_run

from agentsd.bench.store import read_json
from agentsd.evaluation.results import SCHEMA_VERSION
from agentsd.evaluation.tables import markdown
from agentsd.presets import PRESETS
from agentsd.schedule.text import schedule_object

COMMITTED = Path(__file__).parent.parent / "results" / "evaluation"

# Readers of the file rely on these: other keys need another SCHEMA_VERSION, with a set of its own here.
KEYS = {
    1: {
        "schema_version", "benchmark", "protocol", "number", "manifest", "about", "stamps", "extractor", "clip",
        "reference", "arms", "timing",
    },
}  # fmt: skip
ARM_KEYS = {1: {"role", "steps", "settings", "metrics"}}
OPTIONAL_ARM_KEYS = {1: {"speed", "equals", "verdict"}}


def check_keys(found):
    assert found["schema_version"] == SCHEMA_VERSION
    assert found.keys() == KEYS[SCHEMA_VERSION]
    for arm in found["arms"].values():
        assert ARM_KEYS[SCHEMA_VERSION] <= arm.keys() <= ARM_KEYS[SCHEMA_VERSION] | OPTIONAL_ARM_KEYS[SCHEMA_VERSION]


def test_other_keys_need_another_schema_version(tmp_path):
    check_keys(read_json(whole_run(make_place(tmp_path), tmp_path / "run") / "results.json"))


@pytest.mark.skipif(not COMMITTED.is_dir(), reason="evaluations are in the repository only")
@pytest.mark.parametrize("name", ["coco64", "eval-demo"])
class TestCommitted:
    def test_the_figures_have_this_schema(self, name):
        check_keys(read_json(COMMITTED / name / "results.json"))

    def test_the_table_is_that_of_the_figures(self, name):
        text = (COMMITTED / name / "table.md").read_text(encoding="utf-8")
        assert text == markdown(read_json(COMMITTED / name / "results.json"))

    def test_the_presets_are_those_of_today(self, name):
        arms = read_json(COMMITTED / name / "results.json")["arms"]
        ours = {arm: found["settings"]["schedule"] for arm, found in arms.items() if found["role"] == "candidate"}
        assert ours
        for arm, schedule in ours.items():  # settings of an earlier day carry its date in their name
            assert arm not in PRESETS or schedule == schedule_object(PRESETS[arm])
