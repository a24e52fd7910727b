"""The softmax attentions that the families keep in their other blocks: plain or reduced, windows, stripes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agentsd.vision.attention import REDUCTION_EPS
from agentsd.vision.caching import Caching
from agentsd.vision.functional import Grid, check_heads, merge_heads, project, split_heads, to_image, to_tokens

MASKED = -100.0  # what the published Swin adds to a masked score


class SoftmaxAttention(nn.Module):
    """Softmax attention over all tokens, with keys reduced by a strided convolution if wanted (DeiT, PVT).

    `O = softmax(Q K^T / sqrt(d)) V`; Wang et al., https://arxiv.org/abs/2102.12122, for the reduction.

    Args:
        dim: Channels C.
        heads: Number of heads; it divides `dim`.
        reduction: Side of the strided convolution that reduces the keys; 1 keeps all.

    Raises:
        ValueError: If the heads do not divide the channels.

    Example:
        >>> SoftmaxAttention(32, 2, reduction=2)(torch.randn(1, 64, 32), (8, 8)).shape
        torch.Size([1, 64, 32])
    """

    def __init__(self, dim: int, heads: int, *, reduction: int = 1) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.dim, self.heads, self.reduction = dim, heads, reduction
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, stride=reduction)
            self.norm = nn.LayerNorm(dim, eps=REDUCTION_EPS)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Attend.

        Args:
            x: Tokens, [B, N, C]; a class token is one more token, where there is no reduction.
            grid: (h, w) of the image tokens.

        Returns:
            Tokens, [B, N, C].

        Example:
            >>> SoftmaxAttention(32, 2)(torch.randn(1, 65, 32), (8, 8)).shape
            torch.Size([1, 65, 32])
        """
        if self.reduction == 1:
            query, key, value = self.qkv(x).chunk(3, dim=-1)
        else:
            reduced = self.norm(to_tokens(self.sr(to_image(x, grid))))
            query, (key, value) = project(x, self.qkv, 0, 1), project(reduced, self.qkv, 1, 3).chunk(2, dim=-1)
        out: Tensor = self.proj(_attend(query, key, value, self.heads))
        return out


class WindowAttention(Caching):
    """Softmax attention in windows, shifted or not, with a table of relative position biases (Swin).

    `O = softmax(Q K^T / sqrt(d) + B + mask) V` in each window; Liu et al., https://arxiv.org/abs/2103.14030. Maps that
    windows do not fill are padded with zeros. Along a side that one window covers, the window shrinks to the map and
    does not shift, unless it is `fixed`, as the published detectors and segmenters have it.

    Args:
        dim: Channels C.
        heads: Number of heads; it divides `dim`.
        window: Side of the windows.
        shift: Shift of the windows in tokens.
        fixed: Whether the window neither shrinks nor stops to shift.

    Raises:
        ValueError: If the heads do not divide the channels or the shift is not below the window.

    Example:
        >>> WindowAttention(32, 2, window=4, shift=2)(torch.randn(1, 60, 32), (10, 6)).shape
        torch.Size([1, 60, 32])
    """

    def __init__(self, dim: int, heads: int, *, window: int, shift: int = 0, fixed: bool = False) -> None:
        super().__init__()
        check_heads(dim, heads)
        if not 0 <= shift < window:
            raise ValueError(f"shift={shift} is not between 0 and window={window}; use window // 2 or 0.")
        self.heads, self.window, self.shift, self.fixed = heads, window, shift, fixed
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        table = torch.empty((2 * window - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))

    def _bias(self, padded: Grid, window: Grid, shift: Grid) -> Tensor:
        """Return bias and mask, [windows or 1, heads, w*w, w*w]."""
        table = self.relative_position_bias_table
        rows, columns = (torch.arange(side, device=table.device) for side in window)
        down = (rows[:, None] - rows[None, :] + self.window - 1)[:, None, :, None]
        right = (columns[:, None] - columns[None, :] + self.window - 1)[None, :, None, :]
        index = (down * (2 * self.window - 1) + right).flatten(0, 1).flatten(1)
        bias = table[index].permute(2, 0, 1)[None]
        if shift == (0, 0):
            return bias.contiguous()
        regions = _regions(padded[0], window[0], shift[0], table.device)[:, None] * 3
        regions = regions + _regions(padded[1], window[1], shift[1], table.device)
        cells = _windows(regions[None, :, :, None], window).squeeze(-1)
        mask = (cells[:, None, :] != cells[:, :, None]).to(table.dtype) * MASKED
        return bias + mask[:, None]

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Attend.

        Args:
            x: Tokens, [B, h*w, C].
            grid: (h, w).

        Returns:
            Tokens, [B, h*w, C].

        Example:
            >>> WindowAttention(32, 2, window=7)(torch.randn(1, 16, 32), (4, 4)).shape
            torch.Size([1, 16, 32])
        """
        batch, _, dim = x.shape
        height, width = grid
        window, shift = (self.window, self.window), (self.shift, self.shift)
        if not self.fixed:
            window = (min(self.window, height), min(self.window, width))
            shift = (self.shift if height > self.window else 0, self.shift if width > self.window else 0)
        padded = (-(-height // window[0]) * window[0], -(-width // window[1]) * window[1])
        image = x.unflatten(1, grid)
        if padded != grid:
            image = F.pad(image, (0, 0, 0, padded[1] - width, 0, padded[0] - height))
        if shift != (0, 0):
            image = image.roll((-shift[0], -shift[1]), dims=(1, 2))
        tokens = _windows(image, window)
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        bias = self._cache.get(self, (padded, window, shift), lambda: self._bias(padded, window, shift)).to(x.dtype)
        if bias.shape[0] > 1 and batch > 1:
            bias = bias.repeat(batch, 1, 1, 1)
        out = self.proj(_attend(query, key, value, self.heads, bias))
        image = _unwindow(out, window, padded)
        if shift != (0, 0):
            image = image.roll(shift, dims=(1, 2))
        return image[:, :height, :width].reshape(batch, height * width, dim)


class StripeAttention(nn.Module):
    """Softmax attention in vertical and horizontal stripes, with positions from a convolution of the values (CSwin).

    `O = softmax(Q K^T / sqrt(d)) V + DWC(V)` in each stripe: the first half of the channels in stripes of full height,
    the second half in stripes of full width; Dong et al., https://arxiv.org/abs/2107.00652. Without `split` there is
    one branch over the whole map. Maps that stripes do not fill are padded, and padded keys are masked.

    Args:
        dim: Channels C.
        heads: Number of heads; it divides `dim`, and is even where there are stripes.
        split: Width of the stripes; `None` for one branch over the whole map.

    Raises:
        ValueError: If the heads do not fit.

    Example:
        >>> StripeAttention(32, 2, split=3)(torch.randn(1, 60, 32), (10, 6)).shape
        torch.Size([1, 60, 32])
    """

    def __init__(self, dim: int, heads: int, *, split: int | None) -> None:
        super().__init__()
        check_heads(dim, heads)
        if split is not None and heads % 2:
            raise ValueError(f"heads={heads} is odd and cannot be halved for two kinds of stripes; use an even number.")
        self.dim, self.heads, self.split = dim, heads, split
        branches = 1 if split is None else 2
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        width = dim // branches
        self.dwc = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(branches))

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Attend.

        Args:
            x: Tokens, [B, h*w, C].
            grid: (h, w).

        Returns:
            Tokens, [B, h*w, C].

        Example:
            >>> StripeAttention(32, 2, split=None)(torch.randn(1, 60, 32), (10, 6)).shape
            torch.Size([1, 60, 32])
        """
        qkv = self.qkv(x).unflatten(1, grid).chunk(3, dim=-1)
        if self.split is None:
            out = self._branch(qkv, grid, grid, self.heads, self.dwc[0])
        else:
            first, second = zip(*(part.chunk(2, dim=-1) for part in qkv), strict=True)
            upright = self._branch(first, grid, (grid[0], self.split), self.heads // 2, self.dwc[0])
            level = self._branch(second, grid, (self.split, grid[1]), self.heads // 2, self.dwc[1])
            out = torch.cat([upright, level], dim=-1)
        result: Tensor = self.proj(out.flatten(1, 2))
        return result

    def _branch(self, qkv: tuple[Tensor, ...], grid: Grid, stripe: Grid, heads: int, convolution: nn.Module) -> Tensor:
        padded = (-(-grid[0] // stripe[0]) * stripe[0], -(-grid[1] // stripe[1]) * stripe[1])
        mask = None
        if padded != grid:
            space = (0, 0, 0, padded[1] - grid[1], 0, padded[0] - grid[0])
            qkv = tuple(F.pad(part, space) for part in qkv)
            inside = F.pad(torch.ones(1, *grid, 1, device=qkv[0].device), space)
            mask = _windows(inside, stripe)[:, None, None, :, 0].bool().repeat(qkv[0].shape[0], 1, 1, 1)
        query, key, value = (_windows(part, stripe) for part in qkv)
        out = _attend(query, key, value, heads, mask)
        out = out + to_tokens(convolution(to_image(value, stripe)))
        return _unwindow(out, stripe, padded)[:, : grid[0], : grid[1]]


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Fused softmax attention of tokens, [B, N, C]."""
    split = [split_heads(part, heads) for part in (query, key, value)]
    return merge_heads(F.scaled_dot_product_attention(split[0], split[1], split[2], attn_mask=mask))


def _windows(image: Tensor, window: Grid) -> Tensor:
    """Cut [B, H, W, C] into windows, [B * windows, h*w, C], row by row."""
    batch, height, width, dim = image.shape
    rows, columns = height // window[0], width // window[1]
    cut = image.reshape(batch, rows, window[0], columns, window[1], dim).transpose(2, 3)
    return cut.reshape(batch * rows * columns, window[0] * window[1], dim)


def _unwindow(tokens: Tensor, window: Grid, size: Grid) -> Tensor:
    """Undo `_windows` for a map of `size`."""
    rows, columns = size[0] // window[0], size[1] // window[1]
    cut = tokens.reshape(-1, rows, columns, window[0], window[1], tokens.shape[-1]).transpose(2, 3)
    return cut.reshape(-1, size[0], size[1], tokens.shape[-1])


def _regions(size: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Number the three parts of a shifted side that must not see each other."""
    position = torch.arange(size, device=device)
    if shift == 0:
        return torch.zeros_like(position)
    return (position >= size - window).long() + (position >= size - shift).long()
