"""The settings of a run folder, as data with a hash: nothing else may be mixed into it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentsd.bench.store import write_text

_SHOWN = 60  # characters of a value in a message


class ManifestMismatchError(ValueError):
    """A folder was made with other settings; `keys` names those that differ."""

    def __init__(self, path: Path, keys: Mapping[str, tuple[Any, Any]]) -> None:
        self.keys = dict(keys)
        super().__init__(
            f"output={str(path.parent)!r} was made with other settings ({listed(keys, 'there', 'now')}); give these "
            "settings again to go on with it, or name another --output."
        )


def canonical(data: Mapping[str, Any]) -> str:
    """Return plain data as JSON that is equal for equal data.

    Args:
        data: Plain data.

    Returns:
        JSON with sorted keys and without spaces.

    Example:
        >>> canonical({"b": 1, "a": (2, 3)})
        '{"a":[2,3],"b":1}'
    """
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest(data: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain data, in hexadecimal.

    Example:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(canonical(data).encode()).hexdigest()


def differing(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ, nested ones joined by dots, with both values.

    Example:
        >>> differing({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}})
        {'b.c': (2, 3)}
    """
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found |= differing(before, after, f"{prefix}{key}.")
        elif before != after:
            found[f"{prefix}{key}"] = (before, after)
    return found


def listed(keys: Mapping[str, tuple[Any, Any]], first: str, second: str) -> str:
    """Return what `differing` found as text, long values cut.

    Example:
        >>> listed({"seed": (0, 1)}, "there", "now")
        'seed: 0 there, 1 now'
    """
    return "; ".join(f"{key}: {_short(old)} {first}, {_short(new)} {second}" for key, (old, new) in keys.items())


def claim(path: Path, config: Mapping[str, Any], about: Mapping[str, Any] | None = None) -> str:
    """Write the manifest of a folder, or check that the one there says the same.

    Args:
        path: The file `manifest.json`; its folder is made if it is missing.
        config: Everything that decides what the folder's files are.
        about: What is worth keeping but decides nothing (names, paths).

    Returns:
        The hash of the configuration.

    Raises:
        ManifestMismatchError: If the folder was made with another configuration.
        ValueError: If the file there is no manifest.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "manifest.json"
        >>> claim(path, {"steps": 20}) == claim(path, {"steps": 20})
        True
    """
    plain = json.loads(canonical(config))
    if path.exists():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
            old = dict(there["config"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"output={str(path.parent)!r} holds a {path.name} that cannot be read: {error}; remove the file (every "
                "picture says what made it, and is checked), or name another --output."
            ) from error
        keys = differing(old, plain)
        if keys:
            raise ManifestMismatchError(path, keys)
    else:
        data = {"config": plain, "sha256": digest(plain), "about": dict(about or {})}
        write_text(path, json.dumps(data, indent=1, sort_keys=True) + "\n")
    return digest(plain)


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
