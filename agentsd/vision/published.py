"""Weights under the authors' names: renaming, resizing to another grid, loading."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agentsd.vision.attention import AgentAttention
from agentsd.vision.functional import Grid, agent_grid
from agentsd.vision.model import AgentTransformer
from agentsd.vision.resize import resize_agents, resize_line, resize_positions, resize_table

# Buffers of the published Swin that follow from the sizes.
DERIVED = ("relative_position_index", "attn_mask")

# For each kind of bias: its agent axis, and its grid axis if it has one.
_BIAS_AXES: dict[str, tuple[int, int | None]] = {
    "an_bias": (1, None),
    "na_bias": (1, None),
    "ah_bias": (2, 3),
    "aw_bias": (2, 4),
    "ha_bias": (4, 2),
    "wa_bias": (4, 3),
    "ac_bias": (2, None),
    "ca_bias": (3, None),
}

# Our name -> the authors' name; the first rule that fits a whole name is taken. {n} is the number of the stage from 1.
_RULES: dict[str, tuple[tuple[str, str], ...]] = {
    "deit": (
        (r"stages\.0\.class_token", "cls_token"),
        (r"stages\.0\.position", "pos_embed"),
        (r"stages\.0\.embed\.(.*)", r"patch_embed.\1"),
        (r"stages\.0\.blocks\.(.*)", r"blocks.\1"),
    ),
    "pvt": (
        (r"stages\.(\d)\.position", "pos_embed{n}"),
        (r"stages\.(\d)\.embed\.(.*)", r"patch_embed{n}.\2"),
        (r"stages\.(\d)\.blocks\.(.*)", r"block{n}.\2"),
    ),
    "swin": (
        (r"stages\.0\.embed\.(.*)", r"patch_embed.\1"),
        (r"stages\.(\d)\.embed\.(.*)", r"layers.{before}.downsample.\2"),
        (r"stages\.(\d)\.blocks\.(.*)", r"layers.\1.blocks.\2"),
        (r"feature_norms\.(\d)\.(.*)", r"norm\1.\2"),
    ),
    "cswin": (
        (r"stages\.0\.embed\.proj\.(.*)", r"stage1_conv_embed.0.\1"),
        (r"stages\.0\.embed\.norm\.(.*)", r"stage1_conv_embed.2.\1"),
        (r"stages\.(\d)\.embed\.proj\.(.*)", r"merge\1.conv.\2"),
        (r"stages\.(\d)\.embed\.norm\.(.*)", r"merge\1.norm.\2"),
        (r"stages\.(\d)\.blocks\.(\d+)\.attn\.((?:qkv|proj)\..*)", r"stage{n}.\2.\3"),
        (r"stages\.(\d)\.blocks\.(\d+)\.attn\.dwc\.(\d\..*)", r"stage{n}.\2.attns.\3"),
        (r"stages\.(\d)\.blocks\.(\d+)\.attn\.(.*)", r"stage{n}.\2.attns.0.\3"),
        (r"stages\.(\d)\.blocks\.(.*)", r"stage{n}.\2"),
    ),
}


@dataclass(frozen=True)
class LoadReport:
    """What loading did besides copying.

    Attributes:
        resized: Our names of the weights that were interpolated.
        left_out: Names in the file that the model has no place for: derived buffers, and the head of a dense model.
        fresh: Our names that the file cannot have: the norms of a dense model, a head for other classes (set to zero).
    """

    resized: tuple[str, ...]
    left_out: tuple[str, ...]
    fresh: tuple[str, ...]


def published_keys(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Map the name of every parameter to its published name; PVT keeps queries apart, as (q, kv).

    Args:
        model: A model, a block or an attention of this package.

    Returns:
        Our names to the authors'.

    Example:
        >>> from agentsd.vision import create_model
        >>> published_keys(create_model("agent_pvt_tiny"))["stages.1.blocks.0.attn.qkv.bias"]
        ('block2.0.attn.q.bias', 'block2.0.attn.kv.bias')
    """
    family = model.config.family if isinstance(model, AgentTransformer) else ""
    keys: dict[str, tuple[str, ...]] = {}
    for name in model.state_dict():
        key = _rename(name, family)
        if family == "cswin":
            key = re.sub(r"attns\.(\d)\.(?:dwc\.)?(weight|bias)$", r"attns.\1.get_v.\2", key)
        parts = (key.replace("qkv.", "q."), key.replace("qkv.", "kv."))
        keys[name] = parts if family == "pvt" and "qkv." in key else (key,)
    return keys


def _rename(name: str, family: str) -> str:
    for pattern, replacement in _RULES.get(family, ()):
        match = re.fullmatch(pattern, name)
        if match:
            stage = int(match[1]) if match.lastindex and match[1].isdigit() else 0
            return match.expand(replacement.replace("{n}", str(stage + 1)).replace("{before}", str(stage - 1)))
    return name


def from_published(model: nn.Module, state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], LoadReport]:
    """Rename the authors' weights and resize them to a model, without loading them.

    Row and column biases are resized linearly, positions and tables bicubically, the agent axis bilinearly as an image.

    Args:
        model: A model, a block or an attention of this package.
        state_dict: Weights under the published names.

    Returns:
        Weights under our names, and what was done.

    Raises:
        ValueError: If a weight is missing, unexpected, or of a shape that cannot be resized.
    """
    keys = published_keys(model)
    if not isinstance(model, AgentTransformer):
        keys = {name: _as_in(state_dict, key) for name, (key, *_) in keys.items()}
    dropped = check_keys(model, keys, state_dict)
    found = {
        name: torch.cat([state_dict[key] for key in parts]) if len(parts) > 1 else state_dict[parts[0]]
        for name, parts in keys.items()
        if all(key in state_dict for key in parts)
    }
    weights, resized, zeroed = resize_weights(model, found)
    fresh = [name for name in keys if name not in found]
    return weights, LoadReport(tuple(resized), tuple(dropped), (*fresh, *zeroed))


def _as_in(state_dict: Mapping[str, Tensor], key: str) -> tuple[str, ...]:
    """Choose the published spelling of a single module's key that a dict has."""
    if key in state_dict:
        return (key,)
    parts = (key.replace("qkv.", "q."), key.replace("qkv.", "kv."))
    if "qkv." in key and all(part in state_dict for part in parts):
        return parts
    other = key.replace("dwc.", "get_v.")
    return (other,) if other in state_dict else (key,)


def check_keys(model: nn.Module, keys: Mapping[str, tuple[str, ...]], state_dict: Mapping[str, Tensor]) -> list[str]:
    """Refuse weights of another model by their names.

    Args:
        model: What the weights are for.
        keys: For each of its parameters, the names it has in the file.
        state_dict: The weights.

    Returns:
        Names in the file that the model has no place for and does not miss.

    Raises:
        ValueError: If a name is missing or unexpected; the first ones are named.
    """
    needed = [parts for name, parts in keys.items() if not name.startswith("feature_norms.")]
    missing = [key for parts in needed for key in parts if key not in state_dict]
    used = {key for parts in keys.values() for key in parts}
    extra = [key for key in state_dict if key not in used]
    dropped = [key for key in extra if _droppable(model, key)]
    _refuse(missing, [key for key in extra if key not in dropped])
    return dropped


def _droppable(model: nn.Module, key: str) -> bool:
    if key.endswith(DERIVED):
        return True
    headless = isinstance(model, AgentTransformer) and model.num_classes == 0
    dense = isinstance(model, AgentTransformer) and model.dense
    return (headless and key.startswith("head.")) or (dense and key in ("norm.weight", "norm.bias"))


def _refuse(missing: list[str], unexpected: list[str]) -> None:
    if missing or unexpected:
        said = [
            f"{len(keys)} {kind}, first {keys[0]!r}"
            for kind, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        raise ValueError(
            f"state_dict does not fit the model: keys {' and '.join(said)}; "
            "build the model whose published name the file has, or pass the file of this model."
        )


def resize_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Resize weights under our names to a model: to another image size, window or agent grid.

    Args:
        model: Whose shapes are wanted.
        weights: Weights under our names.

    Returns:
        The weights, the names of those that were interpolated, the names of those set to zero (a head for other
        classes).

    Raises:
        ValueError: If a shape differs that cannot be resized.
    """
    own = model.state_dict()
    result, resized, zeroed = {}, [], []
    for name, value in weights.items():
        if name not in own or own[name].shape == value.shape:
            result[name] = value
        elif name.startswith("head.") and own[name].shape[1:] == value.shape[1:]:
            result[name] = torch.zeros_like(own[name])
            zeroed.append(name)
        else:
            result[name] = _resized(model, name, value, own[name])
            resized.append(name)
    return result, resized, zeroed


def _resized(model: nn.Module, name: str, value: Tensor, target: Tensor) -> Tensor:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if leaf in _BIAS_AXES and isinstance(owner, AgentAttention) and value.ndim == target.ndim:
        agents, line = _BIAS_AXES[leaf]
        value = resize_agents(value, agents, agent_grid(value.shape[agents]), owner.trained_agents)
        if line is not None:
            value = resize_line(value, line, target.shape[line])
    elif leaf == "position" and value.shape[-1] == target.shape[-1]:
        grid: Grid = owner.grid  # type: ignore[assignment]
        lead = target.shape[1] - grid[0] * grid[1]
        side = round((value.shape[1] - lead) ** 0.5)
        value = resize_positions(value, (side, side), grid)
    elif leaf == "relative_position_bias_table" and value.shape[1] == target.shape[1]:
        value = resize_table(value, (round(target.shape[0] ** 0.5) + 1) // 2)
    if value.shape != target.shape:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)} in the file and {tuple(target.shape)} in the model, which no "
            "resizing joins; build the model whose published name the file has."
        )
    return value


def load_published(model: nn.Module, state_dict: Mapping[str, Tensor]) -> LoadReport:
    """Load weights that have the authors' names, at any image size, window and agent grid.

    Args:
        model: What `create_model` returns; or a single block or attention.
        state_dict: The authors' weights; `read_checkpoint` gives them from a file.

    Returns:
        What was resized, left out or not in the file.

    Raises:
        ValueError: If the weights are not of this model; the first missing and unexpected keys are named.

    Example:
        >>> from agentsd.vision import create_model
        >>> model, other = create_model("agent_deit_t"), create_model("agent_deit_t", image_size=384)
        >>> report = load_published(other, to_published(model))
        >>> report.resized[0]
        'stages.0.position'
    """
    weights, report = from_published(model, state_dict)
    model.load_state_dict(weights, strict=False)  # what is missing has been checked, and may be
    return report


def to_published(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a model under the authors' names; `load_published` undoes it.

    Args:
        model: What `create_model` returns.

    Returns:
        Weights under the published names, without the buffers that follow from the sizes.

    Example:
        >>> from agentsd.vision import create_model
        >>> sorted(to_published(create_model("agent_pvt_t")))[0]
        'block1.0.attn.ah_bias'
    """
    weights = model.state_dict()
    result: dict[str, Tensor] = {}
    for name, parts in published_keys(model).items():
        rows = weights[name].shape[0] // 3
        pieces = weights[name].split([rows, 2 * rows]) if len(parts) > 1 else (weights[name],)
        result.update(zip(parts, pieces, strict=True))
    return result
