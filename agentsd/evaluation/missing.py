"""Generate the pictures that are missing, each process its share."""

import logging
import time

import torch

from agentsd.bench.store import UnfinishedError
from agentsd.evaluation.progress import Progress
from agentsd.evaluation.session import Session

logger = logging.getLogger(__name__)


def generate(session: Session) -> None:
    """Draw what is missing in every process's folder, each process its share; the only exchange is at the ends."""
    missing = _missing_everywhere(session)
    session.group.together(lambda: _draw_missing(session, missing))
    store, number, names = session.store, session.number, [arm.name for arm in session.arms]
    lacking = sum(not store.picture_path(name, index).exists() for name in names for index in range(number))
    counts = session.group.gather(lacking)
    if any(counts):
        raise UnfinishedError(
            f"The pictures are generated, but the folders of the processes lack {counts} of "
            f"{number * len(names)}: they do not share output={str(store.folder)!r}. Copy the other "
            "machines' folders beside it and start once more on one of them with --merge FOLDER ..."
        )


def _missing_everywhere(session: Session) -> dict[str, set[int]]:
    began = time.monotonic()
    mine = {
        arm.name: {
            index
            for index in range(session.number)
            if not session.store.is_complete(arm.name, index, session.record(arm, index), session.painter.size)
        }
        for arm in session.arms
    }
    everyone = session.group.gather(mine)
    missing = {name: set.intersection(*(one[name] for one in everyone)) for name in mine}
    left = sum(map(len, missing.values()))
    logger.info(
        "%d of %d pictures are there (checked in %.0f s)",
        session.number * len(session.arms) - left, session.number * len(session.arms), time.monotonic() - began,
    )  # fmt: skip
    return missing


def _draw_missing(session: Session, missing: dict[str, set[int]]) -> None:
    # Whole batches at fixed places: a picture sees the same batch whoever draws it and however often a run was
    # killed, so not even its rounding depends on that.
    batch = session.options.batch
    blocks = [range(start, min(start + batch, session.number)) for start in range(0, session.number, batch)]
    tasks = [(arm, block) for arm in session.arms for block in blocks if not missing[arm.name].isdisjoint(block)]
    tasks = tasks[session.group.rank :: session.group.world]
    progress = Progress(f"process {session.group.rank}: batches generated", last=True)
    for done, (arm, block) in enumerate(tasks, 1):
        try:
            with torch.inference_mode(), arm.enter(session.pipe):
                pictures = session.painter.draw(arm, block)
        except torch.OutOfMemoryError as error:
            raise ValueError(f"batch={batch} does not fit into the device's memory; lower it: {error}.") from error
        for index, one in zip(block, pictures, strict=True):
            if index in missing[arm.name]:
                session.store.write_picture(arm.name, index, one.picture, one.latent, session.record(arm, index))
        progress(done, len(tasks))
