"""Measure what a tolerance gives on your model, with your prompts and your solver."""

import argparse

HELP = "fit the tolerance to your model, solver and prompts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `agentsd calibrate`."""


def run(options: argparse.Namespace) -> int:
    """Calibrate.

    Raises:
        ImportError: If this version has no calibration.
    """
    try:
        from importlib import import_module

        calibration = import_module("agentsd.calibration")
    except ImportError as error:
        raise ImportError("this version of agentsd has no calibration.") from error
    code: int = calibration.main(options)
    return code
