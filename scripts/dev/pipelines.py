"""Write the tables of docs/pipelines.md from tests/matrix.py, which is what the tests run."""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "pipelines.md"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is out of date")
    args = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT / "tests"))
    from matrix import table

    old = PAGE.read_text(encoding="utf-8")
    pattern = r"(<!-- table:pipelines -->\n).*?(<!-- /table:pipelines -->)"
    new = re.sub(pattern, lambda match: match[1] + table() + match[2], old, flags=re.DOTALL)
    if new != old and args.check:
        print("out of date: docs/pipelines.md; run scripts/dev/pipelines.py", file=sys.stderr)
        return 1
    if new != old:
        PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
