"""The hooks of a patched denoiser: around its calls, at its transformer blocks, and at the cached feature."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from agentsd.unet.controlnets import controls_of
from agentsd.unet.processor import SITE, AgentAttnProcessor, Site
from agentsd.unet.slot import StepSlot

if TYPE_CHECKING:
    from agentsd.unet.runtime import Runtime

KEEPER = "_agentsd_slot"  # on the module whose input or output is the deep feature

_NO_EXPORT = (
    "This denoiser is patched by agentsd. Its steps differ, and one trace or export cannot hold them all. "
    "Call agentsd.remove(target) first and export the stock model, or use torch.compile."
)


def _outside_graphs(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Keep a root hook out of compiled graphs; left to the compiler it would break `fullgraph=True`."""
    reason = {"reason": _NO_EXPORT} if "reason" in inspect.signature(torch.compiler.disable).parameters else {}
    disabled: Callable[..., Any] = torch.compiler.disable(hook, **reason)
    return disabled


def on_block_call(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Leave the block's input: the published ranking compares tokens before norm1."""
    site: Site | None = block.attn1.__dict__.get(SITE)
    if site is not None:
        if block.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            site.slot.recall(args[0] if args else kwargs["hidden_states"])
        plan = site.slot.read().levels.get(site.level)
        if plan is not None and plan.pattern is not None:
            site.slot.put_metric(args[0] if args else kwargs["hidden_states"])


def on_deep_feature(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None) -> None:
    """Leave the deep feature of a full step: the input of the last up block or the output of one of its layers."""
    slot: StepSlot | None = module.__dict__.get(KEEPER)
    if slot is not None and slot.read().keep and slot.read().depth:
        if output is None:
            output = args[0] if args else kwargs["hidden_states"]
        slot.put_feature(output[0] if isinstance(output, tuple) else output)


@_outside_graphs
def on_denoiser_call(
    denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Read the step from the timestep, set it for the layers, and say once if the layers are no longer ours.

    Returns:
        The arguments with residuals of this step, where a ControlNet rested although the step is full.
    """
    if torch._C._get_tracing_state() is not None or getattr(torch.compiler, "is_exporting", bool)():
        raise RuntimeError(_NO_EXPORT)
    runtime: Runtime = denoiser.__dict__[SITE]
    runtime.begin(denoiser, args, kwargs)
    replaced = sum(type(attn.processor) is not AgentAttnProcessor for attn in runtime.attentions)
    if replaced:
        runtime.warn_once(
            f"{replaced} of the {len(runtime.sites)} attention processors that agentsd installed have been replaced by "
            "other code (attention slicing, xformers, fuse_qkv_projections, PAG, ...); those layers do not use agent "
            "attention now. If that was not meant, call agentsd.apply again afterwards."
        )
    for site in runtime.sites:
        if site.problem is not None:
            runtime.warn_once(f"agentsd at {site.name}: {site.problem}.")
    fresh: dict[str, Any] = {}
    if runtime.slot.read().runs:
        for control in controls_of(runtime):
            fresh.update(control.at_full_step(runtime.layout.residuals, kwargs))
    return (args, {**kwargs, **fresh}) if fresh else None


@_outside_graphs
def after_denoiser_call(denoiser: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Keep the feature for later skipped steps. Torch calls this after an exception too."""
    runtime: Runtime = denoiser.__dict__[SITE]
    runtime.end(output)


HOOKS = (on_block_call, on_deep_feature, on_denoiser_call, after_denoiser_call)
