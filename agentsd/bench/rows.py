"""Result files: JSON objects, one a line, appended as soon as they are measured."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a result file, oldest first; a last line that a crash cut off is left out.

    Args:
        path: The file; one that is missing has no rows.

    Returns:
        The rows.

    Raises:
        ValueError: If another line is no JSON object.

    Example:
        >>> read_rows(Path("missing.jsonl"))
        []
    """
    if not path.exists():
        return []
    rows = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is {line[:40]!r}; it must be a JSON object: remove the line.")
        rows.append(row)
    return rows


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row and make sure that it is on the disk; what a crash left of an earlier row is cut off first.

    Args:
        path: The file, made with its folder if missing.
        row: What to write, in JSON's types.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "rows.jsonl"
        >>> append_row(path, {"arm": "stock"})
        >>> read_rows(path)
        [{'arm': 'stock'}]
    """
    line = json.dumps(row, allow_nan=False)  # before the file is touched
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def key_of(row: Mapping[str, Any], fields: Sequence[str]) -> tuple[Any, ...]:
    """Return what identifies the measurement of a row; a field that the row lacks counts as `None`.

    Example:
        >>> key_of({"arm": "stock", "size": 512}, ("arm", "steps"))
        ('stock', None)
    """
    return tuple(row.get(field) for field in fields)


def newest(rows: Iterable[Mapping[str, Any]], fields: Sequence[str]) -> list[Row]:
    """Return the last row of each key, in the order in which the keys came first.

    Args:
        rows: Rows, oldest first.
        fields: The fields that make the key.

    Returns:
        One row a key.

    Example:
        >>> newest([{"arm": "a", "x": 1}, {"arm": "b", "x": 2}, {"arm": "a", "x": 3}], ["arm"])
        [{'arm': 'a', 'x': 3}, {'arm': 'b', 'x': 2}]
    """
    return list({key_of(row, fields): dict(row) for row in rows}.values())
