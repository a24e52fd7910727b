"""What an evaluation leaves for people: results, table, single pictures, plot, grids, and one page with all of it."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from agentsd.bench.store import slug, write_bytes, write_json, write_text
from agentsd.evaluation.arms import STOCK
from agentsd.evaluation.captions import Prompt
from agentsd.evaluation.page import encoded, page
from agentsd.evaluation.plot import panels, pareto
from agentsd.evaluation.results import Rows, worst_by_psnr
from agentsd.evaluation.store import Store
from agentsd.evaluation.tables import markdown, per_image

_FIXED = 3  # pictures at the same places for every arm
_WORST = 5
_SIDE = 256  # pixels of a picture in a grid
_STRIP = 22
_AMPLIFIED = 4


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
                grids[name] = grid(store, name, equal.get(name), prompts, rows[name])
                write_bytes(folder / f"grid-{slug(name)}.png", encoded(grids[name], "PNG"))
    for suffix, data in pareto(results).items():
        write_bytes(folder / f"pareto.{suffix}", data)
    write_text(folder / "report.html", page(results, grids, panels(results), pictures))


def grid(store: Store, arm: str, rival: str | None, prompts: Sequence[Prompt], rows: Rows) -> Image.Image:
    """Return pictures of an arm beside stock: the first few prompts, then those least like stock, none chosen.

    Args:
        store: Where the pictures are.
        arm: Name of the arm.
        rival: Stock of equal time, if there is one.
        prompts: The prompts.
        rows: The arm's measures.

    Returns:
        The grid: stock, arm, stock of equal time, four times the difference of the first two.
    """
    fixed = list(range(min(_FIXED, len(prompts))))
    worst = [] if rows.psnr_db is None else worst_by_psnr(rows.psnr_db, _WORST)
    columns = [STOCK, arm, *([] if rival is None else [rival])]
    places = [("prompt", i) for i in fixed] + [("least alike", i) for i in worst]
    heads = [*columns, f"{_AMPLIFIED} x |{STOCK} - {arm}|"]
    canvas = Image.new("RGB", (len(heads) * _SIDE, _STRIP + len(places) * (_SIDE + _STRIP)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, head in enumerate(heads):
        _write(draw, (column * _SIDE + 4, 0), head, _SIDE - 8)
    for row, (kind, index) in enumerate(places):
        y = _STRIP + row * (_SIDE + _STRIP)
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


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int, fill: str = "black") -> None:
    font = ImageFont.load_default(12)
    while font.getlength(text) > width and len(text) > 4:
        text = text[:-5] + "..."
    draw.text((place[0], place[1] + 4), text, fill=fill, font=font)
