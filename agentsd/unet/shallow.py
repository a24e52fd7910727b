"""The outermost layers of a UNet, run on a cached feature of an earlier full step.

Idea: Ma, Fang & Wang, "DeepCache: Accelerating Diffusion Models for Free", CVPR 2024 (https://arxiv.org/abs/2312.00858).
A skipped step runs conv_in, the outermost layers and conv_out. With depth 0 it runs nothing: the cached feature is the
UNet's prediction.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


def depth_under_noise(unet: nn.Module, depth: int) -> int:
    """Return how many layers run at a skipped step whose scheduler adds fresh noise: one instead of none.

    Example:
        >>> depth_under_noise(unet, 0), depth_under_noise(unet, 2)
        (1, 2)
    """
    return depth or min(max_depth(unet), 1)


def max_depth(unet: nn.Module) -> int:
    """Return the largest `depth` of a UNet: the number of layers in its last up block; 0 if that does not fit."""
    from diffusers import UNet2DConditionModel
    from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D, CrossAttnUpBlock2D, DownBlock2D, UpBlock2D

    if not isinstance(unet, UNet2DConditionModel) or len(unet.up_blocks) < 2:
        return 0
    first, last = unet.down_blocks[0], unet.up_blocks[-1]
    if type(first) not in (CrossAttnDownBlock2D, DownBlock2D) or type(last) not in (CrossAttnUpBlock2D, UpBlock2D):
        return 0
    # The last up block must take its skips from conv_in and the first down block alone, and end at full size.
    matching = len(first.resnets) + 1 == len(last.resnets) and last.upsamplers is None
    return len(last.resnets) if matching else 0


def feature_hook_target(unet: nn.Module, depth: int) -> tuple[nn.Module, bool]:
    """Return the module that sees the deep feature, and whether as its input (else as its output)."""
    last: Any = unet.up_blocks[-1]  # type: ignore[index]
    start = len(last.resnets) - depth
    if start == 0:
        return last, True
    return (last.attentions if _attends(last) else last.resnets)[start - 1], False


def shallow_pass(unet: "UNet2DConditionModel", feature: Tensor, depth: int, arguments: Mapping[str, Any]) -> Any:
    """Run the outermost layers of a UNet on a deep feature of an earlier step.

    With `depth` = k the UNet's own submodules run: conv_in, the first k - 1 down layers (they compute the skips), the
    last k up layers and the output head. With k = 0 nothing runs.

    Args:
        unet: The UNet.
        feature: Input of the k-th last up layer at an earlier full step, [B, C, h, w]; for k = 0 the prediction.
        depth: k, from 0 to `max_depth(unet)`.
        arguments: Arguments of the UNet's forward by name.

    Returns:
        What the UNet's forward returns: an output object, or a tuple if `return_dict=False`.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

    # A copy for depth 0: the feature is kept for later steps, and the caller may change the output.
    output = _outer_layers(unet, feature, depth, arguments) if depth else feature.clone()
    return (output,) if arguments.get("return_dict", True) is False else UNet2DConditionOutput(sample=output)


def _outer_layers(unet: Any, feature: Tensor, depth: int, arguments: Mapping[str, Any]) -> Tensor:
    sample: Tensor = arguments["sample"]
    context = arguments["encoder_hidden_states"]
    added = arguments.get("added_cond_kwargs")
    kwargs, scale = _split_lora_scale(arguments.get("cross_attention_kwargs"))
    with _LoraScale(unet, scale):
        if unet.config.center_input_sample:
            sample = 2 * sample - 1.0
        time = unet.get_time_embed(sample=sample, timestep=arguments["timestep"])
        embedding = unet.time_embedding(time, arguments.get("timestep_cond"))
        classes = unet.get_class_embed(sample=sample, class_labels=arguments.get("class_labels"))
        if classes is not None:
            joined = unet.config.class_embeddings_concat
            embedding = torch.cat([embedding, classes], dim=-1) if joined else embedding + classes
        extra = unet.get_aug_embed(emb=embedding, encoder_hidden_states=context, added_cond_kwargs=added)
        embedding = embedding if extra is None else embedding + extra
        if unet.time_embed_act is not None:
            embedding = unet.time_embed_act(embedding)
        context = unet.process_encoder_hidden_states(encoder_hidden_states=context, added_cond_kwargs=added)

        mask = arguments.get("encoder_attention_mask")
        if mask is not None:
            mask = ((1 - mask.to(sample.dtype)) * -10000.0).unsqueeze(1)
        attend = {"encoder_hidden_states": context, "cross_attention_kwargs": kwargs, "encoder_attention_mask": mask}

        skips = _skips(unet, unet.conv_in(sample), embedding, attend, depth, arguments)
        hidden = feature
        last: Any = unet.up_blocks[-1]
        start = len(last.resnets) - depth
        for index in range(start, len(last.resnets)):
            hidden = torch.cat([hidden, skips.pop()], dim=1)
            hidden = _layer(last, index, hidden, embedding, attend)

        if unet.conv_norm_out is not None:
            hidden = unet.conv_act(unet.conv_norm_out(hidden))
        output: Tensor = unet.conv_out(hidden)
    return output


def _skips(
    unet: Any, hidden: Tensor, embedding: Tensor, attend: dict[str, Any], depth: int, arguments: Mapping[str, Any]
) -> list[Tensor]:
    """Return the outputs of conv_in and the first `depth - 1` down layers, with ControlNet and adapter residuals."""
    first = unet.down_blocks[0]
    skips = [hidden]
    for index in range(depth - 1):
        hidden = _layer(first, index, hidden, embedding, attend)
        adapter = arguments.get("down_intrablock_additional_residuals")
        if adapter and _attends(first) and index == len(first.resnets) - 1:
            hidden = hidden + adapter[0]
        skips.append(hidden)
    residuals = arguments.get("down_block_additional_residuals")
    if residuals is not None:
        skips = [skip + residual for skip, residual in zip(skips, residuals, strict=False)]
    return skips


def _layer(block: Any, index: int, hidden: Tensor, embedding: Tensor, attend: dict[str, Any]) -> Tensor:
    hidden = block.resnets[index](hidden, embedding)
    if _attends(block):
        hidden = block.attentions[index](hidden, **attend, return_dict=False)[0]
    return hidden


def _attends(block: Any) -> bool:
    return bool(getattr(block, "has_cross_attention", False))


def _split_lora_scale(kwargs: Mapping[str, Any] | None) -> tuple[dict[str, Any] | None, float]:
    if not kwargs or "scale" not in kwargs:
        return None if kwargs is None else dict(kwargs), 1.0
    rest = dict(kwargs)
    return rest, rest.pop("scale")


class _LoraScale:
    """Scale LoRA layers for one pass, as the UNet's own forward does with `cross_attention_kwargs["scale"]`."""

    def __init__(self, unet: nn.Module, scale: float) -> None:
        self.unet, self.scale = unet, scale

    def __enter__(self) -> None:
        self._call("scale_lora_layers")

    def __exit__(self, *exc: object) -> None:
        self._call("unscale_lora_layers")

    def _call(self, name: str) -> None:
        import diffusers.utils

        if self.scale != 1.0 and diffusers.utils.USE_PEFT_BACKEND:
            change: Callable[[nn.Module, float], None] = getattr(diffusers.utils, name)
            change(self.unet, self.scale)
