"""Published evaluations by name: what each fixes."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

COCO_2017_SHA256 = "1018a8760deaf1fc71be2f1b8da1a1348b9c35994af4322ca2fd795a78abb79c"
# The template and the two pictures a class of the token-merging evaluation that the agent-attention table follows:
# https://github.com/dbolya/tomesd/issues/46
CLASS_TEMPLATE = "A high quality photograph of a {}."
CLASSES = 1000
PICTURES_PER_CLASS = 2

_SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_SD21 = "stabilityai/stable-diffusion-2-1"
PROTOCOLS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "paper": {"model": _SD15, "num": 2000, "steps": 50, "guidance_scale": 7.5, "size": 512, "scheduler": "pndm"},
        "coco2017-5k": {"model": _SD15, "num": 5000, "steps": 50, "guidance_scale": 7.5, "size": 512},
        # Likeness to stock of equal steps (https://arxiv.org/abs/2507.17135); guidance and size are the pipeline's.
        "sada": {"model": _SD21, "num": 5000, "steps": 50, "scheduler": "dpm++", "lpips": True, "to_stock": True},
    }
)
TO_STOCK_ALONE = ("sada",)  # without real pictures
COCO_2017 = ("coco2017-5k", "sada")
