"""The tables of what plans predicted and of the cost of self-attention against the number of tokens."""

from pathlib import Path

from agentsd.bench.arms import is_current
from agentsd.bench.ratios import power_law
from agentsd.bench.rows import Row, key_of, newest, read_rows
from agentsd.bench.speed_tables import SETUP

SCALING = ("benchmark", "architecture", "batch", "dtype", "levels", "layers", "device", "threads", "torch", "diffusers")


def scaling_table(results: Path) -> str:
    """Return the cost of self-attention by number of tokens, with fitted exponents.

    Args:
        results: The folder of result files.

    Returns:
        A table for each number of levels.

    Example:
        >>> scaling_table(Path("missing"))
        ''
    """
    rows = read_rows(results / "scaling.jsonl")
    last_rows = {row.get("levels", 1): row for row in rows}
    tables = []
    for levels, last in sorted(last_rows.items()):
        found = [row for row in rows if key_of(row, SCALING) == key_of(last, SCALING)]
        tables.append(_scaling_table("finest level" if levels == 1 else f"{levels} finest levels", found))
    return "\n".join(tables)


def _scaling_table(which: str, rows: list[Row]) -> str:
    first = rows[-1]
    cells = {(row["arm"], row["grid"]): row for row in rows}
    grids = sorted({row["grid"] for row in rows})
    lines = [
        f"| self-attention, {which} | " + " | ".join(f"{grid}x{grid}" for grid in grids) + " | cost ~ N^p |",
        "|---|" + "--:|" * (len(grids) + 1),
    ]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        cost = {grid: cells[arm, grid]["milliseconds"] for grid in grids if (arm, grid) in cells}
        shown = [f"{cost[grid]:.4g} ms" if grid in cost else "" for grid in grids]
        power = power_law([grid**2 for grid in cost], list(cost.values())) if len(cost) > 1 else None
        lines.append(f"| {arm} | " + " | ".join(shown) + (f" | p = {power:.2f} |" if power is not None else " | |"))
    note = (
        f"Layers of the {which} of the {first['architecture']} architecture (timed: {first['layers']}), alone, batch "
        f"{first['batch']}, {first['dtype']}, {first['threads']} threads of {first['device']}, torch "
        f"{first['torch']}; medians of {first['rounds']} rounds, p by least squares over all grids (those of the "
        "finest level). `scripts/dev/scaling.py`, `results/scaling.jsonl`."
    )
    return "\n".join([*lines, "", note, ""])


def plans_table(results: Path) -> str:
    """Return what plans predicted, what was measured, and what the preset does without a plan.

    Args:
        results: The folder of result files.

    Returns:
        The table; empty without rows of presets as they are now.

    Example:
        >>> plans_table(Path("missing"))
        ''
    """
    rows = read_rows(results / "plans.jsonl")
    rows = [row for row in rows if is_current(f"preset {row['preset']}", row.get("settings", ""))]
    rows = newest(rows, (*SETUP, "preset", "size"))
    if not rows:
        return ""
    first = rows[-1]
    rows = [row for row in rows if key_of(row, SETUP) == key_of(first, SETUP)]
    lines = [
        "| preset | size | predicted | measured | error | without a plan | layers left stock |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        low, high = row["measured_95"]
        left = ", ".join(f"/{2**level}" for level in row["stock_levels"]) or "none"
        lines.append(
            f"| {row['preset']} | {row['size']}x{row['size']} | {row['predicted']:.2f}x | {row['measured']:.2f}x "
            f"[{low:.2f}, {high:.2f}] | {row['error']:+.1%} | {row['unplanned']:.2f}x | {left} |"
        )
    note = (
        f"UNet steps of a run of {first['steps']}, {first['architecture']} architecture with random weights, batch "
        f"{first['batch']}, {first['dtype']}, {first['threads']} threads of {first['device']}, torch {first['torch']}; "
        f"medians of {first['rounds']} paired ratios with their range. `scripts/dev/plan_check.py`, "
        "`results/plans.jsonl`."
    )
    return "\n".join([*lines, "", note, ""])
