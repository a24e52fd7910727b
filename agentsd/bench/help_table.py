"""The table "Does it help me?" of the README: what skipping and cheaper attention give, by model and picture size."""

import statistics
from collections.abc import Iterable, Sequence

from agentsd.bench.gauge_tables import by_combination
from agentsd.bench.rows import Row

SAMPLING = "key/value sampling, stride 4"
_NOISY = ("SDE", "ancestral")


def help_table(gauged: Sequence[Row], on_cpu: Sequence[Row], on_gpu: Sequence[Row]) -> str:
    """Return the table.

    Args:
        gauged: Rows of `results/gauge.jsonl`.
        on_cpu: Newest rows of `results/speed.jsonl`.
        on_gpu: Newest rows of a GPU.

    Returns:
        The table; empty without rows.

    Example:
        >>> help_table([], [], [])
        ''
    """
    calls = {name: _fewer(arms) for name, arms in by_combination(gauged).items() if "tolerance 0.03" in arms}
    if not calls or not on_cpu or not on_gpu:
        return ""
    long = {name: gain for name, gain in calls.items() if gain > 1}
    noisy = [gain for name, gain in long.items() if any(word in name for word in _NOISY)]
    plain = [
        gain for name, gain in long.items() if not name.startswith("sdxl") and not any(word in name for word in _NOISY)
    ]
    sdxl = [gain for name, gain in long.items() if name.startswith("sdxl")]

    def step(architecture: str, *sizes: int) -> str:
        shown = []
        for where, rows in (("CPU", on_cpu), ("H200", on_gpu)):
            gains = [_step_gain(rows, architecture, size) for size in sizes]
            shown.append(f"{where} {' to '.join(f'{gain:.2f}x' for gain in gains)}")
        return "; ".join(shown)

    rows = [
        ("SD 1.x, 2.x at 512", _range(plain), step("sd15", 512), "a, b"),
        ("SD 1.x, 2.x at 768 to 1024", "*not measured*; same rule", step("sd15", 768, 1024), "b"),
        ("SDXL at 1024", _range(sdxl), step("sdxl", 1024), "a, b"),
        ("solvers that add noise (Euler a, SDE)", _range(noisy), "as above", "a"),
        ("below 10 steps: Turbo, LCM, Lightning", "nothing: no step is skipped", "as above", "a"),
        ("SD 3, FLUX, other transformers", "works; *not measured* on a trained one", "refused", "-"),
    ]
    lines = ["| you run | skipping: UNet calls | cheaper attention: one step | measured on |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    note = (
        "a: `balanced`, 20 steps or more, the bundled demo model at 256 pixels under the model's process. b: key/value "
        "sampling (stride 4) on UNets of the true architecture with random weights, batch 2; CPU: bfloat16; H200: "
        "float16, eager mode."
    )
    return "\n".join([*lines, "", note, ""])


def _fewer(arms: dict[str, Row]) -> float:
    row = arms["tolerance 0.03"]
    return float(statistics.mean(row["stock_calls"]) / statistics.mean(row["calls"]))


def _range(gains: Iterable[float]) -> str:
    shown = sorted({f"{gain:.1f}" for gain in gains}, key=float)
    return f"{' to '.join(dict.fromkeys((shown[0], shown[-1])))} times fewer" if shown else "*not measured*"


def _step_gain(rows: Sequence[Row], architecture: str, size: int) -> float:
    wanted = {"benchmark": "unet step", "arm": SAMPLING, "architecture": architecture, "size": size}
    found = [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
    if not found:
        raise ValueError(f"no row of {SAMPLING!r} for {architecture} at size={size}; measure it as well.")
    return float(found[-1]["speedup"])
