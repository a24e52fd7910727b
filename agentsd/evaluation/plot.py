"""The plots of an evaluation: speed-up against quality, a panel for each measure."""

import io
import logging
from collections.abc import Mapping
from typing import Any

from agentsd.evaluation.tables import title

logger = logging.getLogger(__name__)

# Colours that stay apart for the colour-blind (Okabe and Ito), each with a marker of its own.
_FIXED = {"stock": ("#000000", "*"), "control": ("#777777", "x")}
_CANDIDATES = (
    ("#0072b2", "o"),
    ("#d55e00", "^"),
    ("#009e73", "D"),
    ("#cc79a7", "v"),
    ("#56b4e9", "P"),
    ("#e69f00", "X"),
)
_FEWER = "s"  # stock of equal time: the colour of the arm that it stands for, hollow


def pareto(results: Mapping[str, Any]) -> dict[str, bytes]:
    """Return all panels side by side, as png and svg; empty without times, measures or matplotlib.

    Args:
        results: Content of `results.json`.

    Returns:
        The files' contents by suffix.

    Example:
        >>> pareto({"arms": {"stock": {"metrics": {}}}})
        {}
    """
    wanted = _measures(results)
    figure = _figure(len(wanted)) if wanted else None
    if figure is None:
        return {}
    for place, metric in enumerate(wanted):
        _draw(figure.add_subplot(1, len(wanted), place + 1), results, metric)
    _legend(figure, len(wanted))
    return {"png": _saved(figure, "png"), "svg": _saved(figure, "svg")}


def panels(results: Mapping[str, Any]) -> dict[str, bytes]:
    """Return each panel as an SVG of its own, by what it shows.

    Args:
        results: Content of `results.json`.

    Returns:
        The SVGs; empty without times, measures or matplotlib.

    Example:
        >>> panels({"arms": {"stock": {"metrics": {}}}})
        {}
    """
    made: dict[str, bytes] = {}
    for metric in _measures(results):
        figure = _figure(1)
        if figure is None:
            return {}
        _draw(figure.add_subplot(), results, metric)
        _legend(figure, 1)
        made[f"speed-up against {_words(metric)[0]}"] = _saved(figure, "svg")
    return made


def _measures(results: Mapping[str, Any]) -> list[str]:
    """The measures that have a panel."""
    arms = [arm for arm in results["arms"].values() if "speed" in arm]
    names = dict.fromkeys(name for arm in arms for name in arm["metrics"])
    wanted = [name for name in names if name == "psnr_db" or name.startswith(("delta_fid", "delta_fd_"))]
    return wanted + [name for name in ("clip_score", "attribute_accuracy") if name in names]


def _figure(number: int) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no plot: matplotlib is missing; pip install matplotlib")
        return None
    figure = Figure(figsize=(5.2 * number, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _looks(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Colour and marker of every arm."""
    arms = results["arms"]
    candidates = [name for name, arm in arms.items() if arm["role"] == "candidate"]
    looks = {}
    for name, arm in arms.items():
        equals = [other for other in arm.get("equals") or candidates if other in candidates]
        owner = name if name in candidates else (equals or candidates or [name])[0]
        colour, marker = _CANDIDATES[(candidates.index(owner) if owner in candidates else 0) % len(_CANDIDATES)]
        if arm["role"] in _FIXED:
            colour, marker = _FIXED[arm["role"]]
        fewer = arm["role"] == "equal time"
        looks[name] = {
            "color": colour,
            "marker": _FEWER if fewer else marker,
            "markerfacecolor": "white" if fewer else colour,
            "markersize": 8,
        }
    return looks


def _draw(axes: Any, results: Mapping[str, Any], metric: str) -> None:
    looks = _looks(results)
    for name, arm in results["arms"].items():
        entry = arm["metrics"].get(metric) if "speed" in arm else None
        if entry is None or entry["value"] is None:
            continue
        gain = arm["speed"]["speedup"]
        low, high = (entry.get(end) for end in ("low", "high"))
        whole = low is not None and high is not None
        axes.errorbar(
            gain["median"], entry["value"], linestyle="", capsize=2, linewidth=1, label=name, **looks[name],
            xerr=[[max(0.0, gain["median"] - gain["low"])], [max(0.0, gain["high"] - gain["median"])]],
            yerr=[[max(0.0, entry["value"] - low)], [max(0.0, high - entry["value"])]] if whole else None,
        )  # fmt: skip
    if metric.startswith("delta_"):
        axes.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.axvline(1, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.margins(x=0.12, y=0.15)
    if metric == "attribute_accuracy":
        axes.set_ylim(max(0.0, axes.get_ylim()[0]), min(1.01, axes.get_ylim()[1]))
    words, unit = _words(metric)
    axes.set_title(words[0].upper() + words[1:], fontsize=10)
    axes.set_xlabel("speed-up over stock, whole call")
    axes.set_ylabel(unit)
    axes.grid(alpha=0.2)


def _legend(figure: Any, columns: int) -> None:
    """One legend below all panels: labels beside points would cross each other."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=2 * columns, frameon=False, fontsize=8
    )


def _saved(figure: Any, suffix: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix, dpi=120, metadata={"png": {}, "svg": {"Date": None}}[suffix])
    return buffer.getvalue()


def _words(metric: str) -> tuple[str, str]:
    """What a panel shows, and the label of its axis."""
    if metric.startswith("delta_"):
        name = title(metric.removeprefix("delta_"))
        return f"distance to the reference, {name}", f"Δ{name}: below 0 is nearer than stock"
    return {
        "psnr_db": ("likeness to stock", "PSNR, dB, median"),
        "clip_score": ("CLIP score", "mean"),
        "attribute_accuracy": ("all attributes right", "share of pictures"),
    }[metric]
