"""Write agentsd/cli/measured.json, the figures that `python -m agentsd info` shows, from results/demo/arms.jsonl."""

import argparse
import json
import sys
from pathlib import Path

from agentsd.bench.rows import read_rows
from agentsd.cli.info import MEASURED, read_measured, summarise

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "results/demo/arms.jsonl"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file is out of date")
    args = parser.parse_args(argv)
    new = summarise(read_rows(ROOT / SOURCE), SOURCE)
    if not new["presets"]:
        print(f"{SOURCE} has no row of a preset", file=sys.stderr)
        return 1
    if args.check:
        if new != read_measured():
            print("out of date: agentsd/cli/measured.json; run scripts/dev/measured.py", file=sys.stderr)
            return 1
        return 0
    MEASURED.write_text(json.dumps(new, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
