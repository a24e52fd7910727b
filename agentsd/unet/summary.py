"""A report in at most eight lines: what is patched, what the schedule does, what the last run did, what went wrong."""

from collections import Counter
from collections.abc import Callable
from itertools import groupby
from typing import TYPE_CHECKING

from agentsd.presets import PRESETS
from agentsd.schedule import Phase, Schedule
from agentsd.unet.controller import FEWEST_CALLS
from agentsd.unet.denoisers import SECOND

if TYPE_CHECKING:
    from agentsd.unet.report import Report

_MOST_LINES = 8


def summary(report: "Report") -> list[str]:
    """Return a report in at most eight lines.

    Example:
        >>> with agentsd.apply(unet, "fast") as patch:
        ...     summary(patch.report())[0]
        'agentsd on UNet2DConditionModel: preset fast'
    """
    lines = [f"agentsd on {report.target}: {title(report.schedule)}"]
    if not report.active:
        lines[0] += f"; NOT IN FORCE: {report.inactive_reason}; this was its last state"
    lines.append(f"  steps: {steps_in_words(report.schedule)}")
    lines.append(f"  attention: {_attention(report)}")
    if report.schedule.skips_guidance:
        first, last = report.schedule.guidance_interval
        lines.append(f"  guidance from {first:.0%} to {last:.0%} of the run only")
    lines += _last_run(report)
    problems = _problems(report)
    room = _MOST_LINES - 1 - len(lines)  # the hint is the last line
    if len(problems) > room:
        problems = [*problems[: room - 1], f"and more problems ({len(problems) - room + 1}): see the details"]
    lines += [f"  {problem}" for problem in problems]
    if report.layers:
        lines.append("  report.details() lists the layers")
    return lines


def title(schedule: Schedule) -> str:
    """Return the name of a schedule: that of a preset, or what it is.

    Example:
        >>> title(agentsd.preset("fast")), title(Schedule.constant(None))
        ('preset fast', 'a schedule of one phase')
    """
    for name, preset in PRESETS.items():
        if schedule == preset:
            return f"preset {name}"
    number = len(schedule.phases)
    return f"a schedule of {'one phase' if number == 1 else f'{number} phases'}"


def steps_in_words(schedule: Schedule) -> str:
    """Return which steps a schedule skips, in words.

    Example:
        >>> steps_in_words(Schedule((Phase(0.5, None, 4), Phase(1.0, None, 2))))
        'full every 4 until 50%, every 2 until the end, and at the last; no layer runs at the others'
    """
    skipping = schedule.skipping
    if skipping.tolerance is not None:
        limit = f"{skipping.tolerance:g}"
        whose = ", for each picture by itself" if skipping.by_picture else ""
        return f"skipped while the relative error of the final latent is predicted to stay within {limit}{whose}"
    if skipping.listed is not None:
        return f"{len(skipping.listed.full)} of {skipping.listed.calls} listed as full, for one solver's noise levels"
    if not schedule.skips_steps:
        return "none is skipped"
    parts = [f"{_every(phase)} until {_end(phase)}" for phase in _last_of_each(schedule, lambda phase: phase.every)]
    last = ", and at the last" if skipping.last_full else ""
    between = f"the last {skipping.depth} layers run" if skipping.depth > 1 else "the last layer runs"
    return f"full {', '.join(parts)}{last}; {between if skipping.depth else 'no layer runs'} at the others"


def _every(phase: Phase) -> str:
    return "at each step" if phase.every == 1 else f"every {phase.every}"


def _end(phase: Phase) -> str:
    return "the end" if phase.until == 1 else f"{phase.until:.0%}"


def _last_of_each(schedule: Schedule, key: Callable[[Phase], object]) -> list[Phase]:
    return [list(group)[-1] for _, group in groupby(schedule.phases, key)]


def _attention(report: "Report") -> str:
    from agentsd.unet.report import attention_in_words, stays_stock

    schedule, planned = report.schedule, dict(report.planned_stock)
    unpatched = "" if report.layers else f" (skipping alone: the layers of {report.target} are not patched)"
    if not schedule.attentions:
        return f"stock{unpatched}"
    changed = [
        layer
        for layer in report.layers
        if any(not stays_stock(layer, one, planned.get(one, frozenset())) for one in schedule.attentions)
    ]
    parts = [
        f"{attention_in_words(phase.attention)} until {_end(phase)}"
        for phase in _last_of_each(schedule, lambda phase: phase.attention)
    ]
    if len(parts) == 1:
        parts = [parts[0].removesuffix(" until the end")]
    return f"{', then '.join(parts)}; in {len(changed)} of {len(report.layers)} layers, seed {report.seed}"


def _last_run(report: "Report") -> list[str]:
    run = report.last_run
    if run is None:
        return ["  last run: none yet"]
    total = run.steps
    if run.full == total and total < FEWEST_CALLS and report.schedule.skipping.tolerance is not None:
        return [f"  last run: {total} steps, all full; below {FEWEST_CALLS} steps nothing is skipped"]
    lines = [f"  last run: {run}"]
    if run.full_seconds is not None and run.skipped_seconds is not None:
        took = run.calls * run.full_seconds + (total - run.calls) * run.skipped_seconds
        saved = total * run.full_seconds / took
        lines.append(
            f"  time: a full step took {run.full_seconds:.3g} s, a skipped one {run.skipped_seconds:.2g} s: "
            f"{saved:.1f}x faster than {total} full steps"
        )
    return lines


def _problems(report: "Report") -> list[str]:
    found = []
    if report.skipping_problem:
        found.append(f"problem: steps not skipped: {report.skipping_problem}")
    if report.noise_problem:
        found.append(f"skipped steps run the last layer: {report.noise_problem}")
    if report.guidance_problem:
        found.append(f"problem: guidance not left out: {report.guidance_problem}")
    if report.batch_problem:
        found.append(f"problem: steps not chosen by picture: {report.batch_problem}")
    found += [f"not patched: {name}, {reason}" for name, reason in report.skipped if name == SECOND]
    counts = Counter(layer.problem for layer in report.layers if layer.problem)
    found += [f"problem at {number} of {len(report.layers)} layers: {problem}" for problem, number in counts.items()]
    return found
