"""Batches whose pictures share their full steps, and batches where each picture has its own: what is measured."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from agentsd.bench.currency import current, facts_of
from agentsd.bench.gauge_tables import spread
from agentsd.bench.rows import Row, newest, read_rows
from agentsd.presets import PRESETS
from agentsd.schedule import Schedule

BATCH = 4
MEASURED = ("sd15, DPM++ 2M Karras, 25", "sdxl, Euler, 30", "sd15, DDIM, 50")  # of `COMBINATIONS`
SCHEDULES: MappingProxyType[str, Schedule | None] = MappingProxyType(
    {"stock": None, "balanced": PRESETS["balanced"], "balanced, by picture": PRESETS["balanced"].with_by_picture()}
)
ARMS: MappingProxyType[str, Row] = MappingProxyType(
    {name: {"arm": name, **facts_of(schedule)} for name, schedule in SCHEDULES.items()}
)


def batch_rows(results: Path) -> list[Row]:
    """Return the newest row of each batch and arm, without arms whose settings or rules have changed since.

    Args:
        results: The folder of result files.

    Returns:
        The rows.

    Example:
        >>> batch_rows(Path("missing"))
        []
    """
    rows = newest(read_rows(results / "demo" / "batches.jsonl"), ("combination", "number", "arm"))
    return current(rows, SCHEDULES)


def batch_table(rows: Sequence[Row]) -> str:
    """Return what shared full steps and those of each picture come to.

    Args:
        rows: `batch_rows`.

    Returns:
        The table; empty without rows.

    Example:
        >>> batch_table([])
        ''
    """
    lines = [
        "| process, solver, steps | setting | UNet calls a picture | steps with a UNet call | speed-up | to stock |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for name in dict.fromkeys(row["combination"] for row in rows):
        mine = [row for row in rows if row["combination"] == name]
        stock = {row["number"]: row for row in mine if row["arm"] == "stock"}
        for arm in SCHEDULES:
            found = [row for row in mine if row["arm"] == arm and row["number"] in stock]
            if found:
                lines.append(f"| {name} | {arm} | {' | '.join(_cells(found, stock))} |")
    if len(lines) == 2:
        return ""
    last = rows[-1]
    note = (
        f"Bundled demo model, {_number(rows)} of {last['batch']} pictures, 256x256 pixels, {last['dtype']}, guidance "
        f"{last['guidance']:g}. {_timed(last)}, torch {last['torch']}, arms there and back: speed-up over stock, with "
        "the range of single batches where there are several. PSNR: median, in brackets the worst 5%. "
        "`scripts/dev/batches.py`, `results/demo/batches.jsonl`."
    )
    return "\n".join([*lines, "", note, ""])


def _cells(found: list[Row], stock: dict[int, Row]) -> list[str]:
    gains = [sum(stock[row["number"]]["seconds"]) / sum(row["seconds"]) for row in found]
    whole = sum(sum(stock[row["number"]]["seconds"]) for row in found) / sum(sum(row["seconds"]) for row in found)
    span = "" if found[0]["arm"] == "stock" or len(found) == 1 else f" [{min(gains):.2f}, {max(gains):.2f}]"
    time = f"{whole:.2f}x{span}"
    near = {"psnr_stock": [one for row in found for one in row["psnr_stock"]]}
    calls = statistics.mean(row["calls"] for row in found)
    launches = statistics.mean(row["unet_launches"] for row in found)
    return [f"{calls:.1f}", f"{launches:.1f}", time, spread(near, "psnr_stock")]


def _number(rows: Sequence[Row]) -> str:
    number = len({row["number"] for row in rows})
    return "one batch" if number == 1 else f"{number} batches"


def _timed(row: Row) -> str:
    threads = f"{row['threads']} thread{'s' * (row['threads'] > 1)} of {row['device']}"
    if row["device_type"] == "cpu":
        return f"CPU time of a call without VAE, {threads}"
    return f"Time of a call without VAE, {row['device']}"
