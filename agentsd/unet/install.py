"""Install hooks, processors and a forward on a denoiser, and remove them without a trace."""

import functools
from collections import Counter
from typing import TYPE_CHECKING, Any

from torch import nn

from agentsd.planning.plans import Plan
from agentsd.schedule import Schedule
from agentsd.system.warning import warn_user
from agentsd.unet.controlnets import release
from agentsd.unet.denoisers import denoiser_in, layout_of
from agentsd.unet.forward import scheduled_forward
from agentsd.unet.processor import SITE, AgentAttnProcessor, Site
from agentsd.unet.runtime import Runtime
from agentsd.unet.shallow import depth_under_noise, feature_hook_target
from agentsd.unet.standin import put_in, take_out
from agentsd.unet.traits import device_label, is_offloaded, layer_digest

if TYPE_CHECKING:
    from agentsd.unet.sites import Candidate, Skipped

_DEFAULTS = "set_default_attn_processor"


def denoiser_of(target: Any) -> nn.Module:
    """Return the module to patch: the pipeline's denoiser, or the module itself, without what it is wrapped in."""
    module = target if isinstance(target, nn.Module) else denoiser_in(target)
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"target={type(target).__name__} must be a diffusers pipeline with a UNet or transformer, or a denoiser."
        )
    return _unwrap(getattr(module, "_orig_mod", module))


def _unwrap(module: nn.Module) -> nn.Module:
    """Return the denoiser inside a module of other code; the module itself if it is one, or holds none."""
    if _has_blocks(module) or hasattr(module, "nets"):  # several ControlNets: `_nothing_found` has its own words
        return module
    inside = {name: part for name, part in module.named_modules() if _has_blocks(part)}
    if len(inside) > 1:
        names = ", ".join(inside)
        raise ValueError(f"target={type(module).__name__} holds several denoisers ({names}); give the one to patch.")
    return next(iter(inside.values()), module)


def _has_blocks(module: nn.Module) -> bool:
    return isinstance(getattr(module, "down_blocks", None), nn.ModuleList) and hasattr(module, "mid_block")


def find(denoiser: nn.Module, schedule: Schedule) -> "tuple[list[Candidate], list[Skipped]]":
    """Return the layers to patch and the others.

    Raises:
        ValueError: If the schedule changes attention and there is no layer to patch, or it does nothing at all there.
    """
    from agentsd.unet.sites import find_sites

    candidates, skipped = find_sites(denoiser)
    if not candidates and (schedule.attentions or not schedule.skips_steps):
        raise ValueError(_nothing_found(denoiser, [layer.reason for layer in skipped]))
    return candidates, skipped


def install(denoiser: nn.Module, runtime: Runtime, candidates: "list[Candidate]") -> Runtime:
    """Install everything on a denoiser; if one part fails, remove all of it."""
    from agentsd.unet import hooks  # it loads torch's compiler, which takes seconds

    schedule = runtime.schedule
    setattr(denoiser, SITE, runtime)  # first: removing a half-installed patch needs it
    try:
        for layer, site in zip(candidates, runtime.sites, strict=True):
            setattr(layer.attn, SITE, site)
            layer.attn.set_processor(AgentAttnProcessor())
            layer.block.register_forward_pre_hook(hooks.on_block_call, with_kwargs=True)
        denoiser.register_forward_pre_hook(hooks.on_denoiser_call, with_kwargs=True)
        denoiser.register_forward_hook(hooks.after_denoiser_call, always_call=True)
        if hasattr(denoiser, _DEFAULTS):
            setattr(denoiser, _DEFAULTS, functools.partial(_set_default_processors, denoiser))
        # With depth 0 too: the scheduler may turn out to add fresh noise.
        fixed = schedule.skips_steps and not schedule.skipping.by_noise_level
        depth = runtime.depth = depth_under_noise(denoiser, schedule.skipping.depth) if fixed else 0
        if depth:
            module, sees_input = feature_hook_target(denoiser, depth)
            setattr(module, hooks.KEEPER, runtime.slot)
            register = module.register_forward_pre_hook if sees_input else module.register_forward_hook
            register(hooks.on_deep_feature, with_kwargs=True)
        # Also where the schedule skips nothing: our forward ends a call that KeyboardInterrupt leaves.
        put_in(denoiser, scheduled_forward)
    except BaseException:
        uninstall(denoiser)
        raise
    return runtime


def _set_default_processors(denoiser: Any) -> None:
    """Replace the denoiser's method, which refuses processors that diffusers does not know."""
    for module in denoiser.modules():
        site = module.__dict__.get(SITE)
        if isinstance(site, Site) and isinstance(module.processor, AgentAttnProcessor):
            module.set_processor(site.original)
    type(denoiser).set_default_attn_processor(denoiser)


def check_plan(denoiser: Any, plan: Plan) -> None:
    """Raise ValueError if a plan is of another architecture; warn if it is of another device or dtype."""
    if layer_digest(denoiser) != plan.architecture:
        raise ValueError(
            f"plan was measured on a UNet with other layers than this {type(denoiser).__name__}; measure this one with "
            "agentsd.plan."
        )
    here = [("dtype", plan.dtype, str(denoiser.dtype))]
    if not is_offloaded(denoiser):  # its weights wait elsewhere
        here.append(("device", plan.device, device_label(denoiser.device)))
    for name, made, found in here:
        if made != found:
            warn_user(
                f"agentsd applies a plan made for {name} {made} on {found}; what was faster there need not be here. "
                f"Make a plan for this {name}.",
            )


def _nothing_found(denoiser: nn.Module, reasons: list[str]) -> str:
    if hasattr(denoiser, "nets"):
        return f"{type(denoiser).__name__} holds several ControlNets; call agentsd.apply for each of its `.nets`."
    found = "; ".join(f"{count} layers: {reason}" for reason, count in Counter(reasons).items())
    skips = layout_of(denoiser).obstacle is None
    return (
        f"{type(denoiser).__name__} has no self-attention layer that agentsd can patch. "
        f"Found: {found or 'no attention layer at all'}. "
        "Attention changes in diffusers UNets whose levels hold Transformer2DModel (SD 1.x, 2.x, SDXL and kin)."
        + (" Steps can be skipped here: use a preset with a tolerance, such as 'balanced'." if skips else "")
    )


def uninstall(denoiser: nn.Module) -> None:
    """Remove everything from a denoiser and release what its calls have left."""
    from agentsd.unet import hooks as ours

    # Found by walking the module, not from saved handles: copies and unpickled models can be restored too.
    for module in denoiser.modules():
        site = module.__dict__.get(SITE)
        if isinstance(site, Site):
            # Somebody else's processor, installed after ours, is theirs to keep.
            if isinstance(module.processor, AgentAttnProcessor):
                module.processor = site.original
            delattr(module, SITE)
        if ours.KEEPER in module.__dict__:
            delattr(module, ours.KEEPER)
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if hook in ours.HOOKS]:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
                module._forward_hooks_with_kwargs.pop(key, None)
                module._forward_hooks_always_called.pop(key, None)
    if isinstance(denoiser.__dict__.get(_DEFAULTS), functools.partial):
        delattr(denoiser, _DEFAULTS)
    take_out(denoiser, scheduled_forward)
    runtime: Runtime = denoiser.__dict__[SITE]
    for controlnet in list(runtime.controls):
        release(controlnet, denoiser)
    runtime.forget()  # a handle may live on; the features must not
    delattr(denoiser, SITE)
