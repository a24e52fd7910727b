"""What a plan says, as plain data: a schedule, the levels where agents do not pay, and the times that decided it."""

import json
import math
from dataclasses import dataclass

from agentsd.attention.checks import check_fields, check_int, check_number, load_object, plain
from agentsd.attention.settings import Attention
from agentsd.schedule import Schedule
from agentsd.schedule.text import attention_from, attention_object, schedule_from, schedule_object
from agentsd.system.numbers import is_whole

_VERSION = 1  # of the JSON
_MARGIN = 1.03  # medians of two equal layers differ by as much on a quiet machine


@dataclass(frozen=True)
class LayerTiming:
    """Seconds of one self-attention layer, stock and by a setting.

    Attributes:
        level: Halvings of the latent grid before the layer.
        grid: Token grid (height, width).
        layers: How many layers of this shape the UNet has.
        outer: How many of them run at a skipped step.
        attention: The settings that were timed.
        stock_seconds: Median seconds of the stock layer.
        agent_seconds: Median seconds of the layer by the setting.
    """

    level: int
    grid: tuple[int, int]
    layers: int
    outer: int
    attention: Attention
    stock_seconds: float
    agent_seconds: float

    @property
    def wins(self) -> bool:
        """Whether the setting is faster than stock here, by more than 3%: a tie is stock's."""
        return self.stock_seconds > _MARGIN * self.agent_seconds


@dataclass(frozen=True)
class Plan:
    """A schedule for one device, dtype and picture size, with every layer left stock where agents do not win.

    Attributes:
        schedule: The schedule.
        latent: Size of the latents it was made for, (height, width).
        batch: Samples in one UNet call it was made for.
        step_seconds: Measured seconds of a whole stock UNet step.
        shallow_seconds: Measured seconds of a skipped step with stock attention; `None` if the schedule has none.
        timings: What was measured, layer shape by layer shape.
        device: Where it was measured, see `agentsd.unet.traits.device_label`.
        dtype: Type of the UNet's weights.
        architecture: What UNet it fits, see `agentsd.unet.traits.layer_digest`.
        skipping_problem: Why the preset skips no steps on this UNet; `None` if it does.
    """

    schedule: Schedule
    latent: tuple[int, int]
    batch: int
    step_seconds: float
    shallow_seconds: float | None
    timings: tuple[LayerTiming, ...]
    device: str
    dtype: str
    architecture: str
    skipping_problem: str | None = None

    def stock_levels(self, attention: Attention) -> frozenset[int]:
        """Return the levels where the setting does not win and layers stay stock."""
        return frozenset(timing.level for timing in self.timings if timing.attention == attention and not timing.wins)

    def predicted_seconds(self, index: int, total: int) -> float:
        """Return the predicted seconds of UNet step `index` of a run of `total` steps.

        It is the stock step less what every winning layer that runs at it saves, and never less than these layers take:
        layer and step are timed apart, and on a busy machine their times can contradict each other.
        """
        shallow = self.shallow_seconds
        full = shallow is None or self.schedule.is_full(index, total)
        seconds = self.step_seconds if shallow is None or full else shallow
        attention = self.schedule.at(index, total)
        least = 0.0
        for timing in self.timings:
            if timing.attention == attention and timing.level not in self.stock_levels(timing.attention):
                running = timing.layers if full else timing.outer
                seconds -= running * (timing.stock_seconds - timing.agent_seconds)
                least += running * timing.agent_seconds
        return max(seconds, least)

    def predicted_speedup(self, steps: int = 50) -> float:
        """Return the predicted speed-up of all UNet steps of a run over stock.

        Args:
            steps: Steps of the run (calls of the UNet).

        Raises:
            ValueError: If `steps` is no whole number of at least 1.
        """
        check_steps(steps)
        return steps * self.step_seconds / sum(self.predicted_seconds(i, steps) for i in range(steps))

    def to_json(self) -> str:
        """Return the plan as JSON on one line: keep it beside the weights and load it with `from_json`.

        Example:
            >>> made = agentsd.plan(pipe, "fast", cache=False)
            >>> Plan.from_json(made.to_json()) == made
            True
        """
        timings = [{**plain(one), "attention": attention_object(one.attention)} for one in self.timings]
        written = {**plain(self), "schedule": schedule_object(self.schedule), "timings": timings}
        return json.dumps({"version": _VERSION, **written})

    @classmethod
    def from_json(cls, text: str | bytes) -> "Plan":
        """Return the plan that `to_json` wrote.

        Raises:
            ValueError: If the text is not such JSON, has another version, or a field is unknown, missing or out of
                range.
        """
        given = dict(check_fields(cls, load_object(text, "plan", _VERSION), "plan"))
        if not isinstance(given["timings"], list):
            raise ValueError(f"timings={given['timings']!r} of the plan must be a JSON list.")
        given["schedule"] = schedule_from(given["schedule"])
        given["latent"] = _size("latent", given["latent"])
        check_int("batch", given["batch"], minimum=1)
        _check_seconds("step_seconds", given["step_seconds"])
        if given["shallow_seconds"] is not None:
            _check_seconds("shallow_seconds", given["shallow_seconds"])
        given["timings"] = tuple(_timing_from(one, f"timings[{i}]") for i, one in enumerate(given["timings"]))
        return cls(**given)

    def __str__(self) -> str:
        height, width = self.latent
        lines = [
            f"plan for {height}x{width} latents, batch {self.batch}, {self.dtype} on {self.device}: predicted UNet "
            f"speed-up {self.predicted_speedup():.2f}x over 50 steps (stock step {self.step_seconds:.4g} s)"
        ]
        for timing in self.timings:
            ratio = timing.stock_seconds / timing.agent_seconds
            verdict = "stays stock" if timing.level in self.stock_levels(timing.attention) else "agents"
            lines.append(
                f"  level /{2**timing.level}, grid {timing.grid[0]}x{timing.grid[1]}, {timing.layers} layers: "
                f"{ratio:.2f}x by {timing.attention}: {verdict}"
            )
        if self.skipping_problem is not None:
            lines.append(f"  steps not skipped: {self.skipping_problem}")
        return "\n".join(lines)


def _timing_from(data: object, what: str) -> LayerTiming:
    given = dict(check_fields(LayerTiming, data, what))
    given["grid"] = _size(f"{what}.grid", given["grid"])
    for name, least in (("level", 0), ("layers", 1), ("outer", 0)):
        check_int(f"{what}.{name}", given[name], minimum=least)
    for name in ("stock_seconds", "agent_seconds"):
        _check_seconds(f"{what}.{name}", given[name])
    given["attention"] = attention_from(given["attention"], f"{what}.attention")
    return LayerTiming(**given)


def _size(name: str, value: object) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(is_whole(one, 1) for one in value):
        raise ValueError(f"{name}={value!r} must be a JSON list of height and width, whole numbers of at least 1.")
    return value[0], value[1]


def _check_seconds(name: str, value: float) -> None:
    check_number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value!r} must be seconds, above 0 and finite.")


def check_steps(steps: object) -> None:
    """Raise ValueError unless `steps` is a whole number of at least 1.

    Example:
        >>> check_steps(50)
    """
    if not is_whole(steps, 1):
        raise ValueError(f"steps={steps!r} must be a whole number of at least 1.")
