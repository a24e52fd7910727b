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
    ("attention", "schedule"),
    ("presets",),
    ("planning.plans",),
    ("unet",),
    ("patch",),
    ("bench.precision",),
    ("demo",),
    ("bench",),
    ("planning",),
    ("pictures",),
    ("pipeline", "cli", "evaluation", "vision"),
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


def test_importing_agentsd_is_light():
    code = (
        "import sys, agentsd; heavy = ('diffusers', 'transformers', 'torchmetrics', 'scipy', 'matplotlib', 'PIL');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "[]"
