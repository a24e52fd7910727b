"""Distances against torchmetrics, scipy and explicit forms; intervals against explicit resampling and known truth."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from agentsd.bench.intervals import Interval, interval, spread_of
from agentsd.evaluation import kernel as kernel_module
from agentsd.evaluation.differences import (
    Delta,
    bootstrap_counts,
    delta_of,
    half_counts,
    paired_delta,
    small_sample_stamp,
)
from agentsd.evaluation.frechet import FrechetDistances, frechet_distance, frechet_from_moments
from agentsd.evaluation.kernel import KernelDistances, kernel_distance


def draw(n, d, *, seed=0, shift=0.0, scale=1.0):
    """Correlated features."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) @ np.random.default_rng(99).normal(size=(d, d))) * scale / np.sqrt(d) + shift


class Flat(nn.Module):
    """An extractor for torchmetrics: pictures that are features already."""

    def __init__(self, d):
        super().__init__()
        self.num_features = d

    def forward(self, pictures):
        return pictures.flatten(1)


def by_torchmetrics(metric, x, y):
    for rows, real in ((x, True), (y, False)):
        metric.update(torch.from_numpy(rows)[:, :, None, None], real=real)
    return metric.compute()


SHAPES = {"more samples": (60, 50, 8), "fewer samples": (12, 15, 40), "fewer of one": (80, 12, 40), "one": (9, 7, 1)}
shapes = pytest.mark.parametrize(("n", "m", "d"), SHAPES.values(), ids=SHAPES)


# --- Fréchet distance ---


@shapes
def test_frechet_distance_is_that_of_torchmetrics(n, m, d):
    x, y = draw(n, d), draw(m, d, seed=1, shift=0.3, scale=1.4)
    expected = by_torchmetrics(FrechetInceptionDistance(feature=Flat(d)), x, y)
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-4)


@shapes
def test_frechet_distance_is_the_published_formula(n, m, d):
    x, y = draw(n, d), draw(m, d, seed=1, shift=0.3, scale=1.4)
    c1, c2 = np.cov(x, rowvar=False).reshape(d, d), np.cov(y, rowvar=False).reshape(d, d)
    root = np.real(scipy.linalg.sqrtm(c1 @ c2 + 1e-12 * np.eye(d)))
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c1 + c2 - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-4)
    assert frechet_from_moments(x.mean(0), c1, y.mean(0), c2) == pytest.approx(frechet_distance(x, y), rel=1e-5)


def test_both_ways_agree_where_both_are_exact():
    x, y = draw(30, 29), draw(40, 29, seed=1)
    by_roots = frechet_distance(x, y)
    pad = np.zeros((1, 20))  # features that are constant add nothing, but make the matrices wide
    by_rank = frechet_distance(np.hstack([x, np.repeat(pad, 30, 0)]), np.hstack([y, np.repeat(pad, 40, 0)]))
    assert by_rank == pytest.approx(by_roots, rel=1e-9)


@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 12), st.integers(0, 1000), st.floats(0.1, 10))
@settings(max_examples=60)
def test_frechet_distance_is_symmetric_and_follows_scale_rotation_and_shift(n, m, d, seed, scale):
    x, y = draw(n, d, seed=seed), draw(m, d, seed=seed + 1, shift=0.5)
    value = frechet_distance(x, y)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]
    near = dict(rel=1e-6, abs=1e-6 * scale**2)
    assert value >= 0
    assert frechet_distance(y, x) == pytest.approx(value, **near)
    assert frechet_distance(scale * x @ rotation + 3, scale * y @ rotation + 3) == pytest.approx(
        scale**2 * value, **near
    )


def test_of_normal_distributions_with_diagonal_covariance():
    s1, s2, mean = np.array([1.0, 2.0, 0.0]), np.array([3.0, 0.5, 0.0]), np.array([1.0, -1.0, 2.0])
    value = frechet_from_moments(np.zeros(3), np.diag(s1**2), mean, np.diag(s2**2))
    assert value == pytest.approx((mean**2).sum() + ((s1 - s2) ** 2).sum())


def test_a_set_with_itself():
    few, many = draw(20, 64), draw(200, 16)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(many, many) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(few, few + 1) == pytest.approx(64)


def test_float32_features_are_computed_in_float64():
    x, y = draw(50, 8).astype(np.float32), draw(50, 8, seed=1).astype(np.float32)
    assert frechet_distance(x + 1000, y + 1000) == frechet_distance(*((v + 1000).astype(np.float64) for v in (x, y)))


def test_few_samples_are_biased_high_and_the_stamp_says_so():
    few = np.mean([frechet_distance(draw(40, 16, seed=i), draw(40, 16, seed=i + 50)) for i in range(8)])
    many = frechet_distance(draw(4000, 16, seed=1), draw(4000, 16, seed=2))
    assert few > 5 * many
    assert small_sample_stamp(2047) == "n=2047 < 2048: biased high; comparative only"
    assert small_sample_stamp(2048) == small_sample_stamp(2048, biased=False) == ""
    with pytest.raises(ValueError, match="n=0 samples; a distance needs at least 1"):
        small_sample_stamp(0)


# --- kernel distance ---


def kernel(a, b):
    return (a @ b / len(a) + 1) ** 3


def test_kernel_distance_is_the_published_sum():
    x, y = draw(7, 5), draw(9, 5, seed=1, shift=0.4)
    within_x = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    within_y = np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    across = np.mean([kernel(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(within_x + within_y - 2 * across)


@pytest.mark.parametrize("n", [20, 600])  # 600: more than one block of rows
def test_kernel_distance_is_that_of_torchmetrics(n):
    x, y = draw(n, 6), draw(n, 6, seed=1, shift=0.5)
    mean, _ = by_torchmetrics(KernelInceptionDistance(feature=Flat(6), subsets=1, subset_size=n), x, y)
    assert kernel_distance(x, y) == pytest.approx(float(mean), rel=1e-9)


def test_kernel_distance_is_unbiased():
    values = [kernel_distance(draw(12, 4, seed=2 * i), draw(12, 4, seed=2 * i + 1)) for i in range(400)]
    assert np.mean(values) == pytest.approx(0, abs=3 * np.std(values) / 20)
    assert min(values) < 0


# --- difference of two arms ---


def arms(n, d, seed=0, *, difference=0.3):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, d))
    real = rng.normal(size=(n, d))
    stock = 0.9 * shared + 0.4
    return real, stock, stock + difference + 0.1 * rng.normal(size=(n, d))


def paired_kernel_distance(x, y):
    return kernel_distance(x, y, paired=True)


STATISTICS = {"frechet": frechet_distance, "kernel": kernel_distance}
statistic_of = pytest.mark.parametrize("statistic", STATISTICS.values(), ids=STATISTICS)


@statistic_of
def test_the_value_is_the_difference_of_the_two_distances(statistic):
    real, stock, fast = arms(30, 5)
    delta = paired_delta(real, stock, fast, statistic, resamples=20)
    plain = paired_kernel_distance if statistic is kernel_distance else statistic
    assert delta.value == plain(real, fast) - plain(real, stock)
    assert delta.low < delta.value < delta.high
    assert isinstance(delta, Delta)


@statistic_of
def test_equal_arms_differ_by_nothing(statistic):
    real, stock, _ = arms(30, 5)
    delta = paired_delta(real, stock, stock.copy(), statistic, resamples=20)
    assert (delta.value, delta.low, delta.high) == (0, 0, 0)
    assert delta.covers(0)


@statistic_of
def test_exchanging_the_arms_changes_the_sign(statistic):
    real, stock, fast = arms(30, 5)
    one = paired_delta(real, stock, fast, statistic, resamples=50, seed=4)
    other = paired_delta(real, fast, stock, statistic, resamples=50, seed=4)
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))


@statistic_of
def test_the_seed_decides(statistic):
    real, stock, fast = arms(20, 3)
    first, again, other = (paired_delta(real, stock, fast, statistic, resamples=30, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(("n", "d"), [(40, 4), (10, 30), (12, 11)])  # 12 x 11: some resamples are wide
def test_resamples_of_the_frechet_distance_are_those_of_repeated_rows(n, d):
    real, stock, fast = arms(n, d)

    def plain(x, y):
        return frechet_distance(x, y)

    fast_way = paired_delta(real, stock, fast, frechet_distance, resamples=25, seed=3)
    plain_way = paired_delta(real, stock, fast, plain, resamples=25, seed=3)
    # Repeated rows of the plain way lose half of the digits where its covariance has no full rank.
    assert (fast_way.low, fast_way.high) == pytest.approx((plain_way.low, plain_way.high), rel=1e-5)


def test_resamples_of_the_kernel_distance_leave_out_pairs_of_one_prompt():
    real, stock, fast = arms(6, 3)
    counts = np.array([[2, 0, 1, 3, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=float)
    distances = KernelDistances(real, paired=True)
    drawn = distances.draws(fast, counts) - distances.draws(stock, counts)

    def explicit(arm, row):
        draws = np.repeat(np.arange(6), row.astype(int))
        apart = [(i, j) for i in draws for j in draws if i != j]
        return np.mean([kernel(arm[i], arm[j]) - 2 * kernel(real[i], arm[j]) for i, j in apart])

    assert drawn == pytest.approx([explicit(fast, row) - explicit(stock, row) for row in counts])
    assert drawn[1] == pytest.approx(paired_kernel_distance(real, fast) - paired_kernel_distance(real, stock))


def test_half_samples_are_those_of_the_rows_they_take():
    """What is computed once for all draws changes nothing but rounding; also where moments are all there is."""
    for n, m, d in ((40, 50, 6), (14, 30, 9), (20, 8, 12), (12, 40, 30)):
        real, arm = draw(m, d), draw(n, d, seed=1, shift=0.3)
        counts = half_counts(n, 5, seed=2)
        assert (counts.sum(axis=1) == n // 2).all()
        halves = [arm[row > 0] for row in counts]
        assert FrechetDistances(real).draws(arm, counts) == pytest.approx(
            [frechet_distance(real, half) for half in halves], rel=1e-11
        )
        kernel_draws = KernelDistances(real).draws(arm, counts)
        own = kernel_distance(real, arm) - KernelDistances(real).draws(arm, np.ones((1, n)))[0]
        assert kernel_draws + own == pytest.approx([kernel_distance(real, half) for half in halves], rel=1e-11)
        mean, covariance = real.mean(axis=0), np.cov(real, rowvar=False)
        moments = FrechetDistances((mean, covariance))
        by_moments = [frechet_from_moments(mean, covariance, h.mean(0), np.cov(h, rowvar=False)) for h in halves]
        assert moments.draws(arm, counts) == pytest.approx(by_moments, rel=1e-6)  # eigenvalues lose half the digits
        assert moments.of(arm) == pytest.approx(frechet_distance(real, arm), rel=1e-6)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(("distances", "last"), [(FrechetDistances, (4, 4)), (KernelDistances, (30, 30))])
def test_progress_is_told_to_the_end(distances, last, paired):
    real, stock, _ = arms(30, 5)
    told = []
    distances(real, paired=paired).draws(stock, bootstrap_counts(30, 4, 0), lambda *step: told.append(step))
    assert told[-1] == last


def test_blocks_change_nothing(monkeypatch):
    real, stock, fast = arms(23, 3)
    whole = paired_delta(real, stock, fast, kernel_distance, resamples=10)
    monkeypatch.setattr(kernel_module, "_BLOCK", 5)
    blocks = paired_delta(real, stock, fast, kernel_distance, resamples=10)
    assert (blocks.value, blocks.low, blocks.high) == pytest.approx((whole.value, whole.low, whole.high))


def alike(seed, n=32, d=64):
    """Reference, stock that resembles the reference of its own prompt, and an arm that ignores it: one distribution."""
    real, noise, fast = np.random.default_rng(seed).normal(size=(3, n, d))
    return real, 0.8 * real + 0.6 * noise, fast


def test_a_paired_reference_does_not_bias_the_kernel_distance():
    found = [alike(seed) for seed in range(200)]
    for place in (1, 2):
        values = [kernel_distance(arms[0], arms[place], paired=True) for arms in found]
        assert np.mean(values) == pytest.approx(0, abs=3 * np.std(values) / np.sqrt(200))
    biased = [kernel_distance(real, stock) for real, stock, _ in found]
    assert np.mean(biased) < -5 * np.std(biased) / np.sqrt(200)


def test_intervals_cover_where_one_arm_resembles_the_reference_more():
    """All pairs, those of one prompt included, would cover the truth in none of these."""
    deltas = [paired_delta(*alike(seed), kernel_distance, resamples=150) for seed in range(80)]
    assert np.mean([delta.covers(0) for delta in deltas]) >= 0.87  # 0.95 nominal, 80 repetitions


def test_prompts_are_drawn_jointly():
    """The arms share most of their noise: the interval of the difference is far narrower than a distance's spread."""
    real, stock, fast = arms(60, 4, difference=0.05)
    delta = paired_delta(real, stock, fast, frechet_distance, resamples=100)
    alone = [frechet_distance(*arms(60, 4, seed)[:2]) for seed in range(40)]
    assert delta.high - delta.low < np.ptp(alone) / 2


@pytest.mark.parametrize(("statistic", "n"), [(frechet_distance, 80), (kernel_distance, 60)])
def test_nine_in_ten_intervals_cover_the_truth(statistic, n):
    big = arms(20_000 if statistic is frechet_distance else 4000, 3, seed=123)
    truth = statistic(big[0], big[2]) - statistic(big[0], big[1])  # here no arm resembles the reference of its prompt
    deltas = [paired_delta(*arms(n, 3, seed), statistic, resamples=150) for seed in range(60)]
    assert np.mean([delta.covers(truth) for delta in deltas]) >= 0.85  # 0.95 nominal, 60 repetitions


@pytest.mark.parametrize(("kind", "n"), [(FrechetDistances, 80), (KernelDistances, 60)])
def test_nine_in_ten_intervals_of_half_samples_cover_the_truth(kind, n):
    """The reference is neither drawn nor paired with the prompts."""
    reference = kind(np.random.default_rng(7).normal(size=(100, 3)))

    def difference(stock, fast):
        return reference.of(fast) - reference.of(stock)

    truth = difference(*arms(20_000 if kind is FrechetDistances else 4000, 3, seed=123)[1:])
    deltas = []
    for seed in range(60):
        _, stock, fast = arms(n, 3, seed)
        counts = half_counts(n, 150, seed)
        drawn = reference.draws(fast, counts) - reference.draws(stock, counts)
        deltas.append(delta_of(difference(stock, fast), drawn, n))
    assert np.mean([delta.covers(truth) for delta in deltas]) >= 0.85  # 0.95 nominal, 60 repetitions
    width = np.mean([delta.high - delta.low for delta in deltas])
    assert width == pytest.approx(2 * 1.96 * np.std([delta.value for delta in deltas]), rel=0.3)  # not by being wide


@pytest.mark.parametrize(("n", "d"), [(60, 12), (30, 60)])
def test_an_arm_that_spreads_less_keeps_the_interval_at_its_difference(n, d):
    """Percentiles alone miss even their own estimate here: the bias of few samples differs between the arms."""

    def less_spread(seed):
        rng = np.random.default_rng(seed)
        real, stock = rng.normal(size=(2, n, d))
        return real, 1.1 * stock, 1.05 * stock + 0.1 * rng.normal(size=(n, d))

    deltas = [paired_delta(*less_spread(seed), frechet_distance, resamples=60) for seed in range(40)]
    expected = np.mean([delta.value for delta in deltas])  # at this number of prompts
    assert all(delta.covers(delta.value) for delta in deltas)
    assert np.mean([delta.covers(expected) for delta in deltas]) >= 0.85


# --- intervals of per-prompt values ---


def test_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = interval(values, np.mean, resamples=2000)
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


def test_interval_of_a_median_is_the_default_and_narrows_with_more_prompts():
    values = np.random.default_rng(0).normal(size=400)
    few, many = interval(values[:40]), interval(values)
    assert many == Interval(float(np.median(values)), many.low, many.high)
    assert many.low <= many.value <= many.high
    assert many.high - many.low < (few.high - few.low) / 2


def test_another_confidence_and_another_statistic():
    values = np.random.default_rng(0).normal(size=100)
    wide, narrow = (interval(values, np.mean, confidence=share) for share in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high

    def fifth_percentile(rows, axis):
        return np.percentile(rows, 5, axis=axis)

    assert interval(values, fifth_percentile, resamples=50).value == np.percentile(values, 5)


def test_equal_pictures_have_infinite_psnr():
    assert interval([np.inf] * 5) == Interval(np.inf, np.inf, np.inf)
    mixed = interval([np.inf, 30.0, 31.0, 32.0, 33.0, 34.0, np.inf])
    assert mixed.value == 33.0
    assert 30 <= mixed.low <= 33 <= mixed.high
    assert not np.isnan(mixed.high)


def test_fewer_than_six_values_have_their_range():
    values = [4.42, 4.69, 4.5, 4.6, 4.55]
    assert interval(values) == Interval(4.55, 4.42, 4.69)
    more = interval([*values, 4.51], np.mean)
    assert 4.42 < more.low < more.high < 4.69
    drawn = np.arange(-50.0, 51.0)
    assert delta_of(0.0, drawn, 5) == Delta(0.0, -50, 50)
    assert delta_of(0.0, drawn, 6).high < 49
    assert [spread_of(n) for n in (2, 5, 6)] == ["range of 2", "range of 5", "95% interval"]


def test_one_prompt_has_no_spread():
    assert interval([3.0], resamples=5) == Interval(3.0, 3.0, 3.0)


# --- what is refused ---


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_features_that_do_not_fit(distance):
    x = draw(5, 3)
    with pytest.raises(ValueError, match=r"x has shape \(5,\); it must be \[n, d\] with n at least 2"):
        distance(x[:, 0], x)
    with pytest.raises(ValueError, match=r"y has shape \(1, 3\); .* give more samples"):
        distance(x, x[:1])
    with pytest.raises(ValueError, match=r"y has 2 features a sample, x 3; they must be equal: extract both"):
        distance(x, x[:, :2])
    with pytest.raises(ValueError, match=r"x holds values that are not finite; extract the features of those"):
        distance(np.where(x == x[0, 0], np.nan, x), x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mu1": np.zeros((1, 3))}, r"mu1 has shape \(1, 3\); means must be \[d\], covariances \[d, d\]: use one d"),
        ({"cov2": np.eye(4)}, r"cov2 has shape \(4, 4\); means must be"),
        ({"mu2": np.zeros(2)}, r"mu2 has shape \(2,\)"),
        ({"cov1": np.triu(np.ones((3, 3)))}, r"cov1 is not symmetric, as a covariance must be"),
        ({"cov2": np.full((3, 3), np.inf)}, r"cov2 holds values that are not finite; compute it anew"),
    ],
)
def test_moments_that_do_not_fit(changes, message):
    good = dict(mu1=np.zeros(3), cov1=np.eye(3), mu2=np.zeros(3), cov2=np.eye(3))
    with pytest.raises(ValueError, match=message):
        frechet_from_moments(**{**good, **changes})


def test_a_reference_that_does_not_fit():
    x = draw(5, 3)
    for distances in (FrechetDistances, KernelDistances):
        with pytest.raises(ValueError, match=r"arm has shape \(5, 2\); the reference has 3 features a sample: extract"):
            distances(x).of(x[:, :2])
        with pytest.raises(ValueError, match=r"the reference has 3 features a sample and, paired, 5 rows"):
            distances(x, paired=True).draws(x[:4], np.ones((1, 4)))
    with pytest.raises(ValueError, match=r"paired=True needs the reference's features; moments have no rows"):
        FrechetDistances((np.zeros(3), np.eye(3)), paired=True)
    with pytest.raises(ValueError, match=r"covariance has shape \(4, 4\); means must be"):
        FrechetDistances((np.zeros(3), np.eye(4)))


def test_arms_that_do_not_fit():
    real, stock, fast = arms(10, 3)
    with pytest.raises(ValueError, match=r"real, stock and fast have 10, 9 and 10 rows; row i of each .* leave out"):
        paired_delta(real, stock[:9], fast, frechet_distance)
    with pytest.raises(ValueError, match=r"have 2, 2 and 2 rows; .* at least 3 prompts"):
        paired_delta(real[:2], stock[:2], fast[:2], frechet_distance)
    with pytest.raises(ValueError, match=r"fast has 2 features a sample, real 3"):
        paired_delta(real, stock, fast[:, :2], frechet_distance)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resamples": 0}, r"resamples=0 is below 1, the fewest a bootstrap can draw; 1000 are usual"),
        ({"confidence": 95}, r"confidence=95 must lie between 0 and 1, ends excluded; 0.95 is usual"),
        ({"confidence": 0}, r"confidence=0 must lie between 0 and 1"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        interval([1.0, 2.0], **changes)
    with pytest.raises(ValueError, match=message):
        paired_delta(*arms(10, 3), frechet_distance, **changes)


@pytest.mark.parametrize("values", [[], [[1.0]], [1.0, np.nan]])
def test_values_that_have_no_interval(values):
    with pytest.raises(ValueError, match=r"values of shape .*give one number a prompt, at least one and none NaN"):
        interval(values)
