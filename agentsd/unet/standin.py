"""A function that stands in for a module's forward, and the way back."""

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import nn

# accelerate keeps the forward that it wraps under the second name, and goes back to it whenever it takes its hook off:
# with enable_model_cpu_offload after every call of the pipeline.
_NAMES = ("forward", "_old_forward")


def put_in(module: nn.Module, function: Callable[..., Any]) -> None:
    """Let `function(module, original, ...)` stand in for a module's forward.

    `original` is `None` for the class's own forward. A partial copies and pickles with the module; a closure would keep
    calling the first module.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> put_in(layer, lambda module, original, x: -x)
        >>> layer(torch.ones(1, 2))
        tensor([[-1., -1.]])
    """
    name = "_old_forward" if "_old_forward" in module.__dict__ else "forward"
    setattr(module, name, functools.partial(function, module, module.__dict__.get(name)))


def found_in(module: nn.Module, function: Callable[..., Any]) -> "list[tuple[str, functools.partial[Any]]]":
    """Return where a function stands in for a module's forward, as names of attributes and what they hold.

    Example:
        >>> found_in(torch.nn.Linear(2, 2), print)
        []
    """
    held = [(name, module.__dict__.get(name)) for name in _NAMES]
    return [(name, one) for name, one in held if isinstance(one, functools.partial) and one.func is function]


def take_out(module: nn.Module, function: Callable[..., Any]) -> None:
    """Give a module the forward back that a function stands in for.

    Example:
        >>> layer, double = torch.nn.Linear(2, 2), lambda module, original, x: 2 * x
        >>> put_in(layer, double)
        >>> take_out(layer, double)
        >>> "forward" in layer.__dict__
        False
    """
    for name in _NAMES:
        standing = module.__dict__.get(name)
        original = _without(function, standing)
        if original is standing:
            continue
        if original is not None:
            setattr(module, name, original)
        elif name == "forward":
            del module.forward
        else:
            setattr(module, name, MethodType(type(module).forward, module))


def _without(function: Callable[..., Any], standing: Any) -> Any:
    """Return a forward without a function, which another stand-in may be around; the same forward if it is not there.

    A ControlNet has two where it is patched itself and its pipeline is too; either may be removed first.
    """
    if not isinstance(standing, functools.partial) or len(standing.args) != 2:
        return standing
    module, original = standing.args
    if standing.func is function:
        return original
    inside = _without(function, original)
    return standing if inside is original else functools.partial(standing.func, module, inside)
