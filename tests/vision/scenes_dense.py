"""Rendered scenes with boxes, masks and label maps, for the smoke runs of detectors and segmenters."""

import numpy as np
import torch

from agentsd.demo.render import _pixel_grid, render, signed_distance
from agentsd.demo.scenes import SHAPES, sample_scenes


def dense_scenes(number, size, *, seed=0):
    """Images [n, 3, size, size] in [0, 1], label maps [n, size, size] (0 background), targets of detectors."""
    images, maps, targets = [], [], []
    x, y = _pixel_grid(size)
    for scene in sample_scenes(number, seed, count=2):
        images.append(torch.from_numpy(render(scene, size)).permute(2, 0, 1).float() / 255)
        labels, masks = np.zeros((size, size), dtype=np.int64), []
        for item in scene.objects:
            inside = signed_distance(item.shape, (x - item.x) / item.radius, (y - item.y) / item.radius) <= 0
            labels[inside] = 1 + SHAPES.index(item.shape)
            masks.append(inside)
        corners = [np.argwhere(mask) for mask in masks]
        boxes = [[c[:, 1].min(), c[:, 0].min(), c[:, 1].max() + 1, c[:, 0].max() + 1] for c in corners]
        maps.append(torch.from_numpy(labels))
        targets.append(
            {
                "boxes": torch.tensor(np.array(boxes), dtype=torch.float32),
                "labels": torch.tensor([1 + SHAPES.index(item.shape) for item in scene.objects]),
                "masks": torch.from_numpy(np.stack(masks)).to(torch.uint8),
            }
        )
    return torch.stack(images), torch.stack(maps), targets
