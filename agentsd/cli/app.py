"""Open a page in the browser: draw stock beside agentsd, and move one slider from off to fast."""

import argparse

HELP = "a page in the browser (needs the extra agentsd[app])"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `agentsd app`."""


def run(options: argparse.Namespace) -> int:
    """Start the page.

    Raises:
        ImportError: If the page or the packages that it needs are not installed.
    """
    try:
        from importlib import import_module

        page = import_module("agentsd.app")
    except ImportError as error:
        raise ImportError(f"the page needs {error.name}; run pip install 'agentsd[app]'.") from error
    code: int = page.main(options)
    return code
