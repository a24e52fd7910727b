"""Open a page in the browser: stock beside agentsd, and one slider from off to fast."""

import argparse

from agentsd.app import options as page
from agentsd.cli.printer import say

HELP = "a page in the browser (needs gradio)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `agentsd app`."""
    page.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Start the page, and wait until it is stopped.

    Raises:
        ImportError: If gradio is not installed.
        ValueError: If the device, the folder or the port cannot be used.
    """
    from agentsd.app.starting import run as start  # it loads torch

    return start(options, say)
