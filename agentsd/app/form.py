"""What the fields of the page mean: settings of a picture, checked, and back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentsd.pictures.settings import SCHEDULERS, Settings, with_model_defaults
from agentsd.presets import name_of, preset
from agentsd.schedule import Schedule

OWN = "own tolerance"
OPENED = "as in the file"
PRESETS = ("quality", "balanced", "fast", "extreme", "gentle", "paper")
MODELS_OWN = "the model's own"
LARGEST_TOLERANCE = 0.15  # of the slider; the preset "extreme" has 0.12


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    steps: int = 150
    side: int = 1024
    prompt: int = 2000


def tolerance_of(choice: str) -> float | None:
    """Return the tolerance of a preset; `None` if it has none.

    Example:
        >>> tolerance_of("fast"), tolerance_of("gentle")
        (0.06, None)
    """
    return preset(choice).skipping.tolerance if choice in PRESETS else None


def schedule_of(choice: str, tolerance: float, opened: Schedule | None) -> tuple[Schedule | None, str]:
    """Return the schedule that preset and slider mean, and its label; `None` is stock.

    Args:
        choice: A preset, `OWN` (the slider decides) or `OPENED`.
        tolerance: The slider; 0 is off.
        opened: The schedule of the file that was opened.

    Raises:
        ValueError: If the choice is unknown, or nothing was opened.

    Example:
        >>> schedule_of("own tolerance", 0.05, None)[1], schedule_of("own tolerance", 0, None)
        ('tolerance 0.05', (None, 'off'))
    """
    if choice == OPENED:
        if opened is None:
            raise ValueError("No file is open. Open a PNG, or choose a preset.")
        return opened, OPENED
    if choice != OWN:
        return preset(choice), choice
    if tolerance == 0:
        return None, "off"
    return preset("balanced").with_tolerance(tolerance), f"tolerance {tolerance:g}"


def settings_of(fields: Mapping[str, Any], limits: Limits, opened: Schedule | None = None) -> Settings:
    """Return the settings that the fields mean, with the demo model's defaults filled in.

    Args:
        fields: By name: model, prompt, negative, steps, guidance, width, height, scheduler, seed, choice, tolerance.
            Steps, guidance and sides of 0 or `None` are left to the model.
        limits: What may be asked for.
        opened: The schedule of the file that was opened.

    Raises:
        ValueError: If a field is missing, wrong or beyond the limits; the message is for the visitor.

    Example:
        >>> fields = dict(model="demo", prompt="a ring", negative="", steps=None, guidance=None, width=64, height=None)
        >>> fields |= dict(scheduler=MODELS_OWN, seed=3, choice="fast", tolerance=0.06)
        >>> settings_of(fields, Limits()).steps
        50
    """
    prompt = str(fields["prompt"] or "").strip()
    if not prompt:
        raise ValueError("The prompt is empty. Write what the picture shall show.")
    for name in ("prompt", "negative"):
        if len(str(fields[name] or "")) > limits.prompt:
            raise ValueError(f"The {name} text is longer than {limits.prompt} characters. Shorten it.")
    steps = _whole("Steps", fields["steps"] or None, 1, limits.steps)
    sides = {name: _whole(name.capitalize(), fields[name] or None, 16, limits.side) for name in ("width", "height")}
    for name, side in sides.items():
        if side is not None and side % 8:
            raise ValueError(f"{name.capitalize()} is {side}, and must be a multiple of 8. Try {side // 8 * 8}.")
    guidance = fields["guidance"] or None
    if guidance is not None and not 0 < guidance <= 30:
        raise ValueError(f"Guidance is {guidance:g}, and must lie between 0 and 30; 1 switches it off.")
    scheduler = fields["scheduler"]
    if scheduler not in (None, MODELS_OWN, *SCHEDULERS):
        raise ValueError(f"The scheduler {scheduler!r} is unknown. Choose one of the list.")
    schedule, label = schedule_of(fields["choice"], float(fields["tolerance"] or 0), opened)
    made = Settings(
        prompt=prompt,
        negative_prompt=str(fields["negative"] or "").strip() or None,
        model=str(fields["model"] or "").strip() or "demo",
        steps=steps,
        guidance_scale=None if guidance is None else float(guidance),
        seed=_whole("Seed", fields["seed"], 0, 2**32 - 1) or 0,
        width=sides["width"],
        height=sides["height"],
        scheduler=None if scheduler == MODELS_OWN else scheduler,
        schedule=schedule,
        label=label,
    )
    return with_model_defaults(made)


def fields_of(settings: Settings) -> dict[str, Any]:
    """Return the fields that mean these settings: what opening a PNG puts into the page.

    Example:
        >>> found = fields_of(Settings(prompt="a ring", schedule=agentsd.preset("fast")))
        >>> found["choice"], found["tolerance"]
        ('fast', 0.06)
    """
    schedule = settings.schedule
    tolerance = 0.0 if schedule is None else schedule.skipping.tolerance or 0.0
    name = None if schedule is None else name_of(schedule)
    if name in PRESETS:
        choice = name
    elif schedule is None or (
        schedule == preset("balanced").with_tolerance(tolerance or 1) and tolerance <= LARGEST_TOLERANCE
    ):
        choice = OWN
    else:
        choice = OPENED
    return {
        "model": settings.model,
        "prompt": settings.prompt,
        "negative": settings.negative_prompt or "",
        "steps": settings.steps or 0,
        "guidance": 0 if settings.guidance_scale is None else settings.guidance_scale or 1,  # both switch it off
        "width": settings.width or 0,
        "height": settings.height or 0,
        "scheduler": settings.scheduler or MODELS_OWN,
        "seed": settings.seed,
        "choice": choice,
        "tolerance": tolerance,
    }


def _whole(name: str, value: Any, least: int, most: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer():
        raise ValueError(f"{name} is {value}, and must be a whole number.")
    if not least <= value <= most:
        raise ValueError(f"{name} is {int(value)}, and must lie between {least} and {most}.")
    return int(value)
