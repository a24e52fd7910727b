"""Loading a text-to-image pipeline: the bundled model, a folder or a hub id, with errors that say what to do."""

import inspect
import re
from pathlib import Path
from typing import Any

import torch

from agentsd.pictures.generate import call_arguments
from agentsd.pictures.settings import DEMO_GUIDANCE, DEMO_SD15, SCHEDULERS, Settings
from agentsd.system.precision import slow_dtype_warning
from agentsd.system.warning import warn_user


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
    if model in DEMO_GUIDANCE:
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

    source, dtype = find_model(settings.model), getattr(torch, settings.dtype)
    try:
        if settings.model == DEMO_SD15:
            from agentsd.demo.processes import demo_pipeline

            pipe = demo_pipeline("sd15", **dtype_argument(dtype))
        else:
            pipe = diffusers.AutoPipelineForText2Image.from_pretrained(source, **dtype_argument(dtype))
    except Exception as error:  # whatever a foreign folder, cache or network can raise; the cause stays attached
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason'}"
        raise ValueError(_load_advice(settings.model, source, reason)) from error
    if settings.scheduler is not None:
        set_scheduler(pipe, settings.scheduler)
    accepted = inspect.signature(type(pipe).__call__).parameters
    for name in call_arguments([settings]):
        if name not in accepted:
            raise ValueError(f"{name} was given, but {type(pipe).__name__} does not take it; leave it out.")
    slow = slow_dtype_warning(dtype, device)
    if slow is not None:
        warn_user(slow)
    return pipe.to(device)


def dtype_argument(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Return the argument of `from_pretrained` that sets the dtype, under the name that this diffusers knows.

    The old name, `torch_dtype`, warns on new versions; old ones ignore the new name.

    Example:
        >>> list(dtype_argument(torch.float16).values())
        [torch.float16]
    """
    import diffusers
    from packaging.version import Version

    name = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"
    return {name: dtype}


def set_scheduler(pipe: Any, name: str) -> None:
    """Replace a pipeline's scheduler by one of `SCHEDULERS`, with the model's own settings.

    Example:
        >>> set_scheduler(pipe, "euler")
        >>> type(pipe.scheduler).__name__
        'EulerDiscreteScheduler'
    """
    import diffusers

    kind, changes = SCHEDULERS[name]
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **changes)


def _load_advice(model: str, source: str, reason: str) -> str:
    if Path(source).is_dir():
        return f"model={model!r} cannot be loaded from the folder {source!r}: {reason} Is the folder complete?"
    return (
        f"model={model!r} cannot be loaded from the Hugging Face hub: {reason} Check the name and the network; a gated "
        "model needs `hf auth login`; without network give a local diffusers folder, or leave --model out for the "
        "bundled demo model."
    )
