"""Draw pictures from text, faster; every PNG holds the settings that made it.

The bundled demo model draws where no --model is given: no network and no GPU needed. It knows six colours and five
shapes: "a red ring below a small blue cross". --from-png repeats a picture, with the options that you add.
"""

import argparse
import json

from agentsd.cli.picture_options import add_picture_options
from agentsd.cli.printer import say

HELP = "draw pictures from text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `agentsd generate`."""
    add_picture_options(parser)
    parser.add_argument("--stock", action="store_true", help="leave the pipeline as it is")
    parser.add_argument("--compare", action="store_true", help="the same as agentsd compare")


def run(options: argparse.Namespace) -> int:
    """Draw, and write every picture as soon as it is there.

    Raises:
        ValueError: If an option is bad or a picture cannot be written.
    """
    from agentsd.cli import drawing  # pictures and torch

    job = drawing.prepare(options)
    rows = (drawing.draw_comparisons if job.kind == "comparison" else drawing.draw)(job)
    if options.json:
        say(json.dumps({"kind": job.kind, "environment": job.environment, "pictures": rows}, indent=1))
    elif job.kind == "comparison":
        say(drawing.summary(rows, job.environment))
    return 0
