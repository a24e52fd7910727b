"""Write the tables of README.md, docs/benchmarks.md and results/README.md from the committed result files.

They stand between `<!-- table:NAME -->` markers.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from agentsd.bench.arms import is_current
from agentsd.bench.gauge_tables import every_table, gauge_table, promise_table
from agentsd.bench.intervals import FEWEST_FOR_INTERVAL
from agentsd.bench.ratios import power_law
from agentsd.bench.rows import Row, key_of, newest, read_rows

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/benchmarks.md", "results/README.md")
# What rows of one table have in common; the arm and the size are its rows and columns.
SETUP = ("benchmark", "architecture", "batch", "dtype", "steps", "device", "threads", "torch", "diffusers")
SCALING = ("benchmark", "architecture", "batch", "dtype", "levels", "layers", "device", "threads", "torch", "diffusers")
MAIN = {"benchmark": "unet step", "architecture": "sd15", "dtype": "bfloat16", "device_type": "cpu"}
MAIN_SIZES = (512, 768)
# What docs/benchmarks.md shows of the two long tables; results/README.md shows all.
SHORT = (
    "stock",
    "stock, channels last",
    "tomesd 0.5",
    "DeepCache 3",
    "paper, agent phase",
    "key/value sampling, stride 4",
    "full step every 3, last layer + key/value sampling",
    "full step every 5, last layer + key/value sampling",
    "full step every 5, last layer + key/value sampling, channels last",
    "full step every 3 + key/value sampling",
    "full step every 5 + key/value sampling",
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a table is out of date")
    args = parser.parse_args(argv)
    stale = []
    for path in (ROOT / page for page in PAGES):
        old = path.read_text(encoding="utf-8")
        new = fill(old)
        if new != old:
            stale.append(path.name)
            if not args.check:
                path.write_text(new, encoding="utf-8")
    if stale and args.check:
        print(f"out of date: {', '.join(stale)}; run scripts/dev/tables.py", file=sys.stderr)
        return 1
    return 0


def fill(text: str) -> str:
    """Return `text` with every marked table written again."""
    tables = {
        "h200": h200_table,
        "speed-short": lambda: main_table(SHORT),
        "gauge": lambda: gauge_table(read_rows(ROOT / "results/gauge.jsonl")),
        "gauge-promise": lambda: promise_table(read_rows(ROOT / "results/gauge.jsonl")),
        "gauge-all": lambda: every_table(read_rows(ROOT / "results/gauge.jsonl")),
        "speed": main_table,
        "speed-others": other_tables,
        "demo": demo_table,
        "rankings": lambda: demo_table(name="rankings"),
        "scaling": scaling_table,
        "plans": plans_table,
    }
    for name, make in tables.items():
        pattern = rf"(<!-- table:{name} -->\n).*?(<!-- /table:{name} -->)"
        text = re.sub(pattern, lambda match, make=make: match[1] + make() + match[2], text, flags=re.DOTALL)
    return text


def current_rows(name: str) -> list[Row]:
    """The rows of a result file, without those of presets whose settings have changed since."""
    rows = read_rows(ROOT / "results" / f"{name}.jsonl")
    return [row for row in rows if is_current(row["arm"], row["settings"])]


def speed_rows() -> list[Row]:
    """The newest row of every set-up, arm and size."""
    return newest(current_rows("speed"), (*SETUP, "arm", "size"))


def main_setup(rows: Sequence[Row]) -> tuple | None:
    """The set-up of the README's table: the one measured last of those that are SD 1.5 steps in bfloat16 on a CPU."""
    found = [row for row in rows if all(row.get(key) == value for key, value in MAIN.items())]
    found = [row for row in found if row["size"] in MAIN_SIZES]
    return key_of(found[-1], SETUP) if found else None


def main_table(arms: Sequence[str] | None = None) -> str:
    """SD 1.5 steps; of some arms, or of all."""
    rows = speed_rows()
    chosen = main_setup(rows)
    rows = [row for row in rows if key_of(row, SETUP) == chosen and row["size"] in MAIN_SIZES]
    return speed_table(_only(rows, arms))


def _only(rows: Sequence[Row], arms: Sequence[str] | None) -> Sequence[Row]:
    """Rows of some arms, in the order of those."""
    if arms is None:
        return rows
    return sorted((row for row in rows if row["arm"] in arms), key=lambda row: arms.index(row["arm"]))


def h200_table() -> str:
    """UNet steps on a GPU: the arms of the short table by architecture and picture size."""
    rows = [row for row in current_rows("speed-h200") if row["benchmark"] == "unet step"]
    rows = list(_only(newest(rows, (*SETUP, "arm", "size")), SHORT))
    if not rows:
        return ""
    shared = ("batch", "dtype", "device", "torch", "diffusers")
    if len({key_of(row, shared) for row in rows}) > 1:
        raise ValueError("the rows of speed-h200.jsonl mix set-ups; make one table for each.")
    columns = sorted({(row["architecture"], row["size"]) for row in rows})
    cells = {(row["arm"], row["architecture"], row["size"]): row for row in rows}
    bare = [column for column in columns if ("stock", *column) not in cells]
    if bare:
        raise ValueError(f"columns {bare} of speed-h200.jsonl have no row for stock; measure it as well.")
    heads = [f"{architecture} {size}x{size}" for architecture, size in columns]
    lines = ["| one UNet step | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        found = [cells.get((arm, *column)) for column in columns]
        lines.append(f"| {arm} | " + " | ".join(speed_cell(row) if row else "" for row in found) + " |")
    first, pairs = rows[0], sorted({row["rounds"] for row in rows})
    note = (
        f"Speed-up over stock diffusers, random weights, eager mode, batch {first['batch']}, {first['dtype']}, "
        f"{first['device']}, torch {first['torch']}, diffusers {first['diffusers']}; median of {pairs[0]} to "
        f"{pairs[-1]} paired ratios with {spread(pairs[0])}, per step of a cycle. `scripts/benchmark.py`, "
        "`results/speed-h200.jsonl`."
    )
    return "\n".join([*lines, "", note, ""])


def other_tables() -> str:
    rows = speed_rows()
    chosen = main_setup(rows)
    setups: dict[tuple, list[Row]] = {}
    for row in rows:
        if key_of(row, SETUP) != chosen or row["size"] not in MAIN_SIZES:
            setups.setdefault(key_of(row, SETUP), []).append(row)
    tables = []
    for found in setups.values():
        first = found[0]
        steps = f", {first['steps']} steps" if "steps" in first else ""
        title = f"{first['benchmark'].replace('unet', 'UNet')}, {first['architecture']}, {first['dtype']}{steps}"
        tables.append(f"### {title}, {first['device']}\n\n{speed_table(found)}")
    return "\n".join(tables)


def speed_table(rows: Sequence[Row]) -> str:
    """Speed-ups against stock, by arm and picture size, of rows of one set-up.

    Raises:
        ValueError: If the rows are of several set-ups, or a speed-up stands without its baseline.
    """
    if not rows:
        return ""
    first = rows[0]
    if len({key_of(row, SETUP) for row in rows}) > 1:
        raise ValueError("the rows mix set-ups; make one table for each.")
    sizes = sorted({row["size"] for row in rows})
    cells = {(row["arm"], row["size"]): row for row in rows}
    bare = [size for size in sizes if ("stock", size) not in cells]
    if bare:
        raise ValueError(f"sizes {bare} of {first['architecture']} have no row for stock; measure it as well.")
    what = "UNet step" if first["benchmark"] == "unet step" else f"`pipe(...)`, {first.get('steps')} steps"
    heads = [f"{size}x{size}" for size in sizes]
    seconds = [min(cells["stock", size]["seconds"]) for size in sizes]
    lines = [
        f"| one {what} | " + " | ".join([*heads, *(f"memory {head}" for head in heads)]) + " |",
        "|---|" + "--:|" * (2 * len(sizes)),
    ]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        found = [cells.get((arm, size)) for size in sizes]
        gains = [speed_cell(row) if row else "" for row in found]
        memory = [f"{row['peak_bytes'] / 2**30:.2f} GiB" if row and row["peak_bytes"] else "" for row in found]
        lines.append(f"| {arm} | " + " | ".join(gains + memory) + " |")
    pairs = sorted({row["rounds"] for row in rows})
    number = f"{pairs[0]} to {pairs[-1]}" if len(pairs) > 1 else f"{pairs[0]}"
    times = ", ".join(f"{second:.3g} s at {head}" for second, head in zip(seconds, heads, strict=True))
    control = "; stock A/A shows the noise" if any(row["arm"] == "stock A/A" for row in rows) else ""
    whole = "per step of a cycle" if first["benchmark"] == "unet step" else "text encoder and VAE included"
    note = (
        f"Speed-up over stock diffusers (fused SDPA; {times}), {first['architecture']} architecture with random "
        f"weights, batch {first['batch']}, {first['dtype']}, {first['threads']} threads of {first['device']}, torch "
        f"{first['torch']}, diffusers {first['diffusers']}; arms interleaved in one process, median of {number} paired "
        f"ratios with {spread(pairs[0])}, {whole}{control}. `scripts/benchmark.py`, `results/speed.jsonl`."
    )
    return "\n".join([*lines, "", note, ""])


def spread(pairs: int) -> str:
    """What the brackets hold: a bootstrap of few values ends at the least and the greatest of them."""
    return (
        "95% interval"
        if pairs >= FEWEST_FOR_INTERVAL
        else f"95% interval (of fewer than {FEWEST_FOR_INTERVAL}: their range)"
    )


def speed_cell(row: Row) -> str:
    low, high = row["speedup_95"]
    return f"{row['speedup']:.2f}x" if row["arm"] == "stock" else f"{row['speedup']:.2f}x [{low:.2f}, {high:.2f}]"


def scaling_table() -> str:
    """Exponents of the cost of self-attention over the number of tokens."""
    rows = read_rows(ROOT / "results" / "scaling.jsonl")
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


def plans_table() -> str:
    """What plans predicted, what was measured, and what the preset does without a plan."""
    rows = read_rows(ROOT / "results" / "plans.jsonl")
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


def demo_table(name: str = "arms") -> str:
    """Speed against quality on the bundled demo model."""
    rows = current_rows(f"demo/{name}")
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
        f"the stock picture of the same seed, medians. Measured on 26 November 2026, `results/demo/{name}.jsonl`; "
        "`scripts/fid_eval.py --reference demo` measures the same."
    )
    return "\n".join([*lines, "", note, ""])


def likeness_cells(row: Row) -> str:
    psnr = "equal" if row["psnr_db_median"] is None else f"{row['psnr_db_median']:.1f} dB"
    return f"{psnr} | {row['ssim_median']:.3f} | {row['latent_l2_median']:.3f}"


def how_timed(row: Row) -> str:
    """Where a row was timed, and what."""
    return (
        f"{row['threads']} threads of {row['device']}, torch {row['torch']}; speed-up of the pipeline call without VAE "
        f"decoding, median of {row['rounds']} paired ratios with {spread(row['rounds'])}"
    )


if __name__ == "__main__":
    sys.exit(main())
