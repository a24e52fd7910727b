"""The formula behind the golden data: weights and images from their names."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parent.parent / "data" / "vision"
MANIFESTS = sorted(path.stem for path in (DATA / "manifests").glob("*.json"))


def uniform(key, shape):
    """Numbers of mean 0 and variance 1."""
    numbers = np.random.RandomState(zlib.crc32(key.encode())).random_sample(math.prod(shape))
    return ((numbers - 0.5) * math.sqrt(12)).reshape(shape)


def weight(key, shape):
    numbers, last = uniform(key, shape), key.rsplit(".", 1)[-1]
    if last == "weight":
        made = 1 + 0.1 * numbers if len(shape) == 1 else numbers / math.sqrt(math.prod(shape[1:]))
    else:
        made = 0.1 * numbers if last == "bias" else 0.5 * numbers
    return torch.from_numpy(made.astype(np.float32))


def image(batch, size):
    n, c, i, j = np.ogrid[:batch, :3, :size, :size]
    waves = np.sin((i + 1) * (c + 1) * 0.05 + n) + np.cos((j + 1) * (c + 2) * 0.03)
    return torch.from_numpy((waves + 0.5 * uniform("image", (batch, 3, size, size))).astype(np.float32))


def manifest(name):
    return json.loads((DATA / "manifests" / f"{name}.json").read_text(encoding="utf-8"))


def published_weights(name):
    """Weights under the authors' names, with the buffers that their files hold."""
    facts = manifest(name)
    return {
        key: torch.zeros(shape) if key in facts["buffers"] else weight(key, tuple(shape))
        for key, shape in facts["state_dict"]
    }


def load(path):
    """Config and arrays of a golden file."""
    arrays = np.load(DATA / path)
    return json.loads(str(arrays["config"])), arrays


def sampled(feature, number=64):
    """The points of a feature that the golden data keep."""
    flat = feature.flatten(1)
    return flat[:, [index * flat.shape[1] // number for index in range(number)]]
