"""The plot of an evaluation: speed-up against quality."""

import io
import logging
from collections.abc import Mapping
from typing import Any

from agentsd.evaluation.tables import title

logger = logging.getLogger(__name__)

_COLOURS = {"stock": "#444444", "control": "#999999", "candidate": "#0b6e4f", "equal time": "#c0392b"}


def pareto(results: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the plot of speed-up against quality, as png and svg; empty without times, measures or matplotlib."""
    arms = {name: arm for name, arm in results["arms"].items() if "speed" in arm}
    names = dict.fromkeys(name for arm in arms.values() for name in arm["metrics"])
    wanted = [name for name in names if name == "psnr_db" or name.startswith(("delta_fid", "delta_fd_"))]
    wanted += [name for name in ("clip_score", "attribute_accuracy") if name in names]
    if not wanted:
        return {}
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no plot: matplotlib is missing; pip install 'agentsd[eval]'")
        return {}
    figure = Figure(figsize=(5.2 * len(wanted), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    for place, metric in enumerate(wanted):
        axes = figure.add_subplot(1, len(wanted), place + 1)
        for name, arm in arms.items():
            entry, gain = arm["metrics"].get(metric), arm["speed"]["speedup"]
            if entry is None or entry["value"] is None:
                continue
            low, high = (entry.get(end) for end in ("low", "high"))
            whole = low is not None and high is not None
            axes.errorbar(
                gain["median"], entry["value"], fmt="o", color=_COLOURS[arm["role"]], capsize=2, label=name,
                xerr=[[max(0.0, gain["median"] - gain["low"])], [max(0.0, gain["high"] - gain["median"])]],
                yerr=[[max(0.0, entry["value"] - low)], [max(0.0, high - entry["value"])]] if whole else None,
            )  # fmt: skip
            place_of_name = (5, -11) if arm["role"] == "control" else (5, 5)  # it lies on stock
            axes.annotate(
                name, (gain["median"], entry["value"]), xytext=place_of_name, textcoords="offset points", fontsize=8
            )
        if metric.startswith("delta_"):
            axes.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
        axes.axvline(1, color="#bbbbbb", linewidth=0.8, zorder=0)
        axes.margins(x=0.2, y=0.15)  # room for the names
        axes.set_xlabel("speed-up over stock, end to end")
        axes.set_ylabel(_axis(metric))
    if results["stamps"]:
        figure.suptitle("\n".join(results["stamps"]), fontsize=8, color="#c0392b")
    data = {}
    for suffix, metadata in (("png", {}), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=120, metadata=metadata)
        data[suffix] = buffer.getvalue()
    return data


def _axis(metric: str) -> str:
    if metric.startswith("delta_"):
        return f"Δ{title(metric.removeprefix('delta_'))}: arm minus stock, lower is nearer to the reference"
    return {
        "psnr_db": "PSNR to stock of the same noise, dB, median",
        "clip_score": "CLIP score, mean",
        "attribute_accuracy": "share of pictures with all attributes right",
    }[metric]
