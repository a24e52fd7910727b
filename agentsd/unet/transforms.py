"""Whether derivatives are taken through a call, or it runs inside a torch.func transform."""

import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_T = TypeVar("_T")


def in_transform() -> bool:
    """Return whether a `torch.func` transform (jvp, vmap, grad) or forward-mode differentiation is in progress.

    Example:
        >>> in_transform(), torch.func.vmap(lambda x: x + in_transform())(torch.zeros(1)).item()
        (False, 1.0)
    """
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def outside_transforms(make: Callable[[], _T]) -> _T:
    """Return what `make` returns outside every transform, where it may use a generator and be kept.

    Example:
        >>> torch.func.vmap(lambda x: x + outside_transforms(lambda: torch.ones(1)))(torch.zeros(2, 1)).sum().item()
        2.0
    """
    if not in_transform():
        return make()
    made: list[_T] = []
    thread = threading.Thread(target=lambda: made.append(make()))  # transforms are of one thread
    thread.start()
    thread.join()
    return made[0]


def requires_gradient(value: Any) -> bool:
    """Return whether a tensor requires a gradient, anywhere in dicts, lists and tuples.

    Example:
        >>> requires_gradient({"time_ids": [torch.ones(1, requires_grad=True)]})
        True
    """
    if isinstance(value, Tensor):
        return value.requires_grad
    if isinstance(value, Mapping):
        return any(requires_gradient(one) for one in value.values())
    return isinstance(value, list | tuple) and any(requires_gradient(one) for one in value)


def trains(denoiser: nn.Module) -> bool:
    """Return whether a parameter requires a gradient.

    Example:
        >>> trains(unet), trains(unet.requires_grad_(False))
        (True, False)
    """
    return any(parameter.requires_grad for parameter in denoiser.parameters())
