"""The published layer written out with explicit matrices: slow, obvious, float64."""

import numpy as np


def softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    weights = np.exp(logits)
    return weights / weights.sum(-1, keepdims=True)


def agent_attention(q, a, k, v, *, scale, exponent=0.3, shortcut=0.075):
    """Return phi_q(Q) phi_k(K)^T V + shortcut V and the two maps, heads leading: arrays [..., N, d]."""
    phi_q = softmax(q @ a.swapaxes(-1, -2) * scale**exponent)
    phi_k = softmax(a @ k.swapaxes(-1, -2) * scale)
    return (phi_q @ phi_k) @ v + shortcut * v, phi_q, phi_k


def merge(metric, tokens, height, width, stride, count):
    """Merge one image's `count` most similar sources; return merged tokens and, per token, its place among them."""
    destinations = [y * stride * width + x * stride for y in range(height // stride) for x in range(width // stride)]
    sources = [i for i in range(height * width) if i not in set(destinations)]
    unit = metric / np.linalg.norm(metric, axis=-1, keepdims=True)
    similarity = unit[sources] @ unit[destinations].T
    best = similarity.argmax(-1)
    order = np.argsort(-similarity.max(-1), kind="stable")
    count = min(count, len(sources))
    groups = {j: [d] for j, d in enumerate(destinations)}
    for i in order[:count]:
        groups[best[i]].append(sources[i])
    kept = [sources[i] for i in order[count:]]
    place = np.empty(height * width, dtype=int)
    place[kept] = np.arange(len(kept))
    for j, members in groups.items():
        place[members] = len(kept) + j
    means = np.stack([tokens[members].mean(0) for members in groups.values()])
    return np.concatenate([tokens[kept], means]), place
