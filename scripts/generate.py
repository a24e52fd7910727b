#!/usr/bin/env python
"""The command `agentsd generate`, in a checkout."""

import sys

from agentsd.cli import main as cli


def main(argv: list[str] | None = None) -> int:
    return cli.main(["generate", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
