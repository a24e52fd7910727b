"""Folders import downwards only, modules never in a circle, and `import agentsd` stays light."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "agentsd"

# From the lowest to the highest. What stands on one line may import each other, but no module in a circle.
LAYERS = (
    ("attention", "schedule", "system"),
    ("presets", "planning.plans"),
    ("unet",),
    ("patch",),
    ("planning", "demo"),
    ("bench",),
    ("calibration",),
    ("pictures",),
    ("app", "cli", "evaluation", "vision"),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def place(module: str) -> str:
    """The entry of `LAYERS` that a module belongs to."""
    return module if module in RANK else module.partition(".")[0]


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    del found[""]  # agentsd itself gathers names from everywhere
    return found


MODULES = modules()


def imports(path: Path, *, at_import: bool = False) -> set[str]:
    """Names of the agentsd modules that a file imports, anywhere in it or only `at_import`."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.If)
        for node in ast.walk(outer)
        if node is not outer
    }
    for node in ast.walk(tree):
        if at_import and id(node) in inner:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            head, _, rest = name.partition(".")
            while head == "agentsd" and rest and rest not in MODULES:
                rest = rest.rpartition(".")[0]
            if head == "agentsd":
                found.add(rest)
    return found


def test_every_module_has_a_layer():
    assert not [name for name in MODULES if place(name) not in RANK]


@pytest.mark.parametrize("name", MODULES)
def test_folders_import_downwards_only(name):
    for other in imports(MODULES[name]) - {""}:  # the version is read from agentsd itself
        assert RANK[place(other)] <= RANK[place(name)], f"{name} imports {other}, which is above it"


LONGEST = 300


def test_modules_are_read_in_one_sitting():
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert not {name: number for name, number in lines.items() if number > LONGEST}


def test_no_circles():
    graph = {name: imports(path, at_import=True) - {"", name} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {error.args[1]}")


def test_the_check_sees_imports(tmp_path):
    file = tmp_path / "sample.py"
    file.write_text(
        "from agentsd import patch, apply\n"
        "def f():\n    import agentsd.attention.tokens\n    from agentsd.demo.text import x\n"
    )
    assert imports(file) == {"patch", "", "attention.tokens", "demo.text"}
    assert imports(file, at_import=True) == {"patch", ""}


def loaded_by(code: str) -> set[str]:
    """Names of the modules that a new process has loaded after running some code."""
    code += "; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return set(done.stdout.split())


def test_importing_agentsd_loads_nothing_else():
    loaded = loaded_by("import agentsd")
    assert "torch" not in loaded
    assert not [name for name in loaded if name.startswith("agentsd.")]


def test_the_parser_of_the_command_line_needs_neither_torch_nor_pillow():
    loaded = loaded_by("from agentsd.cli.main import parser; parser()")
    assert not loaded & {"torch", "diffusers", "transformers", "numpy", "PIL"}


def test_applying_loads_torch_and_the_core_alone():
    loaded = loaded_by("import agentsd; agentsd.apply; agentsd.Plan")
    assert "torch" in loaded
    others = {"diffusers", "transformers", "torchmetrics", "scipy", "matplotlib", "PIL", "platformdirs", "safetensors"}
    assert not loaded & {*others, "torch._dynamo"}  # the compiler alone takes seconds
    folders = {name.split(".")[1] for name in loaded if name.startswith("agentsd.")}
    assert folders <= {"attention", "patch", "planning", "presets", "schedule", "system", "unet"}
    assert "agentsd.planning.plans" in loaded
    assert "agentsd.planning.measuring" not in loaded


@pytest.mark.slow  # another process, and imports of seconds
def test_planning_loads_neither_the_bench_nor_the_demo():
    loaded = loaded_by("import agentsd; agentsd.plan")
    assert "agentsd.planning.measuring" in loaded
    assert not [name for name in loaded if name.startswith(("agentsd.bench", "agentsd.demo", "agentsd.evaluation"))]


def packages(path: Path) -> set[str]:
    """Names of the packages that a file imports anywhere."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("name", ["planning.plans", "presets", "schedule"])
def test_plans_and_settings_are_plain_data(name):
    assert not packages(MODULES[name]) & {"torch", "diffusers", "numpy"}
