"""What an evaluation leaves for people: results, table, single pictures, plot, grids, and one page with all of it."""

import base64
import csv
import html
import io
import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from agentsd.bench.store import slug, write_bytes, write_json, write_text
from agentsd.evaluation.arms import STOCK
from agentsd.evaluation.captions import Prompt
from agentsd.evaluation.plot import pareto
from agentsd.evaluation.results import Rows, worst_by_psnr
from agentsd.evaluation.store import Store
from agentsd.evaluation.tables import PICTURE_MEASURES, figures, markdown, note, per_image, table

logger = logging.getLogger(__name__)

_FIXED = 3  # pictures at the same places for every arm
_WORST = 5
_SIDE = 256  # pixels of a picture in a grid
_STRIP = 22
_AMPLIFIED = 4

_MEANINGS = (
    ("speed-up", "stock's time over the arm's, whole pipeline call; each batch of prompts is generated twice by every "
     "arm in the order ABBA, its ratio is the geometric mean of the two, the figure the median with a bootstrap "
     "interval"),
    ("UNet alone", "the same for the UNet's calls only, timed in a pass of its own"),
    ("PSNR, SSIM, latent L2", "likeness to the stock picture of the same prompt and noise: closeness, not quality"),
    ("FID, KID", "distances of FID-Inception features from the reference's; FD(x), KD(x) are the same of other "
     "features x and must not be compared with FID"),
    ("Δ", "arm minus stock on the same prompts, with a 95% interval over prompts; 0 inside: no difference shown"),
    ("range of n", "fewer than 6 values give no 95% interval: the least and the greatest of them, and for distances of "
     "all resamples"),
    ("stock A/A", "stock once more: the noise of the machine alone"),
    ("stock, N steps", "stock with so few steps that it takes an arm's time: what an accelerator has to beat"),
    ("its time", "of stock with N steps: its time over that of the arm it stands for, both as timed at the end"),
    ("distance says", "a lower distance than stock's is called different, not better, unless another metric agrees; "
     "the kernel distance decides where the reference is paired with the prompts, else the Fréchet distance"),
)  # fmt: skip


def write_report(
    store: Store,
    results: dict[str, Any],
    prompts: Sequence[Prompt],
    rows: Mapping[str, Rows],
    timing: Mapping[str, Any],
    painter: Any,
) -> None:
    """Write `results.json`, `per_image.csv`, `table.md`, `pareto.png`, `pareto.svg`, a grid an arm and `report.html`.

    Args:
        store: Where pictures are and files go.
        results: The figures.
        prompts: The prompts.
        rows: Measures by arm; empty if only times were taken.
        timing: Times; empty if none were taken.
        painter: What knows the pictures' seeds.
    """
    folder = store.folder
    noises = {name: arm["settings"]["noise"] for name, arm in results["arms"].items()}
    seeds = [(name, partial(_seed, painter, noise)) for name, noise in noises.items()]
    write_json(folder / "results.json", results)
    pictures = per_image(prompts, seeds, rows, timing)
    write_text(folder / "per_image.csv", pictures)
    write_text(folder / "table.md", markdown(results))
    grids = {}
    if rows:
        equal = _equal_time_arms(results)
        for name, arm in results["arms"].items():
            if arm["role"] == "candidate":
                grids[name] = grid(store, name, equal.get(name), prompts, rows[name], results["stamps"])
                write_bytes(folder / f"grid-{slug(name)}.png", _encoded(grids[name], "PNG"))
    plot = pareto(results)
    for suffix, data in plot.items():
        write_bytes(folder / f"pareto.{suffix}", data)
    write_text(folder / "report.html", page(results, grids, plot.get("svg"), pictures))


def grid(
    store: Store, arm: str, rival: str | None, prompts: Sequence[Prompt], rows: Rows, stamps: Sequence[str]
) -> Image.Image:
    """Return pictures of an arm beside stock: the first few prompts, then those least like stock, none chosen.

    Args:
        store: Where the pictures are.
        arm: Name of the arm.
        rival: Stock of equal time, if there is one.
        prompts: The prompts.
        rows: The arm's measures.
        stamps: Remarks, written above.

    Returns:
        The grid: stock, arm, stock of equal time, four times the difference of the first two.
    """
    fixed = list(range(min(_FIXED, len(prompts))))
    worst = [] if rows.psnr_db is None else worst_by_psnr(rows.psnr_db, _WORST)
    columns = [STOCK, arm, *([] if rival is None else [rival])]
    places = [("prompt", i) for i in fixed] + [("least alike", i) for i in worst]
    heads = [*columns, f"{_AMPLIFIED} x |{STOCK} - {arm}|"]
    top = _STRIP * (1 + len(stamps))
    canvas = Image.new("RGB", (len(heads) * _SIDE, top + len(places) * (_SIDE + _STRIP)), "white")
    draw = ImageDraw.Draw(canvas)
    for row, stamp in enumerate(stamps):
        _write(draw, (4, row * _STRIP), stamp, canvas.width - 8, "#c0392b")
    for column, head in enumerate(heads):
        _write(draw, (column * _SIDE + 4, top - _STRIP), head, _SIDE - 8)
    for row, (kind, index) in enumerate(places):
        y = top + row * (_SIDE + _STRIP)
        pictures = [store.picture(name, index) for name in columns]
        apart = np.abs(pictures[0].astype(np.int16) - pictures[1].astype(np.int16)) * _AMPLIFIED
        for column, picture in enumerate([*pictures, np.minimum(apart, 255).astype(np.uint8)]):
            shown = Image.fromarray(picture)
            shown.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
            if max(shown.size) < _SIDE:
                scale = _SIDE // max(shown.size)
                shown = shown.resize((shown.width * scale, shown.height * scale), Image.Resampling.NEAREST)
            canvas.paste(shown, (column * _SIDE, y))
        decibels = "" if rows.psnr_db is None else _decibels(float(rows.psnr_db[index]))
        _write(draw, (4, y + _SIDE), f"{kind} {index}{decibels}: {prompts[index].text}", canvas.width - 8)
    return canvas


def page(results: Mapping[str, Any], grids: Mapping[str, Image.Image], plot: bytes | None, pictures: str) -> str:
    """Return one HTML page with everything in it: remarks, table, plot, grids, all figures, pictures, configuration.

    Args:
        results: The figures.
        grids: Pictures by arm.
        plot: The plot as SVG, if there is one.
        pictures: Content of `per_image.csv`.

    Returns:
        The page; it loads nothing from elsewhere.
    """
    heading, rows = table(results)
    parts = [
        "<h1>Evaluation of agentsd</h1>",
        *(f"<p class='stamp'>{html.escape(stamp)}</p>" for stamp in results["stamps"]),
        f"<p>{html.escape(note(results))}</p>",
        _table(heading, rows, [slug(results["arms"][row[0]]["role"]) for row in rows]),
    ]
    for name, arm in results["arms"].items():
        if arm.get("equals"):
            parts.append(f"<p>{html.escape(name)} takes the time of: {html.escape(', '.join(arm['equals']))}.</p>")
    if plot is not None:
        parts.append(_embedded("image/svg+xml", plot, "speed-up against quality"))
    for name, picture in grids.items():
        parts += [f"<h2>{html.escape(name)}</h2>", _embedded("image/jpeg", _encoded(picture, "JPEG"), name)]
    meanings = "".join(f"<dt>{html.escape(word)}</dt><dd>{html.escape(text)}</dd>" for word, text in _MEANINGS)
    config = {
        key: results[key] for key in ("protocol", "about", "manifest", "reference", "extractor", "clip", "timing")
    }
    config["arms"] = {name: arm["settings"] for name, arm in results["arms"].items()}
    parts += [
        f"<h2>What the columns mean</h2><dl>{meanings}</dl>",
        "<h2>All of it</h2>",
        _folded("Every figure with its interval, number and method", _table(*figures(results))),
        *(_folded(f"Single pictures of {name}", _table(*shown)) for name, shown in _by_arm(pictures).items()),
        _folded("Configuration", f"<pre>{html.escape(json.dumps(config, indent=1, sort_keys=True))}</pre>"),
    ]
    style = (
        "body{font:15px/1.45 system-ui,sans-serif;max-width:1200px;margin:2em auto;padding:0 1em;color:#222}"
        "table{border-collapse:collapse}td,th{padding:.25em .6em;border-bottom:1px solid #ddd;text-align:right;"
        "white-space:nowrap}td:first-child,th:first-child{text-align:left}tr.candidate{background:#eef7f2}"
        ".stamp{color:#c0392b;font-weight:bold}.wide{overflow-x:auto}img{max-width:100%}dt{font-weight:bold}"
        "pre{background:#f6f6f6;padding:1em;overflow-x:auto}summary{cursor:pointer;padding:.3em 0}"
        "details td,details th{text-align:left}details td:last-child{white-space:normal;min-width:20em}"
    )
    head = f"<meta charset='utf-8'><title>Evaluation of agentsd</title><style>{style}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>\n" + "\n".join(parts) + "\n</body></html>\n"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str] = ()) -> str:
    heads = "".join(f"<th>{html.escape(text)}</th>" for text in heading)
    marks = [f" class='{html.escape(name)}'" for name in classes] or [""] * len(rows)
    lines = [
        f"<tr{mark}>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>"
        for mark, row in zip(marks, rows, strict=True)
    ]
    return "\n".join([f"<div class='wide'><table><tr>{heads}</tr>", *lines, "</table></div>"])


def _folded(summary: str, content: str) -> str:
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def _by_arm(pictures: str) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Return heading and rows for each arm of `per_image.csv`, without the columns that the arm has no value in."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in csv.DictReader(io.StringIO(pictures, newline="")):
        found.setdefault(row.pop("arm"), []).append(row)
    shown = {}
    for arm, rows in found.items():
        heading = [name for name in rows[0] if any(row[name] for row in rows)]
        shown[arm] = heading, [[_short(name, row[name]) for name in heading] for row in rows]
    return shown


def _short(column: str, text: str) -> str:
    return f"{float(text):.5g}" if column in PICTURE_MEASURES and text else text


def _seed(painter: Any, noise: int, index: int) -> int:
    return int(painter.seed(index, noise))


def _equal_time_arms(results: Mapping[str, Any]) -> dict[str, str]:
    return {
        candidate: name
        for name, arm in results["arms"].items()
        if arm["role"] == "equal time"
        for candidate in results["arms"]
        if candidate in arm.get("equals", results["arms"])
    }


def _decibels(value: float) -> str:
    return f", {value:.1f} dB" if np.isfinite(value) else ", equal"


def _encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **({"quality": 88} if kind == "JPEG" else {}))
    return buffer.getvalue()


def _embedded(kind: str, data: bytes, text: str) -> str:
    return f"<p><img alt='{html.escape(text)}' src='data:{kind};base64,{base64.b64encode(data).decode()}'></p>"


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int, fill: str = "black") -> None:
    font = ImageFont.load_default(12)
    while font.getlength(text) > width and len(text) > 4:
        text = text[:-5] + "..."
    draw.text((place[0], place[1] + 4), text, fill=fill, font=font)
