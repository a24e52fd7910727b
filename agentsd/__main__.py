"""`python -m agentsd info`: what is installed, what was measured, and whether the demo model is whole."""

import argparse
import json
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns 1 if the demo model is not whole.

    Args:
        arguments: The command line, without the program; `None` takes the process's own.

    Raises:
        SystemExit: If the command line is not understood.
    """
    parser = argparse.ArgumentParser(prog="python -m agentsd", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="versions, devices, presets with their figures, the demo model")
    info.add_argument("--json", action="store_true", help="write the same as JSON")
    options = parser.parse_args(arguments)

    from agentsd.cli.info import collect, describe

    facts = collect()
    sys.stdout.write((json.dumps(facts, indent=2) if options.json else describe(facts)) + "\n")
    return 0 if facts["demo_model"]["whole"] else 1


if __name__ == "__main__":
    sys.exit(main())
