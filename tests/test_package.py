"""What is built is whole, and nothing else is in it; `make package` runs this before it builds into dist/."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import agentsd
from agentsd.demo import MODEL_PATH

ROOT = Path(__file__).parent.parent
UNWANTED = (
    "results/",
    "outputs/",
    "dist/",
    "__pycache__",
    ".venv",
    ".git/",
    ".hypothesis",
    ".pytest_cache",
    ".ruff_cache",
)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
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


def model_files():
    return {path.relative_to(ROOT).as_posix() for path in MODEL_PATH.rglob("*") if path.is_file()}


@pytest.mark.slow
class TestPackage:
    def test_twine_has_no_objection(self, archives):
        pytest.importorskip("twine")
        command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, archives.iterdir())]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("PASSED") == 2

    def test_the_wheel_holds_the_package_and_the_model_and_nothing_else(self, wheel):
        path, names, _ = wheel
        modules = {file.relative_to(ROOT).as_posix() for file in (ROOT / "agentsd").rglob("*.py")}
        wanted = modules | model_files() | {"agentsd/py.typed"}
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
        for extra in ("eval", "lora", "notebooks"):
            assert f"Provides-Extra: {extra}" in text
        assert "Requires-Python: >=3.11" in text

    def test_the_installed_wheel_draws_and_is_whole(self, wheel, tmp_path):
        path, _, _ = wheel
        with zipfile.ZipFile(path) as file:
            file.extractall(tmp_path)
        done = subprocess.run(
            [sys.executable, "-m", "agentsd", "info"], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"demo model: whole ({tmp_path}" in done.stdout

    def test_the_sdist_holds_what_is_needed_to_build_and_test_and_no_results(self, sdist):
        path, names = sdist
        for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile",
                     "constraints.txt", "conftest.py", "agentsd/py.typed", "docs/method.md", "scripts/generate.py",
                     "notebooks/01_quickstart.ipynb", "tests/test_contract.py"):  # fmt: skip
            assert name in names
        assert model_files() <= names
        assert not [name for name in names if any(part in f"{name}/" for part in UNWANTED)]
        assert path.stat().st_size < 60e6
