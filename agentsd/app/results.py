"""What came out, in words, tables and files."""

import html
import re
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from agentsd.app.strip import summary
from agentsd.app.studio import Against, Made
from agentsd.pictures.compare import likeness_in_words, speed_in_words
from agentsd.pictures.files import read_record, write_picture
from agentsd.pictures.settings import Settings

HEADERS = ("setting", "seconds", "speed", "full steps", "skipped", "likeness to stock")


def likeness_words(psnr_db: float | None, ssim: float) -> str:
    """Return how alike two pictures are, in words and numbers.

    The words follow what people see in the demo's pictures: above 40 dB the two are hard to tell apart, below 25 dB
    they show different details.

    Example:
        >>> likeness_words(None, 1.0), likeness_words(43.21, 0.991)
        ('equal to stock', 'hard to tell apart (43.2 dB PSNR, SSIM 0.991)')
    """
    if psnr_db is None:
        return "equal to stock"
    bounds = ((40.0, "hard to tell apart"), (32.0, "small differences"), (25.0, "visible differences"))
    words = next((text for least, text in bounds if psnr_db >= least), "another picture in its details")
    return f"{words} ({likeness_in_words(psnr_db, ssim)})"


def verdict(stock: Made, against: Against) -> str:
    """Return the result of one comparison in a sentence or two.

    Example:
        >>> picture = Image.new("RGB", (8, 8))
        >>> made = Made("fast", picture, 0.5, ("full", "skipped"))
        >>> verdict(Made("stock", picture, 1.0), Against(made, 2.0, None, 1.0))
        'fast: 2.0x faster (0.50 s; stock 1.00 s). Equal to stock. 2 steps: 1 full, 1 skipped.'
    """
    made = against.made
    likeness = likeness_words(against.psnr_db, against.ssim)
    return (
        f"{made.label}: {speed_in_words(against.speed_ratio)} ({made.seconds:.2f} s; stock {stock.seconds:.2f} s). "
        f"{likeness[0].upper()}{likeness[1:]}. {summary(made.steps)}."
    )


def rows(stock: Made, found: Sequence[Against]) -> list[list[str]]:
    """Return a table of several settings, stock first, see `HEADERS`.

    Example:
        >>> rows(Made("stock", Image.new("RGB", (8, 8)), 1.0), [])
        [['stock', '1.00', '', 'all', '0', '']]
    """
    table = [[stock.label, f"{stock.seconds:.2f}", "", "all", "0", ""]]
    for one in found:
        steps = one.made.steps
        skipped = steps.count("skipped")
        likeness = likeness_words(one.psnr_db, one.ssim)
        row = [one.made.label, f"{one.made.seconds:.2f}", speed_in_words(one.speed_ratio)]
        table.append([*row, str(len(steps) - skipped), str(skipped), likeness])
    return table


def table_html(table: Sequence[Sequence[str]]) -> str:
    """Return a table as HTML that scrolls by itself on narrow screens.

    Example:
        >>> table_html([["stock", "1.00", "", "all", "0", ""]]).count("<td>")
        5
    """
    head = "".join(f'<th scope="col">{name}</th>' for name in HEADERS)
    body = "".join(
        f'<tr><th scope="row">{html.escape(first)}</th>{"".join(f"<td>{html.escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in table
    )
    return (
        '<div class="result" tabindex="0" role="region" aria-label="Result"><table><thead><tr>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def save(folder: Path, settings: Settings, picture: Image.Image) -> Path:
    """Write a picture with its settings into the folder of the page, under a new name.

    Args:
        folder: The folder.
        settings: What made the picture.
        picture: The picture.

    Returns:
        The file.
    """
    words = re.sub(r"[^a-z0-9]+", "-", settings.prompt.lower()).strip("-")[:40].strip("-") or "picture"
    label = re.sub(r"[^a-z0-9.]+", "-", settings.label.lower()).strip("-")
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() // 1000 % 10**6:06d}-{words}-{label}.png"
    write_picture(path, picture, {"settings": settings.to_dict()})
    return path


def opened(path: Path, **defaults: str) -> tuple[Settings, list[str]]:
    """Return the settings in a PNG of agentsd or A1111, and notes on what could not be taken over.

    Args:
        path: The PNG.
        defaults: Fields of `Settings` for what it does not say.

    Raises:
        ValueError: If it holds none; the message is for the visitor.

    Example:
        >>> opened(Path("missing.png"))
        Traceback (most recent call last):
        ...
        ValueError: This file cannot be opened: it is no PNG with settings of agentsd.
    """
    try:
        record = read_record(path)
        return Settings.from_dict(defaults | record["settings"]), list(record.get("notes", ()))
    except ValueError as error:
        raise ValueError("This file cannot be opened: it is no PNG with settings of agentsd.") from error
