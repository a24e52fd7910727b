"""The figures as rows of text: the table that goes into README, page and plot, and the file of single pictures."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentsd.bench.intervals import FEWEST_FOR_INTERVAL, spread_of
from agentsd.evaluation.captions import Prompt
from agentsd.evaluation.results import Rows, seconds_by_prompt

_ENDS = ("low", "high", "n", "log_iqr", "method")
PICTURE_MEASURES = ("psnr_db", "ssim", "latent_l2", "lpips", "clip_score", "right")

Arm = Mapping[str, Any]


def table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return heading and rows of the table of all arms; columns that nobody has are left out.

    Args:
        results: Content of `results.json`.

    Returns:
        Heading, and one row of texts for each arm.

    Example:
        >>> table({"arms": {"stock": {"steps": 20, "metrics": {"ssim": {"value": 1.0}}}}})
        (['arm', 'steps', 'SSIM'], [['stock', '20', '1.000']])
    """
    arms: Mapping[str, Arm] = results["arms"]
    columns: list[tuple[str, Callable[[Arm], str]]] = [
        ("steps", lambda arm: str(arm["steps"])),
        ("speed-up", lambda arm: _speedup(arm, "speedup")),
        ("UNet alone", lambda arm: _speedup(arm, "unet_speedup")),
        ("time over that of", _equal_time),
        ("seconds per picture", lambda arm: f"{arm['speed']['seconds_median']:.2f}" if "speed" in arm else ""),
        ("peak memory", _memory),
        ("PSNR, dB (5%)", lambda arm: _decibels(arm["metrics"].get("psnr_db"))),
        ("SSIM", lambda arm: _number(arm, "ssim", "{:.3f}")),
        ("LPIPS", lambda arm: _number(arm, "lpips", "{:.3f}")),
        ("latent L2", lambda arm: _number(arm, "latent_l2", "{:.3f}")),
    ]
    for name in sorted({name for arm in arms.values() for name in arm["metrics"] if name.startswith(("fid", "fd_"))}):
        columns += [(title(name), _plain(name, "{:.4g}")), (f"Δ{title(name)}", _delta(name, "{:+.3g}"))]
    for name in sorted({name for arm in arms.values() for name in arm["metrics"] if name.startswith(("kid", "kd_"))}):
        columns += [(title(name), _plain(name, "{:.4g}")), (f"Δ{title(name)}", _delta(name, "{:+.2g}"))]
    columns += [
        ("CLIP score", _plain("clip_score", "{:.3f}")),
        ("ΔCLIP score", _delta("clip_score", "{:+.3f}")),
        ("attributes right", _plain("attribute_accuracy", "{:.1%}")),
        ("Δ attributes", _delta("attribute_accuracy", "{:+.1%}")),
        ("quality", lambda arm: arm.get("verdict", "")),
    ]
    cells = [[make(arm) for _, make in columns] for arm in arms.values()]
    kept = [i for i in range(len(columns)) if any(row[i] for row in cells)]
    heading = ["arm", *(columns[i][0] for i in kept)]
    return heading, [[name, *(row[i] for i in kept)] for name, row in zip(arms, cells, strict=True)]


def core_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return heading and rows of the six columns that answer most questions.

    Args:
        results: Content of `results.json`.

    Returns:
        Heading, and one row of texts for each arm; a cell without a figure is empty.

    Example:
        >>> core_table({"arms": {"stock": {"steps": 20, "metrics": {"ssim": {"value": 1.0}}}}})[1]
        [['stock', '20', '', '', '1.000', '']]
    """
    rows = [
        [
            name,
            str(arm["steps"]),
            _speedup(arm, "speedup"),
            _decibels(arm["metrics"].get("psnr_db")),
            _number(arm, "ssim", "{:.3f}"),
            arm.get("verdict", ""),
        ]
        for name, arm in results["arms"].items()
    ]
    return ["arm", "steps", "faster", "PSNR, dB (worst 5%)", "SSIM", "quality"], rows


def figures(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return heading and rows of every figure of every arm, named as in `results.json`, with what belongs to it.

    Args:
        results: Content of `results.json`.

    Returns:
        Heading, and one row of texts for each figure.

    Example:
        >>> figures({"arms": {"stock": {"metrics": {"ssim": {"value": 0.5, "n": 3, "p5": 0.25}}}}})[1]
        [['stock', 'ssim', '0.5', '', '', '3', '', '', 'p5: 0.25']]
    """
    rows = []
    for arm, found in results["arms"].items():
        speed = dict(found.get("speed", {}))
        ratios = {f"time over that of {other}": ratio for other, ratio in speed.pop("time_ratio", {}).items()}
        for name, figure in (found["metrics"] | speed | ratios).items():
            entry = dict(figure) if isinstance(figure, Mapping) else {"value": figure}
            value = entry.pop("median" if "median" in entry else "value")
            ends = [entry.pop(key, "") for key in _ENDS]
            remarks = "; ".join(f"{key}: {_text(rest)}" for key, rest in entry.items() if rest != "")
            rows.append([arm, name, _text(value), *map(_text, ends), remarks])
    return ["arm", "figure", "value", *_ENDS, "remarks"], rows


def markdown(results: Mapping[str, Any]) -> str:
    """Return the table with its remarks, as Markdown."""
    heading, rows = table(results)
    lines = ["| " + " | ".join(heading) + " |", "|---|" + "--:|" * (len(heading) - 1)]
    lines += ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]
    return "\n".join([*lines, "", note(results), "", *(f"**{stamp}**" for stamp in results["stamps"])]).rstrip() + "\n"


def note(results: Mapping[str, Any]) -> str:
    """Return one paragraph that says what the figures were made with."""
    config, about = results["manifest"]["config"], results["about"]
    said = [
        f"{results['number']} prompts ({about['captions']}), model {about['model']}, "
        f"{config['width']}x{config['height']} pixels, {config['scheduler']['class']}, "
        f"guidance {config['guidance_scale']:g}, {config['dtype']}, batch {config['batch']}, "
        f"torch {config['torch']}, diffusers {config['diffusers']}, agentsd {config['agentsd']}."
    ]
    reference = results["reference"]
    if reference is not None:
        extractor = results["extractor"]
        size = f"{reference['number']} pictures" if "number" in reference else "moments"
        said.append(
            f"Reference: {reference['kind']}, {size}{', paired with the prompts' if reference['paired'] else ''}; "
            f"features {extractor['name']}; Δ is arm minus stock with its {spread_of(results['number'])}."
        )
    timing = results["timing"]
    if timing is not None:
        environment, batch = timing["environment"], timing["batch"]
        timed = f"{timing['prompts']} prompts" if batch == 1 else f"{timing['prompts']} batches of {batch}"
        said.append(
            f"Times: {timed}, each generated twice by every arm in the order ABBA, speed-up over stock "
            f"with its {spread_of(timing['prompts'])}, on {environment['device']}, {environment['threads']} threads."
        )
    lpips = ", LPIPS" if any("lpips" in arm["metrics"] for arm in results["arms"].values()) else ""
    said.append(f"PSNR, SSIM{lpips} and latent L2 are against the stock picture of the same noise, medians.")
    return " ".join(said)


def per_image(
    prompts: Sequence[Prompt],
    arms: Sequence[tuple[str, Callable[[int], int]]],
    rows: Mapping[str, Rows],
    timing: Mapping[str, Any],
) -> str:
    """Return a CSV table with a line for every picture.

    Args:
        prompts: The prompts.
        arms: Name of each arm, and what gives the seed of its pictures.
        rows: Measures by arm.
        timing: Times.

    Returns:
        The table, with a heading.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["index", "image_id", "arm", "seed", "seconds", *PICTURE_MEASURES, "prompt"])
    for name, seed_of in arms:
        seconds = seconds_by_prompt(timing, name)
        measured = rows.get(name, Rows())
        for prompt in prompts:
            i = prompt.index
            values = [getattr(measured, field) for field in PICTURE_MEASURES]
            shown = ["" if value is None else repr(float(value[i])) for value in values]
            time = f"{seconds[i]:.4f}" if i < len(seconds) else ""
            writer.writerow([i, prompt.image_id, name, seed_of(i), time, *shown, prompt.text])
    return buffer.getvalue()


def title(name: str) -> str:
    """Return how a distance is written.

    Example:
        >>> title("fid"), title("fd_demo"), title("fid_to_stock")
        ('FID', 'FD(demo)', 'FID to stock')
    """
    if name.endswith("_to_stock"):
        return f"{title(name.removesuffix('_to_stock'))} to stock"
    kind, _, features = name.partition("_")
    return f"{kind.upper()}({features})" if features else kind.upper()


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)


def _speedup(arm: Arm, name: str) -> str:
    if "speed" not in arm:
        return ""
    gain = arm["speed"][name]
    if gain["low"] == gain["high"]:  # of one value, or stock against itself
        return f"{gain['median']:.2f}x"
    return f"{gain['median']:.2f}x [{gain['low']:.2f}, {gain['high']:.2f}]{_range_of(gain['n'])}"


def _range_of(n: int) -> str:
    return f" {spread_of(n)}" if n < FEWEST_FOR_INTERVAL else ""


def _equal_time(arm: Arm) -> str:
    ratios = arm.get("speed", {}).get("time_ratio", {})
    return ", ".join(f"{ratio['median']:.2f}x {name}" for name, ratio in ratios.items())


def _memory(arm: Arm) -> str:
    peak = arm.get("speed", {}).get("peak_bytes")
    return f"{peak / 2**30:.2f} GiB" if peak else ""


def _decibels(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    if entry["value"] is None:
        return "equal" if entry["equal_pictures"] == entry["n"] else f"{entry['equal_pictures']} of {entry['n']} equal"
    worst = "equal" if entry["p5"] is None else f"{entry['p5']:.1f}"
    return f"{entry['value']:.1f} ({worst})"


def _number(arm: Arm, name: str, form: str) -> str:
    entry = arm["metrics"].get(name)
    return "" if entry is None or entry["value"] is None else form.format(entry["value"])


def _plain(name: str, form: str) -> Callable[[Arm], str]:
    return lambda arm: _number(arm, name, form)


def _delta(name: str, form: str) -> Callable[[Arm], str]:
    def make(arm: Arm) -> str:
        entry = arm["metrics"].get(f"delta_{name}")
        if entry is None:
            return ""
        value, low, high = (form.format(entry[key]) for key in ("value", "low", "high"))
        if entry["n"] == 1:
            return value
        return f"{value} [{low}, {high}]{_range_of(entry['n'])}"

    return make
