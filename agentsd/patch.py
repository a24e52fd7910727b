"""Install agent attention on a pipeline or UNet, report what was patched, and restore it exactly."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from agentsd.attention.settings import Attention
from agentsd.planning.plans import Plan
from agentsd.presets import as_schedule, with_tolerance
from agentsd.schedule import Schedule
from agentsd.system.warning import warn_user
from agentsd.unet.activity import warn_if_running
from agentsd.unet.controlnets import release, take_control
from agentsd.unet.denoisers import denoiser_in, layout_of
from agentsd.unet.install import check_plan, denoiser_of, find, install, uninstall
from agentsd.unet.processor import SITE
from agentsd.unet.report import Report
from agentsd.unet.runtime import Runtime
from agentsd.unet.skipping import fit_skipping
from agentsd.unet.status import holds, report_of, why_inactive
from agentsd.unet.summary import title
from agentsd.unet.using import Using, resolve

# The denoisers that were patched through each pipeline: it may hold another one when they are restored.
_PATCHED: weakref.WeakKeyDictionary[Any, weakref.WeakSet[nn.Module]] = weakref.WeakKeyDictionary()


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
        """The schedule in force: inside `using` that of the block."""
        return self._runtime.schedule

    def remove(self) -> None:
        """Restore the denoiser exactly; does nothing if it is restored already or patched anew."""
        if self._denoiser.__dict__.get(SITE) is self._runtime:
            _take_off(self._denoiser)

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
        _check_remembered("pipe", [pipe])
        self._runtime.pipes.add(pipe)

    def report(self) -> Report:
        """Return what is patched, what the schedule does and what the last run did; `details()` lists the layers.

        If the patch is not in force any more, it shows the last state and says why.
        """
        return report_of(self._denoiser, self._runtime)

    @contextmanager
    def using(
        self, schedule: "str | Schedule | Attention | None" = None, *, tolerance: float | None = None
    ) -> Iterator[Using]:
        """Let calls in this thread or task follow another schedule while the context lasts.

        Entering takes a fraction of a millisecond: nothing is installed anew. Other threads and tasks keep their
        schedule. What is started inside with a copy of the context (`asyncio.to_thread`, tasks) follows the block too.
        A bare `threading.Thread` or an executor does not: enter the block there. Blocks nest, and the innermost
        decides. Inside `disabled` everything stays stock.

        Every preset, tolerance and attention setting is possible. Fixed full steps that run layers (`depth` of at
        least 1) need the layer that the patch was applied with.

        Args:
            schedule: A preset, a `Schedule` or settings of self-attention; `None` keeps the one in force.
            tolerance: The relative error of the final latent that you accept; it replaces that of the schedule.

        Yields:
            What the runs of this block come to: `.last_run`, `.report()`.

        Raises:
            ValueError: If the patch is not in force, or cannot follow the schedule; the message says why.

        Example:
            >>> patch = agentsd.apply(pipe, "balanced")
            >>> with patch.using(tolerance=0.1) as used:
            ...     image = pipe("a red circle", num_inference_steps=12, output_type="pt").images
            >>> used.last_run.steps
            12
            >>> patch.report().last_run is None
            True
            >>> patch.remove()
        """
        in_force = resolve(self._denoiser, self._runtime, schedule, tolerance)
        with self._runtime.block(in_force):
            yield Using(self._denoiser, self._runtime, in_force)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Run the stock UNet in this thread or task while the context lasts; the patch stays installed."""
        runtime = self._denoiser.__dict__.get(SITE, self._runtime)  # also of a patch that replaced this one
        with runtime.block(None):
            yield

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
        TypeError: If the target is neither a pipeline with a denoiser nor a module, or cannot be hashed or held weakly.

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
    _check_remembered("target", users)  # before anything is patched
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
        warn_if_running(earlier.activity, "agentsd.apply replaces", denoiser)
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
        if chosen.skipping.by_noise_level:
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
            _take_off(denoiser)
    if former and denoiser_in(target) is None:
        return
    denoiser = denoiser_of(target)
    if SITE in denoiser.__dict__:
        _take_off(denoiser)


def _check_remembered(name: str, pipes: list[Any]) -> None:
    try:
        weakref.WeakSet(pipes)
    except TypeError as error:
        raise TypeError(
            f"{name}={type(pipes[0]).__name__} cannot be remembered as a pipeline ({error}): it must be hashable and "
            "allow weak references. With a dataclass, write @dataclass(eq=False); or give its denoiser alone."
        ) from error


def _take_off(denoiser: nn.Module) -> None:
    warn_if_running(denoiser.__dict__[SITE].activity, "agentsd.remove takes off", denoiser)
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
    return report_of(denoiser, runtime)


def _patched_through(target: Any) -> list[nn.Module]:
    """Return the denoisers that were patched through a pipeline, whatever it holds now."""
    try:
        return [] if isinstance(target, nn.Module) else list(_PATCHED.get(target, ()))
    except TypeError:  # it allows no weak references, and none was remembered
        return []
