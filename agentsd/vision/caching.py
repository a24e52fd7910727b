"""What depends on parameters alone is computed once in eval mode."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
ENTRIES = 8  # a few grids; a stream of sizes must not fill the memory


class EvalCache:
    """Keeps what a module computes from its own parameters, while it is in eval mode and no gradients are taken.

    A parameter that changes in any way (loading, writing in place, another device or dtype) makes the entries stale.
    `torch.compile` reads entries that are there and writes none: run the model once before compiling it. Compiled code
    sees training and loading (`Caching`), but no parameter that is written in eval mode. Copies and pickles of a module
    start without entries.

    Example:
        >>> layer, cache = torch.nn.Linear(2, 2).eval(), EvalCache()
        >>> with torch.no_grad():
        ...     first = cache.get(layer, "sum", lambda: layer.weight.sum())
        ...     cache.get(layer, "sum", lambda: layer.weight.sum()) is first
        True
    """

    def __init__(self) -> None:
        self._entries: dict[Any, tuple[tuple[Any, ...], Any]] = {}

    def get(self, module: nn.Module, key: Any, compute: Callable[[], T]) -> T:
        """Return what `compute` returns, from the cache where that is safe.

        Args:
            module: Whose own parameters (not those of its children) the result is computed from.
            key: What else it depends on.
            compute: Computes the result.

        Returns:
            The result; nobody may write to it.
        """
        if module.training:
            self._entries.clear()
            return compute()
        if torch.is_grad_enabled():
            return compute()
        entry = self._entries.get(key)
        if torch.compiler.is_compiling():
            return compute() if entry is None else entry[1]
        state = tuple(_state(tensor) for tensor in module._parameters.values() if tensor is not None)
        if not state:  # a replica of nn.DataParallel: its parameters are not to be seen
            return compute()
        if entry is None or entry[0] != state:
            if len(self._entries) >= ENTRIES:
                self._entries.clear()
            entry = (state, compute())
            self._entries[key] = entry
        result: T = entry[1]
        return result

    def clear(self) -> None:
        """Forget every entry."""
        self._entries.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> "EvalCache":
        return EvalCache()

    def __reduce__(self) -> tuple[Any, ...]:
        return EvalCache, ()


class Caching(nn.Module):
    """A module with an `EvalCache`, which loading empties: compiled code does not look at the parameters.

    Example:
        >>> Caching()._cache.get(Caching().eval(), "answer", lambda: 42)
        42
    """

    def __init__(self) -> None:
        super().__init__()
        self._cache = EvalCache()

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        self._cache.clear()
        super()._load_from_state_dict(*args, **options)


def _state(tensor: Tensor) -> tuple[Any, ...]:
    # Inference tensors count no versions; they cannot change in place outside inference mode either.
    version = -1 if tensor.is_inference() else tensor._version
    return id(tensor), tensor.data_ptr(), version, tensor.dtype, tensor.device
