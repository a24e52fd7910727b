"""One skeleton for all families: stages of blocks, then the class token or the mean of the tokens, then the head."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

from torch import Tensor, nn

from agentsd.vision.attention import AgentAttention
from agentsd.vision.configs import VisionConfig
from agentsd.vision.functional import Grid, to_image
from agentsd.vision.stage import Stage


class AgentTransformer(nn.Module):
    """A vision transformer with trained agent attention: DeiT, PVT, Swin or CSwin, told apart by its configuration.

    Models and their accuracies: tables 1 to 4 of https://arxiv.org/abs/2312.08874. Any input size works; where it is
    not the trained one, positions and biases are interpolated.

    Args:
        config: The model.
        num_classes: Classes of the head; 0 for no head.
        in_chans: Channels of the images.
        dense: Behave as the published detectors and segmenters do: their agent grids, fixed windows, bilinear
            positions, no final norm, no head; call `pyramid`.
        feature_norms: Whether `pyramid` ends in one norm a stage; `None` is what the published detectors of the family
            do (Swin).

    Raises:
        ValueError: If the configuration does not fit.

    Example:
        >>> from agentsd.vision import create_model
        >>> model = create_model("agent_pvt_tiny", num_classes=10, image_size=64).eval()
        >>> model(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 10])
        >>> [tuple(feature.shape[1:]) for feature in model.pyramid(torch.zeros(1, 3, 64, 96))]
        [(64, 16, 24), (128, 8, 12), (320, 4, 6), (512, 2, 3)]
    """

    def __init__(
        self,
        config: VisionConfig,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        dense: bool = False,
        feature_norms: bool | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes} is negative; use 0 for no head.")
        traits = config.traits
        self.config, self.dense = config, dense
        self.num_classes = 0 if dense else num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = config.dims[-1]
        total = sum(config.depths)
        rates = [config.drop_path * block / max(total - 1, 1) for block in range(total)]
        self.stages = nn.ModuleList()
        channels = in_chans
        for index, depth in enumerate(config.depths[: len(config.dims)]):
            self.stages.append(Stage(config, index, channels, rates[:depth], dense=dense))
            rates, channels = rates[depth:], config.dims[index]
        self.norm: nn.Module = nn.Identity()
        if traits.final_norm and not dense:
            self.norm = nn.LayerNorm(channels, eps=traits.eps)
        with_norms = (dense and config.family == "swin") if feature_norms is None else feature_norms
        self.feature_norms = nn.ModuleList(nn.LayerNorm(dim) for dim in config.dims) if with_norms else None
        self.head: nn.Module = nn.Linear(channels, self.num_classes) if self.num_classes else nn.Identity()
        self.feature_info = self._feature_info()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _feature_info(self) -> list[dict[str, Any]]:
        traits, stride = self.config.traits, self.config.traits.first.stride
        if len(self.config.dims) == 1:
            blocks = range(self.config.depths[0])
            return [
                {"num_chs": self.num_features, "reduction": stride, "module": f"stages.0.blocks.{b}"} for b in blocks
            ]
        return [
            {"num_chs": dim, "reduction": stride * traits.later.stride**index, "module": f"stages.{index}"}
            for index, dim in enumerate(self.config.dims)
        ]

    def set_agents(self, agents: Sequence[int | Grid]) -> None:
        """Use other numbers of agents from now on, without retraining: the biases are interpolated.

        Args:
            agents: For each stage the number of agents, or (rows, columns).

        Raises:
            ValueError: If there is not one entry a stage.

        Example:
            >>> from agentsd.vision import create_model
            >>> create_model("agent_pvt_tiny", image_size=64).set_agents([16, 25, 64, 49])
        """
        if len(agents) != len(self.stages):
            raise ValueError(f"agents has {len(agents)} entries for {len(self.stages)} stages; give one a stage.")
        for stage, number in zip(self.stages, agents, strict=True):
            for layer in stage.modules():
                if isinstance(layer, AgentAttention):
                    layer.agents = number

    def _stages(self) -> list[Stage]:
        return cast(list[Stage], list(self.stages))

    def _stage_features(self, image: Tensor) -> Iterator[tuple[Tensor, Grid]]:
        """Yield the tokens of every stage, with their grid."""
        for stage in self._stages():
            tokens, grid = stage(image)
            yield tokens, grid
            image = self._image(tokens, grid)

    def _image(self, tokens: Tensor, grid: Grid) -> Tensor:
        return to_image(tokens[:, 1:] if self.config.traits.class_token else tokens, grid)

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """Return the map of every stage, [B, C, h, w], with its norm if there is one; for dense tasks.

        Args:
            image: [B, 3, H, W], any size of at least one patch a stage.

        Returns:
            One map a stage.
        """
        maps = []
        for index, (tokens, grid) in enumerate(self._stage_features(image)):
            normed = tokens if self.feature_norms is None else self.feature_norms[index](tokens)
            maps.append(self._image(normed, grid).contiguous())
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the tokens of the last stage after the final norm, [B, N, C]."""
        for tokens, _ in self._stage_features(x):
            x = tokens
        features: Tensor = self.norm(x)
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of tokens, [B, N, C], or what the head reads, [B, C]."""
        pooled = x[:, 0] if self.config.traits.class_token else x.mean(dim=1)
        return pooled if pre_logits else self.head(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images, [B, 3, H, W]; return logits, [B, classes]."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return maps from within, as timm's models do: of the stages, or of the blocks where there is one stage.

        Args:
            x: Images, [B, 3, H, W].
            indices: Which maps: a list, the number of last ones, or `None` for all.
            norm: Whether the final norm is applied to the maps of the last stage.
            stop_early: Whether to stop after the last map.
            output_fmt: Only "NCHW".
            intermediates_only: Whether to return the maps alone.

        Returns:
            The maps, [B, C, h, w], or the final features and the maps.

        Raises:
            ValueError: If the format or an index is out of range.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r} is not supported; use NCHW, as every model here gives.")
        wanted, by_block = self._take(indices), len(self.stages) == 1
        last = len(self.stages) - 1 if by_block or not stop_early else max(wanted)
        maps, tokens = [], x
        for index, stage in enumerate(self._stages()[: last + 1]):
            tokens, grid = stage.tokens(x)
            for block, after in enumerate(stage.run(tokens, grid)):
                tokens = after
                if by_block and block in wanted:
                    maps.append(self._image(self.norm(tokens) if norm else tokens, grid).contiguous())
                if by_block and stop_early and block == max(wanted):
                    break
            x = self._image(tokens, grid)
            if not by_block and index in wanted:
                maps.append(self._feature(tokens, grid, index, norm))
        return maps if intermediates_only else (self.norm(tokens), maps)

    def _feature(self, tokens: Tensor, grid: Grid, index: int, norm: bool) -> Tensor:
        if self.feature_norms is not None:
            tokens = self.feature_norms[index](tokens)
        elif norm and index == len(self.config.dims) - 1:
            tokens = self.norm(tokens)
        return self._image(tokens, grid).contiguous()

    def _take(self, indices: int | Sequence[int] | None) -> list[int]:
        number = len(self._stages()[0].blocks) if len(self.stages) == 1 else len(self.stages)
        if indices is None:
            return list(range(number))
        chosen = list(range(number - indices, number)) if isinstance(indices, int) else list(indices)
        positive = [index + number if index < 0 else index for index in chosen]
        if not positive or min(positive) < 0 or max(positive) >= number:
            raise ValueError(
                f"indices={indices!r} is not among the {number} maps of this model; use 0 to {number - 1}."
            )
        return sorted(positive)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what maps do not need: later stages or blocks, and if wanted the norm and the head.

        Returns:
            The indices of the maps, all positive.
        """
        wanted = self._take(indices)
        if len(self.stages) == 1:
            first = self._stages()[0]
            first.blocks = first.blocks[: max(wanted) + 1]
        else:
            self.stages = self.stages[: max(wanted) + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return wanted

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new head on, with random weights; 0 classes for none. The pooling of a family is fixed."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass in place of keeping what is in them."""
        for stage in self._stages():
            stage.checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that are trained without weight decay: tokens, positions, attention biases."""
        ends = ("class_token", "position", "_bias", "bias_table")
        return {name for name, _ in self.named_parameters() if name.endswith(ends)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group the parameters by depth, for learning rates that fall from layer to layer."""
        stem = r"^stages\.0\.(?:embed|position|class_token)"
        fine = [
            (r"^stages\.(\d+)\.(?:embed|position)", None),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^(?:norm|feature_norms)", (99999,)),
        ]
        return {"stem": stem, "blocks": r"^stages\.(\d+)" if coarse else fine}
