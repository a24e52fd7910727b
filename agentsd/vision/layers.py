"""The parts around attention: perceptron, dropped paths, patches, blocks."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agentsd.vision.functional import Grid, to_tokens

# Numbers between the two layers that a thread holds at a time on a CPU (4 MiB of float32). Much larger buffers can come
# as fresh pages from the system at every call. Smaller parts cost more: small matrices multiply slowly.
CHUNK = 2**20


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them.

    Args:
        dim: Channels.
        hidden: Channels between the layers.

    Example:
        >>> Mlp(8, 32)(torch.zeros(1, 4, 8)).shape
        torch.Size([1, 4, 8])
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both layers to tokens, [B, N, C]."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu":
            out: Tensor = self.fc2(F.gelu(self.fc1(x)))
            return out
        rows = x.flatten(0, -2)
        # Parts of equal size: a small last part would take almost as long as a large one.
        number = max(1, math.ceil(rows.shape[0] * self.fc1.out_features / (CHUNK * torch.get_num_threads())))
        parts = [self._overwriting(part) for part in rows.chunk(number)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).view_as(x)

    def _overwriting(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        torch.ops.aten.gelu_(hidden)
        out: Tensor = self.fc2(hidden)
        return out


class DropPath(nn.Module):
    """Drop a residual path for a random part of the batch in training; the rest is scaled up.

    Huang et al., https://arxiv.org/abs/1603.09382.

    Args:
        rate: Probability of dropping, below 1.

    Raises:
        ValueError: If the rate is out of range.

    Example:
        >>> DropPath(0.5).eval()(torch.ones(2, 1, 1)).flatten()
        tensor([1., 1.])
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"rate={rate} is not in [0, 1); use 0 for no dropped paths.")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop paths of tokens, [B, N, C]."""
        if not self.training or self.rate == 0:
            return x
        kept = torch.empty(x.shape[0], *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(1 - self.rate)
        return x * kept / (1 - self.rate)

    def extra_repr(self) -> str:
        """Show the rate."""
        return f"rate={self.rate:.3g}"


class PatchEmbed(nn.Module):
    """Cut an image, or a map of tokens, into patches: a strided convolution and a norm.

    Args:
        channels: Channels of the image.
        dim: Channels of the tokens.
        kernel: Side of the convolution.
        stride: Its stride.
        padding: Its padding.
        eps: Of the norm; `None` for no norm.
        fill: Whether sides that the stride does not divide are padded with zeros; else the rest is left out.

    Example:
        >>> tokens, grid = PatchEmbed(3, 8, kernel=4, stride=4, eps=1e-5)(torch.zeros(1, 3, 16, 8))
        >>> tokens.shape, grid
        (torch.Size([1, 8, 8]), (4, 2))
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        *,
        kernel: int,
        stride: int,
        padding: int = 0,
        eps: float | None = None,
        fill: bool = False,
    ) -> None:
        super().__init__()
        self.stride, self.fill = stride, fill
        self.proj = nn.Conv2d(channels, dim, kernel, stride=stride, padding=padding)
        self.norm = nn.Identity() if eps is None else nn.LayerNorm(dim, eps=eps)

    def forward(self, image: Tensor) -> tuple[Tensor, Grid]:
        """Cut an image, [B, C, H, W], into tokens, [B, N, D]; return them and their grid."""
        if self.fill:
            image = F.pad(image, (0, -image.shape[-1] % self.stride, 0, -image.shape[-2] % self.stride))
        image = self.proj(image)
        return self.norm(to_tokens(image)), (image.shape[-2], image.shape[-1])


class PatchMerging(nn.Module):
    """Join each 2 x 2 tokens into one (Swin): their channels side by side, a norm, a linear layer.

    Args:
        channels: Channels before.
        dim: Channels after.
        eps: Of the norm.

    Example:
        >>> tokens, grid = PatchMerging(8, 16)(torch.zeros(1, 8, 5, 4))
        >>> tokens.shape, grid
        (torch.Size([1, 6, 16]), (3, 2))
    """

    def __init__(self, channels: int, dim: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels, eps=eps)
        self.reduction = nn.Linear(4 * channels, dim, bias=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Grid]:
        """Join the tokens of a map, [B, C, H, W]; odd sides are padded. Return tokens and their grid."""
        x = image.permute(0, 2, 3, 1)
        if x.shape[1] % 2 or x.shape[2] % 2:
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        joined = torch.cat(corners, dim=-1)
        return self.reduction(self.norm(joined.flatten(1, 2))), (joined.shape[1], joined.shape[2])


class Block(nn.Module):
    """A transformer block, norms first: `x + attn(norm1(x))`, then `x + mlp(norm2(x))`.

    Args:
        dim: Channels.
        attn: The attention, called with tokens and their grid.
        mlp_ratio: Channels within the perceptron, as a multiple of `dim`.
        drop_path: Probability of dropping a path.
        eps: Of the norms.

    Example:
        >>> from agentsd.vision import AgentAttention
        >>> block = Block(32, AgentAttention(32, 2, grid=(8, 8), agents=9), mlp_ratio=4)
        >>> block(torch.zeros(1, 64, 32), (8, 8)).shape
        torch.Size([1, 64, 32])
    """

    def __init__(
        self, dim: int, attn: nn.Module, *, mlp_ratio: float, drop_path: float = 0.0, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = attn
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Transform tokens, [B, N, C], that lie on a grid (h, w)."""
        x = x + self.drop_path(self.attn(self.norm1(x), grid))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out
