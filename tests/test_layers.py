"""Modules import downwards only, and `import agentsd` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "agentsd"

# A module imports from lower layers, and within its own layer only what it names here.
LAYERS = (
    {
        "config": (),
        "plans": ("config",),
        "presets": ("config",),
        "report": ("config",),
        "attention": (),
        "tokens": (),
        "steps": (),
        "precision": (),
    },
    {
        "processor": (),
        "guidance": (),
        "reuse": (),
        "sites": ("processor",),
        "runtime": ("guidance", "processor", "reuse", "sites"),
    },
    {"patch": (), "pipeline": ("patch",)},
    {
        "metrics": (),
        "bench": (),
        "rows": (),
        "front": ("arms", "bench", "metrics", "rows"),
        "rankings": (),
        "arms": ("rankings",),
        "architectures": (),
        "planning": ("architectures", "bench", "metrics"),
        "generate": (),
        "compare": ("bench", "generate", "metrics"),
        "files": ("generate",),
        "visual": (),
        "info": (),
        "__main__": ("info",),
    },
    {
        "evaluation.captions": (),
        "evaluation.statistics": (),
        "evaluation.inception": (),
        "evaluation.features": ("evaluation.inception",),
        "evaluation.clip_score": ("evaluation.inception", "evaluation.statistics"),
    },
    {
        "evaluation.options": (),
        "evaluation.store": (),
        "evaluation.arms": ("evaluation.store",),
        "evaluation.manifest": ("evaluation.store",),
        "evaluation.processes": ("evaluation.store",),
        "evaluation.reference": ("evaluation.store",),
        "evaluation.drawing": ("evaluation.arms", "evaluation.manifest"),
        "evaluation.results": ("evaluation.arms", "evaluation.reference", "evaluation.store"),
        "evaluation.timing": ("evaluation.arms",),
        "evaluation.measures": (
            "evaluation.arms",
            "evaluation.drawing",
            "evaluation.manifest",
            "evaluation.reference",
            "evaluation.store",
        ),
        "evaluation.tables": ("evaluation.results",),
        "evaluation.report": ("evaluation.arms", "evaluation.results", "evaluation.store", "evaluation.tables"),
        "evaluation.run": (
            "evaluation.arms",
            "evaluation.drawing",
            "evaluation.manifest",
            "evaluation.measures",
            "evaluation.options",
            "evaluation.processes",
            "evaluation.reference",
            "evaluation.report",
            "evaluation.results",
            "evaluation.store",
            "evaluation.timing",
        ),
    },
)
TOOLS = 3  # the first layer that reads the version and finds the demo model
LEVEL = {name: level for level, modules in enumerate(LAYERS) for name in modules}


def imports(path: Path) -> set[str]:
    """Names of all agentsd modules that a file imports, anywhere in it; `__init__` is agentsd itself."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively"
            package = node.module in ("agentsd", "agentsd.evaluation")
            names = [f"{node.module}.{alias.name}" for alias in node.names] if package else [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            head, _, rest = (name or "").partition(".")
            if head == "agentsd":
                module, _, part = rest.partition(".")
                if module == "evaluation":
                    found.add(f"evaluation.{part.partition('.')[0]}")
                    continue
                exists = (PACKAGE / f"{module}.py").is_file() or (PACKAGE / module).is_dir()
                found.add(module if module and exists else "__init__")
    return found


MODULES = sorted(
    prefix + path.stem
    for folder, prefix in ((PACKAGE, ""), (PACKAGE / "evaluation", "evaluation."))
    for path in folder.glob("*.py")
    if path.stem != "__init__"
)


def test_every_module_has_a_layer():
    assert set(MODULES) == set(LEVEL)


@pytest.mark.parametrize("name", [name for name in MODULES if name in LEVEL])
def test_modules_import_downwards_only(name):
    level = LEVEL[name]
    for other in imports(PACKAGE / f"{name.replace('.', '/')}.py"):
        if level >= TOOLS and other in ("__init__", "demo"):
            continue  # the tools read the version and find the demo model
        assert other in LEVEL, f"{name} imports {other}"
        assert LEVEL[other] < level or other in LAYERS[level][name], f"{name} imports {other}, which is not below it"


def test_the_layer_check_sees_imports(tmp_path):
    file = tmp_path / "sample.py"
    file.write_text(
        "from agentsd import patch, apply\ndef f():\n    import agentsd.tokens\n    from agentsd.demo.text import x\n"
    )
    assert imports(file) == {"patch", "__init__", "tokens", "demo"}
    file.write_text("from agentsd.evaluation import captions\nfrom agentsd.evaluation.features import Extractor\n")
    assert imports(file) == {"evaluation.captions", "evaluation.features"}


def test_importing_agentsd_is_light():
    code = (
        "import sys, agentsd; heavy = ('diffusers', 'transformers', 'torchmetrics', 'scipy', 'matplotlib', 'PIL');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "[]"
