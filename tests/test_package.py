"""What is built is whole, and nothing else is in it; `make package` runs this before it builds into dist/."""

import ast
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

import agentsd
from agentsd.cli.main import COMMANDS
from agentsd.demo import MODEL_PATH
from agentsd.system.installing import REPOSITORY, install_command

ROOT = Path(__file__).parent.parent
UNWANTED = (
    "results/evaluation",
    "outputs/",
    "dist/",
    "__pycache__",
    ".venv",
    ".git/",
    ".hypothesis",
    ".pytest_cache",
    ".ruff_cache",
)


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RIVALS = {"deepcache", "tgate", "tomesd"}  # what we are measured against: in the development group alone
# Declared, though no module of the package imports them.
UNSEEN = {
    "accelerate": "diffusers loads and offloads with it",
}


def named(requirements):
    return {Requirement(one).name.lower() for one in requirements if isinstance(one, str)}


# Not in constraints.txt: gradio takes no pillow as new as the one there (docs/install.md).
TESTED_BESIDE = {"gradio": "6.31.0"}


def third_party_imports(path):
    """The distributions that a module imports: at once, and only within a function."""
    own = sys.stdlib_module_names | {"agentsd"}
    found = {False: set(), True: set()}

    def visit(node, inside):
        inside |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        packages = {name.partition(".")[0] for name in names} - own
        found[inside] |= {{"PIL": "pillow"}.get(name, name).lower() for name in packages}
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(path.read_text(encoding="utf-8")), False)
    return found[False], found[True]


def test_what_the_package_imports_is_declared():
    needed = named(PROJECT["project"]["dependencies"])
    extras = set().union(*map(named, PROJECT["project"]["optional-dependencies"].values()))
    assert named(PROJECT["dependency-groups"]["dev"]) >= RIVALS
    everything = set()
    for path in (ROOT / "agentsd").rglob("*.py"):
        at_once, within = third_party_imports(path)
        if path == ROOT / "agentsd" / "app" / "page.py":  # loaded by `agentsd app` alone, once gradio is found
            at_once, within = at_once - {"gradio"}, within | {"gradio"}
        assert at_once <= needed, f"{path} imports {at_once - needed}, which pyproject.toml does not declare"
        missing = within - needed - extras - RIVALS
        assert not missing, f"{path} imports {missing}, which neither dependencies nor extras declare"
        everything |= at_once | within
    assert {"safetensors", "tokenizers", "torch", "pillow"} <= everything
    assert needed - everything == UNSEEN.keys()


def test_the_tested_versions_lie_within_the_declared_bounds():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    tested = dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)) | TESTED_BESIDE
    extras = PROJECT["project"]["optional-dependencies"].values()
    for text in (*PROJECT["project"]["dependencies"], *(one for extra in extras for one in extra)):
        requirement = Requirement(text)
        assert [bound.operator for bound in requirement.specifier] == [">="], text
        assert requirement.specifier.contains(tested[requirement.name.lower()]), text


def test_the_extra_for_fid_adds_nothing_as_the_docs_say():
    dependencies, extras = PROJECT["project"]["dependencies"], PROJECT["project"]["optional-dependencies"]
    assert set(extras["fid"]) <= set(dependencies)
    text = " ".join((ROOT / "docs" / "install.md").read_text(encoding="utf-8").split())
    assert "The extra `fid` names only these three, and therefore adds nothing." in text
    assert ".[fid]" not in text


def test_what_is_said_about_installing_works_without_a_package_index():
    assert PROJECT["project"]["urls"]["Repository"] == REPOSITORY
    found = set()
    for pattern in ("*.md", "docs/**/*.md", "agentsd/**/*.py", "examples/**/*", "notebooks/*.ipynb"):
        for path in ROOT.glob(pattern):
            if path.suffix in (".md", ".py", ".txt", ".ipynb") and path.name != "CHANGELOG.md":
                for extra, after in re.findall(r"agentsd\[(\w+)\](.{0,60})", path.read_text(encoding="utf-8")):
                    assert after.startswith(f" @ git+{REPOSITORY}"), f"{path}: agentsd[{extra}]{after}"
                    found.add(extra)
    assert {"app", "notebooks"} <= found <= PROJECT["project"]["optional-dependencies"].keys()
    assert install_command() == f"pip install 'agentsd @ git+{REPOSITORY}'"


def run(*command, **arguments):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    if "CI" not in os.environ:  # there nothing may be left out in silence
        pytest.importorskip("build")
        pytest.importorskip("twine")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(archives):
    (path,) = archives.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        yield path, set(file.namelist()), file


@pytest.fixture(scope="module")
def sdist(archives):
    (path,) = archives.glob("*.tar.gz")
    with tarfile.open(path) as file:
        yield path, {name.partition("/")[2] for name in file.getnames()}


# The README's first example, in few steps.
DRAW = """
import agentsd
from agentsd.demo import model_path
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained(model_path())
with agentsd.apply(pipe):
    pipe("a red ring on a white background", num_inference_steps=4).images[0].save("ring.png")
print(agentsd.__file__)
"""


def model_files():
    return {path.relative_to(ROOT).as_posix() for path in MODEL_PATH.rglob("*") if path.is_file()}


@pytest.mark.slow
class TestPackage:
    def test_twine_has_no_objection(self, archives):
        assert run(sys.executable, "-m", "twine", "check", "--strict", *archives.iterdir()).count("PASSED") == 2

    def test_the_wheel_holds_the_package_and_the_model_and_nothing_else(self, wheel):
        path, names, _ = wheel
        modules = {file.relative_to(ROOT).as_posix() for file in (ROOT / "agentsd").rglob("*.py")}
        wanted = modules | model_files() | {"agentsd/py.typed", "agentsd/cli/measured.json"}
        assert wanted <= names, sorted(wanted - names)
        info = f"agentsd-{agentsd.__version__}.dist-info/"
        others = {name for name in names - wanted if not name.startswith(info)}
        assert {name for name in others if not name.startswith("agentsd/")} == set()
        assert not [name for name in others if name.endswith((".pyc", ".pt", ".log"))]
        assert f"{info}licenses/LICENSE" in names
        assert path.stat().st_size < 40e6

    def test_its_metadata_names_the_extras(self, wheel):
        _, _, file = wheel
        text = file.read(f"agentsd-{agentsd.__version__}.dist-info/METADATA").decode()
        for extra in ("eval", "fid", "lora", "notebooks", "vision"):
            assert f"Provides-Extra: {extra}" in text
        assert "Requires-Python: >=3.11" in text

    def test_the_installed_wheel_is_whole_and_draws(self, wheel, tmp_path):
        """By pip, away from the checkout; torch and the rest are those of this environment."""
        path, _, _ = wheel
        place = tmp_path / "site"
        run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", place, path)
        there = dict(cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(place), "HF_HUB_OFFLINE": "1"})
        command = (sys.executable, place / "bin" / "agentsd")
        for name in COMMANDS:
            assert f"usage: agentsd {name}" in run(*command, name, "--help", **there)
        assert f"demo model: complete ({place}" in run(*command, "info", **there)
        drawn = run(*command, "generate", "--prompt", "a red ring", "--steps", "2", **there)
        assert drawn.startswith("outputs/0000-a-red-ring-seed0-balanced.png: balanced, ")
        assert Path(run(sys.executable, "-c", DRAW, **there).strip()).is_relative_to(place)
        with Image.open(tmp_path / "ring.png") as picture:
            assert picture.size == (256, 256)
            assert len(picture.resize((16, 16)).getcolors()) > 20  # not a blank

    def test_the_sdist_holds_what_is_needed_to_build_and_test(self, sdist):
        path, names = sdist
        for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile",
                     "constraints.txt", "conftest.py", "agentsd/py.typed", "docs/method.md", "scripts/generate.py",
                     "notebooks/01_quickstart.ipynb", "tests/test_contract.py", "docs/img/gauge.png",
                     "results/speed.jsonl", "results/demo/arms.jsonl"):  # fmt: skip
            assert name in names
        assert model_files() <= names
        assert not [name for name in names if any(part in f"{name}/" for part in UNWANTED)]
        assert path.stat().st_size < 60e6

    def test_the_tests_of_documents_pass_in_the_unpacked_sdist(self, sdist, tmp_path):
        """They read most of the tree: what is left out of the archive shows here."""
        path, _ = sdist
        with tarfile.open(path) as file:
            file.extractall(tmp_path, filter="data")
        (root,) = tmp_path.iterdir()
        tests = [f"tests/test_{name}.py" for name in ("info", "layers", "notebooks", "plots", "readme", "tables")]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        # Not what runs code for seconds: it does so in the checkout.
        chosen = ["-k", "not code_runs and not python_block and not command_line and not lines_that and not importing"]
        run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, *tests, cwd=root, env=environment)
