"""The arms of an evaluation: stock, its repetition, ours and rivals, and stock with fewer steps of equal time."""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal

from agentsd.bench.arm import RunArm
from agentsd.bench.arms import RUN_ARMS
from agentsd.bench.ours import run_arm
from agentsd.bench.store import slug
from agentsd.pictures.settings import labelled_schedule
from agentsd.presets import PRESETS
from agentsd.schedule import Schedule
from agentsd.schedule.text import schedule_object

STOCK = "stock"
CONTROL = "stock A/A"
_KEYS = ("preset", "tolerance", "ratio", "every", "depth", "rival", "steps", "noise")
_ALLOWED = f"--arm NAME:key=value,... with the keys {', '.join(_KEYS)}, or the name of a preset alone"

Role = Literal["stock", "control", "candidate", "equal time"]


@dataclass(frozen=True, kw_only=True)
class EvaluationArm:
    """One way to make the pictures.

    Args:
        name: What tables call it.
        role: `"stock"`, its `"control"`, a `"candidate"`, or stock of `"equal time"`.
        steps: Denoising steps.
        schedule: Schedule of ours; `None` is stock attention.
        rival: Name in `agentsd.bench.arms.RUN_ARMS` instead.
        noise: Which of the independent noises of each prompt to start from; 0 is that of stock.
        equals: For `"equal time"`: the candidates whose time it has; empty if the user chose the steps.

    Example:
        >>> EvaluationArm(name="stock", role="stock", steps=20).schedule is None
        True
    """

    name: str
    role: Role
    steps: int
    schedule: Schedule | None = None
    rival: str | None = None
    noise: int = 0
    equals: tuple[str, ...] = ()

    @property
    def arm(self) -> RunArm:
        """How the pipeline is run: the same arms as those of the benchmarks."""
        if self.rival is not None:
            return RUN_ARMS[self.rival]
        return RUN_ARMS[STOCK] if self.schedule is None else run_arm(self.schedule)

    def enter(self, pipe: Any) -> AbstractContextManager[Any]:
        """Return the context in which the pipeline runs as this arm."""
        return self.arm.enter(pipe)

    def call(self, pipe: Any, **arguments: Any) -> Any:
        """Call the pipeline, in the arm's context, with everything but the steps."""
        return self.arm.run(pipe, num_inference_steps=self.steps, **arguments)

    def to_dict(self) -> dict[str, Any]:
        """Return everything that decides the pictures, as plain data."""
        return {
            "steps": self.steps,
            "schedule": None if self.schedule is None else schedule_object(self.schedule),
            "rival": self.rival,
            "noise": self.noise,
            "rival_settings": None if self.rival is None else RUN_ARMS[self.rival].settings,
        }


def parse_arm(text: str, steps: int) -> EvaluationArm:
    """Return the arm that a command-line argument describes.

    Args:
        text: `"NAME:key=value,..."`, or the name of a preset.
        steps: Denoising steps where the text names none.

    Returns:
        The arm.

    Raises:
        ValueError: If the text cannot be read or a value is out of range.

    Example:
        >>> arm = parse_arm("gentle:preset=quality,every=2", 20)
        >>> arm.name, arm.schedule.skips_steps
        ('gentle', True)
    """
    name, colon, rest = (part.strip() for part in text.partition(":"))
    if not colon and name in PRESETS:
        rest = f"preset={name}"
    pairs = [part.partition("=") for part in re.split(r",\s*(?=[a-z]+\s*=)", rest) if part.strip()]
    given = {key.strip(): value.strip() for key, _, value in pairs}
    unknown = [key for key in given if key not in _KEYS]
    if not name or not given or unknown or len(given) != len(pairs):
        raise ValueError(
            f"arm={text!r} cannot be read{f' (unknown: {unknown[0]})' if unknown else ''}; write {_ALLOWED}."
        )
    steps = _number(text, given, "steps", int, steps)
    noise = _number(text, given, "noise", int, 0)
    if not 1 <= steps <= 1000:
        raise ValueError(f"arm={text!r}: steps={steps} must be a whole number from 1 to 1000.")
    if noise < 0:
        raise ValueError(f"arm={text!r}: noise={noise} must be 0 (stock's own noise) or a positive whole number.")
    plain = EvaluationArm(name=name, role="candidate", steps=steps, noise=noise)
    ours = {key for key in given if key in ("preset", "tolerance", "ratio", "every", "depth")}
    if "rival" in given:
        rivals = [rival for rival, arm in RUN_ARMS.items() if arm.fewer_steps == 1 and not rival.startswith("stock")]
        if given["rival"] not in rivals:
            raise ValueError(f"arm={text!r}: rival={given['rival']!r} is unknown; choose one of {', '.join(rivals)}.")
        if ours:
            raise ValueError(f"arm={text!r}: rival replaces {', '.join(sorted(ours))}; leave one out.")
        return replace(plain, rival=given["rival"])
    if not ours:
        return plain  # stock with other steps or noise
    kinds = (("tolerance", float), ("ratio", float), ("every", int), ("depth", int))
    numbers = {key: _number(text, given, key, kind, None) for key, kind in kinds}
    try:
        schedule, _ = labelled_schedule(given.get("preset"), **numbers)
    except ValueError as error:
        raise ValueError(f"arm={text!r}: {error}") from error
    return replace(plain, schedule=schedule)


def base_arms(texts: Sequence[str], steps: int) -> list[EvaluationArm]:
    """Return stock, its control, and the arms described; the default preset if none is.

    Args:
        texts: Descriptions, see `parse_arm`.
        steps: Denoising steps of stock.

    Returns:
        The arms; those of equal time are added when the times are known.

    Raises:
        ValueError: If a description cannot be read, or two arms share a name.

    Example:
        >>> [arm.name for arm in base_arms(["fast"], 20)]
        ['stock', 'stock A/A', 'fast']
    """
    arms = [
        EvaluationArm(name=STOCK, role="stock", steps=steps),
        EvaluationArm(name=CONTROL, role="control", steps=steps),
        *(parse_arm(text, steps) for text in texts or ["balanced"]),
    ]
    _check_names(arms)
    return arms


def with_equal_time(arms: Sequence[EvaluationArm], candidates_of: Mapping[int, Sequence[str]]) -> list[EvaluationArm]:
    """Return the arms with a stock arm for each number of fewer steps.

    Args:
        arms: What `base_arms` returned.
        candidates_of: Steps to the candidates whose time stock then takes; to none if the user asked for the steps.

    Returns:
        All arms; steps that are not fewer than stock's make none, see `no_faster`.

    Example:
        >>> with_equal_time(base_arms(["fast"], 20), {9: ["fast"]})[-1].name
        'stock, 9 steps'
    """
    added = [
        EvaluationArm(name=f"stock, {fewer} steps", role="equal time", steps=fewer, equals=tuple(names))
        for fewer, names in sorted(candidates_of.items(), reverse=True)
        if fewer < arms[0].steps
    ]
    everything = [*arms, *added]
    _check_names(everything)
    return everything


def no_faster(arms: Sequence[EvaluationArm], candidates_of: Mapping[int, Sequence[str]]) -> list[str]:
    """Return the candidates that `with_equal_time` adds no stock arm for: they take the time of all of stock's steps.

    Args:
        arms: The arms, stock first.
        candidates_of: Steps to the candidates whose time stock then takes.

    Returns:
        Their names.

    Example:
        >>> no_faster(base_arms(["fast", "gentle"], 20), {9: ["fast"], 20: ["gentle"]})
        ['gentle']
    """
    return [name for fewer, names in candidates_of.items() if fewer >= arms[0].steps for name in names]


def _check_names(arms: Sequence[EvaluationArm]) -> None:
    folders: dict[str, str] = {}
    for arm in arms:
        if slug(arm.name) in folders:
            raise ValueError(
                f"arm={arm.name!r} has the name or folder of the arm {folders[slug(arm.name)]!r}; rename one."
            )
        folders[slug(arm.name)] = arm.name


def _number(text: str, given: dict[str, str], key: str, kind: Any, default: Any) -> Any:
    if key not in given:
        return default
    try:
        return kind(given[key])
    except ValueError:
        raise ValueError(f"arm={text!r}: {key}={given[key]!r} must be a {'whole ' * (kind is int)}number.") from None
