"""Everything that makes a picture, as data that can be written down and read again."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from agentsd.presets import preset as preset_named
from agentsd.presets import with_ratio
from agentsd.schedule import Schedule
from agentsd.schedule.text import schedule_from, schedule_object
from agentsd.system.numbers import is_whole

DEMO = "demo"
DEMO_SD15 = "demo-sd15"  # the same weights under the process of Stable Diffusion 1.5
DEMO_STEPS = 50
DEMO_GUIDANCE = {DEMO: 4.0, DEMO_SD15: 7.5}
DTYPES = ("float32", "float16", "bfloat16")
# Name -> diffusers class and what changes in the model's own scheduler config.
SCHEDULERS: MappingProxyType[str, tuple[str, dict[str, Any]]] = MappingProxyType(
    {
        "ddim": ("DDIMScheduler", {}),
        "ddpm": ("DDPMScheduler", {}),
        "deis": ("DEISMultistepScheduler", {}),
        "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
        "dpm++-karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
        "dpm++-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        "euler": ("EulerDiscreteScheduler", {}),
        "euler-a": ("EulerAncestralDiscreteScheduler", {}),
        "heun": ("HeunDiscreteScheduler", {}),
        "lcm": ("LCMScheduler", {}),
        "lms": ("LMSDiscreteScheduler", {}),
        "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),  # PLMS, as in Stable Diffusion's own settings
        "unipc": ("UniPCMultistepScheduler", {}),
    }
)


def default_dtype(device_type: str) -> str:
    """Return the dtype of a model on a kind of device where none is asked for.

    Example:
        >>> default_dtype("cpu"), default_dtype("cuda")
        ('float32', 'float16')
    """
    return "float32" if device_type == "cpu" else "float16"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that makes one picture; `None` leaves a choice to the model's pipeline.

    Args:
        prompt: What to draw.
        negative_prompt: What to keep out.
        model: `"demo"` (bundled), `"demo-sd15"` (the same weights under the process of SD 1.5), a local diffusers
            folder, or an id on the Hugging Face hub.
        steps: Number of denoising steps.
        guidance_scale: Weight of classifier-free guidance.
        height: Picture height in pixels, a multiple of 8.
        width: Picture width in pixels, a multiple of 8.
        seed: Seed of the picture's noise; it is generated on the CPU for every device.
        scheduler: One of `SCHEDULERS`.
        dtype: One of `DTYPES`.
        schedule: Agent attention; `None` is the stock pipeline.
        label: What to call the schedule in captions.
        agents_seed: Seed of random merge destinations and sampled keys.

    Raises:
        ValueError: If a field is out of range.

    Example:
        >>> Settings(prompt="a red circle", steps=20).seed
        0
    """

    prompt: str
    negative_prompt: str | None = None
    model: str = DEMO
    steps: int | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    seed: int = 0
    scheduler: str | None = None
    dtype: str = "float32"
    schedule: Schedule | None = None
    label: str = "stock"
    agents_seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prompt", "model", "label"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}={getattr(self, name)!r} must be text.")
        if self.negative_prompt is not None and not isinstance(self.negative_prompt, str):
            raise ValueError(f"negative_prompt={self.negative_prompt!r} must be text, or left out.")
        if self.steps is not None and (not is_whole(self.steps, 1) or self.steps > 1000):
            raise ValueError(f"steps={self.steps!r} must be a whole number from 1 to 1000.")
        guidance = self.guidance_scale
        if guidance is not None and (not isinstance(guidance, int | float) or not 0 <= guidance <= 100):
            raise ValueError(f"guidance_scale={guidance!r} must lie in [0, 100]; 1 switches guidance off.")
        for name in ("height", "width"):
            side = getattr(self, name)
            if side is not None and (not is_whole(side, 16) or side % 8):
                raise ValueError(f"{name}={side!r} must be a multiple of 8 of at least 16 pixels.")
        for name in ("seed", "agents_seed"):
            if not is_whole(getattr(self, name)) or not 0 <= getattr(self, name) < 2**63:
                raise ValueError(f"{name}={getattr(self, name)!r} must be a whole number from 0 to 2**63 - 1.")
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            raise ValueError(f"scheduler={self.scheduler!r} is unknown; choose one of {', '.join(SCHEDULERS)}.")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} is unknown; choose one of {', '.join(DTYPES)}.")
        if self.schedule is not None and not isinstance(self.schedule, Schedule):
            raise ValueError(f"schedule={self.schedule!r} must be a Schedule, or None for the stock pipeline.")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data for JSON."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return found | {"schedule": None if self.schedule is None else schedule_object(self.schedule)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Settings":
        """Return the settings that `to_dict` wrote.

        Raises:
            ValueError: If a field is unknown, missing or out of range.

        Example:
            >>> settings = Settings(prompt="a red circle", schedule=agentsd.preset("paper"))
            >>> Settings.from_dict(settings.to_dict()) == settings
            True
        """
        try:
            schedule = data.get("schedule")
            if schedule is not None:
                data = {**data, "schedule": schedule_from(schedule)}
            return cls(**data)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"settings are not of this version of agentsd: {error}.") from error


def labelled_schedule(
    preset: str | None = None,
    *,
    tolerance: float | None = None,
    ratio: float | None = None,
    every: int | None = None,
    depth: int | None = None,
) -> tuple[Schedule, str]:
    """Return a preset with the changes given, and its label for captions.

    Args:
        preset: Name of the preset; `None` is `balanced`, and with a tolerance the label does not name it.
        tolerance: Relative error of the final latent that may be made; see `agentsd.apply`.
        ratio: Share of tokens merged; for presets that merge.
        every: A full step every so many steps.
        depth: Layers that run at a skipped step, see `agentsd.Skipping`.

    Raises:
        ValueError: If the preset is unknown or a value out of range.

    Example:
        >>> labelled_schedule("paper", ratio=0.2)[1], labelled_schedule(tolerance=0.02)[1]
        ('paper, ratio 0.2', 'tolerance 0.02')
    """
    label = preset or ("balanced" if tolerance is None else "")
    schedule = preset_named(preset or "balanced")
    return changed_schedule(schedule, label, tolerance=tolerance, ratio=ratio, every=every, depth=depth)


def changed_schedule(
    schedule: Schedule,
    label: str,
    *,
    tolerance: float | None = None,
    ratio: float | None = None,
    every: int | None = None,
    depth: int | None = None,
) -> tuple[Schedule, str]:
    """Return a recorded schedule and its label with the changes given, as in `labelled_schedule`.

    Raises:
        ValueError: If a value is out of range or does not fit the schedule.

    Example:
        >>> recorded = labelled_schedule("paper", ratio=0.2, every=2)
        >>> changed_schedule(*recorded, ratio=0.3)[1]
        'paper, every 2, ratio 0.3'
    """
    if tolerance is not None and every is not None:
        raise ValueError(f"tolerance={tolerance:g} and every={every} contradict each other; give one of them.")
    if tolerance is not None:
        schedule = schedule.with_tolerance(tolerance)
    if ratio is not None:
        schedule = with_ratio(schedule, ratio, f"the schedule {label!r}")
    if every is not None:
        schedule = schedule.with_skipping(every)
    if depth is not None:
        schedule = dataclasses.replace(schedule, skipping=dataclasses.replace(schedule.skipping, depth=depth))
    return schedule, _changed_label(label, {"tolerance": tolerance, "ratio": ratio, "every": every, "depth": depth})


def _changed_label(label: str, changes: dict[str, float | None]) -> str:
    given = {name: value for name, value in changes.items() if value is not None}
    # A tolerance and fixed full steps replace each other.
    gone = {*given, *(("every", "tolerance") if {"every", "tolerance"} & {*given} else ())}
    parts = [part for part in label.split(", ") if part and part.partition(" ")[0] not in gone]
    return ", ".join([*parts, *(f"{name} {value:g}" for name, value in given.items())])


def plan_pictures(base: Settings, prompts: Sequence[str], number: int = 1) -> list[Settings]:
    """Return the settings of every picture: `number` per prompt, in order, picture `i` with seed `base.seed + i`.

    Raises:
        ValueError: If there is no prompt or `number` is below 1.

    Example:
        >>> [(one.prompt, one.seed) for one in plan_pictures(Settings(prompt=""), ["ring", "cross"], 2)]
        [('ring', 0), ('ring', 1), ('cross', 2), ('cross', 3)]
    """
    if not prompts:
        raise ValueError("prompt is missing; give one or more prompts, or a file of prompts.")
    if not is_whole(number, 1):
        raise ValueError(f"num_images={number!r} must be a whole number of at least 1.")
    each = [prompt for prompt in prompts for _ in range(number)]
    return [dataclasses.replace(base, prompt=prompt, seed=base.seed + i) for i, prompt in enumerate(each)]


def with_model_defaults(settings: Settings) -> Settings:
    """Fill steps and guidance with what the demo model was made for; other models are left to their pipelines."""
    if settings.model not in DEMO_GUIDANCE:
        return settings
    return dataclasses.replace(
        settings,
        steps=DEMO_STEPS if settings.steps is None else settings.steps,
        guidance_scale=DEMO_GUIDANCE[settings.model] if settings.guidance_scale is None else settings.guidance_scale,
    )
