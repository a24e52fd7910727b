"""Cheaper rankings: what they give against explicit accounts, and when a shared one is made anew."""

import pytest
import torch
import torch.nn.functional as F
from probe import unet_inputs
from tiny import make_tiny_unet

import agentsd
from agentsd.attention.tokens import cell_pattern, rank_tokens
from agentsd.bench.rankings import SharedRanking, rank_in_windows, ranked_by, ranking_free
from agentsd.unet import processor


def pattern_of(side, stride=2, seed=0):
    return cell_pattern(side, side, stride, torch.Generator().manual_seed(seed))


def test_one_window_is_the_published_ranking():
    metric, pattern = torch.randn(2, 64, 8), pattern_of(8)
    ours, published = rank_in_windows(metric, pattern, side=16), rank_tokens(metric, pattern)
    assert torch.equal(ours.order, published.order)
    assert torch.equal(ours.target, published.target)


def test_windows_against_an_explicit_account():
    metric, pattern = torch.randn(1, 64, 8), pattern_of(8)
    unit = F.normalize(metric[0], dim=-1)
    window = [token // 8 // 4 * 2 + token % 8 // 4 for token in range(64)]
    best = {}
    for source in pattern.sources.tolist():
        near = [d for d in pattern.destinations.tolist() if window[d] == window[source]]
        best[source] = max(((unit[source] @ unit[d]).item(), d) for d in near)
    ranking = rank_in_windows(metric, pattern, side=4)
    order = ranking.order[0].tolist()
    assert sorted(order) == sorted(best)
    similarities = [best[source][0] for source in order]
    assert similarities == pytest.approx(sorted(similarities, reverse=True), abs=1e-6)
    assert pattern.destinations[ranking.target[0]].tolist() == [best[source][1] for source in order]


def test_windows_that_do_not_tile_are_refused():
    for number in (60, 144):
        with pytest.raises(ValueError, match=f"do not tile a grid of {number} tokens"):
            rank_in_windows(torch.randn(1, number, 8), pattern_of(12), side=8)


@pytest.mark.parametrize(("calls", "rankings"), [(1, 5 * 1), (2, 3 * 1)])
def test_layers_of_a_grid_share_one_for_so_many_calls(calls, rankings, monkeypatch):
    made = []

    def count(metric, pattern):
        made.append(metric.shape)
        return rank_tokens(metric, pattern)

    monkeypatch.setattr("agentsd.bench.rankings.rank_tokens", count)
    unet = make_tiny_unet()
    sample, text = unet_inputs()
    config = agentsd.MergedTokens(stride=4, max_downsample=1)
    with torch.no_grad(), agentsd.apply(unet, config), ranked_by(unet, SharedRanking(calls)):
        for t in torch.arange(5):
            unet(sample, t, text)
    assert len(made) == rankings
    assert processor.rank_tokens is rank_tokens


def test_no_ranking_merges_in_any_order():
    ranking = ranking_free(torch.randn(2, 64, 8), pattern_of(8))
    assert ranking.order.shape == ranking.target.shape == (2, 48)
    assert ranking.cut(20).merge(torch.ones(2, 64, 3)).shape == (2, 44, 3)
