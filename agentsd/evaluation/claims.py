"""Who owns a run folder: processes, folders and arms must agree on what is generated."""

import logging
from functools import partial
from typing import Any

from agentsd.bench.store import read_json, write_bytes, write_json
from agentsd.evaluation import measures
from agentsd.evaluation.arms import no_faster, with_equal_time
from agentsd.evaluation.manifest import claim, differing, digest, listed
from agentsd.evaluation.session import Session
from agentsd.evaluation.store import Store
from agentsd.evaluation.timing import equal_time_steps
from agentsd.system.writing import sweep

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


def claim_run(session: Session) -> None:
    """Check that all processes and the folder agree on what is generated; take over other folders."""
    mine = _agreed(session)
    for rank, other in enumerate(session.group.gather(mine)):
        keys = differing(mine, other)
        if keys:
            raise ValueError(
                f"process {rank} differs from process {session.group.rank} in {listed(keys, 'here', 'there')}; give "
                "all processes the same options, weights and versions."
            )
    session.group.together(partial(_claim_folder, session))
    session.group.together(lambda: _merge(session) if session.group.first else None)


def _agreed(session: Session) -> dict[str, Any]:
    """Return what all processes must share: they take parts of one list of work."""
    return session.config | {
        "mode": session.options.mode,
        "arm": {arm.name: arm.to_dict() for arm in session.arms},
        "fewer_steps": list(session.options.fewer_steps),
        "attributes": session.demo_captions,
        "reference": None if session.reference is None else session.reference.config,
        "features": None if session.extractor is None else measures.extractor_config(session.extractor),
        "clip": None if session.clip is None else session.clip.config,
    }


def _claim_folder(session: Session) -> None:
    claim(session.store.folder / MANIFEST, session.config, session.about())
    swept = sweep(session.store.folder)
    if swept:
        logger.info("removed %d partial files of a run that was killed", swept)


def _merge(session: Session) -> None:
    for folder in session.options.merge:
        manifest = read_json(folder / MANIFEST)
        if manifest is None:
            raise ValueError(f"merge={str(folder)!r} holds no {MANIFEST}; give the run folder of another machine.")
        keys = differing(session.config, manifest.get("config", {}))
        if keys:
            raise ValueError(f"merge={str(folder)!r} was made with other settings: {', '.join(keys)} differ.")
        for arm in session.arms:  # before any file of it lies in our folder
            said = read_json(Store(folder).arm_folder(arm.name) / "arm.json") or {}
            keys = differing(said.get("config", {}), session.arm_config(arm)) if said else {}
            if keys:
                raise ValueError(
                    f"merge={str(folder)!r} has another arm {arm.name!r} ({listed(keys, 'there', 'here')}); give that "
                    "arm, or another name to yours."
                )
        taken = 0
        for source in sorted((folder / "arms").rglob("*.*")):
            target = session.store.folder / source.relative_to(folder)
            # Latents sort after pictures; a picture counts only with its latents, so a kill between is repaired.
            if source.suffix in (".png", ".npz", ".json") and not source.name.startswith(".") and not target.exists():
                write_bytes(target, source.read_bytes())
                taken += 1
        steps = folder / "equal_time.json"
        if steps.exists() and not (session.store.folder / steps.name).exists():
            write_json(session.store.folder / steps.name, read_json(steps) or {})
        logger.info("took %d files over from %s", taken, folder)


def choose_arms(session: Session) -> None:
    """Add the arms of equal time, and check each arm's folder."""
    fewer = session.group.share(session.group.together(lambda: _fewer_steps(session) if session.group.first else {}))
    session.no_faster = no_faster(session.arms, fewer)
    session.arms = with_equal_time(session.arms, fewer)
    if session.options.mode != "timing":
        session.group.together(partial(_claim_arms, session))


def _claim_arms(session: Session) -> None:
    for arm in session.arms:
        claim(session.arm_path(arm), session.arm_config(arm))


def _fewer_steps(session: Session) -> dict[int, list[str]]:
    candidates = [arm for arm in session.arms if arm.role == "candidate"]
    if session.options.fewer_steps:
        return {fewer: [] for fewer in session.options.fewer_steps if fewer}
    # Kept: a second start must not draw other arms because the machine was busier.
    path = session.store.folder / "equal_time.json"
    known: dict[str, int] = read_json(path) or {}
    names = {arm.name: digest(arm.to_dict()) for arm in candidates}
    unknown = [arm for arm in candidates if names[arm.name] not in known]
    if unknown:
        logger.info("measuring how many steps of stock take the time of %s", ", ".join(arm.name for arm in unknown))
        steps = equal_time_steps(session.pipe, [session.arms[0], *unknown], session.draw_timed, session.timed_batch)
        known |= {names[name]: fewer for name, fewer in steps.items()}
        write_json(path, known)
    found: dict[int, list[str]] = {}
    for name, key in names.items():
        found.setdefault(known[key], []).append(name)
    return found
