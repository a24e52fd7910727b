"""The README runs, and what it names is there."""

import re
from pathlib import Path

import pytest
from tiny import make_tiny_pipe

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "CONTRIBUTING.md")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_every_python_block_runs_in_order(tmp_path, monkeypatch):
    model = tmp_path / "model"
    make_tiny_pipe().save_pretrained(model)
    monkeypatch.setattr("agentsd.demo.model_path", lambda: model)  # the same, but faster
    monkeypatch.chdir(tmp_path)
    blocks = code_blocks("python")
    assert blocks
    names: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "ring.png").is_file()


def test_the_first_block_is_short_and_near_the_top():
    assert len(code_blocks("python")[0].splitlines()) <= 8
    assert README.index("```python") < README.index("\n## ")


def test_every_command_line_is_understood():
    from test_generate import load_script

    parser = load_script().parser()
    lines = [line for block in code_blocks("sh") for line in block.splitlines() if "scripts/generate.py" in line]
    assert lines
    for line in lines:
        words = re.findall(r'"[^"]*"|\S+', line)
        parser.parse_args([word.strip('"') for word in words[words.index("scripts/generate.py") + 1 :]])


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)`", text))
    assert named <= targets, f"{page} names make targets that are missing: {named - targets}"
    paths = set(re.findall(r"\b(?:scripts|tests)/[\w.]+\.py\b", text)) | set(re.findall(r"\]\(([\w./-]+)\)", text))
    missing = [path for path in sorted(paths) if not (ROOT / path).exists()]
    assert not missing, f"{page} names files that are missing: {missing}"


def test_the_readme_states_both_commands_and_keeps_its_tables_marked():
    assert "`make demo`" in README
    assert "`make test`" in README
    opened, closed = re.findall(r"<!-- table:(\w+) -->", README), re.findall(r"<!-- /table:(\w+) -->", README)
    assert opened == closed != []


def test_contributing_lists_every_module():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    modules = {path.name for path in (ROOT / "agentsd").glob("*.py")} - {"__init__.py"}
    listed = set(re.findall(r"^  (\w+\.py) ", text, re.MULTILINE))
    assert listed == modules
