"""Leaving out the unconditional half of a UNet call: the step computes no guidance and costs half.

Idea: Kynkäänniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in
Diffusion Models", NeurIPS 2024 (https://arxiv.org/abs/2404.07724).
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from agentsd.unet.batch import copies_in, second_half
from agentsd.unet.denoisers import UNET_BY_SAMPLE
from agentsd.unet.steps import Position

if TYPE_CHECKING:
    from agentsd.unet.runtime import Runtime

BYPASSED = "other code has replaced the denoiser's forward since agentsd.apply; call it again"


def guidance_obstacle(denoiser: nn.Module, pipes: Iterable[Any], batch: int) -> str | None:
    """Return why the unconditional half of a call cannot be left out; an empty text if the run has no guidance.

    A pipeline says how it was called last. Only `copies_in` shows whether this call is one of its own.

    Args:
        denoiser: What is called.
        pipes: The pipelines that may be making the call.
        batch: Samples in the call.

    Returns:
        The reason; `None` if the call holds as many unconditional samples as conditional ones, in this order.

    Example:
        >>> guidance_obstacle(unet, [], 2)
        'no pipeline is known that says whether it guides: call agentsd.apply on the pipeline'
    """
    from diffusers import UNet2DConditionModel

    if not isinstance(denoiser, UNet2DConditionModel):
        return f"the samples of {type(denoiser).__name__} are not laid out as those of UNet2DConditionModel"
    states = {type(pipe).__name__: getattr(pipe, "do_classifier_free_guidance", None) for pipe in pipes}
    known = {bool(state) for state in states.values() if state is not None}
    if states and not known:
        return f"{', '.join(states)} does not say whether it guides with a doubled batch"
    if not known:
        return "no pipeline is known that says whether it guides: call agentsd.apply on the pipeline"
    if known == {False}:
        return ""
    if len(known) > 1 or None in states.values():
        return f"pipelines on this UNet ({', '.join(states)}) differ in whether they guide"
    for pipe in pipes:
        if hasattr(pipe, "image_guidance_scale") or getattr(pipe, "do_perturbed_attention_guidance", False):
            return f"{type(pipe).__name__} guides by more than one other prediction"
    if batch % 2:
        return f"a call with {batch} samples has no halves"
    return None


def runs_guided(runtime: "Runtime", denoiser: nn.Module, position: Position, arguments: dict[str, Any]) -> bool:
    """Return whether a call runs with all its samples, and not with the conditional half alone."""
    if runtime.schedule.is_guided(position.index, position.total):
        return True
    sample: Tensor = arguments[runtime.layout.sample]
    batch = sample.shape[0]
    scheduler = runtime.progress().scheduler()
    pipes = [pipe for pipe in list(runtime.pipes) if scheduler is not None and pipe.scheduler is scheduler]
    run = runtime.local.run
    foreign = None if run is None else run.foreign_code()
    problem = BYPASSED if runtime.bypassed else foreign or guidance_obstacle(denoiser, pipes, batch)
    if problem is None and copies_in(sample, {} if run is None else run.copies) != 2:
        problem = "the halves of a call are different samples, so it is not one that a pipeline guides"
    if problem:
        runtime.guidance_problem = problem
        runtime.warn_once(f"agentsd does not leave out guidance: {problem}. It is computed at every step instead.")
    return problem is not None


def conditional_half(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a UNet call for the second half of its samples; in diffusers it is the conditional half.

    Args:
        arguments: Arguments of the UNet's forward by name, with `sample` [2 B, C, h, w].

    Returns:
        The same arguments; tensors with an entry for each of the 2 B samples keep the last B, also in lists and dicts.

    Example:
        >>> half = conditional_half({"sample": torch.zeros(4, 4, 8, 8), "timestep": torch.tensor(9)})
        >>> half["sample"].shape, half["timestep"].shape
        (torch.Size([2, 4, 8, 8]), torch.Size([]))
    """
    return second_half(arguments, UNET_BY_SAMPLE, arguments["sample"].shape[0])


def for_both_halves(output: Any) -> Any:
    """Return a UNet's output with its samples twice: the unconditional half equals the conditional one.

    Example:
        >>> for_both_halves((torch.zeros(1, 4, 8, 8),))[0].shape
        torch.Size([2, 4, 8, 8])
    """
    if isinstance(output, tuple):
        return (torch.cat([output[0], output[0]]), *output[1:])
    return type(output)(sample=torch.cat([output.sample, output.sample]))


def is_per_sample(path: str) -> bool:
    """Return whether an argument of the UNet's forward has an entry for each sample; `path` joins names by dots.

    Example:
        >>> is_per_sample("encoder_hidden_states"), is_per_sample("cross_attention_kwargs.ip_adapter_masks")
        (True, False)
    """
    return path.startswith(UNET_BY_SAMPLE)
