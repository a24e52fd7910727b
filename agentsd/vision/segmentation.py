"""Semantic segmentation on these backbones, with the UperNet of transformers."""

from typing import Any

from torch import nn

from agentsd.system.installing import install_command
from agentsd.vision.configs import find_config
from agentsd.vision.registry import dense_name, register


def upernet(name: str, *, num_labels: int, dense: bool = True, **options: Any) -> nn.Module:
    """Build an UperNet of transformers on a backbone of this package, with random weights.

    Xiao et al., https://arxiv.org/abs/1807.10221. The backbone is built through timm under its registered name, so
    the model is saved and loaded like any of transformers'; import `agentsd.vision` before `from_pretrained`. Fill the
    backbone with `load_weights(model.backbone._backbone.model, file)`.

    Args:
        name: A model with four stages.
        num_labels: Number of labels.
        dense: Behave as the published segmenters do (agent grids, windows, norms of the maps); CSwin has none.
        options: Fields of transformers' `UperNetConfig`.

    Returns:
        A `UperNetForSemanticSegmentation`; its logits have the size of the image.

    Raises:
        ValueError: If the model is no pyramid.
        RuntimeError: If timm is not there.

    Example:
        >>> upernet("agent_deit_tiny", num_labels=3)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: name='agent_deit_tiny' has one resolution, and UperNet needs four; ...
    """
    name, config = find_config(name)
    if len(config.dims) != 4:
        raise ValueError(
            f"name={name!r} has one resolution, and UperNet needs four; choose a model of PVT, Swin or CSwin."
        )
    if not register():
        raise RuntimeError(f"timm is needed and cannot be imported; run {install_command('vision')}.")
    from transformers import TimmBackboneConfig, UperNetConfig, UperNetForSemanticSegmentation

    backbone = dense_name(name) if dense and config.traits.dense_agents else name
    settings = {
        "backbone_config": TimmBackboneConfig(backbone=backbone, out_indices=[0, 1, 2, 3]),
        "use_pretrained_backbone": False,  # before transformers 5 the default asks the network
        "auxiliary_in_channels": config.dims[2],
        "num_labels": num_labels,
    }
    model: nn.Module = UperNetForSemanticSegmentation(UperNetConfig(**(settings | options)))
    return model
