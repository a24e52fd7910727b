"""Detection and instance segmentation on these backbones, with the heads of torchvision."""

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from agentsd.vision.configs import find_config
from agentsd.vision.create import create_model
from agentsd.vision.model import AgentTransformer


class FeaturePyramid(nn.Module):
    """A backbone followed by a feature pyramid network, as torchvision's detectors take it.

    Lin et al., https://arxiv.org/abs/1612.03144.

    Args:
        backbone: The model.
        maps: Which of its maps are used.
        fpn: torchvision's `FeaturePyramidNetwork` over them.
        out_channels: Channels of every map that comes out.
    """

    def __init__(self, backbone: AgentTransformer, maps: tuple[int, ...], fpn: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.backbone, self.maps, self.fpn, self.out_channels = backbone, maps, fpn, out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps of images, [B, 3, H, W], from fine to coarse."""
        features = self.backbone.pyramid(images)
        out: dict[str, Tensor] = self.fpn(OrderedDict((str(index), features[index]) for index in self.maps))
        return out


def _backbone(name: str, maps: tuple[int, ...], extra: Any, **options: Any) -> FeaturePyramid:
    from torchvision.ops import FeaturePyramidNetwork

    config = find_config(name)[1]
    if len(config.dims) != 4:
        raise ValueError(f"name={name!r} has one resolution; choose a model of PVT, Swin or CSwin for detection.")
    model = create_model(name, **({"dense": True} | options))
    channels = 256
    network = FeaturePyramidNetwork([config.dims[index] for index in maps], channels, extra_blocks=extra(channels))
    return FeaturePyramid(model, maps, network, channels)


def retinanet(name: str, *, num_classes: int, backbone: dict[str, Any] | None = None, **options: Any) -> nn.Module:
    """Build torchvision's RetinaNet on a backbone of this package, with random weights.

    Lin et al., https://arxiv.org/abs/1708.02002; maps of stride 8, 16, 32 and two more.

    Args:
        name: A model with four stages.
        num_classes: Classes, the background included.
        backbone: Settings of `create_model`; `dense=True` is the default.
        options: Settings of torchvision's `RetinaNet`.

    Returns:
        The detector; it takes a list of images and a list of targets.

    Raises:
        ValueError: If the model is no pyramid.
    """
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    sizes = tuple((side, int(side * 2 ** (1 / 3)), int(side * 2 ** (2 / 3))) for side in (32, 64, 128, 256, 512))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    body = _backbone(name, (1, 2, 3), lambda channels: LastLevelP6P7(channels, channels), **(backbone or {}))
    model: nn.Module = RetinaNet(body, num_classes, **({"anchor_generator": anchors} | options))
    return model


def _two_stages(kind: str, name: str, num_classes: int, backbone: dict[str, Any] | None, options: Any) -> nn.Module:
    from torchvision.models import detection
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    anchors = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    body = _backbone(name, (0, 1, 2, 3), lambda channels: LastLevelMaxPool(), **(backbone or {}))
    model: nn.Module = getattr(detection, kind)(body, num_classes, **({"rpn_anchor_generator": anchors} | options))
    return model


def faster_rcnn(name: str, *, num_classes: int, backbone: dict[str, Any] | None = None, **options: Any) -> nn.Module:
    """Build torchvision's Faster R-CNN on a backbone of this package, with random weights.

    Ren et al., https://arxiv.org/abs/1506.01497; maps of stride 4 to 32 and one more.

    Args:
        name: A model with four stages.
        num_classes: Classes, the background included.
        backbone: Settings of `create_model`; `dense=True` is the default.
        options: Settings of torchvision's `FasterRCNN`.

    Returns:
        The detector.

    Raises:
        ValueError: If the model is no pyramid.
    """
    return _two_stages("FasterRCNN", name, num_classes, backbone, options)


def mask_rcnn(name: str, *, num_classes: int, backbone: dict[str, Any] | None = None, **options: Any) -> nn.Module:
    """Build torchvision's Mask R-CNN on a backbone of this package, with random weights.

    He et al., https://arxiv.org/abs/1703.06870; maps of stride 4 to 32 and one more.

    Args:
        name: A model with four stages.
        num_classes: Classes, the background included.
        backbone: Settings of `create_model`; `dense=True` is the default.
        options: Settings of torchvision's `MaskRCNN`.

    Returns:
        The detector.

    Raises:
        ValueError: If the model is no pyramid.
    """
    return _two_stages("MaskRCNN", name, num_classes, backbone, options)
