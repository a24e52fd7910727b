"""Whole calls of the presets on a CPU: what is measured, and the tables of `results/demo/strip.jsonl`."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from agentsd.attention.settings import SampledKeys
from agentsd.bench.currency import current
from agentsd.bench.gauge_tables import PRESETS_BY_TOLERANCE, by_combination, spread
from agentsd.bench.rows import Row, newest, read_rows
from agentsd.presets import PRESETS
from agentsd.schedule import Schedule

SAMPLED = SampledKeys(stride=4, min_keys=64)
STEPS, FEWER = 25, 13  # 13: no fewer than the mean UNet calls of `balanced`
GAUGED = "sd15, DPM++ 2M Karras, 25"
SHOWN = ("quality", "balanced", "fast", "extreme")
# The arms that keep the solver and its steps; None is stock.
SCHEDULES: MappingProxyType[str, Schedule | None] = MappingProxyType(
    {
        "stock": None,
        **{name: PRESETS[name] for name in SHOWN},
        "balanced + key/value sampling": PRESETS["balanced"].with_attention(SAMPLED),
        "key/value sampling alone": Schedule.constant(SAMPLED),
    }
)
FEWER_ARMS = (f"stock, {FEWER} steps", f"stock, {FEWER} steps of UniPC")
# Arms of the gauge under their names here.
_NAMES = {
    "stock": "stock",
    **PRESETS_BY_TOLERANCE,
    f"DPM++ 2M Karras, {FEWER} steps": FEWER_ARMS[0],
    f"UniPC, {FEWER} steps": FEWER_ARMS[1],
}
_PARTS = ("stock", "key/value sampling alone", "balanced", "balanced + key/value sampling")


def strip_rows(results: Path) -> list[Row]:
    """Return the newest row of each prompt and arm, without arms whose settings or rules have changed since.

    Args:
        results: The folder of result files.

    Returns:
        The rows.

    Example:
        >>> strip_rows(Path("missing"))
        []
    """
    rows = newest(read_rows(results / "demo" / "strip.jsonl"), ("number", "arm"))
    return current(rows, {**SCHEDULES, **dict.fromkeys(FEWER_ARMS)})


def presets_table(gauged: Sequence[Row], timed: Sequence[Row]) -> str:
    """Return the presets and stock with fewer steps: UNet calls and likeness from the gauge, time from a CPU.

    Args:
        gauged: Rows of `results/gauge.jsonl`.
        timed: `strip_rows`.

    Returns:
        The table; empty without rows.

    Example:
        >>> presets_table([], [])
        ''
    """
    arms = by_combination(gauged).get(GAUGED, {})
    if "stock" not in arms or not timed:
        return ""
    lines = [
        "| setting | UNet calls | whole call on a CPU | to stock | to converged |",
        "|---|--:|--:|--:|--:|",
    ]
    for arm, name in _NAMES.items():
        if arm in arms and arms[arm]["pictures"] == arms["stock"]["pictures"]:
            row = arms[arm]
            cells = [_label(name), f"{statistics.mean(row['calls']):.1f}", _faster(timed, name)]
            lines.append(f"| {' | '.join([*cells, spread(row, 'psnr_stock'), spread(row, 'psnr_converged')])} |")
    first, last = arms["stock"], timed[-1]
    note = (
        f"Bundled demo model under the process of SD 1.5, DPM++ 2M Karras, {STEPS} steps, guidance "
        f"{first['guidance']:g}, 256x256 pixels, {first['dtype']}. UNet calls (mean) and PSNR (median; in brackets the "
        f"worst 5%): {first['pictures']} held-out prompts, {first['device']}; *converged* is DPM++ 2M with 100 steps. "
        f"Whole call: {_how_timed(last, timed)}. `results/gauge.jsonl`, `results/demo/strip.jsonl`."
    )
    return "\n".join([*lines, "", note, ""])


def parts_table(timed: Sequence[Row]) -> str:
    """Return what skipping and cheaper attention give, each alone and both together.

    Args:
        timed: `strip_rows`.

    Returns:
        The table; empty unless all four were measured.

    Example:
        >>> parts_table([])
        ''
    """
    if not {row["arm"] for row in timed} >= set(_PARTS):
        return ""
    lines = ["| setting | UNet calls | whole call on a CPU | to stock |", "|---|--:|--:|--:|"]
    for arm in _PARTS:
        found = [row for row in timed if row["arm"] == arm]
        calls = statistics.mean(row["calls"] for row in found)
        values = {"psnr_stock": [120.0 if row["psnr_db"] is None else row["psnr_db"] for row in found]}
        lines.append(f"| {_label(arm)} | {calls:.1f} | {_faster(timed, arm)} | {spread(values, 'psnr_stock')} |")
    last = timed[-1]
    note = (
        f"As above, but PSNR and UNet calls are of the {_number(timed)} prompts that were timed (in brackets: worst). "
        f"Sampling is `with_attention(SampledKeys(stride=4, min_keys=64))`; {_how_timed(last, timed)}. "
        "`scripts/dev/strip.py`, `results/demo/strip.jsonl`."
    )
    return "\n".join([*lines, "", note, ""])


def _label(name: str) -> str:
    return f"`{name}`" if name in SHOWN else name


def _number(timed: Sequence[Row]) -> int:
    return len({row["number"] for row in timed})


def _faster(timed: Sequence[Row], arm: str) -> str:
    stock = {row["number"]: row["cpu_seconds"] for row in timed if row["arm"] == "stock"}
    if arm == "stock":
        return f"1.00x ({statistics.mean(stock.values()):.1f} s)"
    ours = {row["number"]: row["cpu_seconds"] for row in timed if row["arm"] == arm and row["number"] in stock}
    if not ours:
        return "-"
    gains = [stock[number] / seconds for number, seconds in ours.items()]
    whole = sum(stock[number] for number in ours) / sum(ours.values())
    return f"{whole:.2f}x [{min(gains):.2f}, {max(gains):.2f}]"


def _how_timed(row: Mapping[str, object], timed: Sequence[Row]) -> str:
    return (
        f"CPU time on one thread of {row['device']}, torch {row['torch']}, arms in turns; ratio of the times "
        f"of {_number(timed)} prompts, and the range of single prompts"
    )
