"""One resolution of the skeleton: patches, positions, blocks."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from agentsd.vision.attention import AgentAttention
from agentsd.vision.caching import Caching
from agentsd.vision.configs import EMBED_EPS, VisionConfig
from agentsd.vision.functional import Grid
from agentsd.vision.layers import Block, PatchEmbed, PatchMerging
from agentsd.vision.resize import resize_positions
from agentsd.vision.softmax import SoftmaxAttention, StripeAttention, WindowAttention


class Stage(Caching):
    """One resolution: patches, positions, blocks.

    Args:
        config: The model.
        index: Which of its stages.
        channels: Channels that come in.
        rates: Rate of dropped paths of each block.
        dense: Whether the stage is part of a detector or segmenter.
    """

    def __init__(self, config: VisionConfig, index: int, channels: int, rates: list[float], *, dense: bool) -> None:
        super().__init__()
        traits, dim, self.grid = config.traits, config.dims[index], config.grids[index]
        patch = traits.later if index else traits.first
        self.embed: nn.Module
        if patch.merge:
            self.embed = PatchMerging(channels, dim, eps=EMBED_EPS)
        else:
            self.embed = PatchEmbed(
                channels,
                dim,
                kernel=patch.kernel,
                stride=patch.stride,
                padding=patch.padding,
                eps=EMBED_EPS if patch.norm else None,
                fill=traits.fill,
            )
        self.dim, self.checkpointing = dim, False
        self.position_mode = "bilinear" if dense else "bicubic"
        self.class_token: nn.Parameter | None = None
        self.position: nn.Parameter | None = None
        if traits.class_token:
            self.class_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))
        if traits.positions:
            length = self.grid[0] * self.grid[1] + int(traits.class_token)
            self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, length, dim), std=0.02))
        self.blocks = nn.ModuleList(
            Block(
                dim,
                _attention(config, index, number, self.grid, dense=dense),
                mlp_ratio=config.mlp_ratios[index],
                drop_path=rate,
                eps=traits.eps,
            )
            for number, rate in enumerate(rates)
        )

    def tokens(self, image: Tensor) -> tuple[Tensor, Grid]:
        """Cut an image or the map of the last stage, [B, C, H, W], into tokens with their positions."""
        x, grid = self.embed(image)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        if self.position is not None:
            x = x + self._cache.get(self, grid, lambda: self._positions(grid))
        return x, grid

    def _positions(self, grid: Grid) -> Tensor:
        if self.position is None:
            raise ValueError("position=None: this stage has no position embedding; take a family that has one.")
        return resize_positions(self.position, self.grid, grid, mode=self.position_mode)

    def run(self, x: Tensor, grid: Grid) -> Iterator[Tensor]:
        """Yield the tokens after each block."""
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, grid, use_reentrant=False)
            else:
                x = block(x, grid)
            yield x

    def forward(self, image: Tensor) -> tuple[Tensor, Grid]:
        """Return the tokens after the last block and their grid."""
        x, grid = self.tokens(image)
        for after in self.run(x, grid):
            x = after
        return x, grid


def _attention(config: VisionConfig, index: int, number: int, grid: Grid, *, dense: bool) -> nn.Module:
    """Make the attention of block `number` of stage `index`."""
    dim, heads, softmax = config.dims[index], config.heads[index], config.traits.softmax
    if config.blocks[index][number] == "A":
        layer = AgentAttention(
            dim,
            heads,
            grid=grid,
            agents=config.agents[index],
            class_token=config.traits.class_token,
            bias=config.bias,
            convolution=config.convolution,
        )
        if dense and config.traits.dense_agents:
            layer.agents = config.traits.dense_agents[index]
        return layer
    if softmax == "window":
        window = config.window_size
        return WindowAttention(dim, heads, window=window, shift=window // 2 if number % 2 else 0, fixed=dense)
    if softmax == "stripe":
        return StripeAttention(dim, heads, split=config.splits[index])
    return SoftmaxAttention(dim, heads, reduction=config.reductions[index] if softmax == "reduced" else 1)
