"""One HTML page with all of an evaluation: it loads nothing from elsewhere and fits a phone."""

import base64
import csv
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from agentsd.bench.store import slug
from agentsd.evaluation.tables import PICTURE_MEASURES, core_table, figures, note, table
from agentsd.evaluation.verdicts import sentences

_MEANINGS = (
    ("speed-up", "stock's time over the arm's, whole pipeline call; each batch of prompts is generated twice by every "
     "arm in the order ABBA, its ratio is the geometric mean of the two, the figure the median with a bootstrap "
     "interval"),
    ("UNet alone", "the same for the UNet's calls only, timed in a pass of its own"),
    ("PSNR, SSIM, latent L2", "likeness to the stock picture of the same prompt and noise: closeness, not quality"),
    ("FID, KID", "distances of FID-Inception features from the reference's; FD(x), KD(x) are the same of other "
     "features x and must not be compared with FID. KID and KD can be slightly negative: they are estimates without "
     "bias of a distance near 0"),
    ("Δ", "arm minus stock on the same prompts, with a 95% interval over prompts; 0 inside: no difference shown"),
    ("range of n", "fewer than 6 values give no 95% interval: the least and the greatest of them, and for distances of "
     "all resamples"),
    ("stock A/A", "stock once more: the noise of the machine alone"),
    ("stock, N steps", "stock with so few steps that it takes an arm's time: what an accelerator has to beat"),
    ("time over that of", "stock with N steps: its time over that of the arm it stands for, as timed at the end"),
    ("quality", "a lower distance than stock's is called different, not better, unless another metric agrees; "
     "the kernel distance decides where the reference is paired with the prompts, else the Fréchet distance"),
)  # fmt: skip
_STYLE = """
:root{color-scheme:light dark;--page:#fff;--text:#1d2327;--faint:#5b6670;--line:#d8dde1;--ours:#e6f2fa;--code:#f4f6f7;
--warn:#fff4c2;--edge:#d9a400}
@media (prefers-color-scheme:dark){:root{--page:#15191c;--text:#e4e8ea;--faint:#a3adb5;--line:#3a4248;--ours:#143043;
--code:#1f2529;--warn:#3b3005;--edge:#b88a00}}
body{font:16px/1.5 system-ui,sans-serif;max-width:1100px;margin:1.5em auto;padding:0 1em;background:var(--page);
color:var(--text)}
h1{font-size:1.5em}h2{font-size:1.2em;margin-top:2em}
.verdict{font-size:1.15em;font-weight:600;margin:.4em 0}.verdict.other{font-size:1em;font-weight:400}
.stamps{background:var(--warn);border-left:4px solid var(--edge);padding:.6em 1em;margin:1em 0}
.stamps p{margin:.3em 0}.note{color:var(--faint);font-size:.9em}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.35em .7em;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
td:first-child,th:first-child,td:last-child,th:last-child{text-align:left}
td:last-child{white-space:normal}tr.candidate{background:var(--ours)}
.wide{overflow-x:auto}.wide:has(.all){border-right:3px solid var(--line)}
.core{width:100%}figure{margin:0}figcaption{font-size:.9em}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:1em}
img{max-width:100%;height:auto;background:#fff;border-radius:4px}
dt{font-weight:bold}pre{background:var(--code);padding:1em;overflow-x:auto}summary{cursor:pointer;padding:.4em 0}
details td,details th{text-align:left}details td:last-child{min-width:20em}
@media (max-width:640px){.core tr:first-child{display:none}.core tr{display:block;padding:.5em 0;
border-bottom:2px solid var(--line)}.core td{display:flex;justify-content:space-between;gap:1em;border:0;
white-space:normal;text-align:right}.core td:first-child{font-weight:600}.core td:empty{display:none}
.core td:last-child{text-align:right}.core td:not(:first-child)::before{content:attr(data-label);color:var(--faint)}}
""".strip()


def page(
    results: Mapping[str, Any], grids: Mapping[str, Image.Image], plots: Mapping[str, bytes], pictures: str
) -> str:
    """Return the page: verdict, remarks, core table, plots, grids, all figures, pictures, configuration.

    Args:
        results: The figures.
        grids: Pictures by arm.
        plots: Plots as SVG by what they show.
        pictures: Content of `per_image.csv`.

    Returns:
        The page; it loads nothing from elsewhere.
    """
    first, *others = sentences(results) or ["No arm but stock."]
    roles = [slug(arm["role"]) for arm in results["arms"].values()]
    stamps = "".join(f"<p>{html.escape(stamp)}</p>" for stamp in results["stamps"])
    parts = [
        "<h1>Evaluation of agentsd</h1>",
        f"<p class='verdict'>{html.escape(first)}</p>",
        *(f"<p class='verdict other'>{html.escape(other)}</p>" for other in others),
        f"<div class='stamps'>{stamps}</div>" if stamps else "",
        _table(*core_table(results), roles, kind="core"),
        f"<p class='note'>{html.escape(note(results))}</p>",
    ]
    if plots:
        shown = [_embedded("image/svg+xml", plot, title) for title, plot in plots.items()]
        parts += ["<h2>Speed against quality</h2>", f"<div class='plots'>{''.join(shown)}</div>"]
    for name, picture in grids.items():
        parts += [f"<h2>{html.escape(name)}</h2>", _embedded("image/jpeg", encoded(picture, "JPEG"), name)]
    meanings = "".join(f"<dt>{html.escape(word)}</dt><dd>{html.escape(text)}</dd>" for word, text in _MEANINGS)
    config = {
        key: results[key] for key in ("protocol", "about", "manifest", "reference", "extractor", "clip", "timing")
    }
    config["arms"] = {name: arm["settings"] for name, arm in results["arms"].items()}
    parts += [
        "<h2>All of it</h2>",
        _folded("All columns", _table(*table(results), roles)),
        _folded("What the columns mean", f"<dl>{meanings}</dl>"),
        _folded("Every figure with its interval, number and method", _table(*figures(results))),
        *(_folded(f"Single pictures of {name}", _table(*shown)) for name, shown in _by_arm(pictures).items()),
        _folded("Configuration", f"<pre>{html.escape(json.dumps(config, indent=1, sort_keys=True))}</pre>"),
    ]
    head = (
        "<meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Evaluation of agentsd</title><style>{_STYLE}</style>"
    )
    return f"<!doctype html><html lang='en'><head>{head}</head><body>\n" + "\n".join(parts) + "\n</body></html>\n"


def encoded(picture: Image.Image, kind: str) -> bytes:
    """Return a picture as the bytes of a file of some kind.

    Example:
        >>> encoded(Image.new("RGB", (1, 1)), "PNG")[1:4]
        b'PNG'
    """
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **({"quality": 88} if kind == "JPEG" else {}))
    return buffer.getvalue()


def _table(
    heading: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str] = (), kind: str = "all"
) -> str:
    heads = "".join(f"<th>{html.escape(text)}</th>" for text in heading)
    marks = [f" class='{html.escape(name)}'" for name in classes] or [""] * len(rows)
    label = [f" data-label='{html.escape(head)}'" if kind == "core" else "" for head in heading]
    lines = [
        f"<tr{mark}>"
        + "".join(f"<td{said}>{html.escape(text)}</td>" for said, text in zip(label, row, strict=True))
        + "</tr>"
        for mark, row in zip(marks, rows, strict=True)
    ]
    return "\n".join([f"<div class='wide'><table class='{kind}'><tr>{heads}</tr>", *lines, "</table></div>"])


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


def _embedded(kind: str, data: bytes, text: str) -> str:
    source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return f"<figure><img alt='{html.escape(text)}' src='{source}'></figure>"
