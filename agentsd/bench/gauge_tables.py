"""The tables of `results/gauge.jsonl`: UNet calls and likeness under processes and solvers."""

import re
import statistics
from collections.abc import Sequence
from typing import Any

from agentsd.bench.currency import holds
from agentsd.bench.rows import Row, key_of
from agentsd.bench.skippers import SKIPPERS
from agentsd.presets import PRESETS

PRESETS_BY_TOLERANCE = {"tolerance 0.015": "quality", "tolerance 0.03": "balanced", "tolerance 0.06": "fast",
                        "tolerance 0.12": "extreme"}  # fmt: skip
_PLACE = ("pictures", "device", "torch", "diffusers")  # how many prompts ran where
_STAR = r"\*"  # for Markdown
_STEPS = re.compile(r", (\d+) steps$")
_FURTHER = 1.2  # what takes more than so many times our calls is no comparison


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
    for name, arms in by_combination(rows).items():
        ours = arms.get("tolerance 0.03")
        if ours is None or "stock" not in arms:
            continue
        calls = statistics.mean(ours["calls"])
        other = [_best_solver(arms, field, rows) or "-" for field in ("psnr_stock", "psnr_converged")]
        full = ours["stock_calls"][0]
        cells = [
            name + _mark(ours, rows),
            str(full),
            f"{calls:.1f} ({full / calls:.1f}x fewer)",
            spread(ours, "psnr_stock"),
            spread(ours, "psnr_converged"),
            spread(arms["stock"], "psnr_converged"),
            *other,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", _note(rows)])


def solvers_table(rows: Sequence[Row], combinations: Sequence[str]) -> str:
    """Return a short table of the default under some combinations.

    Args:
        rows: Rows of the gauge.
        combinations: Those to show, in this order.

    Returns:
        The table; empty without rows.

    Example:
        >>> solvers_table([], ["own, DDIM, 50"])
        ''
    """
    found = by_combination(rows)
    lines = [
        "| process, solver, steps | UNet calls | with `balanced` | to stock | best other solver with as many calls |",
        "|---|--:|--:|--:|--:|",
    ]
    for name in combinations:
        ours = found.get(name, {}).get("tolerance 0.03")
        if ours is not None:
            calls = statistics.mean(ours["calls"])
            other = _best_solver(found[name], "psnr_stock", rows) or "*not measured*"
            lines.append(
                f"| {name}{_mark(ours, rows)} | {ours['stock_calls'][0]} | {calls:.1f} | "
                f"{spread(ours, 'psnr_stock')} | {other} |"
            )
    if len(lines) == 2:
        return ""
    note = f"{_measured(rows)} Otherwise as in the first table. `results/gauge.jsonl`."
    return "\n".join([*lines, "", note, ""])


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
    for name, arms in by_combination(rows).items():
        cells = []
        for arm in shown:
            row = arms.get(arm)
            error = None if row is None else statistics.median(row["latent_error"])
            cells.append("-" if row is None else f"{error:.3f} ({statistics.mean(row['calls']):.1f} calls)")
        if any(cell != "-" for cell in cells):
            shown_row = next(arms[arm] for arm in shown if arm in arms)
            lines.append(f"| {name}{_mark(shown_row, rows)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _note(rows)])


def lists_table(rows: Sequence[Row], combination: str) -> str:
    """Return tolerances beside calibrated lists of full steps, by UNet calls.

    Args:
        rows: Rows of the gauge.
        combination: The one to show.

    Returns:
        The table; empty without a calibrated list.

    Example:
        >>> lists_table([], "own, DDIM, 50")
        ''
    """
    lists = [row for row in rows if row["combination"] == combination and row["arm"].startswith("calibrated")]
    if not lists:
        return ""
    places = {key_of(row, _PLACE) for row in lists}  # tolerances on other prompts do not compare
    arms = by_combination([row for row in rows if key_of(row, _PLACE) in places])[combination]
    lines = ["| | UNet calls | error of the final latent | PSNR to stock |", "|---|--:|--:|--:|"]
    shown = [arm for arm in arms if arm.startswith(("calibrated", "tolerance"))]
    for arm in sorted(shown, key=lambda arm: -statistics.mean(arms[arm]["calls"])):
        calls, errors = arms[arm]["calls"], arms[arm]["latent_error"]
        span = "" if min(calls) == max(calls) else f" ({min(calls)} to {max(calls)})"
        error = f"{statistics.median(errors):.3f} ({max(errors):.3f})"
        label = arm.replace("calibrated, ", "listed, ").replace("tolerance", "decided at run time, tolerance")
        lines.append(f"| {label} | {statistics.mean(calls):.1f}{span} | {error} | {spread(arms[arm], 'psnr_stock')} |")
    return "\n".join([*lines, ""])


def rivals_table(rows: Sequence[Row]) -> str:
    """Return tolerances beside the best rival that takes at most 1.2 times as many calls.

    Args:
        rows: Rows of the gauge.

    Returns:
        A line for each tolerance and combination that rivals were measured under; empty without any.

    Example:
        >>> rivals_table([])
        ''
    """
    lines = [
        "| process, solver, steps | agentsd | UNet calls | to stock | to converged | best rival to stock | "
        "best rival to converged |",
        "|---|---|--:|--:|--:|---|---|",
    ]
    for name, arms in by_combination(rows).items():
        rivals = [row for label, row in arms.items() if label in SKIPPERS]
        # Where ours has rows of the rivals' prompts and of more prompts, those beside the rivals are compared.
        places = {key_of(row, _PLACE) for row in rivals}
        beside = by_combination([row for row in rows if key_of(row, _PLACE) in places]).get(name, {})
        for arm, preset in PRESETS_BY_TOLERANCE.items():
            ours = beside.get(arm, arms.get(arm))
            if ours is None or ours["calls"] == ours["stock_calls"]:  # nothing is skipped in so short a run
                continue
            most = _FURTHER * statistics.mean(ours["calls"])
            near = [row for row in rivals if statistics.mean(row["calls"]) <= most]
            if not near:
                continue
            cells = [
                name + _mark(ours, rows),
                f"`{preset}`",
                f"{statistics.mean(ours['calls']):.1f}",
                spread(ours, "psnr_stock"),
                spread(ours, "psnr_converged"),
                *(_best_rival(near, field, rows) for field in ("psnr_stock", "psnr_converged")),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", _note(rows)]) if len(lines) > 2 else ""


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
    for name, arms in by_combination(rows).items():
        for arm, row in sorted(arms.items(), key=lambda item: -statistics.mean(item[1]["calls"])):
            calls = f"{statistics.mean(row['calls']):.1f} [{min(row['calls'])}, {max(row['calls'])}]"
            near, far = spread(row, "psnr_stock"), spread(row, "psnr_converged")
            lines.append(f"| {name}{_mark(row, rows)} | {arm} | {calls} | {near} | {far} |")
    return "\n".join([*lines, "", _note(rows)])


def by_combination(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """Return the newest row of each arm by combination, without tolerances whose settings or rules have changed since.

    Example:
        >>> by_combination([{"combination": "a", "arm": "tolerance 0.03", "settings": "of another time"}])
        {}
    """
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        number = row["arm"].removeprefix("tolerance ")
        if holds(row, None if number == row["arm"] else PRESETS["balanced"].with_tolerance(float(number))):
            found.setdefault(row["combination"], {})[row["arm"]] = row
    return found


def spread(row: Row, field: str) -> str:
    """Return the median of a row's decibels and, in brackets, the mean of the worst 5%.

    Example:
        >>> spread({"psnr_stock": [40.0, 42.0, 44.0]}, "psnr_stock")
        '42.0 (40.0) dB'
    """
    values = sorted(row[field])
    if values[0] >= 120:
        return "equal"
    worst = values[: max(1, round(0.05 * len(values)))]
    return f"{min(statistics.median(values), 120.0):.1f} ({statistics.mean(worst):.1f}) dB"


def _best_solver(arms: dict[str, Row], field: str, rows: Sequence[Row]) -> str:
    """Return the best figure of another solver with as many steps as the default makes calls; empty without one.

    Where none was measured with as many, those with the next larger number stand in, and the figure says so.
    """
    ours = arms["tolerance 0.03"]
    calls = round(statistics.mean(ours["calls"]))
    found = [(int(match[1]), arms[arm]) for arm in arms if (match := _STEPS.search(arm))]
    steps = min((number for number, _ in found if calls <= number <= _FURTHER * calls), default=0)
    if not steps:
        return ""
    best = _nearest([row for number, row in found if number == steps], field)
    mark = _mark(best, rows)  # where it was measured, if the default was measured elsewhere
    more = "" if steps == calls else f", {steps} steps"
    return spread(best, field) + ("" if mark == _mark(ours, rows) else mark) + more


def _best_rival(rivals: Sequence[Row], field: str, rows: Sequence[Row]) -> str:
    best = _nearest(rivals, field)
    return f"{best['arm']}{_mark(best, rows)}, {statistics.mean(best['calls']):.1f} calls: {spread(best, field)}"


def _nearest(rows: Sequence[Row], field: str) -> Row:
    return max(rows, key=lambda row: statistics.median(row[field]))


def _places(rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    """Return how many prompts ran where, each once, in the order of the rows."""
    return list(dict.fromkeys(key_of(row, _PLACE) for row in rows))


def _mark(row: Row, rows: Sequence[Row]) -> str:
    """Return what a name carries when its row was not measured where the first one was."""
    return _STAR * _places(rows).index(key_of(row, _PLACE))


def _measured(rows: Sequence[Row]) -> str:
    words = (
        f"{_STAR * number}{pictures} held-out prompts, {device}, torch {torch}, diffusers {diffusers}."
        for number, (pictures, device, torch, diffusers) in enumerate(_places(rows))
    )
    return " ".join(words)


def _note(rows: Sequence[Row]) -> str:
    return (
        "Bundled demo model under each process, 256x256 pixels, guidance 7.5 unless named (4 under `own`, 1 with LCM), "
        f"{rows[0]['dtype']}. {_measured(rows)} "
        "PSNR: median over prompts and, in brackets, the worst 5%. *Stock* is the same solver with all its steps; "
        "*converged* is DPM++ 2M with 100 steps. `scripts/gauge.py`, `results/gauge.jsonl`."
    )
