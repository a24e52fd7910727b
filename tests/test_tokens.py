"""Token choice and merging: parity with explicit sets, and the properties of the maps."""

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import agentsd.attention.tokens
from agentsd.attention.sampling import cell_edges, choose_tokens, pool_tokens, sample_tokens
from agentsd.attention.tokens import add_rows, cell_pattern, rank_tokens, take_rows


@st.composite
def grids(draw):
    stride = draw(st.integers(2, 4))
    return draw(st.integers(stride, 13)), draw(st.integers(stride, 13)), stride, draw(st.integers(0, 10**6))


def ranked(height, width, stride, seed, *, random=True):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, height * width, 6, generator=generator, dtype=torch.float64)
    pattern = cell_pattern(height, width, stride, generator if random else None)
    return tokens, pattern, rank_tokens(tokens, pattern)


@given(grids())
@settings(deadline=None, max_examples=40)
def test_pattern_has_one_destination_per_whole_cell(grid):
    height, width, stride, seed = grid
    pattern = cell_pattern(height, width, stride, torch.Generator().manual_seed(seed))
    y, x = pattern.destinations // width, pattern.destinations % width
    cells = list(zip((y // stride).tolist(), (x // stride).tolist(), strict=True))
    assert cells == [(i, j) for i in range(height // stride) for j in range(width // stride)]
    both = torch.cat([pattern.destinations, pattern.sources])
    assert sorted(both.tolist()) == list(range(height * width))


@given(grids(), st.integers(0, 200))
@settings(deadline=None, max_examples=40)
def test_merge_and_unmerge_are_a_projection(grid, count):
    tokens, _, ranking = ranked(*grid)
    token_map = ranking.cut(count)
    project = lambda x: token_map.unmerge(token_map.merge(x))  # noqa: E731
    once = project(tokens)
    torch.testing.assert_close(project(once), once)
    sources = tokens.shape[1] - ranking.pattern.destinations.shape[0]
    assert token_map.merge(tokens).shape[1] == tokens.shape[1] - min(count, sources)
    constant = torch.ones_like(tokens)
    torch.testing.assert_close(project(constant), constant)


@given(grids())
@settings(deadline=None, max_examples=20)
def test_merging_nothing_is_the_identity(grid):
    tokens, _, ranking = ranked(*grid)
    token_map = ranking.cut(0)
    assert torch.equal(token_map.unmerge(token_map.merge(tokens)), tokens)


@given(grids(), st.integers(1, 200))
@settings(deadline=None, max_examples=40)
def test_parity_with_explicit_sets(grid, count):
    height, width, stride, seed = grid
    tokens, _, ranking = ranked(height, width, stride, seed, random=False)
    token_map = ranking.cut(count)
    merged = token_map.merge(tokens)
    for image in range(2):
        expected, place = reference.merge(tokens[image].numpy(), tokens[image].numpy(), height, width, stride, count)
        np.testing.assert_allclose(merged[image], expected, atol=1e-12)
        assert token_map.position[image].tolist() == place.tolist()


@given(grids(), st.integers(1, 100))
@settings(deadline=None, max_examples=20)
def test_the_most_similar_are_merged_first(grid, count):
    tokens, pattern, ranking = ranked(*grid)
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    best = (unit @ unit[:, pattern.destinations].transpose(1, 2)).amax(-1)
    token_map = ranking.cut(count)
    if token_map.kept.shape[1]:
        least_merged, most_kept = best.gather(1, token_map.merged).amin(1), best.gather(1, token_map.kept).amax(1)
        assert (least_merged >= most_kept - 1e-12).all()


@given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 30), st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_rows_are_taken_and_added_sample_by_sample(batch, number, picked, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, number, 3, generator=generator, dtype=torch.float64)
    added = torch.randn(batch, picked, 3, generator=generator, dtype=torch.float64)
    index = torch.randint(number, (batch, picked), generator=generator)
    for_each_channel = index.unsqueeze(-1).expand(-1, -1, 3)
    assert torch.equal(take_rows(tokens, index), tokens.gather(1, for_each_channel))
    before = tokens.clone()
    torch.testing.assert_close(add_rows(tokens, index, added), tokens.scatter_add(1, for_each_channel, added))
    assert torch.equal(tokens, before)


def test_ranking_in_blocks_equals_ranking_at_once(monkeypatch):
    tokens, pattern, whole = ranked(12, 10, 2, 0)
    monkeypatch.setattr(agentsd.attention.tokens, "_MAX_SIMILARITIES", 7 * 2 * 30)
    blocks = rank_tokens(tokens, pattern)
    assert torch.equal(blocks.order, whole.order)
    assert torch.equal(blocks.target, whole.target)


def test_merging_in_bfloat16_counts_exactly():
    # 16 x 16 equal tokens in one cell: a count kept in bfloat16 would stop at 256, a sum of ones is exact to 256.
    ranking = rank_tokens(torch.ones(1, 256, 4), cell_pattern(16, 16, 16))
    merged = ranking.cut(255).merge(torch.ones(1, 256, 4, dtype=torch.bfloat16))
    assert torch.equal(merged, torch.ones(1, 1, 4, dtype=torch.bfloat16))


@given(grids())
@settings(deadline=None, max_examples=40)
def test_pooling_averages_each_cell(grid):
    height, width, stride, seed = grid
    tokens = torch.randn(2, height * width, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    image = tokens.view(2, height, width, 3)
    expected = [
        image[:, y : y + stride, x : x + stride].mean((1, 2))
        for y in range(0, height, stride)
        for x in range(0, width, stride)
    ]
    torch.testing.assert_close(pool_tokens(tokens, height, width, stride), torch.stack(expected, 1))


def test_pooling_a_grid_smaller_than_a_cell_leaves_one_token():
    assert pool_tokens(torch.ones(1, 6, 2), 2, 3, 4).shape == (1, 1, 2)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 6), st.integers(0, 10**6))
@settings(deadline=None, max_examples=60)
def test_draws_take_every_token_of_a_cell_before_any_twice(height, width, stride, seed):
    rows, columns = cell_edges(height, stride), cell_edges(width, stride)
    cells = [(y, x) for y in zip(*rows, strict=True) for x in zip(*columns, strict=True)]
    draws = [choose_tokens(height, width, stride, i, torch.Generator().manual_seed(seed)) for i in range(stride**2)]
    for place, ((top, bottom), (left, right)) in enumerate(cells):
        inside = [int(y * width + x) for y in range(top, bottom) for x in range(left, right)]
        drawn = [int(draw[place]) for draw in draws]
        assert set(drawn) == set(inside)
        assert sorted(drawn[: len(inside)]) == inside
        assert drawn == [drawn[i % len(inside)] for i in range(len(drawn))]


def test_draws_differ_from_cell_to_cell_and_from_seed_to_seed():
    one, other = (choose_tokens(16, 16, 4, 0, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert not torch.equal(one, other)
    assert len(set((one // 16 % 4 * 4 + one % 4).tolist())) > 4


@given(st.integers(1, 40), st.integers(1, 9))
@settings(deadline=None, max_examples=40)
def test_cells_are_as_many_as_cover_the_grid_and_equal_but_for_one(length, stride):
    starts, ends = cell_edges(length, stride)
    sizes = (ends - starts).tolist()
    assert sum(sizes) == length
    assert len(sizes) == -(-length // stride)
    assert 1 <= min(sizes) <= max(sizes) <= min(stride, min(sizes) + 1)


@pytest.mark.parametrize("kind", ["meta", "cpu"])
def test_what_is_drawn_does_not_follow_the_default_device_and_dtype(kind):
    draws = lambda: (  # noqa: E731
        choose_tokens(8, 8, 4, 1, torch.Generator().manual_seed(0)),
        cell_pattern(8, 8, 4, torch.Generator().manual_seed(0)).destinations,
    )
    expected = draws()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device(kind):
            found = draws()
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_without_a_generator_the_middle_of_each_cell_is_taken():
    assert choose_tokens(4, 6, 3).tolist() == [1 * 6 + 1, 1 * 6 + 4, 3 * 6 + 1, 3 * 6 + 4]


@given(st.integers(2, 30), st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_sampled_tokens_keep_the_mean_and_their_differences(number, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, number, 3, generator=generator, dtype=torch.float64)
    index = torch.randperm(number, generator=generator)[: number // 2]
    sampled = sample_tokens(tokens, index)
    torch.testing.assert_close(sampled.mean(1), tokens.mean(1))
    shift = sampled - tokens[:, index]
    torch.testing.assert_close(shift, shift[:, :1].expand_as(shift))


def test_the_shift_of_16_bit_tokens_is_taken_in_float32():
    # The means of all and of those taken are 1 + 2^-9 and 1 + 2^-10: bfloat16 has neither, both would be 1.
    tokens = torch.tensor([0.0, 2.0]).repeat(512).view(1, 1024, 1).to(torch.bfloat16)
    tokens[0, 0] = 2.0
    shifted = sample_tokens(tokens, torch.arange(1, 1024))
    assert shifted[0, 1].item() == pytest.approx(2**-10, rel=0.01)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: cell_pattern(3, 8, 4), r"grid 3x8 holds no whole cell of stride=4; use a smaller stride"),
        (lambda: rank_tokens(torch.ones(1, 9, 2), cell_pattern(4, 4, 2)), r"metric has 9 tokens, the pattern 16"),
        (lambda: pool_tokens(torch.ones(1, 9, 2), 4, 4, 2), r"tokens has 9 tokens, the grid 4x4 has 16"),
    ],
)
def test_errors(call, text):
    with pytest.raises(ValueError, match=text):
        call()
