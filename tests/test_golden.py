"""Parity with the published algorithm: golden vectors computed in float64 (see tests/data/README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention

from agentsd import MergedTokens
from agentsd.attention.tokens import cell_pattern, rank_tokens
from agentsd.unet.processor import LevelPlan, attend

FILES = sorted((Path(__file__).parent / "data").glob("*.npz"))
TOLERANCE = 1e-4


def load(path):
    data = np.load(path)
    return json.loads(str(data["params"])), {name: data[name] for name in data.files if name != "params"}


def config_of(path, params):
    """The published rule `2 * agents < features` is stated as agent_ratio=None, not left to a size test."""
    return MergedTokens(
        merge_ratio=params["merge_ratio"],
        agent_ratio=params["agent_ratio"] if path.name.startswith("agents") else None,
        stride=params["stride"],
        broadcast_exponent=params["broadcast_exponent"],
        shortcut=params["shortcut"],
        randomize=params["randomize"],
    )


def attention_layer(arrays, heads):
    channels = arrays["wq"].shape[0]
    attn = Attention(channels, heads=heads, dim_head=channels // heads)
    with torch.no_grad():
        for linear, name in ((attn.to_q, "wq"), (attn.to_k, "wk"), (attn.to_v, "wv"), (attn.to_out[0], "wo")):
            linear.weight.copy_(torch.from_numpy(arrays[name]))
        attn.to_out[0].bias.copy_(torch.from_numpy(arrays["bo"]))
    return attn.eval()


def assert_same_tokens(ours, golden, kept):
    """Equal kept sources in order; equal destinations as a set, since their order has no meaning (nor a rule)."""
    assert ours.shape == golden.shape
    np.testing.assert_allclose(ours[:, :kept], golden[:, :kept], atol=TOLERANCE)
    for image, expected in zip(ours[:, kept:].numpy(), golden[:, kept:], strict=True):
        by_first_channel = image[image[:, 0].argsort()], expected[expected[:, 0].argsort()]
        np.testing.assert_allclose(*by_first_channel, atol=TOLERANCE)


def test_all_golden_files_are_here():
    assert len(FILES) == 6


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden(path):
    params, arrays = load(path)
    height, width, config = params["height"], params["width"], config_of(path, params)
    metric, tokens = (torch.from_numpy(arrays[name]) for name in ("metric", "tokens"))
    counts = config.count_tokens(height, width)
    pattern = cell_pattern(height, width, config.stride)

    ranking = rank_tokens(metric, pattern)
    token_map = ranking.cut(counts.tokens - counts.kept)
    merged = token_map.merge(tokens)
    assert_same_tokens(merged, arrays["merged"], token_map.kept.shape[1])
    if counts.agents is not None:
        agent_map = ranking.cut(counts.tokens - counts.agents)
        assert_same_tokens(agent_map.merge(tokens), arrays["agents"], agent_map.kept.shape[1])

    attn = attention_layer(arrays, params["heads"])
    with torch.no_grad():
        output = attend(attn, tokens, metric, LevelPlan(height, width, config, counts, pattern))
    np.testing.assert_allclose(output, arrays["output"], atol=TOLERANCE)
    assert_same_tokens(
        output.gather(1, token_map.kept[..., None].expand(-1, -1, output.shape[-1])),
        arrays["attended"][:, : token_map.kept.shape[1]],
        token_map.kept.shape[1],
    )
