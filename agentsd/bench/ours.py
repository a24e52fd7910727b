"""Arms of ours: a schedule applied, and rankings that were tried."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from agentsd.bench.arm import Arm, RunArm, as_run
from agentsd.bench.currency import facts_of
from agentsd.bench.rankings import Ranker, ranked_by
from agentsd.patch import apply
from agentsd.schedule import Schedule


def agent_arm(schedule: Schedule) -> Arm:
    """Return the arm that applies a schedule of ours."""
    cycle = max(phase.every for phase in schedule.phases)
    return Arm(lambda pipe: apply(pipe, schedule), cycle, _settings(schedule))


def ranking_arm(schedule: Schedule, ranker: Callable[[], Ranker]) -> Arm:
    """Return the arm that applies a schedule of ours, with rankings by another way than the published."""

    @contextmanager
    def enter(pipe: Any) -> Iterator[None]:
        with apply(pipe, schedule), ranked_by(pipe.unet, ranker()):
            yield

    return Arm(enter, settings=_settings(schedule))


def run_arm(schedule: Schedule) -> RunArm:
    """Return the arm that applies a schedule of ours to whole runs."""
    return as_run(agent_arm(schedule))


def _settings(schedule: Schedule) -> str:
    facts = facts_of(schedule)
    return f"rules {facts['rules']} {facts['settings']}" if "rules" in facts else str(facts["settings"])
