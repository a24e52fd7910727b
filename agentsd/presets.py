"""Named schedules: the published one and those we recommend."""

from difflib import get_close_matches
from types import MappingProxyType

from agentsd.attention.settings import Attention, MergedTokens, SampledKeys
from agentsd.schedule import Phase, Schedule, Skipping

# The published setting (Han et al., ECCV 2024, https://arxiv.org/abs/2312.08874, section on Stable Diffusion): agents
# in the first 40% of the steps, then merging alone. Its table varies merge_ratio from 0.1 to 0.5.
_PAPER = Schedule(
    (
        Phase(0.4, MergedTokens(merge_ratio=0.4, agent_ratio=0.95, stride=4)),
        Phase(1.0, MergedTokens(merge_ratio=0.4, agent_ratio=None, stride=2)),
    )
)

# At 64x64 tokens (512x512 pixels of SD 1.5): 1024 or 64 keys.
_SAMPLED_2 = SampledKeys(stride=2, min_keys=64, max_keys=1024)
_SAMPLED_8 = SampledKeys(stride=8, min_keys=64, max_keys=256)


def _within(tolerance: float) -> Schedule:
    # Attention stays stock: whether other attention saves time depends on the device (`agentsd.plan` measures it), and
    # `preset(...).with_attention(...)` adds it.
    return Schedule.constant(None, skipping=Skipping(tolerance=tolerance))


PRESETS = MappingProxyType(
    {
        "paper": _PAPER,
        # Few keys early leave next to no trace in the picture; its error is that of the last quarter.
        "gentle": Schedule((Phase(0.75, _SAMPLED_8), Phase(1.0, _SAMPLED_2))),
        "quality": _within(0.015),
        "balanced": _within(0.03),
        "fast": _within(0.06),
        "extreme": _within(0.12),
    }
)

# Our presets from the gentlest to the fastest: `plan(target_speedup=...)` chooses among them.
BY_SPEED = ("gentle", "quality", "balanced", "fast", "extreme")


def preset(name: str = "balanced") -> Schedule:
    """Return the schedule of a preset.

    Args:
        name: One of `agentsd.PRESETS`: `"paper"` is the published method, the others are ours.

    Returns:
        The schedule; change it with `with_tolerance`, `with_skipping`, `with_attention` and `dataclasses.replace`.

    Raises:
        ValueError: If there is no such preset.

    Example:
        >>> preset("balanced").skipping.tolerance
        0.03
    """
    if isinstance(name, str) and name in PRESETS:
        return PRESETS[name]
    close = get_close_matches(name.lower(), PRESETS, n=1) if isinstance(name, str) else []
    hint = f"Did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"preset {name!r} is unknown. {hint}The presets are {', '.join(PRESETS)}.")


def name_of(schedule: Schedule) -> str:
    """Return the name of the preset that a schedule equals, or its JSON.

    Example:
        >>> name_of(preset("fast"))
        'fast'
    """
    return next((name for name, known in PRESETS.items() if known == schedule), None) or schedule.to_json()


def as_schedule(schedule: object, ratio: float | None = None) -> Schedule:
    """Return the schedule that the arguments `schedule` and `ratio` of `agentsd.apply` mean.

    Args:
        schedule: A preset's name, a `Schedule` or settings of self-attention.
        ratio: Merge ratio of the preset `"paper"`; `schedule` is then `"paper"` or left at its default.

    Returns:
        The schedule.

    Raises:
        ValueError: If an argument is of another kind or out of range, or the two contradict each other.

    Example:
        >>> as_schedule("balanced", 0.2) == preset("paper").with_merge_ratio(0.2)
        True
    """
    if ratio is not None:
        if schedule not in ("balanced", "paper"):
            raise ValueError(
                f"ratio={ratio!r} is the merge ratio of the published method and does not go with "
                f"schedule={schedule!r}. Leave schedule out, or use schedule.with_merge_ratio({ratio!r}) on a schedule "
                "that merges tokens."
            )
        return with_ratio(PRESETS["paper"], ratio, "the preset 'paper'")
    if isinstance(schedule, Schedule):
        return schedule
    if isinstance(schedule, Attention):
        return Schedule.constant(schedule)
    if isinstance(schedule, str):
        return preset(schedule)
    if isinstance(schedule, int | float) and not isinstance(schedule, bool):
        raise ValueError(
            f"schedule={schedule!r} is a number. For the published method with that merge ratio write "
            f"ratio={schedule!r}, as in agentsd.apply(pipe, ratio={schedule!r})."
        )
    if isinstance(schedule, list | tuple) and schedule and all(isinstance(one, Phase) for one in schedule):
        raise ValueError(f"schedule={schedule!r} holds phases; write agentsd.Schedule(phases).")
    if isinstance(getattr(schedule, "schedule", None), Schedule):
        raise ValueError(f"schedule is a {type(schedule).__name__}, which holds one; give its attribute .schedule.")
    raise ValueError(
        f"schedule={schedule!r} must be the name of a preset ({', '.join(PRESETS)}), a Schedule, a Plan, or settings: "
        "MergedTokens, PooledAgents or SampledKeys."
    )


def with_tolerance(given: object, schedule: Schedule, tolerance: float, ratio: float | None) -> Schedule:
    """Return a schedule with another tolerance, with errors that name the user's arguments.

    Args:
        given: What the user gave as schedule.
        schedule: The schedule that it means.
        tolerance: Relative error of the final latent, in (0, 1].
        ratio: The user's merge ratio.

    Raises:
        ValueError: If the tolerance lies outside (0, 1], or the schedule has fixed full steps.

    Example:
        >>> with_tolerance("fast", preset("fast"), 0.05, None).skipping.tolerance
        0.05
    """
    if ratio is None and schedule.skips_steps and schedule.skipping.tolerance is None:
        raise ValueError(
            f"tolerance={tolerance!r} does not go with schedule={given!r}, whose full steps are fixed; use "
            f"schedule.with_tolerance({tolerance!r})."
        )
    return schedule.with_tolerance(tolerance)


def with_ratio(schedule: Schedule, ratio: float, whose: str) -> Schedule:
    """Return a schedule with another merge ratio, with errors that name the user's argument.

    Args:
        schedule: The schedule.
        ratio: Share of tokens merged before attention, in [0, 1).
        whose: What errors call the schedule.

    Raises:
        ValueError: If the ratio is not such a share or does not fit the schedule.

    Example:
        >>> with_ratio(PRESETS["paper"], 0.2, "the schedule").at(0, 50).merge_ratio
        0.2
    """
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        raise ValueError(f"ratio={ratio!r} must be a number in [0, 1), the share of tokens merged.")
    if not any(isinstance(attention, MergedTokens) for attention in schedule.attentions):
        raise ValueError(f"ratio={ratio!r} does not fit {whose}: no phase merges tokens. Use the preset 'paper'.")
    try:
        return schedule.with_merge_ratio(ratio)
    except ValueError as error:
        remedy = (
            "part of the run merges tokens and does nothing else; give a ratio above 0, or a schedule with None in "
            "that part"
            if ratio == 0
            else "too few tokens would be left for agents to save time; give a lower ratio"
        )
        raise ValueError(f"ratio={ratio!r} does not fit {whose}: {remedy}.") from error
