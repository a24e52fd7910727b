"""Draw the plots of docs/img from the committed result files: speed against quality, and cost against tokens."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentsd.bench.arms import is_current, kind_of
from agentsd.bench.ratios import power_law
from agentsd.bench.rows import Row, key_of, read_rows
from agentsd.cli.main import guard

ROOT = Path(__file__).resolve().parents[2]
PANELS = (
    ("psnr_db_median", "PSNR to the stock picture, dB"),
    ("ssim_median", "SSIM to the stock picture"),
    ("accuracy", "all objects right, share of pictures"),
)
OURS, FEWER, OTHER_OURS, PAPER = "#1f5fbf", "#777777", "#a9c4ea", "#5b4b9a"
# Colours that stay apart for the colour-blind (Okabe and Ito), with a marker each.
RIVALS = (
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
    made = 0
    for name, source, draw in (
        ("front", args.results / "demo" / "front.jsonl", front),
        ("scaling", args.results / "scaling.jsonl", scaling),
    ):
        rows = read_rows(source)
        if not rows:
            print(f"{source} has no rows: no {name}.png", file=sys.stderr)
            continue
        figure = draw(rows)
        # Without the date and the versions the same results give the same file.
        figure.savefig(args.output / f"{name}.png", dpi=150, metadata={"Software": None})
        print(args.output / f"{name}.png")
        made += 1
    return 0 if made else 1


def short(arm: str) -> str:
    """The label of an arm: the name in brackets, where it has one."""
    named = re.search(r"\((\w+)\)$", arm)
    return named[1] if named else arm.removeprefix("preset ").removeprefix("stock, ")


def pareto(points: Sequence[tuple[float, float, Any]]) -> list[tuple[float, float, Any]]:
    """The points that no other is both faster and better than, from the slowest to the fastest."""
    front: list[tuple[float, float, Any]] = []
    for point in sorted(points, key=lambda point: (-point[0], -point[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front[::-1]


def figure_of(columns: int, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def front(rows: list[Row]) -> Any:
    """Speed-up against three measures of quality: ours joined to a front, rivals with a marker each."""
    figure, axes = figure_of(len(PANELS), 15, 5.2)
    rows = [row for row in rows if is_current(row["arm"], row["settings"])]
    rows = [{**row, "accuracy": row["attribute_accuracy"]["all"]} for row in rows]
    rivals = dict(zip([row["arm"] for row in rows if kind_of(row["arm"]) == "rival"], RIVALS * 9, strict=False))
    waiting = []
    for ax, (field, title) in zip(axes, PANELS, strict=True):
        labels, dots = [], []
        known = [row for row in rows if row[field] is not None and row["arm"] != "stock A/A"]
        ours = [(row["speedup"], row[field], row) for row in known if kind_of(row["arm"]) in ("ours", "preset")]
        best = pareto(ours)
        ax.plot([x for x, _, _ in best], [y for _, y, _ in best], color=OURS, linewidth=1.5, zorder=2)
        fewer = sorted((row["speedup"], row[field]) for row in known if kind_of(row["arm"]) in ("fewer", "stock"))
        ax.plot([x for x, _ in fewer], [y for _, y in fewer], color=FEWER, linewidth=1, linestyle=":", zorder=1)
        for row in known:
            kind, x, y = kind_of(row["arm"]), row["speedup"], row[field]
            if kind == "stock" and field != "accuracy":
                continue  # equal to itself: no information, and it would stretch the axis
            on_front = any(row is other for _, _, other in best)
            colour, marker = {
                "stock": ("black", "*"),
                "fewer": (FEWER, "o"),
                "preset": (OURS, "o"),
                "ours": (OURS if on_front else OTHER_OURS, "."),
                "paper": (PAPER, "h"),
            }.get(kind) or rivals[row["arm"]]
            low, high = row["speedup_95"]
            ax.errorbar(
                x, y, xerr=[[max(x - low, 0)], [max(high - x, 0)]], color=colour, marker=marker, markersize=7,
                linewidth=0.8, capsize=2, zorder=4 if kind in ("preset", "rival") else 3,
            )  # fmt: skip
            dots.append((x, y))
            if kind != "ours":
                bold = kind in ("preset", "stock")
                labels.append((x, y, short(row["arm"]), colour, "bold" if bold else "normal"))
        ax.set_xscale("log")
        fastest = max(row["speedup_95"][1] for row in known)
        slowest = min(row["speedup_95"][0] for row in known)
        ax.set_xlim(slowest * 0.92, fastest * 1.25)
        ticks = [tick for tick in (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16) if slowest * 0.92 < tick < fastest * 1.25]
        ax.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
        ax.minorticks_off()
        ax.margins(y=0.12)
        ax.grid(alpha=0.25)
        ax.set_title(title, fontsize=11)
        ax.set_xlabel("speed-up over stock")
        waiting.append((ax, labels, dots))
    first = rows[0]
    figure.suptitle(
        f"agentsd (blue) on the bundled demo model: {first['prompts']} prompts, {first['steps']} steps, "
        f"{first['dtype']}, {first['device']}; bars: 95% interval; dotted: stock with fewer steps",
        fontsize=10,
    )
    figure.draw_without_rendering()  # so that the layout is final before the labels look for room
    figure.set_layout_engine("none")
    for ax, labels, dots in waiting:
        place_labels(figure, ax, labels, dots)
    return figure


def place_labels(
    figure: Any, ax: Any, labels: Sequence[tuple[float, float, str, str, str]], dots: Sequence[tuple[float, float]]
) -> list[Any]:
    """Write each label at the nearest place around its point that is free of labels and dots; return the texts."""
    from matplotlib.text import Text

    renderer = figure.canvas.get_renderer()
    points = [ax.transData.transform(label[:2]) for label in labels]
    marks = [ax.transData.transform(dot) for dot in dots]
    taken: list[Any] = []
    texts = []
    inside = ax.get_window_extent(renderer)
    # Above and below first: the intervals lie to the sides.
    around = ((0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0))
    # The most crowded first: they have the fewest places.
    crowd = sorted(range(len(labels)), key=lambda i: sum(abs(points[i] - other).max() < 60 for other in points))[::-1]
    for index in crowd:
        x, y, text, colour, weight = labels[index]
        chosen = None
        for radius in (8, 14, 22, 32, 44, 58, 74, 92):
            for across, up in around:
                note = ax.annotate(
                    text, (x, y), (across * radius, up * radius), textcoords="offset points", color=colour,
                    fontsize=8.5, fontweight=weight, zorder=6,
                    ha={1: "left", -1: "right", 0: "center"}[across], va={1: "bottom", -1: "top", 0: "center"}[up],
                    arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5} if radius > 14 else None,
                )  # fmt: skip
                # The box of the words alone: an annotation's own holds its arrow as well.
                note.update_positions(renderer)
                box = Text.get_window_extent(note, renderer).expanded(1.02, 1.1)
                free = not any(box.overlaps(other) for other in taken) and not any(
                    box.x0 - 5 < px < box.x1 + 5 and box.y0 - 5 < py < box.y1 + 5 for px, py in marks
                )
                fits = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
                if free and fits:
                    chosen = note, box
                    break
                note.remove()
            if chosen:
                break
        if chosen is None:
            raise ValueError(f"label {text!r} finds no free place; make the figure larger or the labels fewer.")
        texts.append(chosen[0])
        taken.append(chosen[1])
    return texts


def scaling(rows: list[Row]) -> Any:
    """Cost of the finest level against the number of tokens, both logarithmic, with the fitted exponents."""
    rows = [row for row in rows if row.get("levels", 1) == 1]
    rows = [row for row in rows if key_of(row, SETUP) == key_of(rows[-1], SETUP)]
    cells = {(row["arm"], row["grid"]): row for row in rows}
    figure, (ax,) = figure_of(1, 7.5, 5)
    for index, arm in enumerate(dict.fromkeys(row["arm"] for row in rows)):
        grids = sorted(grid for name, grid in cells if name == arm)
        tokens = [grid**2 for grid in grids]
        costs = [cells[arm, grid]["milliseconds"] for grid in grids]
        colour, marker = RIVALS[index % len(RIVALS)]
        if arm == "stock":
            colour, marker = "black", "*"
        elif arm.startswith("sampled"):  # what the presets have
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
