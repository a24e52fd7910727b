"""The bundled demo: a small Stable Diffusion model, trained on rendered scenes, that runs on a CPU offline.

>>> from agentsd.demo import held_out_prompts
>>> len(held_out_prompts(4))
4
"""

from __future__ import annotations

import pathlib

from agentsd.demo.captions import held_out_prompts, parse_caption

MODEL_PATH = pathlib.Path(__file__).resolve().parent / "model"

__all__ = ["MODEL_PATH", "held_out_prompts", "model_path", "parse_caption"]


def model_path() -> pathlib.Path:
    """Folder of the demo model, for ``StableDiffusionPipeline.from_pretrained``.

    Returns:
        The folder inside the installed package.

    Raises:
        FileNotFoundError: The folder does not hold a model (a source tree before training).

    >>> model_path().name
    'model'
    """
    if not (MODEL_PATH / "model_index.json").is_file():
        raise FileNotFoundError(f"{MODEL_PATH} holds no model; train one with scripts/dev/train_demo.py.")
    return MODEL_PATH
