"""Looking inside: the agents on the picture, what each attends to, which tokens merge, and what attention costs.

Drawing needs matplotlib (`pip install agentsd[notebooks]`), imported when something is drawn.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agentsd.attention.settings import Attention, MergedTokens, SampledKeys
from agentsd.attention.tokens import cell_edges
from agentsd.unet.install import denoiser_of
from agentsd.unet.processor import SITE, LevelPlan, cut_tokens, split_heads
from agentsd.unet.runtime import Runtime


@dataclass(frozen=True)
class Recording:
    """One patched layer at one call of the UNet.

    Attributes:
        name: Path of the layer.
        call: Number of the UNet's call since the recording began, from 0.
        attn: The layer.
        plan: What the step did with it: grid, settings, counts.
        tokens: What it attended over, [B, N, C].
        metric: What tokens were ranked by, [B, N, C]; `None` if by `tokens`, or not at all.
    """

    name: str
    call: int
    attn: Any
    plan: LevelPlan
    tokens: Tensor
    metric: Tensor | None

    @torch.no_grad()
    def maps(self) -> tuple[Tensor, Tensor]:
        """Return both softmaxes of agent attention, averaged over the heads.

        They are `softmax(A K^T d^-0.5)` and `softmax(Q A^T (d^-0.5)^broadcast_exponent)`
        (https://arxiv.org/abs/2312.08874); a merged token shows the value of the feature that it went into. A sampled
        agent gathers from its own token alone, and tokens take from it by `softmax(Q K_A^T d^-0.5)`.

        Returns:
            What agents gather, [B, n, N], and what tokens take from agents, [B, N, n].

        Raises:
            ValueError: If the step had no agents.
        """
        cut, settings = cut_tokens(self.tokens, self.metric, self.plan), self.plan.settings
        if cut.agents is None and cut.sampled is None:
            raise ValueError(f"call={self.call} of {self.name} merged without agents; look at an agent phase.")
        attn, scale = self.attn, self.attn.scale
        query = split_heads(attn, attn.to_q(cut.kept)).float()
        if isinstance(settings, SampledKeys):
            agents, exponent = split_heads(attn, attn.to_k(cut.sampled)).float(), 1.0
            gather = (
                F.one_hot(cast(Tensor, self.plan.sample), self.plan.counts.tokens).to(query).expand(len(query), -1, -1)
            )
        else:
            agents, exponent = split_heads(attn, attn.to_q(cut.agents)).float(), settings.broadcast_exponent
            key = split_heads(attn, attn.to_k(cut.kept)).float()
            gather = (agents @ key.transpose(-1, -2) * scale).softmax(-1).mean(1)
            if cut.kept_map is not None:
                gather = cut.kept_map.unmerge(gather.transpose(1, 2)).transpose(1, 2)
        broadcast = (query @ agents.transpose(-1, -2) * scale**exponent).softmax(-1).mean(1)
        if cut.kept_map is not None:
            broadcast = cut.kept_map.unmerge(broadcast)
        return gather, broadcast

    @torch.no_grad()
    def agent_places(self, sample: int = -1) -> Tensor:
        """Return where the agents are, in tokens from the top left: [n, 2], rows of (y, x).

        A pooled agent is in the middle of its cell, a merged one at its destination or kept token, a sampled one at its
        token.

        Args:
            sample: Which of the batch; pipelines put the guided half last.

        Raises:
            ValueError: If the step had no agents.
        """
        height, width = self.plan.height, self.plan.width
        if self.plan.counts.agents is None and self.plan.sample is None:
            raise ValueError(f"call={self.call} of {self.name} merged without agents; look at an agent phase.")
        agent_map = cut_tokens(self.tokens, self.metric, self.plan).agent_map
        if self.plan.sample is not None:
            index = self.plan.sample.cpu()
        elif agent_map is not None:
            index = torch.cat([agent_map.kept[sample], agent_map.destinations]).cpu()
        else:
            stride = self.plan.settings.cell_stride(height, width)
            rows, columns = ((torch.arange(0, side, stride), side) for side in (height, width))
            y, x = ((start + (start + stride).clamp(max=side)) / 2 for start, side in (rows, columns))
            return torch.cartesian_prod(y, x)
        return torch.stack([index // width + 0.5, index % width + 0.5], dim=-1)

    @torch.no_grad()
    def merge_picture(self, picture: Tensor, sample: int = -1) -> Tensor:
        """Return a picture whose tokens are merged as the layer's tokens were: what the layer can tell apart.

        Args:
            picture: The picture, [3, H, W], in [0, 1].
            sample: Which of the batch decides.

        Returns:
            The picture on the layer's grid, [3, height, width]; as it was if nothing was merged.

        Raises:
            ValueError: If the picture is not [3, H, W].
        """
        if picture.ndim != 3 or picture.shape[0] != 3:
            raise ValueError(f"picture of shape {tuple(picture.shape)} must be [3, H, W].")
        grid = (self.plan.height, self.plan.width)
        small = F.adaptive_avg_pool2d(picture.float(), grid)
        kept_map = cut_tokens(self.tokens, self.metric, self.plan).kept_map
        if kept_map is None:
            return small
        tokens = small.flatten(1).T.expand(self.tokens.shape[0], -1, -1).to(self.tokens.device)
        merged = kept_map.unmerge(kept_map.merge(tokens))[sample].T
        return merged.reshape(3, *grid).cpu()


@contextmanager
def record(target: Any, layer: str | None = None) -> Iterator[list[Recording]]:
    """Record what a patched layer attends over while the context lasts; calls that run it stock leave nothing.

    Args:
        target: A patched pipeline or UNet.
        layer: Path of the layer, as the report names it; `None` takes the first of the finest level.

    Yields:
        A list that grows by one recording a call.

    Raises:
        ValueError: If the target is not patched, or has no such layer.

    Example:
        >>> with agentsd.apply(pipe, "paper"), record(pipe) as seen:
        ...     _ = pipe("a red ring", num_inference_steps=2, output_type="latent")
        >>> seen[0].name, seen[0].plan.counts.agents
        ('down_blocks.0.attentions.0.transformer_blocks.0.attn1', 16)
    """
    denoiser = denoiser_of(target)
    runtime: Runtime | None = denoiser.__dict__.get(SITE)
    if runtime is None:
        raise ValueError(f"target {type(target).__name__} is not patched; call agentsd.apply(target) first.")
    names = {site.name: place for place, site in enumerate(runtime.sites)}
    if layer is None:
        layer = next(site.name for site in runtime.sites if site.level == runtime.finest)
    if layer not in names:
        raise ValueError(f"layer={layer!r} is not patched; choose one of {', '.join(names)}.")
    site, attn = runtime.sites[names[layer]], runtime.attentions[names[layer]]
    seen: list[Recording] = []
    calls = 0

    def count(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal calls
        calls += 1

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        plan = site.slot.read().levels.get(site.level)
        metric = site.slot.take_metric()
        site.slot.put_metric(metric)
        if plan is not None:
            tokens = args[0] if args else kwargs["hidden_states"]
            kept = None if metric is None else metric.detach().clone()
            seen.append(Recording(site.name, calls - 1, attn, plan, tokens.detach().clone(), kept))

    hooks = (denoiser.register_forward_pre_hook(count), attn.register_forward_pre_hook(keep, with_kwargs=True))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


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


def draw_agents(recording: Recording, picture: Any, axes: Any = None) -> Any:
    """Draw a picture with the layer's cells and a dot for every agent.

    Args:
        recording: A call with agents.
        picture: What `imshow` takes: a PIL picture or an array [H, W, 3].
        axes: Where to draw; `None` makes a figure.

    Returns:
        The axes.

    Raises:
        ValueError: If the step had no agents.
        ImportError: If matplotlib is not installed.

    Example:
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
    axes.set_title(f"{len(places)} agents for {height * width} tokens")
    return _bare(axes)


def _cell_lines(length: int, stride: int, settings: Attention) -> list[int]:
    """Return where cells meet: those of sampled keys are of equal size, the others are cut off at the border."""
    if isinstance(settings, SampledKeys):
        return cell_edges(length, stride)[0].tolist()[1:]
    return list(range(stride, length, stride))


def draw_map(weights: Tensor, recording: Recording, picture: Any, axes: Any = None, title: str = "") -> Any:
    """Draw weights over the tokens of a layer on top of a picture, the heaviest brightest.

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
    axes.imshow(weights.view(height, width).cpu().numpy(), extent=(0, width, height, 0), cmap="magma", alpha=0.75)
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
    """Draw multiply-adds of one layer with 320 channels against the number of tokens, a line for each setting.

    Args:
        arms: Settings by label; `None` is stock attention.
        sides: Sides of square token grids.
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
    for label, settings in arms.items():
        costs = [float(multiply_adds(side, side, 320, settings)) for side in sides]
        axes.loglog([side * side for side in sides], costs, marker="o", label=label)
    axes.set_xlabel("tokens")
    axes.set_ylabel("multiply-adds of one layer")
    axes.legend()
    return axes


def draw_front(figures: Mapping[str, tuple[float, float]], quality: str, axes: Any = None) -> Any:
    """Draw speed against quality, a labelled point for each setting: what lies up and to the right is better.

    Args:
        figures: (speed-up, quality) by label.
        quality: What the quality is, for the axis.
        axes: Where to draw; `None` makes a figure.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> draw_front({"fast": (4.0, 25.0)}, "PSNR, dB").get_ylabel()
        'PSNR, dB'
    """
    axes = _axes(axes)
    for label, (speed, value) in figures.items():
        axes.scatter(speed, value)
        axes.annotate(label, (speed, value), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.margins(0.15)  # room for the names
    axes.set_xlabel("speed-up over stock")
    axes.set_ylabel(quality)
    axes.grid(alpha=0.3)
    return axes


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("agentsd.pictures.visual draws with matplotlib; pip install 'agentsd[notebooks]'.") from error
    return plt


def _axes(axes: Any) -> Any:
    return _pyplot().subplots()[1] if axes is None else axes


def _bare(axes: Any) -> Any:
    axes.set_xticks([])
    axes.set_yticks([])
    return axes
