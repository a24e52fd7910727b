"""The forward that a patched UNet runs: from a cached feature if the step has one, else the whole UNet."""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from agentsd.unet.guidance import conditional_half, for_both_halves
from agentsd.unet.processor import SITE, StepContext
from agentsd.unet.shallow import shallow_pass

if TYPE_CHECKING:
    from agentsd.unet.runtime import Runtime

_LONGEST_CHAIN = 32  # functions around a UNet's forward that are looked through

# Arguments of UNet2DConditionModel.forward after `sample` and `timestep`, by position.
_FORWARD = (
    "encoder_hidden_states",
    "class_labels",
    "timestep_cond",
    "attention_mask",
    "cross_attention_kwargs",
    "added_cond_kwargs",
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
    "encoder_attention_mask",
    "return_dict",
)


def bind_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a UNet call by name, wherever they stood."""
    return {**dict(zip(("sample", "timestep", *_FORWARD), args, strict=False)), **kwargs}


def scheduled_forward(denoiser: Any, original: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Stand in for the UNet's forward: start from the step's feature if it has one, else run the original.

    Installed as `functools.partial(scheduled_forward, unet, original)`, which copies and pickles with the UNet; a
    closure would keep calling the UNet it was made for. `original` is `None` for the class's own forward.
    """
    runtime: Runtime | None = denoiser.__dict__.get(SITE)
    context = StepContext() if runtime is None else runtime.slot.read()
    if not context.guided:
        args, kwargs = (), conditional_half(bind_arguments(args, kwargs))
    if runtime is not None and context.feature is not None:
        arguments = bind_arguments(args, kwargs)
        output = shallow_pass(denoiser, context.feature, context.depth, arguments)
    elif original is None:
        output = type(denoiser).forward(denoiser, *args, **kwargs)
    else:
        output = original(*args, **kwargs)
    if runtime is not None and context.keep and context.depth == 0:
        runtime.slot.put_feature(output[0])
    return output if context.guided else for_both_halves(output)


def replaced_forward(denoiser: nn.Module) -> str | None:
    """Return that `scheduled_forward` is no longer what the denoiser runs, or `None` if it is, perhaps wrapped."""
    wrapped: list[Any] = [denoiser.__dict__.get(name) for name in ("forward", "_old_forward")]
    for forward in wrapped:  # grows while it is walked
        if isinstance(forward, functools.partial):
            if forward.func is scheduled_forward:
                return None
            wrapped.append(forward.func)
        if len(wrapped) < _LONGEST_CHAIN:
            wrapped.append(getattr(forward, "__wrapped__", None))
            cells = getattr(forward, "__closure__", None) or ()
            wrapped += [content for content in map(_content, cells) if callable(content)]
    return "other code has replaced the UNet's forward since agentsd.apply; call it again"


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the cell is empty as yet
        return None
