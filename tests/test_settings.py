"""Settings, schedules and presets: validation texts, exact phase boundaries, JSON both ways, the published preset."""

import json
import math
from dataclasses import FrozenInstanceError, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsd import PRESETS, MergedTokens, Phase, PooledAgents, SampledKeys, Schedule, Skipping, preset
from agentsd.attention.settings import TokenCounts
from agentsd.presets import as_schedule


@pytest.mark.parametrize(
    ("kind", "given", "text"),
    [
        (MergedTokens, dict(merge_ratio=1.0), r"merge_ratio=1\.0 must lie in \[0, 1\)"),
        (MergedTokens, dict(merge_ratio="0.4"), r"merge_ratio='0\.4' must be a finite number"),
        (MergedTokens, dict(merge_ratio=math.nan), r"merge_ratio=nan must be a finite number"),
        (MergedTokens, dict(merge_ratio=True), r"merge_ratio=True must be a finite number"),
        (
            MergedTokens,
            dict(agent_ratio=1.5),
            r"agent_ratio=1\.5 must lie in \(0, 1\], .* or be None for merging alone",
        ),
        (MergedTokens, dict(agent_ratio="auto"), r"agent_ratio='auto' must be a finite number"),
        (MergedTokens, dict(stride=1), r"stride=1 must be an integer of at least 2"),
        (PooledAgents, dict(stride=2.0), r"stride=2\.0 must be an integer"),
        (SampledKeys, dict(stride=True), r"stride=True must be an integer"),
        (MergedTokens, dict(broadcast_exponent=-1), r"broadcast_exponent=-1 must lie in \[0, 2\]; published: 0\.3"),
        (PooledAgents, dict(shortcut=2), r"shortcut=2 must lie in \[-1, 1\]; published: 0\.075"),
        (MergedTokens, dict(max_downsample=3), r"max_downsample=3 must be a power of two"),
        (SampledKeys, dict(max_downsample=0), r"max_downsample=0 must be an integer of at least 1"),
        (SampledKeys, dict(randomize=1), r"randomize=1 must be True or False"),
        (PooledAgents, dict(max_agents=0), r"max_agents=0 must be an integer of at least 1"),
        (SampledKeys, dict(min_keys=65, max_keys=64), r"min_keys=65 must be at most max_keys=64"),
        (MergedTokens, dict(agent_ratio=None), r"merge_ratio=0 with agent_ratio=None changes nothing"),
        # The published later phase: 2 * agents < kept tokens fails there, which upstream turns into merging silently.
        (MergedTokens, dict(merge_ratio=0.4, agent_ratio=0.5, stride=2), r"only while 2 \* agents < kept tokens.*None"),
        # Fine at stride 4, but the next level has stride 2: as many agents as half of the kept tokens.
        (
            MergedTokens,
            dict(merge_ratio=0.6, max_downsample=2),
            r"stride=2 keeps 0\.25 .* agents, .*lower .*max_downsample",
        ),
    ],
)
def test_bad_settings_say_what_is_wrong(kind, given, text):
    with pytest.raises(ValueError, match=text):
        kind(**given)


@pytest.mark.parametrize("kind", [MergedTokens, PooledAgents, SampledKeys])
def test_settings_are_frozen_and_keyword_only(kind):
    with pytest.raises(FrozenInstanceError):
        kind().stride = 2
    with pytest.raises(TypeError):
        kind(4)


@pytest.mark.parametrize(
    ("kind", "foreign"),
    [
        (PooledAgents, "merge_ratio"),
        (PooledAgents, "randomize"),
        (SampledKeys, "shortcut"),
        (SampledKeys, "agent_ratio"),
        (MergedTokens, "max_agents"),
    ],
)
def test_what_one_kind_has_another_cannot_be_given(kind, foreign):
    with pytest.raises(TypeError, match=foreign):
        kind(**{foreign: 1})


def counts(tokens, kept, agents=None, keys=None):
    return TokenCounts(tokens=tokens, kept=kept, agents=agents, keys=keys)


@pytest.mark.parametrize(
    ("settings", "grid", "expected"),
    [
        (MergedTokens(merge_ratio=0.4, agent_ratio=0.95), (64, 64), counts(4096, 2458, 256)),
        (MergedTokens(merge_ratio=0.3, agent_ratio=0.95), (13, 17), counts(221, 155, 12)),
        (MergedTokens(merge_ratio=0.3), (13, 17), counts(221, 155, 12)),
        (MergedTokens(merge_ratio=0.9, agent_ratio=None, stride=2), (8, 8), counts(64, 16)),
        (PooledAgents(stride=8), (64, 64), counts(4096, 4096, 64)),
        (PooledAgents(stride=4), (9, 5), counts(45, 45, 6)),
        (PooledAgents(stride=4, max_agents=256), (64, 64), counts(4096, 4096, 256)),
        (PooledAgents(stride=4, max_agents=256), (192, 192), counts(36864, 36864, 256)),
        (PooledAgents(stride=2, max_agents=6), (9, 5), counts(45, 45, 6)),
        (PooledAgents(stride=8, min_agents=64), (64, 64), counts(4096, 4096, 64)),
        (PooledAgents(stride=8, min_agents=64), (32, 32), counts(1024, 1024, 64)),
        (PooledAgents(stride=8, min_agents=64), (8, 8), counts(64, 64, 16)),
        (SampledKeys(stride=4), (9, 5), counts(45, 45, keys=6)),
        (SampledKeys(stride=8, min_keys=64), (7, 64), counts(448, 448, keys=66)),
        (SampledKeys(stride=8, min_keys=64, max_keys=64), (20, 20), counts(400, 400, keys=49)),
        (MergedTokens(), (3, 64), None),
        (SampledKeys(), (3, 64), None),
        # Cells cut off at the border lose no agent: no longer fewer than half of the kept tokens.
        (MergedTokens(merge_ratio=0.6, agent_ratio=0.81), (5, 5), counts(25, 10)),
        (MergedTokens(merge_ratio=0.6, agent_ratio=0.81), (20, 20), counts(400, 160, 76)),
        (MergedTokens(agent_ratio=0.51, stride=2), (3, 3), None),
        (MergedTokens(merge_ratio=0.1, agent_ratio=None, stride=2), (3, 3), None),
    ],
)
def test_token_counts(settings, grid, expected):
    assert settings.count_tokens(*grid) == expected


@pytest.mark.parametrize(
    ("phases", "text"),
    [
        ((), r"must hold one or more Phase"),
        ((0.4,), r"must hold one or more Phase"),
        (Phase(1.0, None), r"phases=Phase\(.* must hold one or more Phase, as in \(Phase\(1\.0, attention\),\)"),
        (None, r"phases=None must hold one or more Phase"),
        ((Phase(0.4, None),), r"the last must end at 1; add Phase\(1\.0\)"),
        ((Phase(0.4, None), Phase(0.4, None), Phase(1, None)), r"`until` must rise strictly"),
    ],
)
def test_bad_schedules(phases, text):
    with pytest.raises(ValueError, match=text):
        Schedule(phases)


@pytest.mark.parametrize(("until", "attention"), [(0, None), (1.1, None), ("1", None), (0.5, "fast")])
def test_bad_phases(until, attention):
    with pytest.raises(ValueError, match=r"(until|attention)="):
        Phase(until, attention)


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
    settings = PooledAgents(stride=stride, max_downsample=8)
    levels = [settings.at_downsample(factor) for factor in (1, 2, 4, 8)]
    assert [level.stride for level in levels] == strides
    assert [
        level.count_tokens(64 // factor, 64 // factor).agents
        for level, factor in zip(levels, (1, 2, 4, 8), strict=True)
    ] == [math.ceil(64 // factor / side) ** 2 for side, factor in zip(strides, (1, 2, 4, 8), strict=True)]


@given(
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from([1, 2, 4, 8]),
    st.floats(0, 0.99),
    st.one_of(st.none(), st.floats(0.01, 1.0)),
)
def test_settings_that_are_accepted_hold_at_every_level(stride, most, merge_ratio, agent_ratio):
    try:
        settings = MergedTokens(stride=stride, max_downsample=most, merge_ratio=merge_ratio, agent_ratio=agent_ratio)
    except ValueError:
        return
    for factor in (1, 2, 4, 8):
        if factor <= most:
            assert settings.at_downsample(factor).stride == max(2, stride // factor)


def test_index_outside_the_run():
    with pytest.raises(ValueError, match=r"index=50 must lie in \[0, total=50\)"):
        PRESETS["paper"].at(50, 50)


def test_paper_preset_is_the_published_schedule():
    schedule = preset("paper")
    early = MergedTokens(merge_ratio=0.4, agent_ratio=0.95, stride=4, broadcast_exponent=0.3, shortcut=0.075)
    late = MergedTokens(merge_ratio=0.4, agent_ratio=None, stride=2)
    assert [schedule.at(i, 50) for i in range(50)] == [early] * 20 + [late] * 30
    # PLMS calls the UNet 51 times for 50 steps; the published code switches after its call 20.
    assert [schedule.at(i, 51) for i in range(51)] == [early] * 21 + [late] * 30
    assert schedule.at(0, 1) == early
    assert {settings.max_downsample for settings in schedule.attentions} == {1}


def test_presets_are_tolerances_that_rise():
    tolerances = [PRESETS[name].skipping.tolerance for name in ("quality", "balanced", "fast", "extreme")]
    assert tolerances == sorted(tolerances)
    assert all(PRESETS[name].skipping.tolerance is None for name in ("paper", "gentle"))


def test_the_last_step_is_full_only_if_asked():
    phases = (Phase(1.0, None, 3),)
    assert [Schedule(phases).is_full(i, 6) for i in (3, 4, 5)] == [True, False, True]
    assert [Schedule(phases, Skipping(last_full=False)).is_full(i, 6) for i in range(6)] == [True, False, False] * 2


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (dict(depth=-1), r"depth=-1 must be an integer of at least 0"),
        (dict(forecast=1.5), r"forecast=1\.5 must lie in \[0, 1\]"),
        (dict(last_full=1), "last_full=1 must be True or False"),
    ],
)
def test_bad_skipping(given, text):
    with pytest.raises(ValueError, match=text):
        Skipping(**given)


def test_skipping_must_be_one():
    with pytest.raises(ValueError, match=r"skipping=1 must be a Skipping"):
        Schedule((Phase(1.0),), 1)


def test_another_interval_joins_phases_that_differ_in_nothing_else():
    schedule = Schedule((Phase(0.25, None, 5), Phase(1.0, None, 2))).with_skipping(3)
    assert [step for step in range(20) if schedule.is_full(step, 20)] == [0, 3, 6, 9, 12, 15, 18, 19]
    assert schedule.skipping == Skipping()
    assert preset("balanced").with_skipping(3) == Schedule.constant(None, 3), "fixed full steps replace a tolerance"
    assert [phase.until for phase in preset("paper").with_skipping(3).phases] == [0.4, 1.0]


def test_a_forecast_fades_with_distance_and_rises_along_the_run():
    def weight(index, total, gap, distance, forecast=0.15):
        schedule = Schedule.constant(None, 2, skipping=Skipping(forecast=forecast))
        return schedule.forecast_at(index, total, gap=gap, distance=distance)

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


@given(
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from([MergedTokens, PooledAgents, SampledKeys]),
    st.floats(0, 0.99),
    st.floats(0.01, 1.0),
    st.integers(1, 12),
    st.integers(1, 12),
)
def test_no_grid_costs_more_than_stock(stride, kind, merge, ratio, height, width):
    given = dict(merge_ratio=merge, agent_ratio=ratio) if kind is MergedTokens else {}
    try:
        settings = kind(stride=stride, **given)
    except ValueError:
        return
    found = settings.count_tokens(height, width)
    if found is None:
        return
    if found.keys is not None:
        assert found.keys < found.tokens
    elif found.agents is not None:
        assert 2 * found.agents < found.kept  # two passes over the agents; stock has one over all tokens
    else:
        assert found.kept < found.tokens


class TestNames:
    def test_a_ratio_is_the_published_method(self):
        assert {each.merge_ratio for each in as_schedule("balanced", 0.2).attentions} == {0.2}
        assert as_schedule("balanced", 0.2) == as_schedule("paper", 0.2) == preset("paper").with_merge_ratio(0.2)

    @pytest.mark.parametrize(
        ("ratio", "text"),
        [
            (-1, r"^ratio=-1 must be a number in \[0, 1\), the share of tokens merged\.$"),
            (True, r"^ratio=True must be a number"),
            ("0.4", r"^ratio='0\.4' must be a number"),
            (math.nan, r"^ratio=nan must be a number"),
            (0, r"^ratio=0 does not fit the preset 'paper': part of the run merges .* give a ratio above 0"),
            (0.99, r"^ratio=0\.99 does not fit the preset 'paper': too few tokens .* give a lower ratio"),
        ],
    )
    def test_bad_ratios_name_what_was_given(self, ratio, text):
        with pytest.raises(ValueError, match=text):
            as_schedule("paper", ratio)

    def test_a_schedule_that_does_not_merge_has_no_merge_ratio(self):
        with pytest.raises(ValueError, match=r"merge_ratio=0\.2 has no phase to change"):
            preset("balanced").with_merge_ratio(0.2)
        mixed = Schedule((Phase(0.5, MergedTokens(merge_ratio=0.4)), Phase(1.0, SampledKeys())))
        assert mixed.with_merge_ratio(0.2).attentions == (MergedTokens(merge_ratio=0.2), SampledKeys())

    def test_settings_are_a_constant_schedule(self):
        assert as_schedule(SampledKeys()) == Schedule.constant(SampledKeys())

    def test_unknown_presets(self):
        with pytest.raises(ValueError, match=r"preset \['x'\] is unknown\. The presets are paper, "):
            preset(["x"])
        with pytest.raises(ValueError, match=r"preset 'Balanced' is unknown\. Did you mean 'balanced'\?"):
            preset("Balanced")
        assert preset() == PRESETS["balanced"]


bounds = st.one_of(st.none(), st.integers(1, 99))
levels = st.sampled_from([1, 2, 4])
strides = st.integers(2, 9)
shares = st.floats(0, 1)
attentions = st.one_of(
    st.none(),
    st.builds(
        MergedTokens,
        merge_ratio=st.floats(0.01, 0.4),
        agent_ratio=st.sampled_from([None, 1.0, 0.95]),
        stride=st.integers(8, 9),
        broadcast_exponent=st.floats(0, 2),
        shortcut=st.floats(-1, 1),
        max_downsample=st.sampled_from([1, 2]),
        randomize=st.booleans(),
    ),
    st.builds(PooledAgents, stride=strides, min_agents=bounds, shortcut=shares, max_downsample=levels),
    st.builds(SampledKeys, stride=strides, max_keys=bounds, max_downsample=levels, randomize=st.booleans()),
)


@st.composite
def schedules(draw):
    ends = [*sorted(draw(st.sets(st.floats(0.01, 0.99), max_size=3))), 1.0]
    phases = tuple(Phase(end, draw(attentions), draw(st.integers(1, 9))) for end in ends)
    skipping = draw(st.builds(Skipping, depth=st.integers(0, 3), forecast=shares, last_full=st.booleans()))
    low, high = sorted((draw(st.floats(0, 0.5)), draw(st.floats(0.6, 1))))
    return Schedule(phases, skipping, (low, high))


class TestJson:
    @given(schedules())
    def test_a_schedule_comes_back_exactly(self, schedule):
        text = schedule.to_json()
        assert Schedule.from_json(text) == schedule
        assert Schedule.from_json(text).to_json() == text
        assert "\n" not in text

    @pytest.mark.parametrize("name", PRESETS)
    def test_so_do_presets(self, name):
        assert Schedule.from_json(PRESETS[name].to_json()) == PRESETS[name]

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            (dict(version=2), r"schedule has version=2; this agentsd reads version 1"),
            (dict(extra=1), r"schedule has the unknown field 'extra'; Schedule has phases, skipping"),
            (dict(skipping={"depht": 1}), r"skipping has the unknown field 'depht'; Skipping has depth, "),
            (dict(skipping=3), r"skipping=3 must be a JSON object"),
            (dict(phases=3), r"phases=3 must be a JSON list"),
            (dict(phases=[{}]), r"phases\[0\] lacks the field 'until' of Phase"),
            (dict(phases=[{"until": 1.0, "evry": 2}]), r"phases\[0\] has the unknown field 'evry'"),
            (dict(phases=[{"until": 2.0}]), r"until=2\.0 must lie in \(0, 1\]"),
            (
                dict(phases=[{"until": 1.0, "attention": {"kind": "Sampled"}}]),
                r"phases\[0\]\.attention=.* 'kind' is one of MergedTokens, PooledAgents, SampledKeys",
            ),
            (
                dict(phases=[{"until": 1.0, "attention": {"kind": "SampledKeys", "max_agents": 4}}]),
                r"phases\[0\]\.attention has the unknown field 'max_agents'; SampledKeys has stride, ",
            ),
        ],
    )
    def test_what_is_not_a_schedule_is_refused_by_name(self, change, text):
        data = json.loads(preset().to_json()) | change
        with pytest.raises(ValueError, match=text):
            Schedule.from_json(json.dumps(data))

    @pytest.mark.parametrize(
        ("text", "message"), [("", "is not JSON"), ("[]", "is a JSON list"), (None, "is not JSON")]
    )
    def test_what_is_not_an_object_is_refused(self, text, message):
        with pytest.raises(ValueError, match=message):
            Schedule.from_json(text)

    def test_every_field_is_written(self):
        schedule = Schedule((Phase(1.0, SampledKeys(min_keys=1, max_keys=2)),))
        data = json.loads(schedule.to_json())
        assert set(data) == {field.name for field in fields(Schedule)} | {"version"}
        # What is not set is left out: settings of before these fields keep their text.
        unset = {"tolerance", "max_skipped", "listed", "by_picture"}
        assert set(data["skipping"]) == {field.name for field in fields(Skipping)} - unset
        within = json.loads(
            Schedule.constant(None, skipping=Skipping(tolerance=0.1, max_skipped=3, by_picture=True)).to_json()
        )
        assert set(within["skipping"]) == {field.name for field in fields(Skipping)} - {"listed"}
        assert set(data["phases"][0]) == {field.name for field in fields(Phase)}
        written = data["phases"][0]["attention"]
        assert set(written) == {field.name for field in fields(SampledKeys)} | {"kind"}
        assert replace(SampledKeys(), **{k: v for k, v in written.items() if k != "kind"}) == schedule.attentions[0]
