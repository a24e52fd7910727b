"""A schedule out of a file: what `Schedule.to_json` returned, or what `agentsd calibrate` wrote."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentsd.pictures.settings import Settings
from agentsd.schedule import Schedule

if TYPE_CHECKING:
    from agentsd.calibration.result import Calibration


def chosen_schedule(options: argparse.Namespace) -> "tuple[Schedule | None, Calibration | None]":
    """Return what `--schedule` names, as `read_schedule` does; twice `None` without it.

    Raises:
        ValueError: If `--preset` is given too, or the file is bad.
    """
    if options.schedule is None:
        return None, None
    if options.preset is not None:
        raise ValueError(f"--schedule contradicts --preset {options.preset}; leave one of them out.")
    return read_schedule(options.schedule)


def read_schedule(path: Path) -> "tuple[Schedule, Calibration | None]":
    """Return the schedule of a JSON file, and the calibration that it is part of.

    Args:
        path: A file with the text of `Schedule.to_json`, or one that `agentsd calibrate` wrote.

    Returns:
        The schedule, and the calibration; `None` where the file holds a schedule alone.

    Raises:
        ValueError: If the file cannot be read or holds neither.

    Example:
        >>> read_schedule(Path("absent.json"))
        Traceback (most recent call last):
        ...
        ValueError: --schedule absent.json cannot be read: No such file or directory.
    """
    from agentsd.calibration.result import Calibration  # numpy

    try:
        text = path.read_bytes()
    except OSError as error:
        raise ValueError(f"--schedule {path} cannot be read: {error.strerror}.") from error
    try:
        data: Any = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    given = set(data) if isinstance(data, dict) else set()
    try:
        if {"schedule", "held_out"} <= given:
            found = Calibration.from_json(text)
            return found.schedule, found
        if "phases" in given:
            return Schedule.from_json(text), None
    except ValueError as error:
        raise ValueError(f"--schedule {path}: {error}") from error
    what = "a plan, which only agentsd.apply takes" if {"schedule", "timings"} <= given else "neither of the two"
    raise ValueError(
        f"--schedule {path} must hold a schedule (the text that Schedule.to_json() returned) or a calibration (the "
        f"file that agentsd calibrate wrote); it holds {what}."
    )


def differences(calibration: "Calibration", pipe: Any, settings: Settings) -> list[str]:
    """Return how a run differs from the one that was calibrated; its figures need not hold then.

    Args:
        calibration: The calibration.
        pipe: The pipeline of the run.
        settings: Its settings.
    """
    found = calibration.differences(pipe)
    for name, here, there in (
        ("steps", settings.steps, calibration.num_inference_steps),
        ("guidance_scale", settings.guidance_scale, calibration.guidance_scale),
    ):
        if here is not None and there is not None and here != there:
            found.append(f"{name} is {here:g} here and {there:g} in the calibration")
    return found
