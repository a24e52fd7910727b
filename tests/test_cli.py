"""The command `agentsd`: its parser, its lines in the docs, what it says, and what it hides."""

import argparse
import io
import logging
import re
import shlex
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from agentsd.bench.store import UnfinishedError
from agentsd.cli import main as cli
from agentsd.cli.main import COMMANDS, explain, guard, main, memory_advice, parser
from agentsd.cli.printer import quiet, say
from agentsd.system.warning import warn_user

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]


def lines_of(page):
    """The lines of a page that start `agentsd`, as words."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            match = re.fullmatch(r"(?:\S*python3? -m )?(?:\S*/)?agentsd (.+)", line.strip())
            if match:
                yield shlex.split(match[1], comments=True)


LINES = [(page, words) for page in PAGES for words in lines_of(page)]


def test_every_line_of_the_docs_is_understood(monkeypatch):
    monkeypatch.setattr(argparse.ArgumentParser, "exit", lambda self, status=0, message=None: pytest.fail(message))
    for page, words in LINES:
        if "--help" not in words:
            assert parser().parse_args(words).command in COMMANDS, page
    assert {words[0] for page, words in LINES if page == "docs/cli.md"} == set(COMMANDS)


def test_help_comes_at_once_in_a_process_of_its_own():
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "agentsd", "--help"], capture_output=True, text=True, check=True)
    assert time.perf_counter() - began < 3  # torch alone takes longer on this kind of machine
    assert all(re.search(rf"^ +{command}\b", done.stdout, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert f"usage: agentsd {command}" in capsys.readouterr().out


@pytest.mark.parametrize(("command", "package"), [("app", "gradio"), ("bench", "none")])
def test_what_is_not_installed_is_said(command, package, monkeypatch, capsys):
    def missing(name, *rest):
        raise ImportError(f"no {package}", name=package)

    monkeypatch.setattr(cli, "_module", lambda name: argparse.Namespace(run=missing))
    assert guard(f"agentsd {command}", lambda: cli._module(command).run(None)) == 2
    assert capsys.readouterr().err == f"agentsd {command}: error: no {package}\n"


def test_errors_have_codes_and_name_options():
    options = parser().parse_args(["evaluate", "--size", "64"])
    assert explain(ValueError("height=64 is too small."), options) == (2, "error: --size 64 is too small.")
    assert explain(ValueError("two\nlines"), options) == (2, "error: two lines")
    assert explain(UnfinishedError("disk full"), options) == (3, "unfinished: disk full")
    assert explain(KeyError("a defect"), options) is None
    generate = parser().parse_args(["generate", "--batch-size", "4", "--width", "512"])
    assert memory_advice(generate).endswith("Try --batch-size 2 --width 256.")


def test_an_interrupt_is_one_line(capsys):
    def stop():
        raise KeyboardInterrupt

    assert guard("agentsd bench", stop) == 130
    assert capsys.readouterr().err == "agentsd bench: stopped\n"


def test_a_traceback_can_be_asked_for(monkeypatch):
    def fail():
        raise ValueError("steps=0")

    monkeypatch.setenv("AGENTSD_TRACEBACK", "1")
    with pytest.raises(ValueError, match="steps=0"):
        guard("agentsd bench", fail)


def test_letters_that_a_pipe_cannot_take_are_written_in_ascii(monkeypatch):
    pipe = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", pipe)
    say("é Δ")
    assert pipe.buffer.getvalue() == b"\xe9 \\u0394\n"


def test_warnings_of_others_are_hidden_and_ours_are_one_line(capsys):
    before = logging.getLogger().level, dict(cli.os.environ)
    with quiet():
        warnings.warn_explicit("theirs", FutureWarning, "x.py", 1, module="diffusers.utils", registry={})
        warn_user("ours,\non two lines")
    assert capsys.readouterr().err == "warning: ours, on two lines\n"
    assert (logging.getLogger().level, dict(cli.os.environ)) == before
