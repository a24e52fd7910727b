"""Whether a patch is in force, and the report of it."""

from typing import Any

from torch import nn

from agentsd.attention.cells import grid_at
from agentsd.unet.denoisers import SECOND, denoiser_in, second_denoiser_in
from agentsd.unet.inforce import InForce
from agentsd.unet.processor import SITE, AgentAttnProcessor
from agentsd.unet.report import LayerReport, Report
from agentsd.unet.runtime import Runtime

_SECOND_REASON = f"a second denoiser: patch = agentsd.apply(pipe.{SECOND}); patch.attach(pipe)"
_REPLACED = "processor replaced by other code: not patched any more"


def why_inactive(denoiser: nn.Module, runtime: Runtime) -> str | None:
    """Return why a patch is not in force, or `None` if it is.

    Example:
        >>> patch = agentsd.apply(unet)
        >>> why_inactive(unet, unet._agentsd) is None
        True
        >>> patch.remove()
    """
    installed = denoiser.__dict__.get(SITE)
    if installed is None:
        return "removed"
    if installed is not runtime:
        return "replaced by a later agentsd.apply"
    users = list(runtime.users)
    if users and not any(holds(user, denoiser) for user in users):
        names = ", ".join(sorted({type(user).__name__ for user in users}))
        return f"{names} runs another denoiser now; call agentsd.apply again"
    return None


def holds(pipe: Any, denoiser: nn.Module) -> bool:
    """Return whether a pipeline holds a denoiser, by itself or inside a wrapper.

    Example:
        >>> holds(pipe, pipe.unet), holds(pipe, torch.nn.Linear(1, 1))
        (True, False)
    """
    module = denoiser_in(pipe)
    return module is denoiser or (isinstance(module, nn.Module) and any(part is denoiser for part in module.modules()))


def report_of(denoiser: nn.Module, runtime: Runtime, in_force: InForce | None = None) -> Report:
    """Return the report of a patch.

    Args:
        denoiser: What is patched.
        runtime: The patch.
        in_force: The schedule to report on, with its runs; `None` is the one in force here.

    Example:
        >>> with agentsd.apply(unet, "paper"):
        ...     report_of(unet, unet._agentsd).target
        'UNet2DConditionModel'
    """
    chosen = runtime.now if in_force is None else in_force
    sample = runtime.sample
    size = getattr(getattr(denoiser, "config", None), "sample_size", None)
    if sample is None and size is not None:
        sample = (size, size) if isinstance(size, int) else (size[0], size[1])
    reason = why_inactive(denoiser, runtime)
    layers = tuple(
        LayerReport(
            name=site.name,
            level=site.level,
            downsample=2 ** (site.level - runtime.finest),
            grid=None if sample is None else grid_at(site.level, *sample),
            problem=_REPLACED if reason is None and type(attn.processor) is not AgentAttnProcessor else site.problem,
        )
        for site, attn in zip(runtime.sites, runtime.attentions, strict=True)
    )
    return Report(
        target=type(denoiser).__name__,
        schedule=chosen.schedule,
        layers=layers,
        skipped=(*runtime.skipped, *_second(denoiser, runtime)),
        seed=runtime.seed,
        skipping_problem=chosen.skipping_problem,
        noise_problem=chosen.noise_problem,
        guidance_problem=chosen.guidance_problem,
        batch_problem=chosen.batch_problem,
        planned_stock=tuple((one, runtime.left_stock(one)) for one in chosen.schedule.attentions),
        active=reason is None,
        inactive_reason=reason,
        last_run=chosen.record.read(timed=next(denoiser.parameters()).device.type == "cpu"),
    )


def _second(denoiser: nn.Module, runtime: Runtime) -> list[tuple[str, str]]:
    """Return the other denoiser of the patched pipelines with a reason, while nobody has patched it."""
    others = (second_denoiser_in(pipe) for pipe in runtime.users)
    stock = any(other is not None and other is not denoiser and SITE not in other.__dict__ for other in others)
    return [(SECOND, _SECOND_REASON)] if stock else []
