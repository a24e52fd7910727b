"""scripts/dev/plots.py draws every arm, joins ours to a front, and writes labels that do not overlap."""

import itertools
import json
import runpy
from pathlib import Path

import pytest

from agentsd.bench.arms import RUN_ARMS

pytest.importorskip("matplotlib")
SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "dev" / "plots.py"
plots = runpy.run_path(str(SCRIPT))


def row(index, arm):
    speed = 1 + (index * 7919 % 41) / 10
    return {
        "arm": arm,
        "settings": RUN_ARMS[arm].settings,
        "speedup": speed,
        "speedup_95": [0.95 * speed, 1.05 * speed],
        "psnr_db_median": None if arm in ("stock", "stock A/A") else 15 + index * 104729 % 130 / 10,
        "ssim_median": 0.7 + index * 7907 % 25 / 100,
        "attribute_accuracy": {"all": index * 6007 % 12 / 12},
        "prompts": 12,
        "steps": 25,
        "dtype": "bfloat16",
        "device": "a device",
    }


ROWS = [row(index, arm) for index, arm in enumerate(RUN_ARMS)]


def test_labels_do_not_overlap(monkeypatch):
    placed = []
    place = plots["place_labels"]

    def remember(figure, *rest):
        texts = place(figure, *rest)
        placed.append((figure, texts))
        return texts

    monkeypatch.setitem(plots["front"].__globals__, "place_labels", remember)
    plots["front"](ROWS)
    from matplotlib.text import Text

    assert len(placed) == 3
    for figure, texts in placed:
        words = {text.get_text() for text in texts}
        assert {"balanced", "T-GATE", "DeepCache 3", "tomesd 0.5", "steps / 2", "paper"} <= words
        boxes = [Text.get_window_extent(text, figure.canvas.get_renderer()) for text in texts]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_a_label_without_room_is_an_error():
    figure, (ax,) = plots["figure_of"](1, 1, 1)
    labels = [(0.5, 0.5, "a very long label that fits nowhere", "black", "normal")]
    with pytest.raises(ValueError, match="finds no free place; make the figure larger"):
        plots["place_labels"](figure, ax, labels, [])


def test_who_is_who():
    kinds = {arm: plots["kind_of"](arm) for arm in RUN_ARMS}
    rivals = {arm for arm, kind in kinds.items() if kind == "rival"}
    assert {plots["short"](rival) for rival in rivals} == {
        "tomesd 0.5", "ToDo", "HyperTile", "PAB", "DeepCache 3", "DeepCache 5", "T-GATE",
    }  # fmt: skip
    assert {kinds["preset balanced"], kinds["preset paper"], kinds["full step every 3, last layer"]} == {"preset", "paper", "ours"}


def test_the_front_is_what_nothing_beats():
    points = [(1.0, 9.0, "a"), (2.0, 8.0, "b"), (1.5, 7.0, "beaten"), (3.0, 8.0, "c"), (4.0, 1.0, "d")]
    assert [name for _, _, name in plots["pareto"](points)] == ["a", "c", "d"]


def test_equal_results_give_equal_files(tmp_path):
    results = tmp_path / "results"
    (results / "demo").mkdir(parents=True)
    assert plots["main"](["--results", str(results), "--output", str(tmp_path / "none")]) == 1
    (results / "demo" / "front.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    costs = [
        {"arm": arm, "grid": grid, "milliseconds": float(grid), "layers": 5, "architecture": "sd15", "batch": 2,
         "dtype": "bfloat16", "device": "a device"}
        for arm in ("stock", "ours") for grid in (64, 128)
    ]  # fmt: skip
    (results / "scaling.jsonl").write_text("".join(json.dumps(row) + "\n" for row in costs))
    for folder in ("one", "two"):
        assert plots["main"](["--results", str(results), "--output", str(tmp_path / folder)]) == 0
    for name in ("front.png", "scaling.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
