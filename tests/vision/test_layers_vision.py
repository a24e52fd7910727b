"""Modules of the vision side import downwards only, and are short enough to read in one sitting."""

import ast
from pathlib import Path

import agentsd.vision

PACKAGE = Path(agentsd.vision.__file__).parent

# A module imports those before it; of the rest of the package, the shared core, `system` and the demo's scenes alone.
ORDER = (
    "functional",
    "resize",
    "caching",
    "attention",
    "softmax",
    "layers",
    "configs",
    "stage",
    "model",
    "create",
    "flops",
    "published",
    "files",
    "preprocess",
    "registry",
    "segmentation",
    "detection",
    "data",
    "training",
    "example",
    "visual",
    "__main__",
)
OUTSIDE = {"functional": {"attention"}, "data": {"demo"}, "segmentation": {"system"}, "training": {"system"}}


def imported(path):
    """Names after `agentsd.` and after `agentsd.vision.` that a file imports, anywhere in it."""
    outside, inside = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            names = [node.module]
        for name in names:
            parts = name.split(".")
            if parts[0] == "agentsd" and parts[1:2] == ["vision"]:
                inside.add(parts[2] if len(parts) > 2 else "__init__")
            elif parts[0] == "agentsd":
                outside.add(parts[1] if len(parts) > 1 else "__init__")
    return outside, inside


def test_every_module_has_its_place():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*ORDER, "__init__"}


def test_modules_import_downwards_only():
    for place, name in enumerate(ORDER):
        outside, inside = imported(PACKAGE / f"{name}.py")
        allowed = {*ORDER[:place]} | ({"__init__"} if name == "__main__" else set())
        assert inside <= allowed, f"{name} imports {inside - allowed}"
        assert outside <= OUTSIDE.get(name, set()), f"{name} imports {outside}"


def test_the_check_sees_imports(tmp_path):
    file = tmp_path / "a.py"
    file.write_text(
        "from agentsd.vision import create_model\n"
        "def f():\n    from agentsd.vision.data import x\n    import agentsd.patch"
    )
    assert imported(file) == ({"patch"}, {"__init__", "data"})


def test_modules_are_short():
    for path in PACKAGE.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, path.name
