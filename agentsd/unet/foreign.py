"""Code of others inside a UNet that may need its layers at every step: hooks, forwards and attention processors."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

# What these put on modules moves, scales or compiles weights. It need not run where a layer does not run.
_LIBRARIES = frozenset({"accelerate", "agentsd", "bitsandbytes", "diffusers", "peft", "torch", "torchao"})


class ForeignCode:
    """Finds code of others inside a UNet; looks through its modules only if a hook was registered since the last time.

    Code that may miss steps can say so: `hook.agentsd_optional = True`.

    Args:
        unet: The UNet. Hooks on the UNet itself run at skipped steps too and do not count.

    Example:
        >>> ForeignCode(unet).find() is None
        True
    """

    def __init__(self, unet: nn.Module) -> None:
        self.unet = unet
        self._found: str | None = None
        self._looked_at = -1  # torch numbers all hooks: no new number, no new hook

    def find(self) -> str | None:
        """Return what may need the layers at every step, and where it is; `None` if nothing does."""
        number = RemovableHandle.next_id
        if self._found is not None or number != self._looked_at:
            self._found, self._looked_at = self._look(), number
        return self._found

    def _look(self) -> str | None:
        for module in self.unet.modules():
            for kind, code in _code_at(module, root=module is self.unet):
                if not _is_harmless(code):
                    name = next(name for name, other in self.unet.named_modules() if other is module)
                    return (
                        f"the {kind} {_name(code)} of other code at {name} may need its layers at every step "
                        "(if not, set agentsd_optional = True on it)"
                    )
        return None


def _code_at(module: nn.Module, *, root: bool) -> Iterator[tuple[str, Any]]:
    if not root:
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            yield "hook", hook
        for name in ("forward", "_old_forward"):  # accelerate keeps the forward that it wraps under the second name
            code = module.__dict__.get(name)
            if code is not None and getattr(code, "__func__", None) is not type(module).forward:
                yield "forward", code
    processor = module.__dict__.get("processor") or module._modules.get("processor")
    if processor is not None:
        yield "attention processor", processor


def _is_harmless(code: Any) -> bool:
    if getattr(code, "agentsd_optional", False):
        return True
    # Not `__module__` of a function, which wrappers copy from what they wrap.
    function = _function(code)
    names = getattr(function, "__globals__", None)
    module = names.get("__name__", "") if names is not None else type(code).__module__
    return str(module).partition(".")[0] in _LIBRARIES


def _function(code: Any) -> Callable[..., Any]:
    while True:
        if isinstance(code, functools.partial):
            code = code.func
        elif hasattr(code, "__func__"):
            code = code.__func__
        else:
            return code  # type: ignore[no-any-return]


def _name(code: Any) -> str:
    function = _function(code)
    return str(getattr(function, "__qualname__", type(function).__name__))
