"""Prompts of an evaluation: COCO captions, tables, plain text, and the demo model's held-out prompts."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentsd.system.numbers import is_whole

_TEXT_COLUMNS = ("caption", "prompt")
_ID_COLUMNS = ("image_id", "coco_id")


@dataclass(frozen=True)
class Prompt:
    """One prompt of an evaluation.

    Attributes:
        index: Position in the evaluation, from 0.
        image_id: Which reference picture it describes; what the seed of its picture is derived from.
        text: What the pipeline is given.

    Example:
        >>> Prompt(index=0, image_id=139, text="A room with chairs.").image_id
        139
    """

    index: int
    image_id: int | str
    text: str


def load_captions(path: Path, *, num: int | None = None) -> list[Prompt]:
    r"""Read the prompts of an evaluation, one for each picture.

    - `.json`: COCO captions (2014 or 2017). Each image has its annotation of lowest id; images go by ascending id.
    - `.csv`, `.tsv`: a header, then one prompt a row in the order of the file. The text is in the column `caption` or
      `prompt`; `image_id` or `coco_id` is read where present, otherwise the position counts; other columns
      (`evaluation_seed`) are passed over.
    - `.txt`: one prompt a line; its position is its `image_id`. Blank lines at the end do not count.

    Runs of white space, line ends among them, become one space: 83 of the 25,014 captions of COCO val2017 hold a line
    end. Equal texts stay: two pictures may have the same caption.

    Args:
        path: The file, UTF-8, with or without byte-order mark.
        num: Only the first `num` prompts; all if `None`. The whole file is checked either way.

    Returns:
        Prompts with index 0, 1, ...

    Raises:
        ValueError: If the file cannot be read, is truncated, empty or not UTF-8, lacks a key or column, holds an id
            twice or an empty caption, or has fewer than `num` prompts.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "prompts.csv"
        >>> _ = path.write_text("image_id,prompt\n000000000139,a  red ring\n", encoding="utf-8")
        >>> load_captions(path)
        [Prompt(index=0, image_id=139, text='a red ring')]
    """
    path = Path(path)
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise ValueError(
            f"captions file {path}: suffix {path.suffix!r} is none of {', '.join(_READERS)}; rename or convert it."
        )
    prompts = [Prompt(i, image_id, text) for i, (image_id, text) in enumerate(read(path, _read_text(path)))]
    if not prompts:
        raise ValueError(f"captions file {path}: holds no prompt; an evaluation needs at least 1: add some.")
    return prompts if num is None else prompts[: _check_number(num, len(prompts), path)]


def demo_prompts(num: int, seed: int = 0) -> list[Prompt]:
    """Return prompts of the demo model whose attribute combinations never occur in its training.

    Args:
        num: How many, at least 1.
        seed: Chooses them; prompt `i` depends on (`seed`, `i`) alone.

    Returns:
        Prompts whose `image_id` is their index.

    Raises:
        ValueError: If `num` is below 1.

    Example:
        >>> [prompt.index for prompt in demo_prompts(2, seed=0)]
        [0, 1]
    """
    from agentsd.demo import held_out_prompts

    return [Prompt(i, i, text) for i, text in enumerate(held_out_prompts(num, seed))]


def _check_number(num: int, available: int, path: Path) -> int:
    if not 1 <= num <= available:
        raise ValueError(
            f"num={num} of captions file {path}: it holds {available} prompts; "
            f"give 1 to {available}, or leave it out for all."
        )
    return num


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"captions file {path}: cannot be read ({error.strerror}); give an existing file.") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"captions file {path}: byte {error.start} is {raw[error.start]:#04x}, which is not UTF-8; "
            "convert the file to UTF-8."
        ) from error


def _normalise(text: object, path: Path, where: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"captions file {path}: {where}={text!r} is no text; write it as a string.")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair, which no tokenizer takes
        raise ValueError(
            f"captions file {path}: {where}={text!r} holds {text[error.start]!r}, half of a character; "
            "write the character whole, or remove it."
        ) from error
    words = " ".join(text.split())
    if not words:
        raise ValueError(f"captions file {path}: {where}={text!r} is empty; a prompt needs a word: fill or remove it.")
    return words


def _check_unique(ids: Iterable[Hashable], path: Path, field: str, remedy: str) -> None:
    value, count = max(Counter(ids).items(), key=lambda item: item[1], default=(None, 1))
    if count > 1:
        raise ValueError(f"captions file {path}: {field}={value!r} occurs {count} times; once is allowed: {remedy}.")


# --- COCO JSON ---


def _read_coco(path: Path, text: str) -> list[tuple[int | str, str]]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"captions file {path}: no complete JSON, line {error.lineno} column {error.colno}: {error.msg}; "
            "the file may be truncated: fetch it again."
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets as deep
        raise ValueError(
            f"captions file {path}: JSON that cannot be read ({error}); give COCO captions, which are flat and have "
            "short numbers."
        ) from error
    annotations = _list(data, "annotations", path)
    for i, annotation in enumerate(annotations):
        _integers(annotation, ("id", "image_id"), f"annotations[{i}]", path)
    _check_unique((item["id"] for item in annotations), path, "annotations id", "remove the others")
    first: dict[int, tuple[int, int]] = {}
    for i, annotation in enumerate(annotations):
        best = first.get(annotation["image_id"])
        if best is None or annotation["id"] < best[0]:
            first[annotation["image_id"]] = (annotation["id"], i)
    _check_images(_list(data, "images", path), set(first), path)
    prompts: list[tuple[int | str, str]] = []
    for image_id, (_, i) in sorted(first.items()):
        if "caption" not in annotations[i]:
            raise ValueError(
                f"captions file {path}: annotations[{i}] has no key 'caption' but {sorted(annotations[i])}; "
                "give a captions_*.json, not instances or keypoints."
            )
        prompts.append((image_id, _normalise(annotations[i]["caption"], path, f"annotations[{i}].caption")))
    return prompts


def _list(data: Any, key: str, path: Path) -> list[Any]:
    keys = sorted(data) if isinstance(data, dict) else type(data).__name__
    if not isinstance(data, dict) or not isinstance(data.get(key), list):
        raise ValueError(
            f"captions file {path}: key {key!r} must hold a list, the file holds {keys}; "
            "give COCO captions: an object with 'images' and 'annotations'."
        )
    return list(data[key])


def _integers(item: Any, keys: tuple[str, ...], where: str, path: Path) -> None:
    for key in keys:
        value = item.get(key) if isinstance(item, dict) else None
        if not is_whole(value):
            raise ValueError(
                f"captions file {path}: {where}.{key}={value!r}; every entry needs a whole number there: add it."
            )


def _check_images(images: list[Any], described: set[int], path: Path) -> None:
    for i, image in enumerate(images):
        _integers(image, ("id",), f"images[{i}]", path)
    _check_unique((image["id"] for image in images), path, "images id", "remove the others")
    listed = {image["id"] for image in images}
    for ids, problem in (
        (described - listed, "is in annotations but not in images: add the image or remove its annotations"),
        (listed - described, "is in images but has no annotation: add a caption or remove the image"),
    ):
        if ids:
            raise ValueError(f"captions file {path}: image_id={min(ids)} ({len(ids)} in all) {problem}.")


# --- tables and plain text ---


def _read_table(path: Path, text: str) -> list[tuple[int | str, str]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise ValueError(
            f"captions file {path}: line {reader.line_num}: {error}; close every quoted field and double the quotes "
            "inside it."
        ) from error
    if not rows:
        return []
    header = [name.strip().lower() for name in rows[0][1]]
    _check_unique(header, path, "column", "rename the others")
    columns = [name for name in _TEXT_COLUMNS if name in header]
    if len(columns) != 1:
        raise ValueError(
            f"captions file {path}: columns {header} hold {len(columns)} of 'caption' and 'prompt'; "
            "exactly one is allowed: name the column of the prompts so in the first line."
        )
    ids = next((name for name in _ID_COLUMNS if name in header), _ID_COLUMNS[0])
    prompts: list[tuple[int | str, str]] = []
    for position, (line, row) in enumerate(rows[1:]):
        if len(row) != len(header):
            raise ValueError(
                f"captions file {path}: line {line} has {len(row)} fields, the header {len(header)}; "
                "quote fields that hold the separator or a line end."
            )
        fields = dict(zip(header, row, strict=True))
        prompt = _normalise(fields[columns[0]], path, f"line {line} {columns[0]}")
        prompts.append((_image_id(fields.get(ids), position, f"line {line} {ids}", path), prompt))
    _check_unique((image_id for image_id, _ in prompts), path, ids, "keep one prompt for each picture")
    return prompts


def _image_id(value: str | None, position: int, where: str, path: Path) -> int | str:
    if value is None:
        return position
    value = _normalise(value, path, where)
    return int(value) if value.isascii() and value.isdigit() else value


def _read_lines(path: Path, text: str) -> list[tuple[int | str, str]]:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    while lines and not lines[-1].strip():
        del lines[-1]
    return [(i, _normalise(line, path, f"line {i + 1}")) for i, line in enumerate(lines)]


_READERS: dict[str, Callable[[Path, str], list[tuple[int | str, str]]]] = {
    ".json": _read_coco,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".txt": _read_lines,
}
