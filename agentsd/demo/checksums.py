"""Whether the files of the demo model are whole: a list of SHA-256 sums beside them, as `sha256sum -c` reads it."""

from __future__ import annotations

import hashlib
import pathlib

NAME = "SHA256SUMS"


def write_checksums(folder: pathlib.Path) -> None:
    """Write the list of a folder's files and their SHA-256 sums; the model card, which changes, is left out.

    Args:
        folder: The folder of a model.

    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "weights").write_bytes(b"1")
    >>> write_checksums(folder)
    >>> broken_files(folder)
    []
    """
    lines = [f"{digest(folder / name)}  {name}\n" for name in _files(folder)]
    (folder / NAME).write_text("".join(lines), encoding="utf-8", newline="\n")


def broken_files(folder: pathlib.Path) -> list[str]:
    """Return what differs from the list: "changed", "missing" or "not listed", with the file's name.

    Args:
        folder: The folder of a model, with its list.

    Raises:
        FileNotFoundError: The folder holds no list.

    >>> from agentsd.demo import model_path
    >>> broken_files(model_path())
    []
    """
    lines = (folder / NAME).read_text(encoding="utf-8").splitlines()
    listed = {name: sum_ for sum_, _, name in (line.partition("  ") for line in lines)}
    present = set(_files(folder))
    return [
        *(f"missing: {name}" for name in sorted(listed.keys() - present)),
        *(f"not listed: {name}" for name in sorted(present - listed.keys())),
        *(f"changed: {name}" for name in sorted(listed.keys() & present) if digest(folder / name) != listed[name]),
    ]


def digest(path: pathlib.Path) -> str:
    """Return the SHA-256 sum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(folder: pathlib.Path) -> str:
    """Return a digest of the weights and settings in a model folder, 16 hexadecimal digits.

    >>> from agentsd.demo import model_path
    >>> len(digest_of(model_path()))
    16
    """
    state = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".safetensors", ".json"):
            state.update(f"{path.relative_to(folder)}\n".encode())
            state.update(hashlib.sha256(path.read_bytes()).digest())
    return state.hexdigest()[:16]


def _files(folder: pathlib.Path) -> list[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name not in (NAME, "README.md"))
