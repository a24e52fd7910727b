"""Checks of values and of JSON objects, shared by everything that takes or stores settings."""

import json
from dataclasses import MISSING, fields, is_dataclass
from typing import Any


def check_number(name: str, value: object) -> None:
    """Raise ValueError unless a value is a number (not a bool, not NaN).

    Example:
        >>> check_number("until", 0.5)
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ValueError(f"{name}={value!r} must be a finite number.")


def check_int(name: str, value: object, *, minimum: int) -> None:
    """Raise ValueError unless a value is an integer of at least `minimum`.

    Example:
        >>> check_int("stride", 4, minimum=2)
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name}={value!r} must be an integer of at least {minimum}.")


def check_bool(name: str, value: object) -> None:
    """Raise ValueError unless a value is `True` or `False`.

    Example:
        >>> check_bool("randomize", True)
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be True or False.")


def short_repr(value: Any) -> str:
    """Return a dataclass as text with the fields alone that are not at their defaults.

    Args:
        value: The dataclass.

    Example:
        >>> from agentsd.attention.settings import SampledKeys
        >>> repr(SampledKeys(stride=8, min_keys=64, randomize=True))
        'SampledKeys(stride=8, min_keys=64)'
    """
    changed = []
    for field in fields(value):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        given = getattr(value, field.name)
        if default is MISSING or given != default:
            changed.append(f"{field.name}={given!r}")
    return f"{type(value).__name__}({', '.join(changed)})"


def plain(value: Any) -> Any:
    """Return a settings object as JSON's types: dataclasses as objects without `None` where that is the default.

    A field that a later version adds with the default `None` leaves the text of earlier settings as it was.

    Example:
        >>> from agentsd.attention.settings import SampledKeys
        >>> plain(SampledKeys(stride=4))
        {'stride': 4, 'max_downsample': 1, 'randomize': True}
    """
    if is_dataclass(value) and not isinstance(value, type):
        found = {field.name: getattr(value, field.name) for field in fields(value)}
        unset = {field.name for field in fields(value) if found[field.name] is None and field.default is None}
        return {name: plain(one) for name, one in found.items() if name not in unset}
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    return value


def load_object(text: str | bytes, what: str, version: int) -> dict[str, Any]:
    """Return the JSON object of a text, without its version.

    Args:
        text: The text.
        what: What it should describe, for errors.
        version: The version that this code reads.

    Raises:
        ValueError: If the text is not a JSON object or has another version.

    Example:
        >>> load_object('{"version": 1, "phases": []}', "schedule", 1)
        {'phases': []}
    """
    try:
        data = json.loads(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} is not JSON: {error}; give the text that to_json() returned.") from error
    if not isinstance(data, dict):
        raise ValueError(f"{what} is a JSON {type(data).__name__}; give the text that to_json() returned.")
    if data.get("version") != version:
        raise ValueError(
            f"{what} has version={data.get('version')!r}; this agentsd reads version {version}. "
            "Write it again with to_json()."
        )
    return {name: value for name, value in data.items() if name != "version"}


def check_fields(cls: type, data: object, what: str) -> dict[str, Any]:
    """Return `data` if it is a JSON object with the fields of a dataclass: none unknown, none missing.

    Args:
        cls: The dataclass.
        data: What was read.
        what: What it describes, for errors.

    Raises:
        ValueError: If it is no object, or a field is unknown or missing.

    Example:
        >>> from agentsd.schedule import Phase
        >>> check_fields(Phase, {"until": 1.0, "evry": 2}, "phase")
        Traceback (most recent call last):
        ...
        ValueError: phase has the unknown field 'evry'; Phase has until, attention, every.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{what}={data!r} must be a JSON object with the fields of {cls.__name__}.")
    known = {field.name: field for field in fields(cls)}
    unknown = [name for name in data if name not in known]
    if unknown:
        raise ValueError(
            f"{what} has the unknown field {', '.join(map(repr, unknown))}; {cls.__name__} has {', '.join(known)}."
        )
    needed = [name for name, field in known.items() if field.default is MISSING and field.default_factory is MISSING]
    missing = [name for name in needed if name not in data]
    if missing:
        raise ValueError(f"{what} lacks the field {', '.join(map(repr, missing))} of {cls.__name__}.")
    return data
