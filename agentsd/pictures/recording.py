"""Looking inside a run: what a patched layer attends over, where its agents are, which tokens merge."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agentsd.attention.settings import SampledKeys
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
        """Return a picture whose tokens are merged as the layer's tokens were: the detail that the layer sees.

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
