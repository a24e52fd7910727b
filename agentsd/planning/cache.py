"""Measurements kept on disk, by everything that changes a time."""

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from agentsd.system.timing import environment
from agentsd.system.warning import warn_user
from agentsd.system.writing import write_whole
from agentsd.unet.traits import hook_names


def cache_file(unet: Any, latent: tuple[int, int], batch: int) -> Path:
    """Return where the measurements of a UNet on this device lie.

    The folder is `AGENTSD_CACHE` if that is set, else the user's cache folder. The name changes with everything that
    changes a time: device, versions, architecture, shape, processors, adapters.

    Args:
        unet: The UNet.
        latent: Height and width of the latents.
        batch: Samples in one call.

    Example:
        >>> cache_file(unet, (16, 16), 2).suffix
        '.json'
    """
    from platformdirs import user_cache_dir

    from agentsd import __version__

    folder = Path(os.environ.get("AGENTSD_CACHE") or user_cache_dir("agentsd", appauthor=False))
    key = {
        "agentsd": __version__,
        "environment": environment(unet.device),
        "dtype": str(unet.dtype),
        "unet": {name: value for name, value in dict(unet.config).items() if not name.startswith("_")},
        "latent": latent,
        "batch": batch,
        "state": _state(unet),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    return folder / "plans" / f"{digest[:32]}.json"


def _state(unet: Any) -> dict[str, Any]:
    """Return what changes a UNet's times and stands neither in its config nor in the environment."""
    parts = list(unet.modules())
    found: dict[str, Any] = {
        "class": type(unet).__name__,
        "processors": sorted({type(part.processor).__name__ for part in parts if hasattr(part, "processor")}),
        "fused": any(getattr(part, "fused_projections", False) for part in parts),
        "channels_last": unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last),
        "adapters": sorted({_adapter(part) for part in parts if hasattr(part, "base_layer")}),
        "images": [type(part).__name__ for part in getattr(unet.encoder_hid_proj, "image_projection_layers", ())],
        "hooks": sorted({name for part in parts for name in hook_names(part)}),
        "matmul": torch.get_float32_matmul_precision(),
    }
    if unet.device.type == "cuda":
        kinds = ("flash", "mem_efficient", "math", "cudnn")
        found["attention"] = [kind for kind in kinds if getattr(torch.backends.cuda, f"{kind}_sdp_enabled")()]
        cudnn = torch.backends.cudnn
        found["convolution"] = [cudnn.enabled, cudnn.benchmark, cudnn.allow_tf32]
    return found


def _adapter(layer: Any) -> str:
    """Return what a PEFT layer adds to its base: nothing if it is merged or off."""
    running = not getattr(layer, "disable_adapters", False) and not getattr(layer, "merged", False)
    active = [(name, getattr(layer, "r", {}).get(name)) for name in getattr(layer, "active_adapters", ())]
    return f"{type(layer).__name__} {sorted(active, key=str) if running else 'at rest'}"


class Measurements:
    """Seconds by name, kept in a file that is replaced as a whole; without a file they are measured anew.

    Args:
        path: The file; `None` keeps nothing.

    Example:
        >>> Measurements(None).get("step", lambda: 0.5)
        0.5
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.found: dict[str, Any] = {}
        self.seconds: dict[str, list[float]] = {}
        if path is not None:
            try:
                self.found = _read(path)
            except (OSError, ValueError) as error:
                self._warn(error)

    def get(self, name: str, measure: Callable[[], float]) -> float:
        """Return the seconds of that name, measured only if they are not kept."""
        return self._get_all(name, 1, lambda: (measure(),))[0]

    def get_pair(self, name: str, measure: Callable[[], tuple[float, float]]) -> tuple[float, float]:
        """Return two times of one name, measured only if they are not kept."""
        first, second = self._get_all(name, 2, measure)
        return first, second

    def _get_all(self, name: str, number: int, measure: Callable[[], tuple[float, ...]]) -> list[float]:
        if name in self.found and not _are_times(self.found[name], number):
            self._warn(f"{name} holds {self.found.pop(name)!r} instead of {number} times")
        if name in self.found:
            return list(self.found[name])
        if name not in self.seconds:
            self.seconds[name] = list(measure())
        return self.seconds[name]

    def _warn(self, reason: object) -> None:
        warn_user(f"agentsd measures anew: {self.path} is not a cache of plans ({reason}).")

    def save(self) -> None:
        """Add what was measured to the file; a file that cannot be written is a warning."""
        if self.path is None or not self.seconds:
            return
        try:
            write_whole(self.path, json.dumps({**self._written_meanwhile(), **self.seconds}))
        except OSError as error:
            warn_user(
                f"agentsd has not kept its measurements: {error}. Set AGENTSD_CACHE to a folder that can be "
                "written, or cache=False.",
            )

    def _written_meanwhile(self) -> dict[str, Any]:
        """Return what the file holds by now: another process may have added to it."""
        try:
            return _read(self.path) if self.path is not None else {}
        except (OSError, ValueError):  # a warning said so when it was read; it is replaced now
            return {}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}")
    return found


def _are_times(values: object, number: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == number
        and all(isinstance(one, float) and math.isfinite(one) and one > 0 for one in values)
    )
