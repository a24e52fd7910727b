"""Write the tables of README.md, docs/ and results/README.md from the committed result files.

They stand between `<!-- table:NAME -->` markers.
"""

import argparse
import re
import sys
from pathlib import Path

from agentsd.bench.batch_tables import batch_rows, batch_table
from agentsd.bench.cost_tables import plans_table, scaling_table
from agentsd.bench.demo_tables import demo_table
from agentsd.bench.gauge_tables import (
    every_table,
    gauge_table,
    lists_table,
    promise_table,
    rivals_table,
    solvers_table,
)
from agentsd.bench.help_table import help_table
from agentsd.bench.rows import read_rows
from agentsd.bench.speed_tables import current_rows, h200_table, main_table, other_tables, speed_rows
from agentsd.bench.strip_tables import parts_table, presets_table, strip_rows

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
PAGES = ("README.md", "docs/benchmarks.md", "docs/calibrate.md", "results/README.md")
# What docs/benchmarks.md shows of the long table; results/README.md shows all.
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
LISTED = "sd15, DPM++ 2M Karras, 20"  # where tolerances stand beside calibrated lists
# Three solvers of the README; docs/benchmarks.md shows all.
SHORT_GAUGE = ("sd15, PNDM, 50", "sdxl, Euler, 30", "sd15, Euler ancestral, 30")


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
    rows = read_rows(RESULTS / "gauge.jsonl")
    tables = {
        "helps": lambda: help_table(
            rows,
            [row for row in speed_rows(RESULTS) if (row["dtype"], row["device_type"]) == ("bfloat16", "cpu")],
            current_rows(RESULTS, "speed-h200"),
        ),
        "presets": lambda: presets_table(rows, strip_rows(RESULTS)),
        "parts": lambda: parts_table(strip_rows(RESULTS)),
        "batches": lambda: batch_table(batch_rows(RESULTS)),
        "solvers": lambda: solvers_table(rows, SHORT_GAUGE),
        "h200": lambda: h200_table(RESULTS, SHORT),
        "speed-short": lambda: main_table(RESULTS, SHORT),
        "gauge": lambda: gauge_table(rows),
        "gauge-rivals": lambda: rivals_table(rows),
        "gauge-promise": lambda: promise_table(rows),
        "lists": lambda: lists_table(rows, LISTED),
        "gauge-all": lambda: every_table(rows),
        "speed": lambda: main_table(RESULTS),
        "speed-others": lambda: other_tables(RESULTS),
        "demo": lambda: demo_table(RESULTS),
        "rankings": lambda: demo_table(RESULTS, name="rankings"),
        "scaling": lambda: scaling_table(RESULTS),
        "plans": lambda: plans_table(RESULTS),
    }
    for name, make in tables.items():
        pattern = rf"(<!-- table:{name} -->\n).*?(<!-- /table:{name} -->)"
        text = re.sub(pattern, lambda match, make=make: match[1] + make() + match[2], text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    sys.exit(main())
