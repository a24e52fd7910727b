"""Draw the plots of docs/img from the committed result files: UNet calls against likeness, and cost against tokens."""

import argparse
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentsd.bench.gauge_tables import PRESETS_BY_TOLERANCE, by_combination
from agentsd.bench.ratios import power_law
from agentsd.bench.rows import Row, key_of, read_rows
from agentsd.cli.main import guard

ROOT = Path(__file__).resolve().parents[2]
# Colours that stay apart for the colour-blind (Okabe and Ito), each with a marker of its own.
OURS, SOLVERS = ("#0072b2", "o"), ("#555555", "s")
OTHERS = (
    ("#d55e00", "^"),
    ("#009e73", "D"),
    ("#cc79a7", "v"),
    ("#e69f00", "P"),
    ("#56b4e9", "X"),
    ("#000000", "<"),
    ("#8c564b", "s"),
    ("#7f7f7f", ">"),
)
SETUP = ("benchmark", "architecture", "batch", "dtype", "layers", "device", "threads", "torch", "diffusers")
PIXELS = 8  # of a picture's side, for each token at the finest level


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--output", type=Path, default=Path("outputs/plots"), help="folder of the plots")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    made = 0
    for name, draw in (("gauge", gauge), ("scaling", scaling)):
        source = args.results / f"{name}.jsonl"
        rows = read_rows(source)
        if not rows:
            print(f"{source} has no rows: no {name}.png", file=sys.stderr)
            continue
        # Without the date and the versions the same results give the same file.
        draw(rows).savefig(args.output / f"{name}.png", dpi=110, metadata={"Software": None})
        print(args.output / f"{name}.png")
        made += 1
    return 0 if made else 1


def figure_of(rows: int, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def family(arm: str) -> str:
    """Who an arm of the gauge belongs to: agentsd, fewer steps, or the name of a rival."""
    if arm in PRESETS_BY_TOLERANCE:
        return "agentsd"
    if arm.startswith("calibrated"):
        return "agentsd, calibrated list"
    if arm.endswith(" steps"):
        return "fewer steps of another solver"
    return arm.partition("(")[2].rstrip(")") or arm.partition(" ")[0]


def compared(arms: Mapping[str, Row]) -> bool:
    """Whether a combination has skipped steps and something to compare them with."""
    ours = arms.get("tolerance 0.03")
    others = [arm for arm in arms if arm != "stock" and arm not in PRESETS_BY_TOLERANCE]
    return ours is not None and ours["calls"] != ours["stock_calls"] and bool(others)


def gauge(rows: list[Row]) -> Any:
    """UNet calls against likeness to stock, a panel each combination: medians, with a line down to the worst 5%."""
    shown = {name: arms for name, arms in by_combination(rows).items() if compared(arms)}
    families = dict.fromkeys(family(arm) for arms in shown.values() for arm in arms if arm != "stock")
    rivals = [name for name in families if name not in ("agentsd", "fewer steps of another solver")]
    looks = dict(zip(rivals, OTHERS, strict=False))
    looks |= {"agentsd": OURS, "fewer steps of another solver": SOLVERS}
    columns = 2
    figure, axes = figure_of(-(-len(shown) // columns), columns, 10, 3.1 * -(-len(shown) // columns) + 1)
    for ax, (name, arms) in zip(axes, shown.items(), strict=False):
        ours = []
        for arm, row in arms.items():
            if arm == "stock":
                continue
            who = family(arm)
            colour, marker = looks[who]
            values = sorted(row["psnr_stock"])
            middle = statistics.median(values)
            worst = statistics.mean(values[: max(1, round(0.05 * len(values)))])
            calls = statistics.mean(row["calls"])
            front = who == "agentsd"
            ax.plot([calls, calls], [worst, middle], color=colour, linewidth=1, alpha=0.6, zorder=2)
            ax.plot([calls], [worst], color=colour, marker="_", markersize=7, linestyle="", alpha=0.6, zorder=2)
            ax.plot([calls], [middle], color=colour, marker=marker, markersize=8 if front else 6.5, linestyle="",
                    zorder=4 if front else 3, label=who)  # fmt: skip
            ours += [(calls, middle)] if front else []
        ax.plot(*zip(*sorted(ours), strict=True), color=OURS[0], linewidth=1.6, zorder=3)
        default = arms["tolerance 0.03"]
        ax.set_title(f"{name}: stock has {default['stock_calls'][0]} calls", fontsize=10)
        ax.grid(alpha=0.25)
        calls_shown = [statistics.mean(row["calls"]) for arm, row in arms.items() if arm != "stock"]
        ax.set_xlim(min(calls_shown) - 1.5, max(calls_shown) + 1.5)
        ax.margins(y=0.1)
        ax.set_xlabel("UNet calls (mean)", fontsize=9)
        ax.set_ylabel("PSNR to stock, dB", fontsize=9)
    for ax in axes[len(shown) :]:
        ax.remove()
    handles: dict[str, Any] = {}
    for ax in figure.axes:
        handles |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    order = [name for name in ("agentsd", "fewer steps of another solver", *rivals) if name in handles]
    figure.legend([handles[name] for name in order], order, loc="outside lower center", ncols=4, frameon=False)
    numbers = sorted({row["pictures"] for arms in shown.values() for row in arms.values()})
    figure.suptitle(
        f"Left and up is better. Points: median over {' or '.join(map(str, numbers))} prompts; bars reach down to the "
        "worst 5%.\nBundled demo model under each process.",
        fontsize=10,
    )  # fmt: skip
    return figure


def scaling(rows: list[Row]) -> Any:
    """Cost of the finest level against the number of tokens, both logarithmic, with the fitted exponents."""
    rows = [row for row in rows if row.get("levels", 1) == 1]
    rows = [row for row in rows if key_of(row, SETUP) == key_of(rows[-1], SETUP)]
    cells = {(row["arm"], row["grid"]): row["milliseconds"] for row in rows}
    figure, (ax,) = figure_of(1, 1, 8.5, 5.2)
    last = max(grid for _, grid in cells)
    looks = iter(OTHERS * 9)
    for arm in dict.fromkeys(row["arm"] for row in rows):
        grids = sorted(grid for name, grid in cells if name == arm)
        costs = [cells[arm, grid] for grid in grids]
        if arm == "stock":
            colour, marker = SOLVERS
        elif arm.startswith("key/value sampling"):
            colour, marker = OURS
        else:
            colour, marker = next(looks)
        power = f", N^{power_law([grid**2 for grid in grids], costs):.2f}" if len(grids) > 1 else ""
        gain = ""
        if arm != "stock" and ("stock", last) in cells and (arm, last) in cells:
            gain = f", {cells['stock', last] / cells[arm, last]:.1f}x faster at {last * PIXELS} px"
        ax.plot([grid**2 for grid in grids], costs, color=colour, marker=marker, label=arm + power + gain)
    ticks = sorted({grid for _, grid in cells})
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks([grid**2 for grid in ticks], [f"{grid**2}\n{grid * PIXELS} px" for grid in ticks])
    ax.minorticks_off()
    ax.grid(alpha=0.25)
    first = rows[-1]
    ax.set_xlabel("tokens, and the side of the picture")
    ax.set_ylabel("milliseconds")
    ax.legend(fontsize=8.5)
    ax.set_title(
        f"Self-attention at the finest level (layers timed: {first['layers']}, {first['architecture']}, batch "
        f"{first['batch']}, {first['dtype']})\n{first['device']}",
        fontsize=10,
    )
    return figure


if __name__ == "__main__":
    sys.exit(guard("plots.py", main))
