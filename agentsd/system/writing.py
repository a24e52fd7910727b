"""Files that are written whole or not at all."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only when everything is on the disk.

    A reader sees the old file or the new one, never a part. After an error the old file stays.

    Args:
        path: The file. Its folder is made if it is missing.

    Yields:
        A binary file to write to.

    Raises:
        OSError: If the folder or the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "new" / "rows.jsonl"
        >>> with whole_file(path) as file:
        ...     _ = file.write(b"{}")
        >>> path.read_bytes()
        b'{}'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Host and process let `sweep` find what a killed process left; the thread keeps two writers apart.
    owner = f"{threading.get_native_id()}.{socket.gethostname()}.{os.getpid()}"
    partial = path.with_name(f".{path.name}.{owner}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all; text is written as UTF-8.

    Args:
        path: The file. Its folder is made if it is missing.
        content: What it shall hold.

    Raises:
        OSError: If the folder or the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "note.txt"
        >>> write_whole(path, "a red ring")
        >>> path.read_text()
        'a red ring'
    """
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sweep(folder: Path) -> int:
    """Remove partial files that dead processes of this machine left below a folder.

    Args:
        folder: The folder.

    Returns:
        How many files were removed.

    Example:
        >>> import tempfile
        >>> sweep(Path(tempfile.mkdtemp()))
        0
    """
    swept = 0
    for path in folder.rglob(f".*{PARTIAL}"):
        host, _, pid = path.name.removesuffix(PARTIAL).rpartition(".")
        if host.endswith(f".{socket.gethostname()}") and pid.isdigit() and not _alive(int(pid)):
            path.unlink(missing_ok=True)
            swept += 1
    return swept


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
