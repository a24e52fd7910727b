"""Text to pictures that can be made again: settings as data, loading a pipeline, generating."""

import dataclasses
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image

from agentsd.presets import preset as preset_named
from agentsd.presets import with_ratio
from agentsd.schedule import Schedule, schedule_from, schedule_object
from agentsd.system.numbers import is_whole
from agentsd.system.precision import slow_dtype_warning
from agentsd.system.warning import warn_user

DEMO = "demo"
DEMO_STEPS = 50
DEMO_GUIDANCE = 4.0
DTYPES = MappingProxyType({"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16})
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


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that makes one picture; `None` leaves a choice to the model's pipeline.

    Args:
        prompt: What to draw.
        negative_prompt: What to keep out.
        model: `"demo"` (bundled), a local diffusers folder, or an id on the Hugging Face hub.
        steps: Number of denoising steps.
        guidance_scale: Weight of classifier-free guidance.
        height: Picture height in pixels, a multiple of 8.
        width: Picture width in pixels, a multiple of 8.
        seed: Seed of the picture's noise, drawn on the CPU whatever the device.
        scheduler: One of `SCHEDULERS`.
        dtype: One of `DTYPES`.
        schedule: Agent attention; `None` is the stock pipeline.
        label: What to call the schedule in captions.
        agents_seed: Seed of the random merge destinations and sampled agents.

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
    preset: str = "balanced", *, ratio: float | None = None, reuse: int | None = None, depth: int | None = None
) -> tuple[Schedule, str]:
    """Return a preset with the changes given, and its label for captions.

    Args:
        preset: Name of the preset.
        ratio: Share of tokens merged; for presets that merge.
        reuse: Full steps every so many steps.
        depth: Layers that run at a skipped step, see `agentsd.Skipping`.

    Raises:
        ValueError: If the preset is unknown or a value out of range.

    Example:
        >>> labelled_schedule("paper", ratio=0.2)[1]
        'paper, ratio 0.2'
    """
    return changed_schedule(preset_named(preset), preset, ratio=ratio, reuse=reuse, depth=depth)


def changed_schedule(
    schedule: Schedule,
    label: str,
    *,
    ratio: float | None = None,
    reuse: int | None = None,
    depth: int | None = None,
) -> tuple[Schedule, str]:
    """Return a recorded schedule and its label with the changes given, as in `labelled_schedule`.

    Raises:
        ValueError: If a value is out of range or does not fit the schedule.

    Example:
        >>> recorded = labelled_schedule("paper", ratio=0.2, reuse=2)
        >>> changed_schedule(*recorded, ratio=0.3)[1]
        'paper, reuse 2, ratio 0.3'
    """
    if ratio is not None:
        schedule = with_ratio(schedule, ratio, f"the schedule {label!r}")
    if reuse is not None:
        schedule = schedule.with_reuse(reuse)
    if depth is not None:
        schedule = dataclasses.replace(schedule, skipping=dataclasses.replace(schedule.skipping, depth=depth))
    return schedule, _changed_label(label, ratio, reuse, depth)


def _changed_label(label: str, ratio: float | None, reuse: int | None, depth: int | None) -> str:
    parts = label.split(", ")
    for name, value in (("ratio", ratio), ("reuse", reuse), ("depth", depth)):
        if value is not None:
            parts = [part for part in parts if not part.startswith(f"{name} ")] + [f"{name} {value:g}"]
    return ", ".join(parts)


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


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of that name; `"auto"` is the first there is of CUDA, Apple's MPS and the CPU.

    Raises:
        ValueError: If the name means no device, or this machine has no such device.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device={name!r} is unknown; use auto, cpu, cuda, cuda:1 or mps.") from None
    number = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= number:
        raise ValueError(f"device={name!r} is not there: torch sees {number} CUDA devices; use auto or cpu.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device={name!r} is not there; use auto or cpu.")
    return device


def find_model(model: str) -> str:
    """Return what diffusers shall load: the demo's folder, a local folder, or a hub id.

    Raises:
        ValueError: If it can be none of them; the message says what to do.
    """
    if model == DEMO:
        from agentsd.demo import model_path

        try:
            return str(model_path())
        except FileNotFoundError as error:
            raise ValueError(f"model={model!r}: {error} Or give another --model.") from error
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise ValueError(
                f"model={model!r} is a folder without model_index.json, so no diffusers model; give the folder that "
                "`pipe.save_pretrained(folder)` wrote."
            )
        return str(path)
    if path.is_file():
        raise ValueError(
            f"model={model!r} is a file; a diffusers folder or hub id is needed. Convert a checkpoint once: "
            f"StableDiffusionPipeline.from_single_file({model!r}).save_pretrained(folder)."
        )
    if model.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        raise ValueError(
            f"model={model!r} does not exist as a folder and is no hub id (owner/name); check the path, or leave "
            "--model out for the bundled demo model."
        )
    return model


def with_model_defaults(settings: Settings) -> Settings:
    """Fill steps and guidance with what the demo model was made for; other models are left to their pipelines."""
    if settings.model != DEMO:
        return settings
    return dataclasses.replace(
        settings,
        steps=DEMO_STEPS if settings.steps is None else settings.steps,
        guidance_scale=DEMO_GUIDANCE if settings.guidance_scale is None else settings.guidance_scale,
    )


def load_pipeline(settings: Settings, device: torch.device) -> Any:
    """Load the text-to-image pipeline that the settings name, with their scheduler and dtype.

    Args:
        settings: Settings; model, scheduler and dtype matter here.
        device: Where to put it.

    Returns:
        The pipeline, not patched.

    Raises:
        ValueError: If it cannot be loaded, or takes no argument that the settings give; the message says what to do.
    """
    import diffusers
    from packaging.version import Version

    source = find_model(settings.model)
    # diffusers renamed the argument; the old name warns on new versions, the new one is ignored by old ones.
    keyword = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"
    try:
        pipe = diffusers.AutoPipelineForText2Image.from_pretrained(source, **{keyword: DTYPES[settings.dtype]})
    except Exception as error:  # whatever a foreign folder, cache or network can raise; the cause stays attached
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason'}"
        raise ValueError(_load_advice(settings.model, source, reason)) from error
    if settings.scheduler is not None:
        set_scheduler(pipe, settings.scheduler)
    accepted = inspect.signature(type(pipe).__call__).parameters
    for name in _call_arguments([settings]):
        if name not in accepted:
            raise ValueError(f"{name} was given, but {type(pipe).__name__} does not take it; leave it out.")
    slow = slow_dtype_warning(DTYPES[settings.dtype], device)
    if slow is not None:
        warn_user(slow)
    return pipe.to(device)


def set_scheduler(pipe: Any, name: str) -> None:
    """Put one of `SCHEDULERS` in the place of a pipeline's scheduler, with the model's own settings.

    Example:
        >>> set_scheduler(pipe, "euler")
        >>> type(pipe.scheduler).__name__
        'EulerDiscreteScheduler'
    """
    import diffusers

    kind, changes = SCHEDULERS[name]
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **changes)


def generate(pipe: Any, pictures: Sequence[Settings]) -> list[Image.Image]:
    """Make one batch of pictures with the pipeline as it is (patched or not).

    Each picture has its own generator, so that it does not depend on the others in its batch (up to rounding).

    Args:
        pipe: The pipeline.
        pictures: Settings that differ in prompt and seed alone.

    Returns:
        One picture per settings.
    """
    images: list[Image.Image] = pipe(**_call_arguments(pictures), output_type="pil").images
    return images


def resolve(pipe: Any, settings: Settings, picture: Image.Image) -> Settings:
    """Return the settings with every choice spelt out that was left to the pipeline, so that they hold for good."""
    defaults = inspect.signature(type(pipe).__call__).parameters

    def spelt(value: Any, name: str) -> Any:
        if value is not None or name not in defaults or defaults[name].default is inspect.Parameter.empty:
            return value
        return defaults[name].default

    return dataclasses.replace(
        settings,
        model=settings.model
        if settings.model == DEMO or not Path(settings.model).expanduser().is_dir()
        # A relative folder would mean another one elsewhere.
        else str(Path(settings.model).expanduser().resolve()),
        steps=spelt(settings.steps, "num_inference_steps"),
        guidance_scale=spelt(settings.guidance_scale, "guidance_scale"),
        height=picture.height,
        width=picture.width,
    )


def batches(pictures: Sequence[Settings], size: int) -> Iterator[Sequence[Settings]]:
    """Yield the pictures in batches of `size`, the last perhaps smaller.

    Raises:
        ValueError: If `size` is below 1.
    """
    if not is_whole(size, 1):
        raise ValueError(f"batch_size={size!r} must be a whole number of at least 1.")
    for start in range(0, len(pictures), size):
        yield pictures[start : start + size]


def _load_advice(model: str, source: str, reason: str) -> str:
    if Path(source).is_dir():
        return f"model={model!r} cannot be loaded from the folder {source!r}: {reason} Is the folder complete?"
    return (
        f"model={model!r} cannot be loaded from the Hugging Face hub: {reason} Check the name and the network; a gated "
        "model needs `hf auth login`; without network give a local diffusers folder, or leave --model out for the "
        "bundled demo model."
    )


def _call_arguments(pictures: Sequence[Settings]) -> dict[str, Any]:
    first = pictures[0]
    arguments: dict[str, Any] = {
        "prompt": [one.prompt for one in pictures],
        "negative_prompt": None if first.negative_prompt is None else [first.negative_prompt] * len(pictures),
        "num_inference_steps": first.steps,
        "guidance_scale": first.guidance_scale,
        "height": first.height,
        "width": first.width,
        "generator": [torch.Generator().manual_seed(one.seed) for one in pictures],
    }
    return {name: value for name, value in arguments.items() if value is not None}
