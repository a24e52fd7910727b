"""Reading the authors' checkpoints without running code in them, and converting them to safetensors."""

from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from agentsd.vision.published import LoadReport, check_keys, from_published, published_keys, resize_weights

# The authors' files hold a configuration of yacs, a dict; nothing of yacs runs when it is read as one.
SAFE_CLASSES = [(OrderedDict, "yacs.config.CfgNode")]
_EMA, _PLAIN = ("state_dict_ema",), ("model", "state_dict")


def safe_globals() -> Any:
    """Return a context in which `torch.load(..., weights_only=True)` reads the authors' checkpoints.

    One class is let through, `yacs.config.CfgNode`, and read as a plain dict. Before torch 2.6 none can be, and files
    that hold it are refused.

    Returns:
        A context manager.

    Example:
        >>> with safe_globals():
        ...     pass
    """
    if Version(torch.__version__).release < (2, 6):
        return nullcontext()
    return torch.serialization.safe_globals(SAFE_CLASSES)  # type: ignore[arg-type]


def read_checkpoint(path: str | Path, *, ema: bool = True) -> dict[str, Tensor]:
    """Read weights from a `.pth` file of the authors, a plain state dict, or a `.safetensors` file.

    Args:
        path: The file.
        ema: Whether averaged weights are taken where the file has them (CSwin).

    Returns:
        Weights under the names of the file.

    Raises:
        ValueError: If the file holds more than data, or no weights.
        FileNotFoundError: If there is no such file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"model": {"head.bias": torch.zeros(2)}, "epoch": 3}, f"{folder}/a.pth")
        ...     list(read_checkpoint(f"{folder}/a.pth"))
        ['head.bias']
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path={str(path)!r} is not a file; give a .pth or .safetensors file.")
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        with safe_globals():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"path={str(path)!r} cannot be read as weights alone ({str(error).splitlines()[0]}); it must hold tensors, "
            "plain data and at most a yacs configuration. Convert it where you trust it."
        ) from error
    for key in (*(_EMA if ema else ()), *_PLAIN, *_EMA):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(one, Tensor) for one in content.values()):
        raise ValueError(
            f"path={str(path)!r} holds no weights: there is no state dict in it, bare or under "
            f"{', '.join((*_EMA, *_PLAIN))}; give a checkpoint of the authors or a converted file."
        )
    return {key.removeprefix("module."): value for key, value in content.items()}


def is_published(model: nn.Module, weights: dict[str, Tensor]) -> bool:
    """Tell the authors' names from ours, by which of them a dict has more.

    Args:
        model: What the weights are for.
        weights: Weights under either names.

    Returns:
        Whether they are the authors' names.
    """
    keys = published_keys(model)
    theirs = {key for parts in keys.values() for key in parts}
    return len(theirs & weights.keys()) > len(keys.keys() & weights.keys())


def adapt_weights(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under our names and of the model's shapes, whichever names they come with.

    Args:
        model: What the weights are for.
        weights: Weights under our names or the authors'.

    Returns:
        Weights under our names, all that the model needs and no more.

    Raises:
        ValueError: If they are of another model; the first missing and unexpected keys are named.
    """
    if is_published(model, weights):
        return from_published(model, weights)[0]
    check_keys(model, {name: (name,) for name in model.state_dict()}, weights)
    return {name: value for name, value in resize_weights(model, weights)[0].items() if name in model.state_dict()}


def load_weights(model: nn.Module, path: str | Path, *, ema: bool = True) -> None:
    """Load a file into a model: a checkpoint of the authors, or one that `convert` or this package wrote.

    Args:
        model: What `create_model` returns.
        path: The file.
        ema: Whether averaged weights are taken where the file has them.

    Raises:
        ValueError: If the file does not fit the model.
    """
    model.load_state_dict(adapt_weights(model, read_checkpoint(path, ema=ema)), strict=False)  # checked above


def convert(source: str | Path, target: str | Path, model: nn.Module, *, name: str, ema: bool = True) -> LoadReport:
    """Convert a checkpoint of the authors to safetensors under our names, checked against the model it is for.

    Args:
        source: The authors' file.
        target: The `.safetensors` file to write.
        model: The model, as `create_model` builds it.
        name: Its name, kept in the file.
        ema: Whether averaged weights are taken where the file has them.

    Returns:
        What was done besides renaming.

    Raises:
        ValueError: If the file does not fit the model or `target` is no `.safetensors` file.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise ValueError(f"target={str(target)!r} does not end in .safetensors; name it so.")
    weights, report = from_published(model, read_checkpoint(source, ema=ema))
    whole = {key: value.contiguous().clone() for key, value in weights.items()}
    save_file(whole, target, metadata={"format": "pt", "model": name, "source": Path(source).name})
    return report
