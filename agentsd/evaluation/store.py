"""Pictures, latents and measures of a run: complete or missing, whenever the run was killed."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from agentsd.bench.store import Array, UnfinishedError, read_arrays, slug, write_arrays, write_bytes
from agentsd.pictures.files import png_bytes, record_text

CHUNK = 32  # pictures in one file of measures; part of the layout on disk
_PNG_END = b"IEND\xaeB`\x82"


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
            record: Plain data on how the picture was generated.

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
