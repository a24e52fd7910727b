"""The conditions of a prediction (all but sample and timestep), and whether they changed within a run."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agentsd.unet.denoisers import Layout
from agentsd.unet.guidance import is_per_sample

# A ControlNet looks at the sample, so its residuals differ at every step: what counts is whether they are there, and
# by how much the size of the first one jumps.
_JUMP = 4.0
_RESIDUAL = "the first of "


def conditions_of(arguments: Mapping[str, Any], layout: Layout, knobs: list[Any]) -> dict[str, Any]:
    """Return all conditions of a call by path; tensors with their version, since they may be changed in place.

    Everything but the sample, the timestep and a ControlNet's residuals counts as a condition.

    Args:
        arguments: Arguments of the denoiser's forward by name.
        layout: How the denoiser is called.
        knobs: What `find_knobs` found.

    Example:
        >>> list(conditions_of({"sample": 1, "added_cond_kwargs": {"time_ids": torch.ones(1)}}, Layout(), []))
        ['added_cond_kwargs.time_ids', 'adapter scales']
    """
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in (layout.sample, "timestep", *layout.residuals):
            _flatten(name, value, found)
    for name in layout.residuals:
        value = arguments.get(name)
        residual = value[0] if isinstance(value, list | tuple) and value else value
        if isinstance(residual, Tensor):
            found[_RESIDUAL + name] = (residual.detach(), None)
            break
    found["adapter scales"] = [_reading(knob) for knob in knobs]
    return found


def changed_condition(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return which condition changed between two calls, or `None`. Waits for the device only where addresses differ.

    Example:
        >>> changed_condition({"scale": 1.0}, {"scale": 0.5})
        'scale'
    """
    for path in {**before, **now}:
        if path not in before or path not in now:
            return path
    doubts = []
    for path, (one, other) in {path: (before[path], now[path]) for path in now}.items():
        if not _is_tensor(one) or not _is_tensor(other):
            if _is_tensor(one) or _is_tensor(other) or _differ(one, other):
                return path
            continue
        (old, old_version), (new, new_version) = one, other
        if old.shape != new.shape or old.dtype != new.dtype or old.device != new.device:
            return path
        if path.startswith(_RESIDUAL):
            sizes = torch.stack([old.float().norm(), new.float().norm()])
            doubts.append((path, (sizes.max() > _JUMP * sizes.min())))
        elif old.data_ptr() == new.data_ptr() and old.stride() == new.stride():
            if old_version != new_version:
                return path
        else:
            doubts.append((path, (old != new).any()))
    if not doubts:
        return None
    flags = torch.stack([flag.to(doubts[0][1].device) for _, flag in doubts]).tolist()  # the one wait
    return next((path for (path, _), flag in zip(doubts, flags, strict=True) if flag), None)


def conditional_conditions(conditions: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """Return the conditions of the second half of a batch.

    Example:
        >>> half = conditional_conditions({"encoder_hidden_states": (torch.zeros(2, 3), 0)}, 2)
        >>> half["encoder_hidden_states"][0].shape
        torch.Size([1, 3])
    """
    halved = dict(conditions)
    for path, value in conditions.items():
        per_sample = is_per_sample(path.removeprefix(_RESIDUAL))
        if _is_tensor(value) and per_sample and value[0].ndim and value[0].shape[0] == batch:
            halved[path] = (value[0][batch // 2 :], value[1])
    return halved


def find_knobs(denoiser: nn.Module) -> list[Any]:
    """Return the LoRA layers of a denoiser, and the processors with a scale (IP-Adapter).

    Example:
        >>> find_knobs(unet)
        []
    """
    found: list[Any] = []
    for module in denoiser.modules():
        if isinstance(getattr(module, "scaling", None), dict) and hasattr(module, "active_adapters"):
            found.append(module)
        processor = module.__dict__.get("processor") or module.__dict__.get("_modules", {}).get("processor")
        if processor is not None and hasattr(processor, "scale"):
            found.append(processor)
    return found


def _reading(knob: Any) -> Any:
    if hasattr(knob, "scaling"):
        return dict(knob.scaling), tuple(knob.active_adapters), getattr(knob, "disable_adapters", False)
    return list(knob.scale) if isinstance(knob.scale, list | tuple) else knob.scale


def _flatten(path: str, value: Any, found: dict[str, Any]) -> None:
    if isinstance(value, Tensor):
        # Inference tensors have no version, and cannot be changed in place outside inference mode.
        found[path] = (value.detach(), None if value.is_inference() else value._version)
    elif isinstance(value, Mapping):
        for name, one in value.items():
            _flatten(f"{path}.{name}", one, found)
    elif isinstance(value, list | tuple):
        for place, one in enumerate(value):
            _flatten(f"{path}.{place}", one, found)
    elif value is not None:
        found[path] = value.copy() if isinstance(value, np.ndarray) else value  # arrays have no version


def _differ(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return not np.array_equal(one, other)
    return bool(one != other)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], Tensor)
