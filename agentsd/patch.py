"""Install agent attention on a pipeline or UNet, report what was patched, and restore it exactly."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from agentsd.attention.cells import grid_at
from agentsd.attention.settings import Attention
from agentsd.planning.plans import Plan
from agentsd.presets import as_schedule, with_tolerance
from agentsd.schedule import Schedule
from agentsd.system.warning import warn_user
from agentsd.unet.controlnets import release, take_control
from agentsd.unet.denoisers import denoiser_in, layout_of
from agentsd.unet.install import check_plan, denoiser_of, find, install, uninstall
from agentsd.unet.processor import SITE, AgentAttnProcessor
from agentsd.unet.report import LayerReport, Report
from agentsd.unet.runtime import Runtime
from agentsd.unet.skipping import fit_skipping
from agentsd.unet.summary import title

# The denoisers that were patched through each pipeline: it may hold another one when they are restored.
_PATCHED: weakref.WeakKeyDictionary[Any, weakref.WeakSet[nn.Module]] = weakref.WeakKeyDictionary()
_REPLACED = "processor replaced by other code: not patched any more"


class Patch:
    """Handle on a patched denoiser; as a context manager it restores the denoiser on leaving.

    Example:
        >>> with agentsd.apply(unet, "paper") as patch:
        ...     len(patch.report().layers)
        7
        >>> patch.active
        False
    """

    def __init__(self, denoiser: nn.Module, runtime: Runtime) -> None:
        self._denoiser = denoiser
        self._runtime = runtime

    @property
    def active(self) -> bool:
        """Whether this patch is in force: not removed, not replaced by a later `apply`, and on a UNet that is in use.

        A UNet is out of use once no pipeline that was patched with it holds it (`pipe.unet = other`); the report says
        so.
        """
        return why_inactive(self._denoiser, self._runtime) is None

    @property
    def schedule(self) -> Schedule:
        """The schedule in force."""
        return self._runtime.schedule

    def remove(self) -> None:
        """Restore the denoiser exactly; does nothing if it is restored already or patched anew."""
        if self._denoiser.__dict__.get(SITE) is self._runtime:
            uninstall(self._denoiser)

    def reset(self) -> None:
        """Forget all cached features and random choices, in every thread, as if no run had taken place.

        Memory is free at once, also that of interrupted runs. Pictures do not change: choices follow from the seed.

        Example:
            >>> patch = agentsd.apply(pipe)
            >>> image = pipe("a red circle", num_inference_steps=2, output_type="pt").images
            >>> patch.reset()
            >>> patch.report().last_run is None
            True
            >>> patch.remove()
        """
        self._runtime.reset()

    def attach(self, pipe: Any) -> None:
        """Read the steps from the scheduler of `pipe`. `apply` attaches its target; a copy has no pipeline attached."""
        self._runtime.pipes.add(pipe)

    def report(self) -> Report:
        """Return what is patched, what the schedule does and what the last run did; `details()` lists the layers.

        If the patch is not in force any more, it shows the last state and says why.
        """
        return _report(self._denoiser, self._runtime)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Run the stock UNet in this thread while the context lasts; the patch stays installed."""
        runtime = self._denoiser.__dict__.get(SITE, self._runtime)  # also of a patch that replaced this one
        before = getattr(runtime.local, "enabled", True)
        runtime.local.enabled = False
        try:
            yield
        finally:
            runtime.local.enabled = before  # read anew: `reset` replaces it

    def __enter__(self) -> "Patch":
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        reason = why_inactive(self._denoiser, self._runtime)
        return f"Patch on {type(self._denoiser).__name__}: {title(self.schedule) if reason is None else reason}"


def apply(
    target: Any,
    schedule: "str | Schedule | Attention | Plan" = "balanced",
    *,
    tolerance: float | None = None,
    ratio: float | None = None,
    seed: int = 0,
) -> Patch:
    """Patch a pipeline's denoiser in place: its calls then follow a schedule.

    The schedule applies at every call of the pipeline. The pipeline's loop and callbacks stay untouched.
    Applying again replaces the earlier patch.

    Args:
        target: A diffusers pipeline, or its denoiser (or a ControlNet) itself, compiled or not. Steps can be skipped in
            all of them. Attention can change in the UNets of SD 1.x, 2.x, SDXL and kin.
        schedule: The name of a preset (`agentsd.PRESETS`), a `Schedule`, settings of self-attention for every step
            (`MergedTokens`, `PooledAgents`, `SampledKeys`), or the `Plan` that `agentsd.plan` returned.
        tolerance: The relative error of the final latent that you accept, in (0, 1]; it replaces the preset's. Smaller
            is nearer to stock and slower.
        ratio: Share of tokens merged before attention, in [0, 1): the published method, `schedule="paper"`, with that
            merge ratio. No other schedule takes it.
        seed: Seed of random cell patterns and sampled keys. Equal seeds give equal images, whatever ran before.

    Returns:
        The handle: `.remove()`, `.report()`, and a context manager.

    Raises:
        ValueError: If arguments contradict each other or are out of range, nothing in the target can be patched, or the
            plan was measured on another architecture.
        TypeError: If the target is neither a pipeline with a denoiser nor a module.

    Example:
        >>> patch = agentsd.apply(pipe, "paper")
        >>> image = pipe("a red circle", num_inference_steps=2, output_type="pt").images
        >>> patch.remove()
    """
    plan = schedule if isinstance(schedule, Plan) else None
    chosen = as_schedule(plan.schedule if plan is not None and ratio is None else schedule, ratio)
    if tolerance is not None:
        chosen = with_tolerance(schedule, chosen, tolerance, ratio)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed={seed!r} must be an integer.")
    denoiser = denoiser_of(target)
    users = [target] if not isinstance(target, nn.Module) and hasattr(target, "scheduler") else []
    pipes = list(users)
    chosen, refused = fit_skipping(denoiser, chosen, asked=not isinstance(schedule, str))
    candidates, skipped = find(denoiser, chosen)  # before the earlier patch goes: what is refused leaves it in place
    if plan is not None:
        check_plan(denoiser, plan)
        refused = plan.skipping_problem
    earlier = denoiser.__dict__.get(SITE)
    if earlier is not None:
        pipes += list(earlier.pipes)  # other pipelines on the same UNet keep their schedulers known
        users += [user for user in earlier.users if holds(user, denoiser)]
        uninstall(denoiser)
    runtime = install(denoiser, Runtime(chosen, seed, candidates, skipped, layout_of(denoiser), plan), candidates)
    runtime.skipping_problem = refused
    if refused is not None and not chosen.attentions:
        warn_user(
            f"agentsd has nothing to do here: {refused}, and its attention is stock. The preset 'gentle' skips none."
        )
    runtime.pipes.update(pipes)
    for user in users:
        runtime.users.add(user)
        if chosen.skipping.tolerance is not None:
            runtime.controls.update(take_control(user, denoiser))
        _PATCHED.setdefault(user, weakref.WeakSet()).add(denoiser)
    return Patch(denoiser, runtime)


def remove(target: Any) -> None:
    """Restore a pipeline's denoiser (or the one given) exactly; does nothing if it is not patched.

    A denoiser that the pipeline held when it was patched, and no longer holds, is restored too.

    Args:
        target: What was given to `apply`, or a copy of it.

    Raises:
        TypeError: If the target is neither a pipeline with a denoiser nor a module.
    """
    release(getattr(target, "controlnet", None))
    for denoiser in (former := _patched_through(target)):
        runtime = denoiser.__dict__.get(SITE)
        if runtime is not None and target in runtime.users:
            uninstall(denoiser)
    if former and denoiser_in(target) is None:
        return
    denoiser = denoiser_of(target)
    if SITE in denoiser.__dict__:
        uninstall(denoiser)


def report(target: Any) -> Report:
    """Return what is patched on a pipeline's denoiser (or on the one given).

    Args:
        target: What was given to `apply`, or a copy of it.

    Returns:
        The report.

    Raises:
        ValueError: If the target is not patched.
        TypeError: If the target is neither a pipeline with a denoiser nor a module.
    """
    denoiser = denoiser_of(target)
    runtime = denoiser.__dict__.get(SITE)
    if runtime is None and any(SITE in one.__dict__ for one in _patched_through(target)):
        raise ValueError(
            f"target {type(target).__name__} runs another {type(denoiser).__name__} than the one that was patched; "
            "call agentsd.apply(target) again."
        )
    if runtime is None:
        raise ValueError(f"target {type(target).__name__} is not patched; call agentsd.apply(target) first.")
    return _report(denoiser, runtime)


def _patched_through(target: Any) -> list[nn.Module]:
    """Return the denoisers that were patched through a pipeline, whatever it holds now."""
    try:
        return [] if isinstance(target, nn.Module) else list(_PATCHED.get(target, ()))
    except TypeError:  # it allows no weak references, and none was remembered
        return []


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


def _report(denoiser: nn.Module, runtime: Runtime) -> Report:
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
        schedule=runtime.schedule,
        layers=layers,
        skipped=runtime.skipped,
        seed=runtime.seed,
        skipping_problem=runtime.skipping_problem,
        noise_problem=runtime.noise_problem,
        guidance_problem=runtime.guidance_problem,
        planned_stock=tuple((one, runtime.left_stock(one)) for one in runtime.schedule.attentions),
        active=reason is None,
        inactive_reason=reason,
        last_run=runtime.record.read(timed=next(denoiser.parameters()).device.type == "cpu"),
    )
