"""The Hugging Face Space of examples/space, and starting the page: it is built without a browser, errors are told."""

import re
import runpy
import socket
import sys
from pathlib import Path

import pytest

from agentsd.cli.main import main

SPACE = Path(__file__).parent.parent / "examples" / "space"


def space():
    return runpy.run_path(str(SPACE / "app.py"), run_name="space")


def test_it_starts_the_page_open_with_one_model_and_limits(monkeypatch, tmp_path):
    started = []

    def launch(model, **settings):
        started.append((model, settings))
        raise KeyboardInterrupt

    monkeypatch.setattr("agentsd.app.launch", launch)
    with pytest.raises(KeyboardInterrupt):
        space()["main"]()
    ((model, settings),) = started
    assert (model, settings["host"], settings["port"]) == ("demo", "0.0.0.0", 7860)
    assert settings["most_steps"] <= 50
    assert settings["most_side"] <= 512
    assert "any_model" not in settings


def test_its_front_matter_and_requirements_are_what_a_space_needs():
    text = (SPACE / "README.md").read_text(encoding="utf-8")
    fields = dict(re.findall(r"^(\w+): (.+)$", text.split("---\n")[1], re.MULTILINE))
    assert fields["sdk"] == "gradio"
    assert int(fields["sdk_version"].split(".")[0]) >= 6  # what the extra asks for
    assert (SPACE / fields["app_file"]).is_file()
    assert len(fields["short_description"]) <= 60
    assert (SPACE / "requirements.txt").read_text().startswith("agentsd[app] @ git+https://")


def test_without_gradio_it_says_what_to_install(monkeypatch, tmp_path):
    from agentsd.app.starting import make

    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"run pip install 'agentsd\[app\] @ git\+https://"):
        make("demo", tmp_path)


def test_the_page_is_built(tmp_path):
    gradio = pytest.importorskip("gradio")
    from agentsd.app.starting import make

    settings = {name: value for name, value in space()["SETTINGS"].items() if name.startswith("most_")}
    page = make("demo", tmp_path, device="cpu", only="demo", **settings)
    assert isinstance(page, gradio.Blocks)
    labels = {str(getattr(block, "label", None)) for block in page.blocks.values()}
    assert "Prompt" in labels
    assert any("to 512" in label for label in labels), "the limit on the size is shown"


@pytest.mark.parametrize(
    "words", [["--dtype", "float8"], ["--port", "99999"], ["--most-steps", "0"], ["--most-side", "5"]]
)
def test_bad_options_of_the_page_are_refused_by_the_parser(words, capsys):
    with pytest.raises(SystemExit) as left:
        main(["app", *words])
    assert left.value.code == 2
    assert f"argument {words[0]}: '{words[1]}'" in capsys.readouterr().err


def test_an_address_that_is_none_is_told(capsys):
    assert main(["app", "--host", "no address"]) == 2
    assert "--host 'no address' is no address; give 127.0.0.1" in capsys.readouterr().err


def test_a_taken_port_and_a_missing_model_are_told(tmp_path):
    pytest.importorskip("gradio")
    from agentsd.app import launch

    with pytest.raises(ValueError, match="model='/nowhere' does not exist"):
        launch("/nowhere", output=tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port={port} of 127.0.0.1 cannot be used"):
            launch(port=port, output=tmp_path)
