"""Files of a run: written whole or not at all, checked when they are read, safe against a kill at any moment."""

import errno
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from agentsd.pictures.files import png_bytes, record_text
from agentsd.system.writing import write_whole

CHUNK = 32  # pictures in one file of measures; part of the layout on disk
_PNG_END = b"IEND\xaeB`\x82"

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


@dataclass(frozen=True)
class Store:
    """The pictures, latents and measures below one run folder.

    Args:
        folder: The run folder.

    Example:
        >>> Store(Path("run")).picture_path("stock A/A", 7).as_posix()
        'run/arms/stock-a-a/000007.png'
    """

    folder: Path

    @property
    def has_measures(self) -> bool:
        """Whether anything was measured here."""
        return (self.folder / "measures").is_dir()

    def arm_folder(self, arm: str) -> Path:
        """Return the folder of an arm."""
        return self.folder / "arms" / slug(arm)

    def picture_path(self, arm: str, index: int) -> Path:
        """Return where picture `index` of an arm lies."""
        return self.arm_folder(arm) / f"{index:06d}.png"

    def latent_path(self, arm: str, index: int) -> Path:
        """Return where the final latents of picture `index` of an arm lie."""
        return self.arm_folder(arm) / "latents" / f"{index:06d}.npz"

    def write_picture(
        self, arm: str, index: int, picture: Image.Image, latent: Array, record: Mapping[str, Any]
    ) -> None:
        """Write a picture with its record inside, after its latents: a picture that is there is complete.

        Measures that were taken from an earlier picture of this index are dropped first.

        Args:
            arm: Name of the arm.
            index: Place of the prompt.
            picture: The picture.
            latent: Final latents, kept in half precision.
            record: Plain data that tells what made the picture.

        Raises:
            UnfinishedError: If the disk is full.
            ValueError: If the place cannot be written.
        """
        for stale in (self.folder / "measures").glob(f"*/*/{index // CHUNK:05d}.npz"):
            stale.unlink(missing_ok=True)
        write_arrays(self.latent_path(arm, index), latent=np.asarray(latent, dtype=np.float16))
        write_bytes(self.picture_path(arm, index), png_bytes(picture.convert("RGB"), record))

    def is_complete(self, arm: str, index: int, record: Mapping[str, Any], size: tuple[int, int] | None = None) -> bool:
        """Return whether the picture can be decoded, was made as `record` says, and has its latents.

        Args:
            arm: Name of the arm.
            index: Place of the prompt.
            record: What it must have been made with.
            size: Width and height in pixels that it must have, if given.
        """
        try:
            data = self.picture_path(arm, index).read_bytes()
            with Image.open(io.BytesIO(data)) as picture:
                picture.verify()  # checksums; decoding alone overlooks a missing end
            with Image.open(io.BytesIO(data)) as picture:
                picture.load()
                said = json.loads(record_text(picture) or "null")
                right = said == json.loads(json.dumps(dict(record))) and (size is None or picture.size == size)
        except (OSError, ValueError, SyntaxError):  # PIL raises SyntaxError for a broken chunk
            return False
        return data.endswith(_PNG_END) and right and self.latent(arm, index) is not None

    def picture(self, arm: str, index: int) -> npt.NDArray[np.uint8]:
        """Return a picture [H, W, 3], uint8.

        Raises:
            UnfinishedError: If it is missing or damaged.
        """
        path = self.picture_path(arm, index)
        try:
            with Image.open(path) as picture:
                return np.asarray(picture.convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise UnfinishedError(
                f"{str(path)!r} is missing or damaged; start the same command again to remake it."
            ) from error

    def pictures(self, arm: str, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Return pictures [N, H, W, 3], uint8; raises UnfinishedError if one is missing or damaged."""
        return np.stack([self.picture(arm, index) for index in indices])

    def latent(self, arm: str, index: int) -> npt.NDArray[np.float16] | None:
        """Return final latents, or `None` if they are missing or damaged."""
        arrays = read_arrays(self.latent_path(arm, index))
        return None if arrays is None or "latent" not in arrays else arrays["latent"]

    def measure_path(self, arm: str, kind: str, chunk: int) -> Path:
        """Return where a measure of one chunk of an arm's pictures lies."""
        return self.folder / "measures" / slug(arm) / slug(kind) / f"{chunk:05d}.npz"

    def write_measure(self, arm: str, kind: str, indices: Sequence[int], arrays: Mapping[str, Array]) -> None:
        """Write a measure of one chunk, one row a picture."""
        path = self.measure_path(arm, kind, indices[0] // CHUNK)
        write_arrays(path, index=np.asarray(indices, dtype=np.int64), **arrays)

    def read_measure(self, arm: str, kind: str, indices: Sequence[int]) -> dict[str, Array] | None:
        """Return the measure of one chunk, or `None` if it is missing, damaged or of other pictures."""
        arrays = read_arrays(self.measure_path(arm, kind, indices[0] // CHUNK))
        if arrays is None or "index" not in arrays or arrays["index"].tolist() != list(indices):
            return None
        return {name: rows for name, rows in arrays.items() if name != "index"}


def chunks(number: int) -> list[list[int]]:
    """Return the indices of all pictures in chunks of fixed places, whatever the number of processes.

    Example:
        >>> [len(chunk) for chunk in chunks(70)]
        [32, 32, 6]
    """
    return [list(range(start, min(start + CHUNK, number))) for start in range(0, number, CHUNK)]
