"""README and docs run, and what they name is there."""

import re
import textwrap
import warnings
from pathlib import Path

import pytest
from tiny import make_tiny_pipe

ROOT = Path(__file__).parent.parent
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
PAGES = ("README.md", "CONTRIBUTING.md", *DOCS)
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks(language, page="README.md"):
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for _, block in found]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_tiny_pipe().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("page", [page for page in ("README.md", *DOCS) if code_blocks("python", page)])
def test_every_python_block_runs_in_order(page, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("agentsd.demo.model_path", lambda: tiny_model)  # the same, but faster
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*agentsd.*")
        for block in code_blocks("python", page):
            exec(compile(block, page, "exec"), names)
    assert page != "README.md" or (tmp_path / "ring.png").is_file()


def test_the_first_block_is_short_and_near_the_top():
    assert len(code_blocks("python")[0].splitlines()) <= 8
    assert README.index("```python") < README.index("\n## ")


def test_every_command_line_is_understood():
    from test_generate import load_script

    parser = load_script().parser()
    blocks = [block for page in ("README.md", *DOCS) for block in code_blocks("sh", page)]
    lines = [line for block in blocks for line in block.splitlines() if "scripts/generate.py" in line]
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
    paths = {ROOT / path for path in re.findall(r"\b(?:scripts|tests|notebooks|agentsd)/[\w./]+\.(?:py|ipynb)\b", text)}
    links = [link.partition("#") for link in re.findall(r"\]\(([\w./#-]+)\)", text)]
    paths |= {(ROOT / page).parent / path for path, _, _ in links}
    missing = [str(path) for path in sorted(paths) if not path.exists()]
    assert not missing, f"{page} names files that are missing: {missing}"
    for path, _, anchor in links:
        target = (ROOT / page).parent / path if path else ROOT / page
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            found = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in found, f"{page} links to #{anchor}, which {target.name} does not have"


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
