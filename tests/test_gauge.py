"""The committed gauge: tolerances order calls and likeness, and hold what they promise."""

import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from agentsd import PRESETS
from agentsd.bench.rows import read_rows
from agentsd.unet.controller import RULES

ROWS = read_rows(Path(__file__).resolve().parents[1] / "results" / "gauge.jsonl")
COMBINATIONS = sorted({row["combination"] for row in ROWS})


def ours(combination):
    """The rows of the most prompts, by tolerance."""
    found = [row for row in ROWS if row["combination"] == combination and row.get("rules") == RULES]
    most = max(row["pictures"] for row in found)
    return sorted((row for row in found if row["pictures"] == most), key=lambda row: float(row["arm"].split()[1]))


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_a_larger_tolerance_takes_fewer_calls(combination):
    rows = ours(combination)
    assert len(rows) >= 2
    for tight, loose in pairwise(rows):
        assert statistics.mean(loose["calls"]) <= statistics.mean(tight["calls"])


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_the_default_holds_its_promise_within_a_factor_of_two(combination):
    row = next(row for row in ours(combination) if row["settings"] == PRESETS["balanced"].to_json())
    assert statistics.median(row["latent_error"]) <= 2 * PRESETS["balanced"].skipping.tolerance


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_rivals_and_ours_have_the_same_stock(combination):
    rows = [row for row in ROWS if row["combination"] == combination]
    assert len({calls for row in rows for calls in row["stock_calls"]}) == 1
    assert any(row["arm"] == "stock" for row in rows)
