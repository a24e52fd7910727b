"""The published models as data: four families, eighteen configurations, their names."""

from dataclasses import dataclass, replace

from agentsd.vision.functional import Grid


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """How a stage cuts its input into patches: sides of the convolution, and whether a norm follows."""

    kernel: int
    stride: int
    padding: int = 0
    norm: bool = True
    merge: bool = False  # join 2 x 2 tokens by a linear layer in place of a convolution


@dataclass(frozen=True, kw_only=True)
class Family:
    """What all models of a family share.

    Attributes:
        first: The patches of the first stage.
        later: The patches of the later stages.
        softmax: What the softmax blocks are: "plain", "reduced", "window" or "stripe".
        class_token: Whether a class token is read by the head; else the mean of the tokens.
        positions: Whether every stage has a position embedding.
        final_norm: Whether a norm comes before the head.
        eps: Of the norms of the blocks and of the final norm.
        fill: Whether images that patches do not divide are padded.
        dense_agents: (rows, columns) of the agents of each stage in the published detectors and segmenters.
    """

    first: Embedding
    later: Embedding
    softmax: str
    class_token: bool = False
    positions: bool = False
    final_norm: bool = True
    eps: float
    fill: bool = False
    dense_agents: tuple[Grid, ...] = ()


EMBED_EPS = 1e-5  # of the norms after patches, in every family

FAMILIES = {
    "deit": Family(
        first=Embedding(kernel=16, stride=16, norm=False),
        later=Embedding(kernel=2, stride=2),
        softmax="plain",
        class_token=True,
        positions=True,
        eps=1e-6,
    ),
    "pvt": Family(
        first=Embedding(kernel=4, stride=4),
        later=Embedding(kernel=2, stride=2),
        softmax="reduced",
        positions=True,
        final_norm=False,
        eps=1e-6,
        dense_agents=((12, 12), (16, 16), (28, 28), (28, 28)),
    ),
    "swin": Family(
        first=Embedding(kernel=4, stride=4),
        later=Embedding(kernel=2, stride=2, merge=True),
        softmax="window",
        eps=1e-5,
        fill=True,
        dense_agents=((9, 9), (12, 12), (14, 14), (7, 7)),
    ),
    "cswin": Family(
        first=Embedding(kernel=7, stride=4, padding=2),
        later=Embedding(kernel=3, stride=2, padding=1),
        softmax="stripe",
        eps=1e-5,
    ),
}


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """One model.

    Attributes:
        family: One of `FAMILIES`.
        dims: Channels of each stage.
        depths: Blocks of each stage.
        heads: Heads of each stage.
        blocks: A letter a block for each stage: "A" agents, "S" the family's softmax attention.
        agents: Number of agents, or (rows, columns), of each stage.
        mlp_ratios: Channels within the perceptron, as a multiple, of each stage.
        reductions: Key reduction of the softmax blocks of PVT, of each stage.
        splits: Width of the stripes of CSwin, of each stage; `None` is the whole map.
        window: Side of the windows of Swin; `None` derives it from the image size.
        image_size: (height, width) that positions and biases are trained for.
        drop_path: Rate of dropped paths at the last block; it grows linearly from 0.
        bias: Whether agent blocks have biases.
        convolution: Whether agent blocks have the depthwise convolution.

    Raises:
        ValueError: If the family is unknown, the stages do not match, or a block is neither "A" nor "S".

    Example:
        >>> CONFIGS["agent_swin_base"].blocks[2]
        'AASSSSSSSSSSSSSSSS'
    """

    family: str
    dims: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    blocks: tuple[str, ...]
    agents: tuple[int | Grid, ...]
    mlp_ratios: tuple[float, ...] = (4, 4, 4, 4)
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    splits: tuple[int | None, ...] = (1, 2, 7, None)
    window: int | None = None
    image_size: Grid = (224, 224)
    drop_path: float = 0.0
    bias: bool = True
    convolution: bool = True

    def __post_init__(self) -> None:
        """Check the fields against each other."""
        if self.family not in FAMILIES:
            raise ValueError(f"family={self.family!r} is unknown; choose one of {', '.join(FAMILIES)}.")
        for field in ("depths", "heads", "blocks", "agents", "mlp_ratios", "reductions", "splits"):
            number = len(getattr(self, field))
            if number < len(self.dims):
                raise ValueError(
                    f"{field} has {number} entries, but dims has {len(self.dims)}; give one entry a stage."
                )
        for index, (depth, letters) in enumerate(zip(self.depths, self.blocks, strict=False)):
            if len(letters) != depth or set(letters) - {"A", "S"}:
                raise ValueError(
                    f"blocks[{index}]={letters!r} must have {depth} letters, one a block, each A (agents) or "
                    "S (softmax); change blocks or depths."
                )

    @property
    def traits(self) -> Family:
        """What the family shares."""
        return FAMILIES[self.family]

    @property
    def stride(self) -> int:
        """Pixels of the image under one token of the last stage."""
        first, later = self.traits.first.stride, self.traits.later.stride
        return first * int(later ** (len(self.dims) - 1))

    @property
    def window_size(self) -> int:
        """Side of the windows of Swin: 7, or 1/32 of a larger image."""
        return self.window if self.window is not None else max(7, min(self.image_size) // 32)

    @property
    def grids(self) -> tuple[Grid, ...]:
        """(h, w) of each stage at the image size.

        Raises:
            ValueError: If a stage has no token left.

        Example:
            >>> CONFIGS["agent_pvt_tiny"].grids
            ((56, 56), (28, 28), (14, 14), (7, 7))
        """
        grids, size = [], self.image_size
        for index in range(len(self.dims)):
            patch = self.traits.later if index else self.traits.first
            if self.traits.fill:
                size = (-(-size[0] // patch.stride), -(-size[1] // patch.stride))
            else:
                left = 2 * patch.padding - patch.kernel
                size = ((size[0] + left) // patch.stride + 1, (size[1] + left) // patch.stride + 1)
            if min(size) < 1:
                raise ValueError(
                    f"image_size={self.image_size} leaves no token in stage {index}; use at least {self.stride} pixels."
                )
            grids.append(size)
        return tuple(grids)

    def replace(self, **changes: object) -> "VisionConfig":
        """Return a copy with other settings, checked like a new one.

        Example:
            >>> CONFIGS["agent_deit_tiny"].replace(agents=(81,)).agents
            (81,)
        """
        return replace(self, **changes)  # type: ignore[arg-type]


def _deit(dim: int, heads: int, blocks: str, agents: int, drop_path: float, size: int = 224) -> VisionConfig:
    return VisionConfig(
        family="deit",
        dims=(dim,),
        depths=(len(blocks),),
        heads=(heads,),
        blocks=(blocks,),
        agents=(agents,),
        image_size=(size, size),
        drop_path=drop_path,
    )


def _pyramid(
    family: str,
    dim: int | tuple[int, ...],
    depths: tuple[int, ...],
    heads: tuple[int, ...],
    leading: tuple[int, ...],
    drop_path: float,
    size: int = 224,
) -> VisionConfig:
    """`leading`: how many blocks of each stage, from its first, have agents."""
    return VisionConfig(
        family=family,
        dims=tuple(dim * 2**stage for stage in range(4)) if isinstance(dim, int) else dim,
        depths=depths,
        heads=heads,
        blocks=tuple("A" * count + "S" * (depth - count) for depth, count in zip(depths, leading, strict=True)),
        agents=(9, 16, 49, 49),
        mlp_ratios=(8, 8, 4, 4) if family == "pvt" else (4, 4, 4, 4),
        splits=(1, 2, size // 32, None),
        image_size=(size, size),
        drop_path=drop_path,
    )


def _pvt(depths: tuple[int, ...], drop_path: float, size: int = 224) -> VisionConfig:
    return _pyramid("pvt", (64, 128, 320, 512), depths, (1, 2, 5, 8), depths, drop_path, size)


_SMALL_HEADS, _BASE_HEADS = (3, 6, 12, 24), (4, 8, 16, 32)

CONFIGS = {
    "agent_deit_tiny": _deit(192, 3, "A" * 12, 49, 0.0),
    "agent_deit_small": _deit(384, 6, "A" * 12, 49, 0.1),
    "agent_deit_small_448": _deit(384, 6, "A" * 12, 49, 0.1, 448),
    "agent_deit_base": _deit(768, 12, "A" * 4 + "S" * 8, 81, 0.3),
    "agent_pvt_tiny": _pvt((2, 2, 2, 2), 0.1),
    "agent_pvt_small": _pvt((3, 4, 6, 3), 0.1),
    "agent_pvt_medium": _pvt((3, 4, 18, 3), 0.3),
    "agent_pvt_medium_256": _pvt((3, 4, 18, 3), 0.3, 256),
    "agent_pvt_large": _pvt((3, 8, 27, 3), 0.3),
    "agent_swin_tiny": _pyramid("swin", 96, (2, 2, 6, 2), _SMALL_HEADS, (2, 2, 6, 0), 0.2),
    "agent_swin_small": _pyramid("swin", 96, (2, 2, 18, 2), _SMALL_HEADS, (2, 2, 0, 0), 0.3),
    "agent_swin_small_288": _pyramid("swin", 96, (2, 2, 18, 2), _SMALL_HEADS, (2, 2, 0, 0), 0.3, 288),
    "agent_swin_base": _pyramid("swin", 128, (2, 2, 18, 2), _BASE_HEADS, (2, 2, 2, 0), 0.5),
    "agent_swin_base_384": _pyramid("swin", 128, (2, 2, 18, 2), _BASE_HEADS, (2, 2, 2, 0), 0.5, 384),
    "agent_cswin_tiny": _pyramid("cswin", 64, (2, 4, 18, 1), (2, 4, 8, 16), (2, 4, 0, 0), 0.2),
    "agent_cswin_small": _pyramid("cswin", 64, (3, 6, 29, 2), (2, 4, 8, 16), (3, 6, 0, 0), 0.4),
    "agent_cswin_base": _pyramid("cswin", 96, (3, 6, 29, 2), _BASE_HEADS, (3, 6, 0, 0), 0.5),
    "agent_cswin_base_384": _pyramid("cswin", 96, (3, 6, 29, 2), _BASE_HEADS, (3, 6, 0, 0), 0.7, 384),
}

_LETTERS = {"tiny": "t", "small": "s", "medium": "m", "base": "b", "large": "b"}  # published: PVT-L is agent_pvt_b


def published_name(name: str) -> str:
    """Return the name that the authors' configuration has.

    Args:
        name: A key of `CONFIGS`.

    Returns:
        The published name.

    Example:
        >>> published_name("agent_pvt_large"), published_name("agent_swin_small_288")
        ('agent_pvt_b', 'agent_swin_s_288')
    """
    return "_".join(_LETTERS.get(part, part) for part in name.split("_"))


ALIASES = {published_name(name): name for name in CONFIGS} | {"agent_pvt_l": "agent_pvt_large"}


def find_config(name: str) -> tuple[str, VisionConfig]:
    """Look a model up by its name or its published name.

    Args:
        name: A key of `CONFIGS`, or a published name such as "agent_swin_t".

    Returns:
        Its key in `CONFIGS`, and its configuration.

    Raises:
        ValueError: If there is no such model.

    Example:
        >>> find_config("agent_swin_t")[0]
        'agent_swin_tiny'
    """
    name = ALIASES.get(name, name)
    if name not in CONFIGS:
        raise ValueError(f"name={name!r} is unknown; choose one of {', '.join(sorted([*CONFIGS, *ALIASES]))}.")
    return name, CONFIGS[name]
