"""Multiply-adds: of a layer by its formula, of a model counted as the authors count them."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from agentsd.vision.functional import Grid


def _elements(factor: int, *, output: bool) -> Callable[..., int]:
    """Make a formula of torch's counter: `factor` multiply-adds an element, of two operations each."""

    def formula(*shapes: Any, out_shape: Any = None, **kwargs: Any) -> int:
        shape = out_shape if output else shapes[0]
        if shape and not isinstance(shape[0], int):
            shape = shape[0]  # the first of several results
        return 2 * factor * int(torch.Size(shape).numel())

    return formula


def _formulas() -> dict[Any, Callable[..., int]]:
    aten = torch.ops.aten
    return {
        aten.native_layer_norm: _elements(5, output=True),
        aten._adaptive_avg_pool2d: _elements(1, output=False),
        aten.upsample_bilinear2d: _elements(4, output=True),
    }


def count_flops(model: nn.Module, image_size: int | Grid, *, by_operator: bool = False) -> int | dict[str, int]:
    """Count the multiply-adds of a model for one image.

    Convolutions, linear layers and products count, a layer norm 5 an element, pooling 1 an element of its input,
    bilinear interpolation 4 an element of its output; softmax, GELU, sums and scaling do not. So count the authors
    (with fvcore). Nothing is computed: the model is copied without its weights.

    Args:
        model: The model, called with images, [1, 3, H, W].
        image_size: Side, or (height, width).
        by_operator: Whether to return the count of every operator.

    Returns:
        The multiply-adds, or a dict from the operator's name.

    Example:
        >>> from agentsd.vision import create_model
        >>> round(count_flops(create_model("agent_deit_t"), 224) / 1e9, 2)
        1.18
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    bare = copy.deepcopy(model).to("meta").eval()
    # The fused attention would hide its products from the counter. Gradients on: nothing is cached.
    counter = FlopCounterMode(display=False, custom_mapping=_formulas())
    with sdpa_kernel(SDPBackend.MATH), counter, torch.enable_grad():
        bare(torch.empty(1, 3, height, width, device="meta"))
    counts = counter.get_flop_counts()["Global"]
    if by_operator:
        return {str(operator).removeprefix("aten."): count // 2 for operator, count in counts.items()}
    return counter.get_total_flops() // 2


def complexity(tokens: int, width: int, agents: int, *, kernel: int = 3) -> int:
    """Count the multiply-adds of one Agent Attention layer, `4NC^2 + NC + 4nNC + k^2NC`.

    Projections, pooling, four products with the agents, depthwise convolution (section 3.3 of
    https://arxiv.org/abs/2312.08874). Softmax attention takes `4NC^2 + 2N^2C`.

    Args:
        tokens: Number of tokens N.
        width: Channels C.
        agents: Number of agents n.
        kernel: Side k of the depthwise convolution.

    Returns:
        Multiply-adds for one image.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> complexity(3136, 64, 9) < softmax_complexity(3136, 64) / 15
        True
    """
    for field, number in (("tokens", tokens), ("width", width), ("agents", agents), ("kernel", kernel)):
        if number < 1:
            raise ValueError(f"{field}={number} is not positive; give at least 1.")
    return tokens * width * (4 * width + 1 + 4 * agents + kernel**2)


def softmax_complexity(tokens: int, width: int) -> int:
    """Count the multiply-adds of one softmax attention layer, `4NC^2 + 2N^2C`.

    Args:
        tokens: Number of tokens N.
        width: Channels C.

    Returns:
        Multiply-adds for one image.

    Example:
        >>> softmax_complexity(196, 384)
        145108992
    """
    return tokens * width * (4 * width + 2 * tokens)
