"""A pipeline's ControlNet, which need not run where the denoiser's next call will be skipped.

The pipeline calls the ControlNet first. Whether the denoiser's call of the same step will be skipped is known by then:
the controller decides from full steps alone. At such a step the ControlNet returns its last residuals, and nobody
reads them. Should the denoiser's call be full after all, the ControlNet runs then, and its residuals are put in.
"""

import functools
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from agentsd.unet.adaptive import WithinTolerance
from agentsd.unet.conditions import changed_condition, conditions_of
from agentsd.unet.denoisers import Layout, layout_of
from agentsd.unet.processor import SITE
from agentsd.unet.standin import put_in, take_out

if TYPE_CHECKING:
    from agentsd.unet.runtime import Runtime

CONTROL = "_agentsd_control"
_WHOLE = -1  # stands for all that a ControlNet returns, beside the places in it


@dataclass
class _Held:
    """What the ControlNet returned at its last call that was not left out, for which run and conditions."""

    run: int | None
    conditions: dict[str, Any]
    shape: torch.Size
    residuals: Any
    places: dict[str, int] | None = None  # what each argument of the denoiser got of them; `None`: something else
    older: Any = None  # what the pipeline got instead, in a step where the ControlNet rests
    repeat: Callable[[], Any] | None = None  # runs the call that was left out; `None` once it has run


class Control:
    """What a ControlNet carries while its pipeline's denoiser skips steps; a copy has lost it and runs at every step.

    Args:
        denoiser: The patched denoiser.
        layout: How the ControlNet is called.
    """

    def __init__(self, denoiser: nn.Module | None = None, layout: Layout | None = None) -> None:
        self.denoiser = (lambda: None) if denoiser is None else weakref.ref(denoiser)
        self.layout = Layout() if layout is None else layout
        self.local = threading.local()
        self.left_out = 0  # calls

    def __deepcopy__(self, memo: dict[int, Any]) -> "Control":
        return Control()

    def __reduce__(self) -> tuple[type["Control"], tuple[()]]:
        return Control, ()

    def call(
        self, whole: Callable[[], Any], again: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Return the residuals of a call: the last ones where the denoiser will be skipped, else new ones.

        Args:
            whole: Runs the call.
            again: Runs it later, if it is left out now and the denoiser needs it after all.
            args: Its arguments.
            kwargs: Those given by name.
        """
        denoiser = self.denoiser()
        runtime = None if denoiser is None else denoiser.__dict__.get(SITE)
        arguments = self.layout.bind(args, kwargs)
        sample = arguments.get(self.layout.sample)
        held: _Held | None = getattr(self.local, "held", None)
        self.local.held = None
        if runtime is None or not isinstance(sample, Tensor) or torch.is_grad_enabled():
            return whole()
        timestep = arguments.get("timestep")
        if runtime.layout.scales_time:
            timestep = runtime.progress().step_of(timestep)
        skipped, number = _outlook(runtime, timestep)
        conditions = conditions_of(arguments, self.layout, [])
        fits = held is not None and bool(held.places) and held.run == number and held.shape == sample.shape
        if held is not None and fits and skipped and changed_condition(held.conditions, conditions) is None:
            held.older, held.repeat = held.residuals, again
            self.local.held = held
            self.left_out += 1
            return _apart(held.residuals)
        residuals = whole()
        if number is not None:  # else no step of it is skipped
            self.local.held = _Held(number, conditions, sample.shape, _apart(residuals))
        return residuals

    def at_full_step(self, names: tuple[str, ...], arguments: dict[str, Any]) -> dict[str, Any]:
        """Return residuals of this step for a full call of the denoiser, if it was given older ones.

        Args:
            names: The denoiser's arguments for residuals.
            arguments: Arguments of the denoiser's call that were given by name.
        """
        held: _Held | None = getattr(self.local, "held", None)
        if held is None:
            return {}
        given = {name: arguments.get(name) for name in names}
        if held.older is None:
            held.places = _places(held.residuals, given)
            return {}
        # Another pipeline may call the denoiser after a run that ended between the two calls of a step.
        if _places(held.older, given) != held.places:
            return {}
        if held.repeat is not None:  # it stays until then: a step may have a call that is skipped and one that is full
            held.residuals, held.repeat = held.repeat(), None
        return {name: _apart(_part(held.residuals, place)) for name, place in (held.places or {}).items()}

    def forget(self) -> None:
        """Let go of all residuals, in every thread."""
        self.local = threading.local()

    def end(self) -> None:
        """Let go of the residuals of this thread's run."""
        self.local.held = None


def _places(residuals: Any, given: dict[str, Any]) -> dict[str, int] | None:
    """Return where each argument stands in what a ControlNet returned, `None` if one is something made from it."""
    found = {}
    count = len(residuals) if isinstance(residuals, list | tuple) else 0
    for name, value in given.items():
        if value is None:
            continue
        place = next((at for at in (_WHOLE, *range(count)) if _same(_part(residuals, at), value)), None)
        if place is None:
            return None
        found[name] = place
    return found


def _same(one: Any, other: Any) -> bool:
    """Return whether both are one object, or hold the same objects: some pipelines make a tuple of a list."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return one is other


def _apart(residuals: Any) -> Any:
    """Return the same residuals in lists and tuples of their own: HunyuanDiT empties the list that it is given."""
    kind = type(residuals)
    return kind(_apart(one) for one in residuals) if kind in (list, tuple) else residuals


def _part(residuals: Any, place: int) -> Any:
    return residuals if place == _WHOLE else residuals[place]


def _outlook(runtime: "Runtime", timestep: object) -> tuple[bool, int | None]:
    """Return whether the denoiser will be skipped at a timestep that is still to come, and the number of the run."""
    position = runtime.progress().outlook(timestep)
    if position is None or position.run is None or not runtime.enabled:
        return False, None
    run = runtime.runs.find(position.run, position.index, runtime.schedule)
    policies = [] if run is None else list(run.policies.values())
    if run is None or not policies or run.index != position.index - 1:
        return False, position.run
    # Where guidance takes two calls a step, each has a policy of its own.
    return all(isinstance(one, WithinTolerance) and one.will_skip(position) for one in policies), position.run


def controlled_forward(controlnet: Any, original: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Stand in for a ControlNet's forward (`agentsd.unet.standin`)."""
    whole = functools.partial(type(controlnet).forward, controlnet) if original is None else original
    control: Control | None = controlnet.__dict__.get(CONTROL)
    if control is None or torch.compiler.is_compiling():
        return whole(*args, **kwargs)
    run = functools.partial(whole, *args, **kwargs)
    return control.call(run, functools.partial(_again, controlnet, run, args, kwargs), args, kwargs)


def _again(controlnet: nn.Module, run: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a call that was left out: its hooks have run, but a patch of the ControlNet itself is set for one call."""
    runtime: Runtime | None = controlnet.__dict__.get(SITE)
    if runtime is None:
        return run()
    runtime.begin(controlnet, args, kwargs)
    residuals = None
    try:
        residuals = run()
    finally:
        runtime.end(residuals)
    return residuals


def controls_of(runtime: Any) -> list[Control]:
    """Return what the ControlNets of a patch carry; not those that a later patch took over.

    Args:
        runtime: The state of the patch, with its ControlNets.
    """
    found = []
    for controlnet in list(runtime.controls):
        control: Control | None = controlnet.__dict__.get(CONTROL)
        denoiser = None if control is None else control.denoiser()
        if control is not None and denoiser is not None and denoiser.__dict__.get(SITE) is runtime:
            found.append(control)
    return found


def take_control(pipe: Any, denoiser: nn.Module) -> tuple[nn.Module, ...]:
    """Let a pipeline's ControlNet rest at skipped steps; return it, or nothing if there is none that can."""
    controlnet = getattr(pipe, "controlnet", None)
    if not isinstance(controlnet, nn.Module) or hasattr(controlnet, "_orig_mod"):
        return ()
    if CONTROL in controlnet.__dict__:
        _free(controlnet)
    layout = layout_of(controlnet)
    if layout.sample not in layout.names or "timestep" not in layout.names:
        return ()
    setattr(controlnet, CONTROL, Control(denoiser, layout))
    put_in(controlnet, controlled_forward)
    return (controlnet,)


def release(controlnet: Any, denoiser: nn.Module | None = None) -> None:
    """Give a ControlNet its own forward back, unless the patch of another denoiser has taken it over.

    Args:
        controlnet: Anything; what is no ControlNet of a patch stays as it is.
        denoiser: The denoiser whose patch goes; `None` releases copies alone, which have lost theirs.
    """
    control: Control | None = controlnet.__dict__.get(CONTROL) if isinstance(controlnet, nn.Module) else None
    if control is not None and control.denoiser() in (None, denoiser):
        _free(controlnet)


def _free(controlnet: nn.Module) -> None:
    delattr(controlnet, CONTROL)
    take_out(controlnet, controlled_forward)
