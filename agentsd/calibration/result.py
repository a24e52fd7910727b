"""What a calibration found, as plain data: a schedule, what it is for, and what it did to held-out pictures."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agentsd.attention.checks import check_fields, check_int, check_number, load_object
from agentsd.bench.intervals import Interval, interval, spread_of
from agentsd.demo import MODEL_PATH
from agentsd.schedule import Schedule
from agentsd.schedule.text import schedule_from, schedule_object
from agentsd.system.writing import write_whole
from agentsd.unet.summary import steps_in_words

_VERSION = 1  # of the JSON


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A schedule for one pipeline, one solver and one number of steps, with what to expect of it.

    Every figure is from pictures of held-out prompts, against stock pictures of the same noise.

    Attributes:
        schedule: The schedule; give it to `agentsd.apply`.
        target: What was asked for, in words.
        model: Name of the model.
        scheduler: Class of the scheduler.
        scheduler_config: Its settings.
        num_inference_steps: Steps of the run.
        guidance_scale: Guidance; `None` is the pipeline's own.
        stock_calls: Calls of the UNet or transformer for a stock picture.
        calls: Those of each held-out picture.
        psnr: PSNR of each to its stock picture, in dB; `None` where the two are equal.
        latent_error: Relative error of each final latent.
        lpips: LPIPS of each, if it was asked for.
        excess: Their error over what the target allows: above 1 it is missed. `None` for a number of calls.
        prompts: The prompts that the schedule was fitted to.
        held_out: The prompts of the figures.
        seed: Seed of the first picture's noise.

    Example:
        >>> found = agentsd.calibrate(pipe, ["a red circle"], num_inference_steps=12, calls=8, progress=False)
        >>> found.speedup
        1.5
        >>> Calibration.from_json(found.to_json()) == found
        True
    """

    schedule: Schedule
    target: str
    model: str
    scheduler: str
    scheduler_config: dict[str, Any]
    num_inference_steps: int
    guidance_scale: float | None
    stock_calls: int
    calls: tuple[int, ...]
    psnr: tuple[float | None, ...]
    latent_error: tuple[float, ...]
    lpips: tuple[float, ...]
    excess: float | None
    prompts: tuple[str, ...]
    held_out: tuple[str, ...]
    seed: int

    @property
    def mean_calls(self) -> float:
        """Calls of a picture, on average."""
        return sum(self.calls) / len(self.calls)

    @property
    def speedup(self) -> float:
        """How many times fewer calls than stock; whole runs gain less, because other parts take time too."""
        return self.stock_calls / self.mean_calls

    def psnr_interval(self) -> Interval:
        """Return the median PSNR to stock with its bootstrap interval, in dB; infinite for equal pictures."""
        return interval([float("inf") if one is None else one for one in self.psnr])

    def lpips_interval(self) -> Interval | None:
        """Return the median LPIPS to stock with its bootstrap interval; `None` if it was not measured."""
        return interval(self.lpips) if self.lpips else None

    def differences(self, pipe: Any) -> list[str]:
        """Return how a pipeline differs from the one that was calibrated: model and scheduler.

        Args:
            pipe: A pipeline.

        Example:
            >>> found = agentsd.calibrate(pipe, ["a red circle"], num_inference_steps=12, calls=8, progress=False)
            >>> found.differences(pipe)
            []
        """
        here = key_of(pipe)
        pairs = {name: (here[name], getattr(self, name)) for name in ("model", "scheduler")}
        if here["scheduler"] == self.scheduler:  # another class has other settings anyway
            ours, theirs = here["scheduler_config"], self.scheduler_config
            pairs |= {f"{name} of the scheduler": (ours.get(name), theirs.get(name)) for name in ours | theirs}
        return [
            f"{name} is {one!r} here and {other!r} in the calibration"
            for name, (one, other) in pairs.items()
            if one != other
        ]

    def to_json(self) -> str:
        """Return the calibration as JSON on one line."""
        return json.dumps({"version": _VERSION, **asdict(self), "schedule": schedule_object(self.schedule)})

    @classmethod
    def from_json(cls, text: str | bytes) -> "Calibration":
        """Return the calibration that `to_json` wrote.

        Raises:
            ValueError: If the text is not such JSON, has another version, or a field is unknown, missing or out of
                range.
        """
        given = dict(check_fields(cls, load_object(text, "calibration", _VERSION), "calibration"))
        given["schedule"] = schedule_from(given["schedule"])
        for name in ("calls", "psnr", "latent_error", "lpips", "prompts", "held_out"):
            if not isinstance(given[name], list):
                raise ValueError(f"{name}={given[name]!r} of the calibration must be a JSON list.")
            given[name] = tuple(given[name])
        _check_figures(given)
        return cls(**given)

    def save(self, path: Path | str) -> None:
        """Write the JSON to a file, whole or not at all.

        Args:
            path: The file.
        """
        write_whole(Path(path), self.to_json() + "\n")

    def __str__(self) -> str:
        worst = min(float("inf") if one is None else one for one in self.psnr)
        prompts = "1 held-out prompt" if len(self.held_out) == 1 else f"{len(self.held_out)} held-out prompts"
        pictures = "1 other picture" if len(self.prompts) == 1 else f"{len(self.prompts)} other pictures"
        lines = [
            f"calibration of {self.model}, {self.scheduler}, {self.num_inference_steps} steps, for {self.target}",
            f"  steps: {steps_in_words(self.schedule)}",
            f"  calls: {self.mean_calls:.1f} instead of {self.stock_calls}, {self.speedup:.2f} times fewer",
            self._figure("PSNR to stock", self.psnr_interval(), worst, digits=1, unit=" dB"),
            self._figure("error of the final latent", interval(self.latent_error), max(self.latent_error)),
        ]
        lpips = self.lpips_interval()
        if lpips is not None:
            lines.append(self._figure("LPIPS to stock", lpips, max(self.lpips)))
        if self.excess is not None and self.excess > 1:
            lines.append(f"  target missed: the error is {self.excess:.1f} times what was asked for; give more prompts")
        return "\n".join([*lines, f"  measured on {prompts}; fitted to {pictures}"])

    def _figure(self, name: str, found: Interval, worst: float, *, digits: int = 3, unit: str = "") -> str:
        value, low, high, last = (f"{one:.{digits}f}" for one in (found.value, found.low, found.high, worst))
        if len(self.held_out) == 1:
            return f"  {name}: {value}{unit}"
        return f"  {name}: median {value}{unit} ({spread_of(len(self.held_out))}: {low} to {high}), worst {last}"


def _check_figures(given: dict[str, Any]) -> None:
    """Raise ValueError if a figure of a calibration is no number, or one is missing."""
    for name, least in (("num_inference_steps", 1), ("stock_calls", 1), ("seed", 0)):
        check_int(name, given[name], minimum=least)
    if not given["held_out"]:
        raise ValueError("held_out=[] of the calibration must name the prompts of its figures, one or more.")
    for name in ("calls", "psnr", "latent_error", "lpips"):
        if len(given[name]) != len(given["held_out"]) and (given[name] or name != "lpips"):
            raise ValueError(
                f"{name} of the calibration holds {len(given[name])} figures for {len(given['held_out'])} held-out "
                "prompts; there must be one for each."
            )
    for calls in given["calls"]:
        check_int("calls", calls, minimum=1)
    for name in ("guidance_scale", "excess"):
        if given[name] is not None:
            check_number(name, given[name])
    for name in ("psnr", "latent_error", "lpips"):
        for one in given[name]:
            if one is not None or name != "psnr":
                check_number(name, one)


def key_of(pipe: Any) -> dict[str, Any]:
    """Return what a calibration is for: the names of the model and of the scheduler, and the scheduler's settings.

    Example:
        >>> key_of(pipe)["scheduler"]
        'DDIMScheduler'
    """
    config = {name: value for name, value in dict(pipe.scheduler.config).items() if not name.startswith("_")}
    origin = getattr(pipe, "name_or_path", "") or getattr(pipe.config, "_name_or_path", "") or type(pipe).__name__
    if str(origin) == str(MODEL_PATH):  # where it lies differs from machine to machine
        origin = "demo"
    return {
        "model": str(origin),
        "scheduler": type(pipe.scheduler).__name__,
        "scheduler_config": json.loads(json.dumps(config, default=str)),
    }
