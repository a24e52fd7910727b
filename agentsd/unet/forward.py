"""The forward of a patched denoiser: from a cached feature at skipped steps, the whole denoiser at full steps."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from agentsd.unet.batch import Part
from agentsd.unet.denoisers import Layout
from agentsd.unet.guidance import conditional_half, for_both_halves
from agentsd.unet.processor import SITE
from agentsd.unet.shallow import shallow_pass
from agentsd.unet.slot import StepSlot
from agentsd.unet.standin import found_in

if TYPE_CHECKING:
    from agentsd.unet.runtime import Runtime


def scheduled_forward(denoiser: Any, original: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Replace the denoiser's forward: start from the step's feature if it has one, else run the original.

    It stands in for the forward (`agentsd.unet.standin`); `original` is `None` for the class's own.
    """
    runtime: Runtime | None = denoiser.__dict__.get(SITE)
    if runtime is None:
        return _whole(denoiser, original, args, kwargs)
    slot = runtime.slot
    slot.note_forward()
    if slot.denoiser is not None:  # a shallow copy, whose forward is that of the patched denoiser
        denoiser, original = slot.denoiser, None
    if torch.compiler.is_compiling():
        return _run(runtime.layout, slot, denoiser, original, args, kwargs)
    try:
        return _run(runtime.layout, slot, denoiser, original, args, kwargs)
    except BaseException:  # torch calls no hook after KeyboardInterrupt
        slot.clear()
        raise


def shallow_copy(denoiser: nn.Module) -> nn.Module | None:
    """Return the denoiser if it is a shallow copy (copy.copy, a replica) of the one whose forward it has, or `None`.

    Example:
        >>> shallow_copy(unet) is None
        True
    """
    for _, standing in found_in(denoiser, scheduled_forward):
        return None if standing.args[0] is denoiser else denoiser
    return None


def _run(
    layout: Layout, slot: StepSlot, denoiser: Any, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    context = slot.read()
    if not context.guided:
        args, kwargs = (), conditional_half(layout.bind(args, kwargs))
    if context.part is not None:
        arguments = layout.bind(args, kwargs)
        args, kwargs = (), context.part.only(arguments, layout.by_sample, len(arguments[layout.sample]))
    if context.feature is None or context.part is not None:
        output = _whole(denoiser, original, args, kwargs)
    elif context.depth:
        output = shallow_pass(denoiser, context.feature, context.depth, layout.bind(args, kwargs))
    else:
        # A copy: the feature is kept for the steps to come, and what is returned is the caller's.
        copy = layout.parted(context.feature.clone())
        output = (copy,) if context.output is None else context.output(sample=copy)
    if context.keep and context.depth == 0:
        slot.put_feature(layout.joined(output[0]))
    if context.feature is not None and context.part is not None:
        output = _among(context.feature, context.part, output)
    return output if context.guided else for_both_halves(output)


def _among(predictions: Tensor, part: Part, output: Any) -> Any:
    """Return an output for all pictures: that of the part that ran, and the predictions of the others."""
    merged = predictions.to(output[0].dtype, copy=True)
    part.put(output[0], merged)
    return (merged, *output[1:]) if isinstance(output, tuple) else type(output)(sample=merged)


def _whole(denoiser: Any, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return type(denoiser).forward(denoiser, *args, **kwargs) if original is None else original(*args, **kwargs)
