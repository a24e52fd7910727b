"""Files of a run: written whole or not at all, checked when they are read, safe against a kill at any moment."""

import errno
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from agentsd.system.writing import write_whole

Array = npt.NDArray[Any]


class UnfinishedError(RuntimeError):
    """The run cannot go on now (disk full, a process died); what is written stays and is used at the next start."""


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, with errors that say how the run goes on.

    Args:
        path: The file; its folder is made if it is missing.
        data: Its content.

    Raises:
        UnfinishedError: If the disk is full, or the quota spent.
        ValueError: If the place cannot be written.
    """
    try:
        write_whole(path, data)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UnfinishedError(
                f"The disk of output={str(path.parent)!r} is full ({error.strerror}) while writing {len(data)} bytes; "
                "make room and start the same command again: every finished picture is kept."
            ) from error
        raise ValueError(f"output={str(path)!r} cannot be written: {error}.") from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write plain data whole or not at all; see `write_bytes`."""
    write_text(path, json.dumps(dict(data), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or `None` if the file is missing or damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def write_arrays(path: Path, **arrays: Array) -> None:
    """Write a .npz file whole or not at all; see `write_bytes`."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes them for its flag
    write_bytes(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, Array] | None:
    """Return the arrays of a .npz file, or `None` if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception:  # numpy raises what zip, zlib and its own header reader raise; any of it means: make it anew
        return None


def slug(name: str) -> str:
    """Return a name as a folder's name.

    Example:
        >>> slug("stock A/A")
        'stock-a-a'
    """
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "arm"
