"""The notebooks run, are small, and hold no logic of their own."""

import ast
import json
from pathlib import Path

import pytest
from tiny import make_tiny_pipe

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
CELL_SECONDS = 360  # a cell takes less than 30 on one core: what hangs must end


def sources(path):
    return [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def test_all_four_are_there():
    names = ["01_quickstart", "02_how_it_works", "03_choosing_a_setting", "04_trained_agents"]
    assert [path.stem for path in NOTEBOOKS] == names


@notebooks
def test_it_is_valid_and_small(path):
    nbformat.validate(nbformat.read(path, 4))
    assert path.stat().st_size < 3e6


@notebooks
def test_it_defines_nothing(path):
    for source in sources(path):
        kinds = {type(node) for node in ast.walk(ast.parse(source))}
        assert not kinds & {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda}, source


@notebooks
def test_every_cell_was_run_and_a_picture_is_kept(path):
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run `make notebooks`"
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    text = json.dumps([cell.outputs for cell in cells])
    assert "/work/" not in text
    assert "/home/" not in text


@notebooks
def test_its_code_runs(path, tmp_path, monkeypatch):
    """On a tiny model and in this process: fast enough for every day."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    make_tiny_pipe().save_pretrained(tmp_path / "model")
    monkeypatch.setattr("agentsd.demo.model_path", lambda: tmp_path / "model")
    names: dict = {}
    for source in sources(path):
        exec(compile(source, path.name, "exec"), names)
    pyplot.close("all")


@pytest.mark.slow
def test_the_first_runs_as_a_notebook():
    """On the demo model, in a kernel of its own, as a reader runs it; `make notebooks` runs all of them like this."""
    path = NOTEBOOKS[0]
    nbclient = pytest.importorskip("nbclient")
    client = nbclient.NotebookClient(nbformat.read(path, 4), timeout=CELL_SECONDS, kernel_name="python3")
    client.execute(cwd=str(path.parent))
