"""What the buttons of the page do; errors leave as sentences for the visitor."""

import functools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentsd.app.form import OPENED, OWN, PRESETS, Limits, fields_of, settings_of, tolerance_of
from agentsd.app.results import opened, save
from agentsd.app.strip import progress_html
from agentsd.app.studio import Against, Made, OnStep, Studio
from agentsd.app.work import Progress, Works
from agentsd.pictures.settings import Settings
from agentsd.presets import preset
from agentsd.schedule import Schedule

FIELDS = (
    *("model", "prompt", "negative", "steps", "guidance", "width", "height", "scheduler", "seed"),
    *("choice", "tolerance"),
)
_LOG = logging.getLogger("agentsd.app")
LOADING = "Loading the model and warming up"


class MessageError(Exception):
    """A sentence for the visitor."""


class Handlers:
    """The work behind the page, without gradio.

    Args:
        studio: Makes the pictures.
        limits: What a request may ask for.
        folder: Where pictures are written.
        model: The only model that visitors get; `None` lets them choose.
    """

    def __init__(self, studio: Studio, limits: Limits, folder: Path, model: str | None = None) -> None:
        self.studio, self.limits, self.folder, self.model = studio, limits, folder, model
        self.works = Works()

    def settings(self, values: Sequence[Any], schedule: str | None) -> Settings:
        """Return the settings in the fields, in the order of `FIELDS`.

        Raises:
            MessageError: If a field is wrong.
        """
        fields = dict(zip(FIELDS, values, strict=True))
        if self.model is not None:
            fields["model"] = self.model
        try:
            return settings_of(fields, self.limits, None if schedule is None else Schedule.from_json(schedule))
        except ValueError as error:
            raise MessageError(str(error)) from error

    def make(
        self, visitor: str, settings: Settings, arms: Sequence[tuple[Schedule, str]]
    ) -> Iterator[str | tuple[Settings, Made, list[Against]] | None]:
        """Yield progress as HTML, then the settings spelt out with the pictures; `None` if it was cancelled.

        Raises:
            MessageError: If it fails.
        """
        labels = ["stock", *(label for _, label in arms)]
        yield progress_html(LOADING, 0, 1)
        begin = functools.partial(self.studio.make, settings, arms)
        try:
            for event in self.works.run(visitor, _taking_steps(begin)):
                if isinstance(event, Progress):
                    yield _progress(event, labels)
                elif event.cancelled:
                    yield None
                else:
                    stock, found = event.result
                    yield self.studio.settled(settings, stock.picture), stock, found
        except ValueError as error:
            raise MessageError(str(error)) from error
        except Exception as error:  # a defect, or what a foreign model can raise: its traceback is for the terminal
            _LOG.exception("a picture failed")
            text = f"The picture failed: {type(error).__name__}. The terminal of agentsd shows the details."
            raise MessageError(text) from error

    def files(self, settings: Settings, made: Made, schedule: Schedule | None) -> Path:
        """Write a picture with its settings, and return the file.

        Raises:
            MessageError: If it cannot be written.
        """
        try:
            return save(self.folder, replace(settings, schedule=schedule, label=made.label), made.picture)
        except OSError as error:  # the disk is full, the folder gone
            _LOG.exception("a picture cannot be written")
            raise MessageError("The picture cannot be written. The terminal of agentsd shows why.") from error

    def restore(self, path: str) -> tuple[dict[str, Any], str | None, list[str]]:
        """Return the fields of a PNG, its schedule if no field can hold it, and notes for the visitor.

        Raises:
            MessageError: If the file holds no settings.
        """
        try:
            defaults = {"dtype": self.studio.dtype} | ({} if self.model is None else {"model": self.model})
            settings, notes = opened(Path(path), **defaults)
        except ValueError as error:
            raise MessageError(str(error)) from error
        fields = fields_of(settings)
        if self.model is not None:
            fields["model"] = self.model
        here = (("model", fields["model"]), ("dtype", self.studio.dtype), ("agents_seed", 0))  # what no field changes
        for name, value in here:
            if getattr(settings, name) != value:
                notes.append(f"{name} is {getattr(settings, name)} in the file and {value} on this page")
        kept = settings.schedule.to_json() if fields["choice"] == OPENED and settings.schedule is not None else None
        return fields, kept, notes


def arms_of(labels: Sequence[str]) -> list[tuple[Schedule, str]]:
    """Return the schedules of presets.

    Raises:
        MessageError: If there is none, or one is unknown.

    Example:
        >>> [label for _, label in arms_of(["fast", "quality"])]
        ['fast', 'quality']
    """
    if not labels or any(label not in PRESETS for label in labels):
        raise MessageError("No setting is chosen. Choose one or more to compare.")
    return [(preset(label), label) for label in labels]


def choice_of(tolerance: float) -> str:
    """Return the preset with a tolerance, or that it is the visitor's own.

    Example:
        >>> choice_of(0.06), choice_of(0.05)
        ('fast', 'own tolerance')
    """
    return next((name for name in PRESETS if tolerance_of(name) == tolerance), OWN)


def _taking_steps(begin: Callable[..., Any]) -> Callable[[OnStep, threading.Event], Any]:
    return lambda on_step, cancelled: begin(on_step=on_step, cancelled=cancelled)


def _progress(event: Progress, labels: Sequence[str]) -> str:
    total = max(event.total, event.done)
    text = f"{event.label}: step {event.done} of {total}"
    if len(labels) > 1:
        text += f" (picture {labels.index(event.label) + 1} of {len(labels)})"
    return progress_html(text, labels.index(event.label) * total + event.done, total * len(labels))
