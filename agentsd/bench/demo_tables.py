"""The tables of the demo model: speed against likeness, by arm, scheduler and setting."""

from collections.abc import Sequence
from pathlib import Path

from scipy.stats import binomtest

from agentsd.bench.arms import kind_of
from agentsd.bench.rows import Row, read_rows
from agentsd.bench.speed_tables import current_rows, only, speed_cell, spread

SELDOM = 0.05  # chance below which a difference counts
SWEPT = ("agents", "stride", "broadcast_exponent", "shortcut", "phase", "max_downsample")


def demo_table(results: Path, arms: Sequence[str] | None = None, name: str = "front") -> str:
    """Return speed against likeness of some arms, or of all that a result file has.

    Args:
        results: The folder of result files.
        arms: Names of arms, in the order of the table.
        name: The file's name in the folder `demo`, without its ending.

    Returns:
        The table; empty without rows.

    Example:
        >>> demo_table(Path("missing"))
        ''
    """
    rows = only(current_rows(results, f"demo/{name}"), arms)
    if not rows:
        return ""
    first = rows[0]
    lines = [
        "| demo model | speed-up | PSNR | SSIM | latent error | objects right: one | both of two |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        accuracy = row["attribute_accuracy"]
        shares = " | ".join(f"{accuracy[group]:.0%}" if group in accuracy else "" for group in ("singles", "pairs"))
        lines.append(f"| {row['arm']} | {speed_cell(row)} | {likeness_cells(row)} | {shares} |")
    note = (
        f"Bundled demo model, {first['prompts']} held-out prompts, {first['steps']} DDIM steps, guidance "
        f"{first['guidance_scale']:g}, {first['size']}x{first['size']} pixels (64x64 tokens), {first['dtype']}, "
        f"{how_timed(first)}; likeness to "
        f"the stock picture of the same seed, medians. `scripts/demo_front.py`, `results/demo/{name}.jsonl`."
    )
    return "\n".join([*lines, "", note, ""])


def likeness_cells(row: Row) -> str:
    """Return PSNR, SSIM and latent error as cells.

    Example:
        >>> likeness_cells({"psnr_db_median": 40.0, "ssim_median": 0.99, "latent_l2_median": 0.01})
        '40.0 dB | 0.990 | 0.010'
    """
    psnr = "equal" if row["psnr_db_median"] is None else f"{row['psnr_db_median']:.1f} dB"
    return f"{psnr} | {row['ssim_median']:.3f} | {row['latent_l2_median']:.3f}"


def how_timed(row: Row) -> str:
    """Say where a row of the front was timed, and what.

    Example:
        >>> how_timed({"threads": 2, "device": "a CPU", "torch": "2", "rounds": 8}).partition(";")[0]
        '2 threads of a CPU, torch 2'
    """
    return (
        f"{row['threads']} threads of {row['device']}, torch {row['torch']}; speed-up of the pipeline call without VAE "
        f"decoding, median of {row['rounds']} paired ratios with {spread(row['rounds'])}"
    )


def schedulers_table(results: Path) -> str:
    """Return arms under other schedulers than the demo model's own.

    Args:
        results: The folder of result files; `demo/front-NAME.jsonl` is of the scheduler NAME, or of NAME steps.

    Returns:
        The table; empty without rows.

    Example:
        >>> schedulers_table(Path("missing"))
        ''
    """
    names = sorted(path.stem.removeprefix("front-") for path in (results / "demo").glob("front-*.jsonl"))
    rows = {name: current_rows(results, f"demo/front-{name}") for name in names if not name.isdigit()}
    rows = {name: found for name, found in rows.items() if found}
    if not rows:
        return ""
    lines = ["| scheduler | arm | speed-up | PSNR | SSIM | latent error |", "|---|---|--:|--:|--:|--:|"]
    for name, found in rows.items():
        for row in (row for row in found if row["arm"] != "stock"):
            lines.append(f"| {name} | {row['arm']} | {speed_cell(row)} | {likeness_cells(row)} |")
    first = next(iter(rows.values()))[0]
    note = (
        f"Bundled demo model, {first['prompts']} held-out prompts, {first['steps']} steps, guidance "
        f"{first['guidance_scale']:g}, {first['dtype']}, {how_timed(first)}; likeness to stock of the same seed and "
        "scheduler, medians. "
        "`scripts/demo_front.py --scheduler`, `results/demo/front-*.jsonl`."
    )
    return "\n".join([*lines, "", note, ""])


def sweep_table(results: Path) -> str:
    """Return what one setting changed at a time does to layers and pictures.

    Example:
        >>> sweep_table(Path("missing"))
        ''
    """
    rows = read_rows(results / "demo" / "sweep.jsonl")
    if not rows:
        return ""
    centre = rows[0]
    lines = ["| changed | layer error | PSNR | SSIM | latent error |", "|---|--:|--:|--:|--:|"]
    for row in rows:
        changed = [f"{key}={row[key]}" for key in SWEPT if row[key] != centre[key]]
        error = "" if not row["layer_l2"] else f"{max(row['layer_l2'].values()):.3f}"
        figures = f"{row['psnr_db_median']:.1f} dB | {row['ssim_median']:.4f} | {row['latent_l2_median']:.4f}"
        lines.append(f"| {', '.join(changed) or 'nothing'} | {error} | {figures} |")
    settings = ", ".join(f"{key}={centre[key]}" for key in SWEPT)
    note = (
        f"From {settings}; bundled demo model, {centre['prompts']} held-out prompts, {centre['steps']} DDIM steps, "
        f"guidance {centre['guidance_scale']:g}, {centre['dtype']}. Layer error: of a layer's output, relative to that "
        "of softmax attention on equal input, the worst level's median; the others against the stock picture of the "
        "same seed, medians. `scripts/dev/sweep.py`, `results/demo/sweep.jsonl`."
    )
    return "\n".join([*lines, "", note, ""])


def reuse_table(results: Path) -> str:
    """Return what skipped steps cost, by where full steps stand, which layers run between and the forecast.

    Example:
        >>> reuse_table(Path("missing"))
        ''
    """
    rows = read_rows(results / "demo" / "reuse.jsonl")
    if not rows:
        return ""
    first = rows[0]
    lines = [
        "| reused | whole UNet at steps | layers between | forecast | PSNR | SSIM | latent error |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        full, steps = row["full_steps"], row["steps"]
        others = [step for step in range(steps) if step not in full]
        where = ", ".join(map(str, full)) if len(full) <= steps // 2 else "all"
        if where == "all" and others:
            where += f" but {', '.join(map(str, others))}"
        figures = f"{row['psnr_db_median']:.1f} dB | {row['ssim_median']:.4f} | {row['latent_l2_median']:.4f}"
        lines.append(f"| {row['layout']} | {where} | {row['depth']} | {row['forecast']:g} | {figures} |")
    note = (
        f"Bundled demo model, {first['prompts']} held-out prompts, {first['steps']} DDIM steps, guidance "
        f"{first['guidance_scale']:g}, {first['dtype']}, attention as in `quality`; against the stock picture "
        "of the same seed, medians. `scripts/dev/sweep.py --reuse`, `results/demo/reuse.jsonl`."
    )
    return "\n".join([*lines, "", note, ""])


def front_table(results: Path) -> str:
    """Return for every rival a setting of agentsd that is as fast and as good by every measure, or what is missing.

    Fewer right pictures count as fewer where chance would seldom make the difference.

    Args:
        results: The folder of result files.

    Returns:
        The table; empty without rows of rivals or of ours.

    Example:
        >>> front_table(Path("missing"))
        ''
    """
    rows = current_rows(results, "demo/front")
    ours = [row for row in rows if kind_of(row["arm"]) in ("ours", "preset", "paper")]
    rivals = [row for row in rows if kind_of(row["arm"]) in ("rival", "fewer")]
    if not ours or not rivals:
        return ""
    lines = [
        "| rival | as fast and as good by every measure | speed-up | PSNR | SSIM | right |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for rival in rivals:
        as_fast = [row for row in ours if row["speedup"] >= rival["speedup"]]
        good = [
            row
            for row in as_fast
            if all(row[key] >= rival[key] for key in ("psnr_db_median", "ssim_median"))
            and (row["right"] >= rival["right"] or _chance(row, rival) >= SELDOM)
        ]
        if good:
            best = max(good, key=lambda row: row["psnr_db_median"])
            name = best["arm"]
        else:
            best = max(as_fast or ours, key=lambda row: row["psnr_db_median"])
            name = f"**none**; nearest: {best['arm']}"
        pairs = [
            (f"{best['speedup']:.2f}x", f"{rival['speedup']:.2f}x"),
            (f"{best['psnr_db_median']:.1f} dB", f"{rival['psnr_db_median']:.1f} dB"),
            (f"{best['ssim_median']:.3f}", f"{rival['ssim_median']:.3f}"),
            (f"{best['right']}", f"{rival['right']} of {rival['prompts']} (p = {_chance(best, rival):.2g})"),
        ]
        lines.append(f"| {rival['arm']} | {name} | " + " | ".join(f"{a} against {b}" for a, b in pairs) + " |")
    return "\n".join([*lines, ""])


def _chance(one: Row, other: Row) -> float:
    """How often chance alone makes as large a difference in right pictures: McNemar's exact test on equal prompts."""
    pairs = list(zip(one["right_each"], other["right_each"], strict=True))
    gained, lost = (sum(pair == apart for pair in pairs) for apart in ((1, 0), (0, 1)))
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
