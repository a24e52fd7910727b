"""Looking inside: the agents on the picture, what each attends to, which tokens merge, and what attention costs.

Drawing needs matplotlib (`pip install matplotlib`), imported at the first plot.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from agentsd.attention.sampling import cell_edges
from agentsd.attention.settings import Attention, MergedTokens, SampledKeys
from agentsd.pictures.recording import Recording


def multiply_adds(height: int, width: int, channels: int, settings: Attention | None = None) -> int:
    """Return the multiply-adds of one self-attention layer's softmaxes (and ranking), without its projections.

    Softmax attention takes `2 N^2 C`; with `n` agents and `M` kept tokens `4 n M C`, with `n` sampled keys `2 n N C`.
    Ranking by similarity adds `N D C` for `D` destinations (https://arxiv.org/abs/2312.08874, https://arxiv.org/abs/2303.17604).

    Args:
        height: Grid height in tokens.
        width: Grid width in tokens.
        channels: Channels of the layer, over all heads.
        settings: Settings; `None` is stock attention.

    Returns:
        The count.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> from agentsd import PooledAgents
        >>> multiply_adds(64, 64, 320) / multiply_adds(64, 64, 320, PooledAgents(stride=4))
        8.0
    """
    for name, value in {"height": height, "width": width, "channels": channels}.items():
        if value < 1:
            raise ValueError(f"{name}={value!r} must be at least 1.")
    tokens = height * width
    counts = None if settings is None else settings.count_tokens(height, width)
    if counts is None:
        return 2 * tokens**2 * channels
    if counts.keys is not None:
        return 2 * counts.keys * tokens * channels
    ranking = 0
    if isinstance(settings, MergedTokens):
        cells = (height // settings.stride) * (width // settings.stride)
        ranking = (tokens - cells) * cells * channels
    if counts.agents is None:
        return ranking + 2 * counts.kept**2 * channels
    return ranking + 4 * counts.agents * counts.kept * channels


def draw_agents(recording: Recording, picture: Any, axes: Any = None, marked: int | None = None) -> Any:
    """Draw a picture with the layer's cells and a dot for every agent or sampled key.

    Args:
        recording: A call with agents or sampled keys.
        picture: What `imshow` takes: a PIL picture or an array [H, W, 3].
        axes: Where to draw; `None` makes a figure.
        marked: Number of an agent that gets a yellow ring.

    Returns:
        The axes.

    Raises:
        ValueError: If the step had no agents, or not the marked one.
        ImportError: If matplotlib is not installed.

    Example:
        >>> from agentsd.pictures.recording import record
        >>> with agentsd.apply(pipe, "paper"), record(pipe) as seen:
        ...     picture = pipe("a red ring", num_inference_steps=1).images[0]
        >>> len(draw_agents(seen[0], picture).collections)
        1
    """
    places = recording.agent_places().numpy()
    axes = _axes(axes)
    height, width, settings = recording.plan.height, recording.plan.width, recording.plan.settings
    stride = settings.cell_stride(height, width)
    axes.imshow(picture, extent=(0, width, height, 0))
    for line in _cell_lines(height, stride, settings):
        axes.axhline(line, color="white", linewidth=0.4)
    for line in _cell_lines(width, stride, settings):
        axes.axvline(line, color="white", linewidth=0.4)
    axes.scatter(places[:, 1], places[:, 0], s=6, color="black", edgecolors="white", linewidths=0.4)
    if marked is not None:
        if not 0 <= marked < len(places):
            raise ValueError(f"marked={marked} must lie in [0, {len(places)}), the agents that there are.")
        axes.scatter(places[marked, 1], places[marked, 0], s=110, facecolors="none", edgecolors="yellow", linewidths=2)
    what = "sampled keys" if isinstance(settings, SampledKeys) else "agents"
    axes.set_title(f"{len(places)} {what} for {height * width} tokens")
    return _bare(axes)


def _cell_lines(length: int, stride: int, settings: Attention) -> list[int]:
    """Return where cells meet: those of sampled keys are of equal size, the others are cut off at the border."""
    if isinstance(settings, SampledKeys):
        return cell_edges(length, stride)[0].tolist()[1:]
    return list(range(stride, length, stride))


def draw_map(weights: Tensor, recording: Recording, picture: Any, axes: Any = None, title: str = "") -> Any:
    """Draw weights over the tokens of a layer on top of a picture, the heaviest brightest, with a colour bar.

    Args:
        weights: One weight a token, [N]: a row of what `Recording.maps` returns.
        recording: The call that they are of.
        picture: What `imshow` takes.
        axes: Where to draw; `None` makes a figure.
        title: Title of the axes.

    Returns:
        The axes.

    Raises:
        ValueError: If the weights do not fill the layer's grid.
        ImportError: If matplotlib is not installed.
    """
    height, width = recording.plan.height, recording.plan.width
    if weights.shape != (height * width,):
        raise ValueError(f"weights of shape {tuple(weights.shape)} must be [{height * width}], one for each token.")
    axes = _axes(axes)
    axes.imshow(picture, extent=(0, width, height, 0))
    shown = axes.imshow(
        weights.view(height, width).cpu().numpy(), extent=(0, width, height, 0), cmap="magma", alpha=0.75
    )
    axes.figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.04, format="%.2g")
    axes.set_title(title)
    return _bare(axes)


def draw_merging(recordings: Sequence[Recording], picture: Tensor, axes: Any = None) -> Any:
    """Draw, call by call, what merging leaves of a picture: tokens that were merged have one colour.

    Args:
        recordings: The calls, as many as there are axes.
        picture: The finished picture, [3, H, W], in [0, 1].
        axes: A sequence of axes; `None` makes a figure with one row.

    Returns:
        The axes.

    Raises:
        ValueError: If there is no recording, or their number is not that of the axes.
        ImportError: If matplotlib is not installed.
    """
    if not recordings:
        raise ValueError("recordings=[] holds no call; record a run whose schedule merges.")
    if axes is None:
        _, grid = _pyplot().subplots(1, len(recordings), figsize=(3 * len(recordings), 3.3), squeeze=False)
        axes = grid[0]
    if len(axes) != len(recordings):
        raise ValueError(f"axes are {len(axes)}, recordings {len(recordings)}; give one for each call.")
    for recording, place in zip(recordings, axes, strict=True):
        place.imshow(recording.merge_picture(picture).permute(1, 2, 0).numpy())
        counts = recording.plan.counts
        place.set_title(f"call {recording.call}: {counts.tokens} to {counts.kept}")
        _bare(place)
    return axes


def draw_costs(
    arms: Mapping[str, Attention | None], sides: Sequence[int] = (16, 32, 48, 64, 96, 128), axes: Any = None
) -> Any:
    """Draw multiply-adds of one layer with 320 channels against the size of the picture, a line for each setting.

    Args:
        arms: Settings by label; `None` is stock attention.
        sides: Sides of square token grids; a token is 8 pixels wide, as in the finest layers of SD 1.x.
        axes: Where to draw; `None` makes a figure.

    Returns:
        The axes, both logarithmic.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> draw_costs({"stock": None}, sides=(8, 16)).lines[0].get_ydata().tolist()
        [2621440.0, 41943040.0]
    """
    axes = _axes(axes)
    tokens = [side * side for side in sides]
    for place, (label, settings) in enumerate(arms.items()):
        costs = [float(multiply_adds(side, side, 320, settings)) for side in sides]
        # A broken line shows another one below it.
        axes.loglog(tokens, costs, marker="o", markersize=4, linestyle="--" if place % 2 else "-", label=label)
    axes.set_xticks(tokens, [f"{side * side}\n{8 * side} px" for side in sides], fontsize=8)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("tokens, and side of the picture in pixels")
    axes.set_ylabel("multiply-adds of one layer")
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    return axes


def draw_front(
    figures: Mapping[str, tuple[float, float]],
    quality: str,
    axes: Any = None,
    *,
    speed: str = "speed-up over stock",
    fewer: Mapping[str, tuple[float, float]] | None = None,
) -> Any:
    """Draw speed against quality, a labelled point for each setting: what lies up and to the right is better.

    Args:
        figures: (speed, quality) by label.
        quality: What the quality is, for the axis.
        axes: Where to draw; `None` makes a figure.
        speed: What the speed is, for the axis.
        fewer: The same of stock with fewer steps, as a grey line: what anyone can do instead.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> draw_front({"fast": (4.0, 25.0)}, "PSNR, dB").get_ylabel()
        'PSNR, dB'
    """
    axes = _axes(axes)
    for points, name, style in (
        (fewer or {}, "stock with fewer steps", dict(color="gray", linestyle="--", marker="s")),
        (figures, "agentsd", dict(color="tab:blue", linestyle="-", marker="o")),
    ):
        placed = sorted(points.values())
        if placed:
            axes.plot(*zip(*placed, strict=True), label=name, **style)
        # The names of ours stand above their points, those of the other line below.
        side = ("left", "bottom", (5, 4)) if points is figures else ("right", "top", (-5, -4))
        for label, place in points.items():
            axes.annotate(label, place, ha=side[0], va=side[1], xytext=side[2], textcoords="offset points", fontsize=8)
    axes.margins(x=0.4, y=0.2)  # room for the names
    axes.set_xlabel(speed)
    axes.set_ylabel(quality)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return axes


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("agentsd.pictures.visual draws with matplotlib; pip install matplotlib.") from error
    return plt


def _axes(axes: Any) -> Any:
    return _pyplot().subplots()[1] if axes is None else axes


def _bare(axes: Any) -> Any:
    axes.set_xticks([])
    axes.set_yticks([])
    return axes
