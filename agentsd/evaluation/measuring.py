"""Measures of a run: taken where they are missing, and read back for the figures."""

import logging
from functools import partial
from typing import Any

from agentsd.bench.store import UnfinishedError, read_json
from agentsd.evaluation import measures
from agentsd.evaluation.arms import STOCK, EvaluationArm
from agentsd.evaluation.manifest import digest
from agentsd.evaluation.real import Real
from agentsd.evaluation.results import Rows
from agentsd.evaluation.session import Session

logger = logging.getLogger(__name__)

_REAL = "real"


def _kinds(session: Session) -> dict[str, tuple[str, measures.Measure]]:
    """Return what is measured on the arms' pictures: field of `Rows` or group to kind and measure."""
    found = {"likeness": (measures.LIKENESS, measures.likeness(session.store))}
    if session.lpips is not None:
        found["lpips"] = (measures.LPIPS, measures.lpips_measure(session.store, session.lpips))
    if session.extractor is not None:
        found["features"] = (
            measures.feature_kind(session.extractor),
            measures.feature_measure(session.store, session.extractor),
        )
    if session.clip is not None:
        found["clip"] = (session.clip.kind, measures.clip_measure(session.store, session.clip, session.prompts))
    if session.demo_captions:
        found["attributes"] = (measures.ATTRIBUTES, measures.attribute_measure(session.store, session.prompts))
    return found


def measure_missing(session: Session) -> None:
    """Measure what is not measured yet, each process its share."""
    kinds = _kinds(session)
    wanted = [(arm.name, *kind) for arm in session.arms for name, kind in kinds.items() if _applies(arm, name)]

    def work() -> None:
        share = partial(measures.measure_all, rank=session.group.rank, world=session.group.world)
        share(session.store, wanted, session.number)
        if session.reference is not None and session.extractor is not None and session.reference.number:
            reference, extractor = session.reference, session.extractor
            real = [(_REAL, measures.feature_kind(extractor), measures.reference_measure(reference, extractor))]
            share(session.reference_store, real, reference.number)

    session.group.together(work)


def _applies(arm: EvaluationArm, kind: str) -> bool:
    return kind not in ("likeness", "lpips") or arm.name != STOCK


def _rows(session: Session) -> dict[str, Rows]:
    kinds = _kinds(session)
    rows = {}
    for arm in session.arms:
        found: dict[str, Any] = {}
        for name, (kind, _) in kinds.items():
            if _applies(arm, name):
                found |= measures.read_all(session.store, arm.name, kind, session.number)
        rows[arm.name] = Rows(**found)
    return rows


def _real(session: Session) -> Real | None:
    if session.reference is None or session.extractor is None:
        return None
    if session.reference.moments is not None:
        return Real(moments=session.reference.moments, folder=session.reference_store.folder / "draws")
    features = measures.read_all(
        session.reference_store, _REAL, measures.feature_kind(session.extractor), session.reference.number
    )
    folder = session.reference_store.folder / "draws"
    return Real(features=features["features"], paired=session.reference.paired, folder=folder)


def figures_of(session: Session) -> tuple[dict[str, Rows], Real | None]:
    """Return all measures; none if times alone are taken and they are not all there."""
    if session.options.mode != "timing":
        return _rows(session), _real(session)
    try:
        if not session.store.has_measures:
            raise UnfinishedError("nothing was measured")
        for arm in session.arms:
            said = read_json(session.arm_path(arm)) or {}
            if said.get("sha256") != digest(session.arm_config(arm)):
                raise UnfinishedError(f"arm {arm.name!r} was not generated with these settings")
            if not all(session.store.picture_path(arm.name, index).exists() for index in range(session.number)):
                raise UnfinishedError(f"arm {arm.name!r} lacks pictures")
        return _rows(session), _real(session)
    except UnfinishedError as reason:
        logger.info("times only, without figures of pictures: %s", reason)
        session.reference = session.extractor = session.clip = session.lpips = None
        return {}, None
