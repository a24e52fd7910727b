"""Registering the models with timm, where timm is installed."""

import importlib.util
import sys
import warnings
from typing import Any

from torch import Tensor, nn

from agentsd.vision.configs import ALIASES, CONFIGS
from agentsd.vision.create import create_model
from agentsd.vision.files import adapt_weights, safe_globals
from agentsd.vision.model import AgentTransformer
from agentsd.vision.preprocess import MEAN, STD, crop_fraction

FIRST_CONV = "stages.0.embed.proj"
ORIGIN = "https://github.com/LeapLabTHU/Agent-Attention"

default_cfgs: dict[str, Any] = {}  # where timm looks for what it knows of a model


def pretrained_cfg(name: str) -> dict[str, Any]:
    """Return what timm knows of a model: sizes, the evaluation transform, where its weights come from.

    There is no address of weights: nothing is redistributed. Pass `pretrained_cfg_overlay=dict(file=...)` with a file
    of the authors or a converted one.

    Args:
        name: A key of `CONFIGS`.

    Returns:
        Fields of timm's `PretrainedCfg`.

    Example:
        >>> pretrained_cfg("agent_swin_base_384")["crop_pct"]
        1.0
    """
    height, width = CONFIGS[name].image_size
    return {
        "input_size": (3, height, width),
        "interpolation": "bicubic",
        "crop_pct": crop_fraction(name),
        "crop_mode": "squash",
        "mean": MEAN,
        "std": STD,
        "num_classes": 1000,
        "first_conv": FIRST_CONV,
        "classifier": "head",
        "paper_ids": "arXiv:2312.08874",
        "origin_url": ORIGIN,
    }


def dense_name(name: str) -> str:
    """Return the name under which a backbone of the published detectors and segmenters is registered.

    Args:
        name: A key of `CONFIGS`, of a family that has them.

    Returns:
        The name.

    Example:
        >>> dense_name("agent_swin_tiny")
        'agent_swin_tiny_dense'
    """
    return f"{name}_dense"


def filter_weights(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename and resize weights that timm has read from a file, under the authors' names or ours.

    Args:
        state_dict: What timm read.
        model: What it is for.

    Returns:
        Weights for `load_state_dict`.

    Raises:
        ValueError: If they are of another model.
    """
    own = model.get_parameter(f"{FIRST_CONV}.weight")
    channels = own.shape[1]
    if channels == 3:
        return adapt_weights(model, state_dict)
    # timm itself adapts the first convolution to other channels: hand that one through unchanged.
    first = {key: value for key, value in state_dict.items() if value.ndim == 4 and value.shape[1] == 3}
    stand_ins = {key: own.detach() for key, value in first.items() if value.shape[2:] == own.shape[2:]}
    weights = adapt_weights(model, {**state_dict, **stand_ins})
    for key in stand_ins:
        weights[f"{FIRST_CONV}.weight"] = first[key]
    return weights


def _build(name: str, **options: Any) -> AgentTransformer:
    """Build a model from timm's words for its settings."""
    for theirs, ours in (("img_size", "image_size"), ("drop_path_rate", "drop_path")):
        if theirs in options:
            options[ours] = options.pop(theirs)
    return create_model(name, **options)


def _entry(alias: str, name: str, **fixed: bool) -> Any:
    def entry(pretrained: bool = False, **options: Any) -> nn.Module:
        from timm.models import build_model_with_cfg

        depth = len(CONFIGS[name].dims)
        with safe_globals():
            model: nn.Module = build_model_with_cfg(
                lambda **settings: _build(name, **settings, **fixed),
                alias,
                pretrained,
                pretrained_filter_fn=filter_weights,
                feature_cfg={"out_indices": tuple(range(depth)) if depth > 1 else 3, "feature_cls": "getter"},
                **options,
            )
        return model

    entry.__name__ = entry.__qualname__ = alias
    entry.__doc__ = f"Build {name}."
    return entry


def register() -> bool:
    """Register all models with timm, under both names, and dense backbones; does nothing the second time.

    Returns:
        Whether timm is there. Where it is installed and cannot be imported, a warning says why.
    """
    if default_cfgs:
        return True
    if importlib.util.find_spec("timm") is None:
        return False
    try:
        from timm.models import generate_default_cfgs, register_model
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        warnings.warn(
            f"timm is installed but cannot be imported ({type(error).__name__}: {first}), so its create_model does "
            "not know agentsd's models; agentsd.vision.create_model does. Install a torchvision that fits torch.",
            stacklevel=2,
        )
        return False
    dense = {dense_name(name): name for name, config in CONFIGS.items() if config.traits.dense_agents}
    names = {name: name for name in CONFIGS} | ALIASES | dense
    default_cfgs.update(generate_default_cfgs({alias: pretrained_cfg(name) for alias, name in names.items()}))
    module = sys.modules[__name__]
    for alias, name in names.items():
        setattr(module, alias, register_model(_entry(alias, name, **({"dense": True} if alias in dense else {}))))
    return True
