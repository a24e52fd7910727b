"""Plot the cost of self-attention against tokens, docs/img/scaling.png, from the committed results."""

import argparse
import sys
from pathlib import Path
from typing import Any

from agentsd.bench.ratios import power_law
from agentsd.bench.rows import Row, key_of, read_rows
from agentsd.cli.main import guard

ROOT = Path(__file__).resolve().parents[2]
OURS = "#1f5fbf"
# Colours for the colour-blind (Okabe and Ito), with a marker each.
OTHERS = (
    ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "D"), ("#e69f00", "v"), ("#56b4e9", "P"), ("#000000", "X"),
    ("#999933", "<"),
)  # fmt: skip
SETUP = ("benchmark", "architecture", "batch", "dtype", "layers", "device", "threads", "torch", "diffusers")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--output", type=Path, default=Path("outputs/plots"), help="folder of the plots")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    source = args.results / "scaling.jsonl"
    rows = read_rows(source)
    if not rows:
        print(f"{source} has no rows", file=sys.stderr)
        return 1
    # Without the date and the versions the same results give the same file.
    scaling(rows).savefig(args.output / "scaling.png", dpi=150, metadata={"Software": None})
    print(args.output / "scaling.png")
    return 0


def scaling(rows: list[Row]) -> Any:
    """Cost of the finest level against the number of tokens, both logarithmic, with the fitted exponents."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.get("levels", 1) == 1]
    rows = [row for row in rows if key_of(row, SETUP) == key_of(rows[-1], SETUP)]
    cells = {(row["arm"], row["grid"]): row for row in rows}
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    for index, arm in enumerate(dict.fromkeys(row["arm"] for row in rows)):
        grids = sorted(grid for name, grid in cells if name == arm)
        tokens = [grid**2 for grid in grids]
        costs = [cells[arm, grid]["milliseconds"] for grid in grids]
        colour, marker = OTHERS[index % len(OTHERS)]
        if arm == "stock":
            colour, marker = "black", "*"
        elif arm.startswith("key/value sampling"):  # as in the presets
            colour, marker = OURS, "o"
        power = f", N^{power_law(tokens, costs):.2f}" if len(tokens) > 1 else ""
        ax.plot(tokens, costs, color=colour, marker=marker, label=arm + power)
    ticks = sorted({grid for _, grid in cells})
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks([grid**2 for grid in ticks], [f"{grid}x{grid}" for grid in ticks])
    ax.minorticks_off()
    ax.grid(alpha=0.25)
    first = rows[-1]
    ax.set_xlabel("tokens")
    ax.set_ylabel("milliseconds")
    ax.legend(fontsize=9)
    ax.set_title(
        f"Self-attention of the finest level alone: layers timed {first['layers']}, {first['architecture']}, batch "
        f"{first['batch']},\n{first['dtype']}, {first['device']}",
        fontsize=10,
    )
    return figure


if __name__ == "__main__":
    sys.exit(guard("plots.py", main))
