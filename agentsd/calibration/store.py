"""Recorded runs kept on disk, so that an interrupted calibration goes on where it was."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from agentsd.calibration.recording import Outcome, Recording
from agentsd.calibration.result import key_of
from agentsd.system.timing import environment
from agentsd.system.warning import warn_user
from agentsd.system.writing import write_whole
from agentsd.unet.conditions import conditions_of, find_knobs
from agentsd.unet.controller import RULES
from agentsd.unet.denoisers import Layout

_LOOKED_AT = 16  # values of each weight that tell models apart
_FREE_U = ("s1", "s2", "b1", "b2")  # its factors, attributes of up blocks

Kept = TypeVar("Kept", Recording, Outcome)


class Runs:
    """Runs of one pipeline under one set of call arguments, in a folder; each is made once.

    Args:
        folder: Where they lie; `None` keeps them in memory alone.

    Example:
        >>> Runs(None).folder is None
        True
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._held: dict[str, Any] = {}

    def get(self, kind: type[Kept], name: str, make: Callable[[], Kept]) -> Kept:
        """Return the run of that name, made only if it is not there.

        Args:
            kind: What is kept of it.
            name: Everything that makes the run, as text.
            make: Makes it.
        """
        key = hashlib.sha256(f"{kind.__name__} {name}".encode()).hexdigest()[:32]
        if key not in self._held:
            found = self._read(kind, key)
            self._held[key] = self._write(key, make()) if found is None else found
        kept: Kept = self._held[key]
        return kept

    def _read(self, kind: type[Kept], key: str) -> Kept | None:
        from safetensors.torch import load

        if self.folder is None:
            return None
        path = self.folder / f"{key}.safetensors"
        try:
            return kind(**load(path.read_bytes()))
        except FileNotFoundError:
            return None
        except Exception as error:  # a damaged file has many kinds of errors, and the run can be made again
            warn_user(f"agentsd makes a run anew: {path} cannot be read ({error}).")
            return None

    def _write(self, key: str, run: Kept) -> Kept:
        from safetensors.torch import save

        if self.folder is not None:
            tensors = {name: tensor.contiguous() for name, tensor in vars(run).items()}
            try:
                write_whole(self.folder / f"{key}.safetensors", save(tensors))
            except OSError as error:
                warn_user(
                    f"agentsd has not kept a run: {error}. Set AGENTSD_CACHE to a folder that can be written, or "
                    "cache=False."
                )
        return run


def folder_of(pipe: Any, call: dict[str, Any]) -> Path:
    """Return the folder of a pipeline's runs: it changes with model, scheduler, arguments, device and versions.

    The folder is below `AGENTSD_CACHE` if that is set, else below the user's cache folder.

    Args:
        pipe: The pipeline.
        call: Arguments of its calls.

    Example:
        >>> folder_of(pipe, {"num_inference_steps": 20}).parent.name
        'calibrations'
    """
    from platformdirs import user_cache_dir

    from agentsd import __version__

    root = Path(os.environ.get("AGENTSD_CACHE") or user_cache_dir("agentsd", appauthor=False))
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    device = getattr(pipe, "device", "cpu")
    key = {
        "agentsd": [__version__, RULES],
        "environment": environment(torch.device(device)),
        "pipeline": type(pipe).__name__,
        **key_of(pipe),
        "weights": {name: _fingerprint(part) for name, part in parts.items()},
        "call": call,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=_content).encode()).hexdigest()
    return root / "calibrations" / digest[:32]


def _content(value: Any) -> str:
    """Return a digest of a tensor, array or picture, whose text is shortened or an address; the text of all else."""
    what = [str(getattr(value, name, None)) for name in ("dtype", "shape", "mode", "size")]
    if isinstance(value, Tensor):
        value, what = value.detach().cpu().reshape(-1).view(torch.uint8).numpy(), what[:2]
    if not hasattr(value, "tobytes"):
        return str(value)
    return f"{what} {hashlib.sha256(value.tobytes()).hexdigest()}"


@torch.inference_mode()
def _fingerprint(part: nn.Module) -> str:
    """Return a digest of names, shapes and the first values of all weights; adapters, their scales and FreeU too."""
    found = hashlib.sha256(type(part).__name__.encode())
    for name, weight in part.named_parameters():
        found.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        if not weight.is_meta:  # offloaded weights are elsewhere
            found.update(str(weight.detach().flatten()[:_LOOKED_AT].float().tolist()).encode())
    free = [getattr(module, name, None) for module in part.modules() for name in _FREE_U]
    settings = [conditions_of({}, Layout(), find_knobs(part)), [one for one in free if one is not None]]
    found.update(repr(settings).encode())
    return found.hexdigest()
