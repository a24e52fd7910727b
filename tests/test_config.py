"""Settings and schedules: validation texts, exact phase boundaries, the published preset."""

import math
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentsd import DEFAULT_PRESET, PRESETS, AgentConfig, Phase, Schedule, preset_schedule
from agentsd.schedule import TokenCounts


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (dict(merge_ratio=1.0), r"merge_ratio=1\.0 must lie in \[0, 1\)"),
        (dict(merge_ratio="0.4"), r"merge_ratio='0\.4' must be a finite number"),
        (dict(merge_ratio=math.nan), r"merge_ratio=nan must be a finite number"),
        (dict(merge_ratio=True), r"merge_ratio=True must be a finite number"),
        (dict(agent_ratio=1.0), r"agent_ratio=1\.0 must lie in \(0, 1\), or be 'auto'"),
        (dict(agents="grid"), r"agents='grid' must be 'merge', 'pool' or 'sample'"),
        (dict(stride=1), r"stride=1 must be an integer of at least 2"),
        (dict(stride=2.0), r"stride=2\.0 must be an integer"),
        (dict(broadcast_exponent=-1), r"broadcast_exponent=-1 must lie in \[0, 2\]; published: 0\.3"),
        (dict(shortcut=2), r"shortcut=2 must lie in \[-1, 1\]; published: 0\.075"),
        (dict(max_downsample=3), r"max_downsample=3 must be a power of two"),
        (dict(max_downsample=0), r"max_downsample=0 must be an integer of at least 1"),
        (dict(randomize=1), r"randomize=1 must be True or False"),
        (dict(agents="pool", max_agents=0), r"max_agents=0 must be an integer of at least 1"),
        (dict(max_agents=64), r"max_agents=64 belongs to agents='pool' and 'sample'"),
        (dict(min_agents=64), r"min_agents=64 belongs to agents='pool' and 'sample'"),
        (dict(agents="sample", min_agents=65, max_agents=64), r"min_agents=65 must be at most max_agents=64"),
        (dict(agents="sample", shortcut=0.0), r"shortcut=0\.0 does not apply to agents='sample'"),
        (dict(agents="sample", broadcast_exponent=1.0), r"broadcast_exponent=1\.0 does not apply to agents='sample'"),
        (dict(agents="sample", agent_ratio=None), r"agents='sample' with agent_ratio=None has no agents to sample"),
        (dict(agents="sample", merge_ratio=0.75, stride=2), r"agents pay only while agents < features"),
        (dict(agent_ratio=None), r"merge_ratio=0 with agent_ratio=None changes nothing"),
        (dict(agents="pool", agent_ratio=None), r"agents='pool' with agent_ratio=None has no agents to pool"),
        (dict(agents="pool", agent_ratio=0.9), r"agent_ratio=0\.9 does not apply to agents='pool'"),
        # The published later phase: 2 * agents < features fails there, which upstream turns into merging silently.
        (dict(merge_ratio=0.4, agent_ratio=0.5, stride=2), r"agents pay only while 2 \* agents < features.*None"),
        # Fine at stride 4, but the next level has stride 2: as many agents as half the features.
        (dict(merge_ratio=0.6, max_downsample=2), r"with stride=2 keeps 0\.25 .* as agents .*lower .*max_downsample"),
    ],
)
def test_bad_settings_say_what_is_wrong(fields, text):
    with pytest.raises(ValueError, match=text):
        MergedTokens(**fields)


def test_settings_are_frozen_and_keyword_only():
    with pytest.raises(FrozenInstanceError):
        MergedTokens().stride = 2
    with pytest.raises(TypeError):
        MergedTokens(0.4)


@pytest.mark.parametrize(
    ("config", "grid", "counts"),
    [
        (MergedTokens(merge_ratio=0.4, agent_ratio=0.95), (64, 64), TokenCounts(4096, 2458, 256)),
        (MergedTokens(merge_ratio=0.3, agent_ratio=0.95), (13, 17), TokenCounts(221, 155, 12)),
        (MergedTokens(merge_ratio=0.9, agent_ratio=None, stride=2), (8, 8), TokenCounts(64, 16, None)),
        (PooledAgents(stride=8), (64, 64), TokenCounts(4096, 4096, 64)),
        (PooledAgents(stride=4), (9, 5), TokenCounts(45, 45, 6)),
        (PooledAgents(stride=4, max_agents=256), (64, 64), TokenCounts(4096, 4096, 256)),
        (PooledAgents(stride=4, max_agents=256), (192, 192), TokenCounts(36864, 36864, 256)),
        (PooledAgents(stride=2, max_agents=6), (9, 5), TokenCounts(45, 45, 6)),
        (PooledAgents(stride=8, min_agents=64), (64, 64), TokenCounts(4096, 4096, 64)),
        (PooledAgents(stride=8, min_agents=64), (32, 32), TokenCounts(1024, 1024, 64)),
        (PooledAgents(stride=8, min_agents=64), (8, 8), TokenCounts(64, 64, 16)),
        (SampledKeys(stride=4), (9, 5), TokenCounts(45, 45, 6)),
        (SampledKeys(stride=8, min_keys=64), (7, 64), TokenCounts(448, 448, 66)),
        (SampledKeys(stride=8, min_keys=64, max_keys=64), (20, 20), TokenCounts(400, 400, 49)),
        (SampledKeys(stride=2, merge_ratio=0.6), (4, 4), TokenCounts(16, 7, 4)),
        (MergedTokens(), (3, 64), None),
        # The cells that the border cuts off keep agents too: no longer fewer than half of the features.
        (PooledAgents(stride=4, merge_ratio=0.8), (5, 5), TokenCounts(25, 5, None)),
        (PooledAgents(stride=4, merge_ratio=0.8), (8, 8), TokenCounts(64, 13, 4)),
        (PooledAgents(stride=2, merge_ratio=0.4), (4, 4), TokenCounts(16, 10, 4)),
        (MergedTokens(agent_ratio=0.51, stride=2), (3, 3), None),
        (MergedTokens(merge_ratio=0.1, agent_ratio=None, stride=2), (3, 3), None),
    ],
)
def test_token_counts(config, grid, counts):
    assert config.count_tokens(*grid) == counts


@pytest.mark.parametrize(
    ("phases", "text"),
    [
        ((), r"must hold one or more Phase"),
        ((0.4,), r"must hold one or more Phase"),
        (Phase(1.0, None), r"phases=Phase\(.* must hold one or more Phase, as in \(Phase\(1\.0, config\),\)"),
        (None, r"phases=None must hold one or more Phase"),
        ((Phase(0.4, None),), r"the last must end at 1; add Phase\(1\.0, None\)"),
        ((Phase(0.4, None), Phase(0.4, None), Phase(1, None)), r"`until` must rise strictly"),
    ],
)
def test_bad_schedules(phases, text):
    with pytest.raises(ValueError, match=text):
        Schedule(phases)


@pytest.mark.parametrize(("until", "config"), [(0, None), (1.1, None), ("1", None), (0.5, "fast")])
def test_bad_phases(until, config):
    with pytest.raises(ValueError, match=r"(until|config)="):
        Phase(until, config)


@given(st.integers(1, 100), st.integers(1, 1000))
def test_phase_ends_without_rounding(percent, total):
    first = MergedTokens(merge_ratio=0.1)
    phases = (Phase(percent / 100, first),) if percent == 100 else (Phase(percent / 100, first), Phase(1.0, None))
    schedule = Schedule(phases)
    assert [schedule.at(i, total) is first for i in range(total)] == [i * 100 < percent * total for i in range(total)]


@pytest.mark.parametrize(
    ("stride", "strides"), [(8, [8, 4, 2, 2]), (4, [4, 2, 2, 2]), (2, [2, 2, 2, 2]), (6, [6, 3, 2, 2])]
)
def test_coarser_levels_have_smaller_cells(stride, strides):
    config = PooledAgents(stride=stride, max_downsample=8)
    levels = [config.at_downsample(factor) for factor in (1, 2, 4, 8)]
    assert [level.stride for level in levels] == strides
    assert [
        level.count_tokens(64 // factor, 64 // factor).agents
        for level, factor in zip(levels, (1, 2, 4, 8), strict=True)
    ] == [math.ceil(64 // factor / side) ** 2 for side, factor in zip(strides, (1, 2, 4, 8), strict=True)]


@given(
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from([1, 2, 4, 8]),
    st.floats(0, 0.99),
    st.one_of(st.none(), st.just("auto"), st.floats(0.01, 0.99)),
)
def test_settings_that_are_accepted_hold_at_every_level(stride, most, merge_ratio, agent_ratio):
    try:
        config = MergedTokens(stride=stride, max_downsample=most, merge_ratio=merge_ratio, agent_ratio=agent_ratio)
    except ValueError:
        return
    for factor in (1, 2, 4, 8):
        if factor <= most:
            assert config.at_downsample(factor).stride == max(2, stride // factor)


def test_index_outside_the_run():
    with pytest.raises(ValueError, match=r"index=50 must lie in \[0, total=50\)"):
        PRESETS["paper"].at(50, 50)


def test_paper_preset_is_the_published_schedule():
    schedule = preset_schedule("paper")
    early = MergedTokens(merge_ratio=0.4, agent_ratio=0.95, stride=4, broadcast_exponent=0.3, shortcut=0.075)
    late = MergedTokens(merge_ratio=0.4, agent_ratio=None, stride=2)
    assert [schedule.at(i, 50) for i in range(50)] == [early] * 20 + [late] * 30
    # PLMS calls the UNet 51 times for 50 steps; the published code switches after its call 20.
    assert [schedule.at(i, 51) for i in range(51)] == [early] * 21 + [late] * 30
    assert schedule.at(0, 1) == early
    assert {config.max_downsample for config in schedule.configs} == {1}


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("gentle", list(range(20))),
        ("quality", [0, 5, 7, 9, 11, 13, 15, 16, 17, 18, 19]),
        ("balanced", [0, 5, 7, 9, 11, 13, 15, 17, 19]),
        ("fast", [0, 5, 9, 12, 15, 17, 19]),
        ("extreme", [0, 5, 10, 14, 17, 19]),
    ],
)
def test_presets_run_the_whole_unet_seldom_at_first_and_at_the_last_step(name, full):
    assert [step for step in range(20) if PRESETS[name].is_full(step, 20)] == full
    for steps in range(1, 60):
        assert PRESETS[name].is_full(0, steps)
        assert PRESETS[name].is_full(steps - 1, steps)


def test_the_last_step_is_full_only_if_asked():
    phases = (Phase(1.0, None, 3),)
    assert [Schedule(phases).is_full(i, 6) for i in range(6)] == [True, False, False] * 2
    assert [Schedule(phases, skipping=Skipping(depth=1, forecast=0.0)).is_full(i, 6) for i in (3, 4, 5)] == [True, False, True]
    with pytest.raises(ValueError, match="last_full=1 must be True or False"):
        Schedule(phases, skipping=Skipping(depth=1, forecast=0.0, last_full=1))


def test_another_reuse_joins_phases_that_differ_in_nothing_else():
    preset = PRESETS["balanced"].with_reuse(3)
    assert [step for step in range(20) if preset.is_full(step, 20)] == [0, 3, 6, 9, 12, 15, 18, 19]
    assert preset.reuse_forecast == PRESETS["balanced"].reuse_forecast
    assert [phase.until for phase in PRESETS["paper"].with_reuse(3).phases] == [0.4, 1.0]


def test_a_forecast_fades_with_distance_and_rises_along_the_run():
    def weight(index, total, gap, distance, forecast=0.15):
        return Schedule.constant(None, every=2, skipping=Skipping(depth=1, forecast=forecast, last_full=False)).forecast_at(
            index, total, gap=gap, distance=distance
        )

    # Three steps of twenty, where 0.15 of the run is three steps: the weight is the share of the run itself.
    assert [weight(i, 20, 3, 3) for i in (5, 10, 15)] == pytest.approx([0.25, 0.5, 0.75])
    assert weight(10, 20, 3, 3) == pytest.approx(weight(10, 20, 5, 1)) == pytest.approx(weight(20, 40, 6, 6))
    assert weight(10, 20, 3, 1) > weight(10, 20, 3, 2) > weight(10, 20, 6, 2) > 0
    assert weight(10, 20, 3, 2, forecast=0.3) == pytest.approx(weight(10, 20, 3, 2) ** 0.5)
    assert weight(10, 20, 3, 2, forecast=0.0) == 0.0
    assert weight(0, 20, 3, 2) == 0.0
    for wrong in ({"index": 20}, {"gap": 0}, {"distance": -1}, {"gap": 1.5}):
        with pytest.raises(ValueError, match=rf"{next(iter(wrong))}={next(iter(wrong.values()))} must"):
            weight(**{"index": 10, "total": 20, "gap": 3, "distance": 1, **wrong})


def test_ratio_replaces_the_merge_ratio_of_every_phase():
    assert {config.merge_ratio for config in preset_schedule("paper", 0.2).configs} == {0.2}


@given(
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from(["merge", "pool", "sample"]),
    st.floats(0, 0.99),
    st.one_of(st.just("auto"), st.floats(0.01, 0.99)),
    st.integers(1, 12),
    st.integers(1, 12),
)
@example(4, "pool", 0.8, "auto", 5, 5)
@example(2, "merge", 0.0, 0.51, 3, 3)
def test_agents_pay_on_every_grid(stride, agents, merge, ratio, height, width):
    try:
        config = MergedTokens(stride=stride, merge_ratio=merge, agent_ratio=ratio)
    except ValueError:
        return
    counts = config.count_tokens(height, width)
    passes = 2 if config.gathers else 1  # over the agents; ordinary attention has one over all features
    assert counts is None or counts.agents is None or passes * counts.agents < counts.features
    assert counts is None or counts.agents is not None or counts.features < counts.tokens


@pytest.mark.parametrize(
    ("preset", "ratio", "text"),
    [
        ("paper", -1, r"^ratio=-1 must be a number in \[0, 1\), the share of tokens merged\.$"),
        ("paper", True, r"^ratio=True must be a number"),
        ("paper", "0.4", r"^ratio='0\.4' must be a number"),
        ("paper", "fast", r"^ratio='fast' must be a number .*; a preset is named by preset='fast'\.$"),
        ("paper", math.nan, r"^ratio=nan must be a number"),
        ("paper", 0, r"^ratio=0 does not fit preset='paper': part of the run merges .* give a ratio above 0"),
        (
            "fast",
            0.99,
            r"^ratio=0\.99 does not fit preset='fast': too few features .* give a lower ratio",
        ),
    ],
)
def test_bad_ratios_name_what_was_given(preset, ratio, text):
    with pytest.raises(ValueError, match=text):
        preset_schedule(preset, ratio)


def test_presets_are_known_by_name():
    with pytest.raises(ValueError, match=r"preset=\['x'\] is unknown"):
        preset_schedule(["x"])
    assert DEFAULT_PRESET in PRESETS
    with pytest.raises(ValueError, match=r"preset='turbo' is unknown; choose one of balanced, .*paper"):
        preset_schedule("turbo")
