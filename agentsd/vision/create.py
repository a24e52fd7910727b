"""Building a model by its name."""

from collections.abc import Sequence

from agentsd.vision.configs import find_config
from agentsd.vision.functional import Grid
from agentsd.vision.model import AgentTransformer


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    image_size: int | Grid | None = None,
    agents: Sequence[int | Grid] | None = None,
    blocks: Sequence[str] | None = None,
    window: int | None = None,
    drop_path: float | None = None,
    dense: bool = False,
    feature_norms: bool | None = None,
    bias: bool = True,
    convolution: bool = True,
) -> AgentTransformer:
    """Build a published model, or a variant of it, with random weights.

    Args:
        name: "agent_swin_tiny", or the published "agent_swin_t"; all names are in `CONFIGS` and `ALIASES`.
        num_classes: Classes of the head; 0 for no head.
        in_chans: Channels of the images.
        image_size: Side, or (height, width), that positions and biases are laid out for; `None` is the published one.
        agents: Number of agents, or (rows, columns), of each stage; `None` is as published.
        blocks: For each stage a letter a block, "A" agents or "S" softmax; `None` is as published.
        window: Side of the windows of Swin or the stripes of CSwin's third stage; `None` derives it from the size.
        drop_path: Rate of dropped paths at the last block; `None` is as published.
        dense: Behave as the published detectors and segmenters do; see `AgentTransformer`.
        feature_norms: One norm a stage at the end of `pyramid`; `None` is as published.
        bias: Whether agent blocks have biases.
        convolution: Whether agent blocks have the depthwise convolution.

    Returns:
        The model, in training mode.

    Raises:
        ValueError: If the name is unknown or a setting does not fit.

    Example:
        >>> model = create_model("agent_deit_t")
        >>> sum(parameter.numel() for parameter in model.parameters())
        6015640
    """
    _, config = find_config(name)
    if image_size is not None:
        size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
        config = config.replace(image_size=size)
        if config.family == "cswin":
            config = config.replace(splits=(1, 2, max(7, min(size) // 32), None))
    if agents is not None:
        config = config.replace(agents=tuple(agents))
    if blocks is not None:
        config = config.replace(blocks=tuple(blocks))
    if window is not None:
        if window < 1:
            raise ValueError(f"window={window} is not positive; use 7, as published at 224 pixels.")
        config = config.replace(window=window, splits=(*config.splits[:2], window, None))
    if drop_path is not None:
        config = config.replace(drop_path=drop_path)
    if not (bias and convolution):
        config = config.replace(bias=bias, convolution=convolution)
    return AgentTransformer(
        config, num_classes=num_classes, in_chans=in_chans, dense=dense, feature_norms=feature_norms
    )
