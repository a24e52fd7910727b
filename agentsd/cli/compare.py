"""Draw stock beside agentsd in one PNG, with both times and how alike the pictures are.

Whole pipeline calls after a warm-up, in the order stock, agentsd, agentsd, stock. With two presets: stock, A, B, B, A,
stock.
"""

import argparse

from agentsd.cli import generate
from agentsd.cli.picture_options import add_picture_options

HELP = "draw stock beside agentsd, with times and likeness"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `agentsd compare`."""
    add_picture_options(parser)
    parser.set_defaults(stock=False, compare=True)


def run(options: argparse.Namespace) -> int:
    """Draw, compare, and write every pair as soon as it is there.

    Raises:
        ValueError: If an option is bad or a picture cannot be written.
    """
    return generate.run(options)
