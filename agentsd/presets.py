"""Named schedules: the published one and those we recommend."""

from types import MappingProxyType

from agentsd.schedule import AgentConfig, Phase, Schedule

DEFAULT_PRESET = "balanced"

_PAPER = Schedule(
    (
        Phase(0.4, AgentConfig(merge_ratio=0.4, agent_ratio=0.95, stride=4)),
        Phase(1.0, AgentConfig(merge_ratio=0.4, agent_ratio=None, stride=2)),
    )
)

# At 64x64 tokens (512x512 pixels of SD 1.5): 1024, 256 or 64 agents.
_SAMPLED_2 = AgentConfig(agents="sample", stride=2, min_agents=64, max_agents=1024)
_SAMPLED_4 = AgentConfig(agents="sample", stride=4, min_agents=64, max_agents=256)
_SAMPLED_8 = AgentConfig(agents="sample", stride=8, min_agents=64, max_agents=256)


def _reusing(config: AgentConfig, *stretches: tuple[float, int]) -> Schedule:
    # Whole steps are few at first, where what is reused does least harm, more and more later, and one is the last.
    # What is reused is the prediction: at equal time more whole steps are worth more than layers run between them.
    phases = tuple(Phase(until, config, reuse) for until, reuse in stretches)
    return Schedule(phases, reuse_depth=0, reuse_forecast=0.2, last_full=True)


PRESETS = MappingProxyType(
    {
        "paper": _PAPER,
        # Few agents early leave next to no trace in the picture; its error is that of the last quarter.
        "gentle": Schedule((Phase(0.75, _SAMPLED_8), Phase(1.0, _SAMPLED_2))),
        "quality": _reusing(_SAMPLED_4, (0.25, 5), (0.75, 2), (1.0, 1)),
        "balanced": _reusing(_SAMPLED_4, (0.25, 5), (1.0, 2)),
        "fast": _reusing(_SAMPLED_8, (0.25, 5), (0.5, 4), (0.8, 3), (1.0, 2)),
        "extreme": _reusing(_SAMPLED_8, (0.25, 6), (0.5, 5), (0.75, 4), (1.0, 3)),
    }
)

# Our presets from the gentlest to the fastest: what `plan(target_speedup=...)` chooses from.
FRONT = ("gentle", "quality", "balanced", "fast", "extreme")


def preset_schedule(name: str = DEFAULT_PRESET, ratio: float | None = None) -> Schedule:
    """Return the schedule of a preset, with its merge ratio replaced if `ratio` is given.

    `"paper"` is the published setting (Han et al., ECCV 2024, https://arxiv.org/abs/2312.08874, Stable Diffusion
    section): agents in the first 40% of the steps, merging alone after; its table is `ratio` 0.1 to 0.5.

    Args:
        name: One of `PRESETS`.
        ratio: Share of tokens merged before attention, in [0, 1), or `None` for the preset's own.

    Returns:
        The schedule.

    Raises:
        ValueError: If the preset is unknown or the ratio does not fit it.

    Example:
        >>> preset_schedule("paper", 0.2).at(0, 50).merge_ratio
        0.2
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"preset={name!r} is unknown; choose one of {', '.join(sorted(PRESETS))}.")
    schedule = PRESETS[name]
    return schedule if ratio is None else with_ratio(schedule, ratio, f"preset={name!r}")


def with_ratio(schedule: Schedule, ratio: float, whose: str) -> Schedule:
    """Return a schedule with another merge ratio, with errors that name what the user gave.

    Args:
        schedule: The schedule.
        ratio: Share of tokens merged before attention, in [0, 1).
        whose: What the schedule is called in an error.

    Raises:
        ValueError: If the ratio is no such share or does not fit the schedule.

    Example:
        >>> with_ratio(PRESETS["paper"], 0.2, "the schedule").at(0, 50).merge_ratio
        0.2
    """
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        named = f"; a preset is named by preset={ratio!r}" if isinstance(ratio, str) and ratio in PRESETS else ""
        raise ValueError(f"ratio={ratio!r} must be a number in [0, 1), the share of tokens merged{named}.")
    try:
        return schedule.with_merge_ratio(ratio)
    except ValueError as error:
        remedy = (
            "part of the run merges and does nothing else, so that nothing would be left; give a ratio above 0, or "
            "schedule= with None in that part"
            if ratio == 0
            else "too few features would be left for the agents to pay; give a lower ratio"
        )
        raise ValueError(f"ratio={ratio!r} does not fit {whose}: {remedy}.") from error
