"""Settings out of a PNG that A1111's web UI (or a fork of it) wrote, as far as they have a counterpart here."""

import json
import re
from typing import Any

from agentsd.presets import preset
from agentsd.schedule.text import schedule_object

PARAMETERS = "parameters"  # keyword of their PNG text chunk
# Their samplers by the names of `agentsd.pictures.settings.SCHEDULERS`; "Karras" may stand in a field of its own.
_SAMPLERS = {
    "ddim": "ddim",
    "ddpm": "ddpm",
    "deis": "deis",
    "dpm++ 2m": "dpm++",
    "dpm++ 2m karras": "dpm++-karras",
    "dpm++ 2m sde": "dpm++-sde",
    "euler": "euler",
    "euler a": "euler-a",
    "heun": "heun",
    "lcm": "lcm",
    "lms": "lms",
    "plms": "pndm",
    "unipc": "unipc",
}
_PAIR = re.compile(r'\s*([\w ]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_NEGATIVE = "Negative prompt:"
_SILENT = ("Version", "Model hash")  # nothing is lost with them


def record_of_parameters(text: str) -> dict[str, Any]:
    r"""Return the record of a picture from the text chunk `parameters`.

    The prompt, the negative prompt, seed, steps, guidance, sampler and size are taken over. The picture is another one:
    their noise comes from another generator, and their model from a file that has to be given as a model.

    Args:
        text: The text: the prompt, a line `Negative prompt: ...`, and a last line of `name: value` pairs.

    Returns:
        `settings` (fields of `agentsd.pictures.settings.Settings`), `kind`, and `notes` for the user.

    Raises:
        ValueError: If the text has no line of pairs, or a number in it is none.

    Example:
        >>> found = record_of_parameters("a ring\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x768")
        >>> [found["settings"][name] for name in ("prompt", "scheduler", "seed", "height")]
        ['a ring', 'euler-a', 5, 768]
    """
    prompt, negative, pairs = _parts(text)
    settings: dict[str, Any] = {
        "prompt": prompt,
        "schedule": schedule_object(preset()),
        "label": "balanced",
    }
    if negative:
        settings["negative_prompt"] = negative
    left = dict(pairs)
    for field, name, number in (("steps", "Steps", int), ("guidance_scale", "CFG scale", float), ("seed", "Seed", int)):
        if name in left:
            settings[field] = _number(name, left.pop(name), number)
    notes = [
        "settings of A1111; the picture will differ, because its noise comes from another generator with the same seed"
    ]
    if "Size" in left:
        size = left.pop("Size")
        sides = re.fullmatch(r"(\d+)x(\d+)", size)
        if sides is None:
            raise ValueError(f"parameters: Size {size!r} must be WIDTHxHEIGHT.")
        settings["width"], settings["height"] = (int(side) // 8 * 8 for side in sides.groups())
    sampler = left.pop("Sampler", None)
    if sampler is not None:
        kind = left.get("Schedule type", "")
        known = _SAMPLERS.get(f"{sampler} {kind}".strip().lower(), _SAMPLERS.get(sampler.lower()))
        if known is None:
            notes.append(f"the sampler {sampler!r} has no counterpart; the model's own is used. Give --scheduler")
        else:
            settings["scheduler"] = known
            if kind.lower() in ("karras", "automatic") or f"{sampler} {kind}".strip().lower() in _SAMPLERS:
                left.pop("Schedule type", None)
    if "Model" in left:
        notes.append(f"the model {left.pop('Model')!r} is not in the PNG; give it as --model")
    left = {name: value for name, value in left.items() if name not in _SILENT}
    if left:
        notes.append(f"not taken over: {', '.join(f'{name} {value}' for name, value in left.items())}")
    return {"kind": "picture", "settings": settings, "notes": notes}


def _parts(text: str) -> tuple[str, str, dict[str, str]]:
    """Return prompt, negative prompt and pairs."""
    lines = text.strip().split("\n")
    pairs = {name.strip(): _unquoted(value) for name, value in _PAIR.findall(lines[-1])}
    if "Steps" not in pairs:
        raise ValueError("parameters of the PNG have no line 'Steps: ..., Sampler: ...'; A1111 writes one.")
    prompt: list[str] = []
    negative: list[str] = []
    where = prompt
    for line in lines[:-1]:
        if line.startswith(_NEGATIVE):
            where, line = negative, line.removeprefix(_NEGATIVE)
        where.append(line.strip())
    return "\n".join(prompt).strip(), "\n".join(negative).strip(), pairs


def _unquoted(value: str) -> str:
    if value.startswith('"') and value.endswith('"') and len(value) > 1:
        try:
            return str(json.loads(value))
        except ValueError:
            return value
    return value.strip()


def _number(name: str, value: str, kind: type) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"parameters: {name} {value!r} must be a number.") from None
