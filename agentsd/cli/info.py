"""Show versions, devices, the presets with their figures, and whether the bundled model is complete."""

import argparse
import json
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from agentsd.bench.about import about_preset
from agentsd.cli.printer import say
from agentsd.presets import PRESETS

HELP = "versions, devices, presets with their figures"
MEASURED = Path(__file__).with_name("measured.json")
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "numpy")
_SETUP = ("weights", "prompts", "steps", "size", "dtype", "device", "threads", "torch", "diffusers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `agentsd info`."""
    parser.add_argument("--json", action="store_true", help="print the same as JSON")


def run(options: argparse.Namespace) -> int:
    """Print the facts; return 1 if the bundled model is not complete."""
    facts = collect()
    say(json.dumps(facts, indent=2) if options.json else describe(facts))
    return 0 if facts["demo_model"]["whole"] else 1


def collect() -> dict[str, Any]:
    """Return everything that `agentsd info` shows, in JSON's types.

    Returns:
        `agentsd`, `python`, `packages` (name to version, `None` if missing), `devices`, `presets` (name to figures,
        `None` if there are none for the settings in force), `measured_with`, and `demo_model` (`path`, `whole`,
        `problems`).

    Example:
        >>> collect()["demo_model"]["problems"]
        []
    """
    import agentsd

    measured = read_measured()
    return {
        "agentsd": agentsd.__version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": _devices(),
        "default_preset": "balanced",
        "presets": {name: current_figures(name, measured) for name in PRESETS},
        "measured_with": measured.get("setup"),
        "demo_model": _demo_model(),
    }


def read_measured(path: Path = MEASURED) -> dict[str, Any]:
    """Return the figures that come with the package; empty if there are none.

    Args:
        path: The file, made by `scripts/dev/measured.py` from a committed result file.

    Raises:
        ValueError: If the file is no JSON object.

    Example:
        >>> read_measured(Path("missing.json"))
        {}
    """
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}; run scripts/dev/measured.py or install again.") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}; it must hold an object: run scripts/dev/measured.py.")
    return data


def summarise(rows: Iterable[Mapping[str, Any]], source: str) -> dict[str, Any]:
    """Return the figures of the presets from the rows of a result file.

    Args:
        rows: The rows, one for each arm; those that are no presets are left out.
        source: The file that they come from.

    Returns:
        `source`, `setup` and `presets`: what `measured.json` holds.

    Raises:
        ValueError: If presets were measured with different set-ups.

    Example:
        >>> summarise([], "results/demo/arms.jsonl")["presets"]
        {}
    """
    chosen = [row for row in rows if row["arm"].removeprefix("preset ") in PRESETS and row["arm"].startswith("preset ")]
    setups = [{key: row[key] for key in _SETUP if key in row} for row in chosen]
    if any(setup != setups[0] for setup in setups):
        raise ValueError(f"rows of {source} were measured with different set-ups; measure the presets together.")
    return {
        "source": source,
        "setup": setups[0] if setups else {},
        "presets": {
            row["arm"].removeprefix("preset "): {
                "settings": row["settings"],
                "speedup": row["speedup"],
                "speedup_95": row["speedup_95"],
                "psnr_db": row["psnr_db_median"],
                "ssim": row["ssim_median"],
                "attribute_accuracy": row["attribute_accuracy"],
            }
            for row in chosen
        },
    }


def current_figures(name: str, measured: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the figures of a preset; `None` if it has none or was measured with other settings than it has now.

    Args:
        name: One of `PRESETS`.
        measured: What `read_measured` returned.

    Example:
        >>> current_figures("fast", {"presets": {"fast": {"settings": "others", "speedup": 9.0}}}) is None
        True
    """
    figures: dict[str, Any] | None = measured.get("presets", {}).get(name)
    return figures if figures is not None and figures["settings"] == PRESETS[name].to_json() else None


def describe(facts: Mapping[str, Any]) -> str:
    """Return what `collect` found as lines of text.

    Args:
        facts: What `collect` returned.

    Example:
        >>> describe(collect()).splitlines()[0].split()[0]
        'agentsd'
    """
    packages = ", ".join(f"{name} {number or 'not installed'}" for name, number in facts["packages"].items())
    lines = [f"agentsd {facts['agentsd']}, Python {facts['python']}", packages]
    lines.append("devices: " + "; ".join(facts["devices"]))
    lines.append("presets:")
    for name, figures in facts["presets"].items():
        default = " (default)" if name == facts["default_preset"] else ""
        lines.append(f"  {name}{default}: {about_preset(name)}")
        if figures is not None:
            lines.append(f"    measured: {_figures(figures)}")
    setup = facts["measured_with"]
    if setup and any(facts["presets"].values()):
        conditions = ", ".join(f"{key} {value}" for key, value in setup.items())
        lines.append(f"  measured with: {conditions}; another machine, size or model has other figures")
    model = facts["demo_model"]
    lines.append(f"demo model: {'complete' if model['whole'] else '; '.join(model['problems'])} ({model['path']})")
    return "\n".join(lines)


def _figures(figures: Mapping[str, Any]) -> str:
    low, high = figures["speedup_95"]
    likeness = "equal pictures" if figures["psnr_db"] is None else f"{figures['psnr_db']:.1f} dB PSNR to stock"
    return (
        f"{figures['speedup']:.2f}x the speed of stock [{low:.2f}, {high:.2f}], {likeness}, SSIM {figures['ssim']:.3f}"
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> list[str]:
    import torch

    from agentsd.system.precision import is_fast

    halves = [name for name in ("bfloat16", "float16") if not is_fast(getattr(torch, name))]
    emulated = f", emulates {' and '.join(halves)}: use float32" if halves else ""
    found = [f"cpu, {torch.get_num_threads()} threads{emulated}"]
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        found.append(f"cuda:{index}, {torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def _demo_model() -> dict[str, Any]:
    from agentsd.demo import MODEL_PATH, model_path
    from agentsd.demo.checksums import broken_files

    try:
        problems = broken_files(model_path())
    except FileNotFoundError as error:
        problems = [str(error)]
    return {"path": str(MODEL_PATH), "whole": not problems, "problems": problems}
