"""Pictures on disk: checked before the work, written whole, with everything that made them inside."""

import io
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from agentsd.pictures.a1111 import PARAMETERS, record_of_parameters
from agentsd.pictures.settings import Settings
from agentsd.system.writing import write_whole

_CHUNK = "agentsd"  # keyword of the PNG text chunk
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")

Kind = Literal["picture", "comparison"]


def prompts_from_file(path: Path) -> list[str]:
    """Return the prompts of a UTF-8 text file, one per line; empty lines are skipped.

    Raises:
        ValueError: If the file cannot be read or holds no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prompts_file={str(path)!r} cannot be read as UTF-8 text: {error}.") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"prompts_file={str(path)!r} holds no prompt; write one per line.")
    return prompts


def plan_files(output: Path, pictures: Sequence[Settings], kind: Kind, *, force: bool = False) -> list[Path]:
    """Return the file of every picture, checked before anything is generated.

    Args:
        output: A file that ends in .png (one picture only), or a folder.
        pictures: The pictures.
        kind: Whether they are pictures or comparisons.
        force: Whether files that exist may be replaced.

    Returns:
        One path per picture.

    Raises:
        ValueError: If the output cannot take the pictures, or a file exists and `force` is not set.
    """
    suffix = output.suffix.lower()
    if output.is_dir() or suffix not in _PICTURE_SUFFIXES:
        names = (_file_name(i, one, kind) for i, one in enumerate(pictures))
        files = [output / name for name in names]
    elif suffix != ".png":
        raise ValueError(f"output={str(output)!r} must end in .png, which keeps the settings, or be a folder.")
    elif len(pictures) > 1:
        raise ValueError(f"output={str(output)!r} is one file for {len(pictures)} pictures; name a folder.")
    else:
        files = [output]
    for parent in files[0].parents:
        if parent.exists():
            if not parent.is_dir():
                raise ValueError(f"output={str(output)!r} lies in {str(parent)!r}, which is not a folder.")
            if not os.access(parent, os.W_OK):
                raise ValueError(f"output={str(output)!r} cannot be written: no right to write in {str(parent)!r}.")
            break
    taken = [str(file) for file in files if file.exists()]
    if taken and not force:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        raise ValueError(f"output {taken[0]!r}{more} exists; name another output, or add --force to replace it.")
    return files


def check_writable(path: Path) -> None:
    """Make the folder of a file and test that it can be written, before work begins.

    Raises:
        ValueError: If the file is a folder, its folder cannot be made or the file cannot be written.

    Example:
        >>> check_writable(Path(__file__) / "a.png")
        Traceback (most recent call last):
        ...
        ValueError: output='...a.png' cannot be written: ...
    """
    if path.is_dir():
        raise ValueError(f"output={str(path)!r} is a folder; name a file in it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"output={str(path)!r} cannot be written: {error}; name another output.") from error


def write_picture(path: Path, picture: Image.Image, record: dict[str, Any]) -> None:
    """Write a PNG with its record in the text chunk `agentsd`: whole or not at all.

    Args:
        path: The file; its folder is made if it is missing.
        picture: The picture.
        record: Plain data for JSON.
    """
    write_whole(path, png_bytes(picture, record))


def png_bytes(picture: Image.Image, record: Mapping[str, Any]) -> bytes:
    """Return a PNG with its record in the text chunk `agentsd`.

    Args:
        picture: The picture.
        record: Plain data for JSON.

    Example:
        >>> png_bytes(Image.new("RGB", (2, 2)), {"seed": 0})[1:4]
        b'PNG'
    """
    info = PngInfo()
    info.add_text(_CHUNK, json.dumps(dict(record)))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def record_text(picture: Image.Image) -> str | None:
    """Return the record inside a PNG as JSON, or `None` if it has none.

    Example:
        >>> made = Image.open(io.BytesIO(png_bytes(Image.new("RGB", (2, 2)), {"seed": 0})))
        >>> record_text(made)
        '{"seed": 0}'
    """
    text: str | None = getattr(picture, "text", {}).get(_CHUNK)
    return text


def read_record(path: Path) -> dict[str, Any]:
    """Return the record that `write_picture` put into a PNG, or what can be taken from a PNG of A1111.

    Args:
        path: The PNG.

    Returns:
        The record; one of A1111 has `notes` on what it does not hold, see `agentsd.pictures.a1111`.

    Raises:
        ValueError: If the file cannot be read or holds no record.
    """
    try:
        with Image.open(path) as picture:
            text, parameters = record_text(picture), getattr(picture, "text", {}).get(PARAMETERS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"from_png={str(path)!r} cannot be read: {error}.") from error
    if text is None and parameters is not None:
        return record_of_parameters(parameters)
    if text is None:
        raise ValueError(f"from_png={str(path)!r} holds no settings; it must be a PNG that agentsd or A1111 wrote.")
    try:
        record = json.loads(text)
        if not isinstance(record["settings"], dict):
            raise TypeError("settings is not an object")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"from_png={str(path)!r} holds settings that cannot be understood: {error}.") from error
    return dict(record)


def _file_name(index: int, settings: Settings, kind: Kind) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", settings.prompt.lower()).strip("-")[:48].strip("-") or "picture"
    arm = "compare" if kind == "comparison" else re.sub(r"[^a-z0-9.]+", "-", settings.label.lower()).strip("-")
    return f"{index:04d}-{words}-seed{settings.seed}-{arm}.png"
