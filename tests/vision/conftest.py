"""The vision tests find their helpers beside them; torchvision's missing operators get schemas."""

import importlib.util
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # with --confcutdir=tests/vision, the main conftest is not read

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("default", deadline=None)

sys.path.insert(0, str(Path(__file__).parent))


def _add_schemas():
    """Let torchvision be imported beside a torch that its binary does not fit.

    timm imports it, and it declares shapes for two operators that its binary would bring. Nothing here runs them.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None:
        return None
    for binary in Path(found.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(str(binary))
        except OSError:
            break
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


_SCHEMAS = _add_schemas()  # lives as long as the tests
