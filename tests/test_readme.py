"""README and docs run, and what they name is there."""

import argparse
import re
import runpy
import shlex
import textwrap
import tomllib
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
from diffusers import StableDiffusionXLPipeline
from tiny import make_sdxl_pipe, make_tiny_pipe

from agentsd.cli.main import main
from agentsd.evaluation.arms import base_arms
from agentsd.evaluation.options import prompts_of
from agentsd.evaluation.protocols import PROTOCOLS
from agentsd.pictures.settings import DEMO

ROOT = Path(__file__).parent.parent
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
PAGES = ("README.md", "CONTRIBUTING.md", *DOCS)
BASE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
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
    load = StableDiffusionXLPipeline.from_pretrained
    monkeypatch.setattr(
        StableDiffusionXLPipeline,
        "from_pretrained",
        lambda name, **given: load(name, **given) if Path(name).is_dir() else make_sdxl_pipe(),  # never from the hub
    )
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


class ParsedError(Exception):
    """The command line was understood, and nothing else shall happen."""


def command_lines(page):
    """Our scripts that a page starts, with their arguments; `...` stands for a value, or for more arguments."""
    for block in code_blocks("sh", page):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            start = next((i for i, word in enumerate(words) if word.startswith("scripts/")), None)
            if start is not None:
                given = [word for before, word in pairwise(words[start:]) if word != "..." or before.startswith("--")]
                yield words[start], given


def evaluation_options():
    """Arguments of fid_eval.py that stand in the Makefile, or within the sentences of a page."""
    (default,) = re.findall(r"^EVAL_OPTIONS \?= (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    yield "Makefile", ["--reference", "demo", *shlex.split(default)]
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for given in re.findall(r'EVAL_OPTIONS="([^"]*)"|`(--arm "[^`]*"|--num [^`]*)`', text):
            yield page, shlex.split("".join(given))


EVALUATES = "scripts/fid_eval.py"
LINES = [(page, script, words) for page in PAGES for script, words in command_lines(page)]
LINES += [(page, EVALUATES, words) for page, words in evaluation_options()]


@pytest.mark.parametrize(("page", "script", "words"), LINES, ids=lambda value: value if isinstance(value, str) else "")
def test_every_command_line_is_understood(page, script, words, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self, *args, **kwargs):
        parse(self, *args, **kwargs)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    with pytest.raises(ParsedError):
        runpy.run_path(str(ROOT / script))["main"](words)


def test_command_lines_are_found_and_misspelt_ones_noticed(monkeypatch):
    assert {"scripts/fid_eval.py", "scripts/benchmark.py"} <= {script for _, script, _ in LINES}
    with pytest.raises(SystemExit):
        test_every_command_line_is_understood("README.md", "scripts/generate.py", ["--promt", "a ring"], monkeypatch)


def evaluate_nothing(options):
    """Read what an evaluation is told as far as the files are there."""
    options = options.completed()
    options.settings()
    base_arms(options.arms, options.steps or 50)
    if options.protocol is None and (options.captions == DEMO or Path(options.captions).is_file()):
        prompts_of(options)
    raise ParsedError


@pytest.mark.parametrize(
    ("page", "words"),
    [(page, words) for page, script, words in LINES if script == EVALUATES],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_lines_that_evaluate_have_good_arms_and_options(page, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("agentsd.evaluation.run.evaluate", evaluate_nothing)
    with pytest.raises(ParsedError):
        runpy.run_path(str(ROOT / EVALUATES))["main"](words)


def test_every_protocol_has_a_command():
    words = [words for page, script, words in LINES if (page, script) == ("docs/evaluation.md", EVALUATES)]
    assert {after for line in words for before, after in pairwise(line) if before == "--protocol"} == PROTOCOLS.keys()


def test_bad_arms_and_options_are_noticed(monkeypatch, capsys):
    assert {"Makefile", "docs/evaluation.md"} <= {page for page, script, _ in LINES if script == EVALUATES}
    for words, said in (
        (["--arm", "mine:preset=papr"], "preset 'papr' is unknown"),
        (["--protocol", "paper"], "reference is missing"),
        (["--arm", "a:ratio=0.3,preset=paper", "--arm", "a:preset=fast"], "rename one"),
    ):
        with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
            test_the_lines_that_evaluate_have_good_arms_and_options("README.md", words, monkeypatch)
        assert said in capsys.readouterr().err


def drawing_lines(page):
    """The lines of a page that draw by the command `agentsd`, and those that write what others read."""
    for block in code_blocks("sh", page):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["agentsd"] and words[1] in ("generate", "compare", "calibrate"):
                yield words[1:]


@pytest.mark.parametrize("page", [page for page in PAGES if list(drawing_lines(page))])
def test_the_lines_that_draw_run_in_order(page, tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AGENTSD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for words in drawing_lines(page):
        draws = words[0] != "calibrate"
        small = ["--steps", "2"] if draws else ["--steps", "12", "--psnr", "10", "--prompt", "a"]
        if not draws:  # a target that random weights meet
            words = words[: min(words.index(one) for one in ("--psnr", "--tolerance") if one in words)]
        if "--height" in words:
            small += ["--height", "32", "--width", "32"]
        code = main([*words, *small, "--model", str(tiny_model), "--device", "cpu"])
        shown = capsys.readouterr()
        assert code == 0, shown.err
        if draws:
            assert Path(words[words.index("--output") + 1] if "--output" in words else "outputs").exists()


def test_the_readme_has_absolute_links_that_are_read_on_a_package_index():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    raw = BASE.replace("github.com", "raw.githubusercontent.com") + "/main/"
    ours = [link for link in links if link.startswith((BASE, raw))]
    assert len(ours) > 10
    assert [link for link in ours if not link.startswith((f"{BASE}/blob/main/", f"{BASE}/tree/main/", raw))] == []


def relative_links(page):
    """The links of a page; the absolute ones into the repository become relative to the page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    up = "../" * page.count("/")
    raw = BASE.replace("github.com", "raw.githubusercontent.com")
    text = re.sub(rf"{BASE}/(?:blob|tree)/main/|{raw}/main/", up, text)
    return [link.partition("#") for link in re.findall(r"\]\(([\w./#-]+)\)", text)]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)`", text)) | set(re.findall(r"^ *make ([a-z-]+)", text, re.MULTILINE))
    assert named <= targets, f"{page} names make targets that are missing: {named - targets}"
    paths = {
        ROOT / path
        for path in re.findall(r"(?<![\w/])(?:scripts|tests|notebooks|agentsd)/[\w./]+\.(?:py|ipynb)\b", text)
    }
    links = relative_links(page)
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
    opened, closed = re.findall(r"<!-- table:([\w-]+) -->", README), re.findall(r"<!-- /table:([\w-]+) -->", README)
    assert opened == closed != []


def test_contributing_lists_every_folder():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    folders = {path.parent.name for path in (ROOT / "agentsd").glob("*/__init__.py")}
    listed = set(re.findall(r"`agentsd/(\w+)/`", text))
    assert folders <= listed <= folders | {"vision"}
