"""The tables of `results/gauge.jsonl`: UNet calls and likeness under processes and solvers."""

import statistics
from collections.abc import Sequence

from agentsd.bench.rows import Row

PRESETS_BY_TOLERANCE = {"tolerance 0.015": "quality", "tolerance 0.03": "balanced", "tolerance 0.06": "fast",
                        "tolerance 0.12": "extreme"}  # fmt: skip


def gauge_table(rows: Sequence[Row]) -> str:
    """Return one line a combination: the default beside the best solver with as many steps.

    Example:
        >>> row = {"combination": "own, DDIM, 50", "arm": "stock", "calls": [50], "stock_calls": [50], "pictures": 1}
        >>> row |= {"psnr_stock": [120.0], "psnr_converged": [40.0], "latent_error": [0.0], "dtype": "float32"}
        >>> row |= {"device": "a GPU", "torch": "2", "diffusers": "0.42"}
        >>> gauge_table([row]).splitlines()[1]
        '|---|--:|--:|--:|--:|--:|--:|--:|'
    """
    lines = [
        "| process, solver, steps | UNet calls | `balanced` | to stock | to converged | stock to converged | "
        "best other solver with as many calls: to stock | to converged |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, arms in _by_combination(rows).items():
        ours = arms.get("tolerance 0.03")
        if ours is None or "stock" not in arms:
            continue
        calls = statistics.mean(ours["calls"])
        solvers = {arm: row for arm, row in arms.items() if arm.endswith(f", {round(calls)} steps")}
        best = max(solvers.values(), key=lambda row: statistics.median(row["psnr_converged"]), default=None)
        other = ("-", "-") if best is None else (_spread(best, "psnr_stock"), _spread(best, "psnr_converged"))
        full = ours["stock_calls"][0]
        cells = [
            name,
            str(full),
            f"{calls:.1f} ({full / calls:.1f}x fewer)",
            _spread(ours, "psnr_stock"),
            _spread(ours, "psnr_converged"),
            _spread(arms["stock"], "psnr_converged"),
            *other,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", _note(rows)])


def promise_table(rows: Sequence[Row]) -> str:
    """Return one line a combination: the median relative error of the final latent by tolerance, with the UNet calls.

    Example:
        >>> row = {"combination": "own, DDIM, 50", "arm": "stock", "calls": [50], "stock_calls": [50], "pictures": 1}
        >>> row |= {"psnr_stock": [120.0], "psnr_converged": [40.0], "latent_error": [0.0], "dtype": "float32"}
        >>> row |= {"device": "a GPU", "torch": "2", "diffusers": "0.42"}
        >>> promise_table([row]).splitlines()[1]
        '|---|--:|--:|--:|--:|'
    """
    shown = list(PRESETS_BY_TOLERANCE)
    lines = [
        "| process, solver, steps | " + " | ".join(f"{PRESETS_BY_TOLERANCE[arm]}, {arm}" for arm in shown) + " |",
        "|---|" + "--:|" * len(shown),
    ]
    for name, arms in _by_combination(rows).items():
        cells = []
        for arm in shown:
            row = arms.get(arm)
            error = None if row is None else statistics.median(row["latent_error"])
            cells.append("-" if row is None else f"{error:.3f} ({statistics.mean(row['calls']):.1f} calls)")
        if any(cell != "-" for cell in cells):
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _note(rows)])


def every_table(rows: Sequence[Row]) -> str:
    """Return all rows: the arms of a combination in the order of their calls.

    Example:
        >>> row = {"combination": "own, DDIM, 50", "arm": "stock", "calls": [50], "stock_calls": [50], "pictures": 1}
        >>> row |= {"psnr_stock": [120.0], "psnr_converged": [40.0], "latent_error": [0.0], "dtype": "float32"}
        >>> row |= {"device": "a GPU", "torch": "2", "diffusers": "0.42"}
        >>> every_table([row]).splitlines()[2]
        '| own, DDIM, 50 | stock | 50.0 [50, 50] | equal | 40.0 (40.0) dB |'
    """
    lines = ["| process, solver, steps | arm | UNet calls | to stock | to converged |", "|---|---|--:|--:|--:|"]
    for name, arms in _by_combination(rows).items():
        for arm, row in sorted(arms.items(), key=lambda item: -statistics.mean(item[1]["calls"])):
            calls = f"{statistics.mean(row['calls']):.1f} [{min(row['calls'])}, {max(row['calls'])}]"
            lines.append(
                f"| {name} | {arm} | {calls} | {_spread(row, 'psnr_stock')} | {_spread(row, 'psnr_converged')} |"
            )
    return "\n".join([*lines, "", _note(rows)])


def _by_combination(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row["combination"], {})[row["arm"]] = row
    return found


def _spread(row: Row, field: str) -> str:
    values = sorted(row[field])
    if values[0] >= 120:
        return "equal"
    worst = values[: max(1, round(0.05 * len(values)))]
    return f"{min(statistics.median(values), 120.0):.1f} ({statistics.mean(worst):.1f}) dB"


def _note(rows: Sequence[Row]) -> str:
    row = rows[0]
    return (
        f"Bundled demo model under each process, {row['pictures']} held-out prompts, 256x256 pixels, guidance 7.5 (4 "
        f"under `own`, 1 with LCM), {row['dtype']}, {row['device']}, torch {row['torch']}, diffusers "
        f"{row['diffusers']}. "
        "PSNR: median over prompts and, in brackets, the worst 5%. *Stock* is the same solver with all its steps; "
        "*converged* is DPM++ 2M with 100 steps. `scripts/gauge.py`, `results/gauge.jsonl`."
    )
