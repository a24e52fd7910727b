"""An evaluation from start to end: draw what is missing, measure, time, report; any part may be done already."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentsd.bench.store import read_json, write_json
from agentsd.evaluation import measures
from agentsd.evaluation.claims import choose_arms, claim_run
from agentsd.evaluation.manifest import digest
from agentsd.evaluation.measuring import figures_of, measure_missing
from agentsd.evaluation.missing import generate
from agentsd.evaluation.options import Options
from agentsd.evaluation.processes import process_group
from agentsd.evaluation.report import write_report
from agentsd.evaluation.results import SCHEMA_VERSION, arm_results, speed_figures
from agentsd.evaluation.session import Session
from agentsd.evaluation.stamps import stamps
from agentsd.evaluation.timing import LAYOUT, TimingPlan, time_arms

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What an evaluation wrote.

    Attributes:
        folder: The run folder.
        results: Content of `results.json`; `None` in processes other than the first.
    """

    folder: Path
    results: dict[str, Any] | None


def evaluate(options: Options) -> Outcome:
    """Evaluate stock, its control, the arms asked for, and stock of equal time; see `docs/evaluation.md`.

    May be stopped at any moment and started again, by as many processes as at first or others: finished pictures
    stay, and the results are the same.

    Args:
        options: What to evaluate.

    Returns:
        What was written.

    Raises:
        ValueError: If an option is bad, or the folder holds a run of other settings.
        UnfinishedError: If the disk is full or a process died; start again to go on.
    """
    with process_group(wait_hours=options.wait_hours) as group:
        session: Session = group.together(lambda: Session(options.completed(), group))
        claim_run(session)
        choose_arms(session)
        if options.mode != "timing":
            generate(session)
            measure_missing(session)
        if not group.first:
            return Outcome(options.output, None)
        timing = time_missing(session)
        return Outcome(options.output, report(session, timing))


def time_missing(session: Session) -> dict[str, Any]:
    """Time the arms in this process alone, or return the times that are there."""
    path = session.store.folder / "timing.json"
    key = digest(
        {"layout": LAYOUT, "config": session.config, "arms": {arm.name: arm.to_dict() for arm in session.arms}}
    )
    plan = TimingPlan(prompts=session.options.timing_prompts, batch=session.timed_batch)
    there = read_json(path) or {}
    known = there.get("of") == key
    if session.options.mode == "quality":
        return there if known else {}
    if known and there["prompts"] == plan.prompts and not session.options.retime:
        logger.info("times are there: %d batches of %d", plan.prompts, plan.batch)
        return there
    logger.info("timing %d arms, %d batches of %d in the order ABBA", len(session.arms), plan.prompts, plan.batch)
    session.drop_networks()
    timing = {"of": key} | time_arms(session.pipe, session.arms, session.draw_timed, plan)
    write_json(path, timing)
    return timing


def report(session: Session, timing: dict[str, Any]) -> dict[str, Any]:
    """Compute the figures and write every artefact."""
    rows, real = figures_of(session)
    arms: dict[str, Any] = {}
    for arm in session.arms:
        if rows:
            logger.info("figures of %s", arm.name)
            found = arm_results(
                arm,
                rows,
                real,
                session.extractor,
                resamples=session.options.resamples,
                seed=session.options.seed,
                to_stock=session.options.to_stock,
            )
        else:
            found = {"role": arm.role, "steps": arm.steps, "settings": arm.to_dict(), "metrics": {}}
        speed = speed_figures(timing, arm.name)
        arms[arm.name] = found | ({} if speed is None else {"speed": speed})
    about = session.about()
    reference = None if session.reference is None else session.reference.config | {"paired": session.reference.paired}
    results = {
        "schema_version": SCHEMA_VERSION,
        "benchmark": "evaluation",
        "protocol": session.options.protocol,
        "number": session.number,
        "manifest": {"sha256": digest(session.config), "config": session.config},
        "about": about,
        "stamps": stamps(session.number, session.extractor, reference, about, arms, session.no_faster),
        "extractor": None if session.extractor is None else measures.extractor_config(session.extractor),
        "clip": None if session.clip is None else session.clip.config,
        "reference": reference,
        "arms": arms,
        "timing": {name: value for name, value in timing.items() if name not in ("arms", "of")} or None,
    }
    for stale in (*session.store.folder.glob("pareto.*"), *session.store.folder.glob("grid-*.png")):
        stale.unlink()  # not every report has them, and an old one would look as if it belonged to it
    write_report(session.store, results, session.prompts, rows, timing, session.painter)
    return results
