"""Small evaluations for the tests: a tiny model on disk, a few captions, features that cost nothing."""

import os
import signal
import socket
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import make_tiny_pipe

from agentsd.evaluation import measures
from agentsd.evaluation.features import Extractor
from agentsd.evaluation.options import Options
from agentsd.evaluation.run import evaluate

CAPTIONS = ["a red ring", 'a "blue" <cross>', "a cat, asleep", "a green circle", "two dogs"]
SIDE = 32


def cheap_extractor(*args):
    """Return the means of the quarters of a picture: 12 features."""

    def quarters(pictures):
        half = pictures.shape[1] // 2
        parts = [pictures[:, y : y + half, x : x + half].mean(axis=(1, 2)) for y in (0, half) for x in (0, half)]
        return np.concatenate(parts, axis=1)

    return Extractor("quarters", 12, "fd_quarters", "none", "0", quarters)


def make_place(folder: Path) -> Path:
    """Write a tiny model, captions and reference pictures named as COCO's into a folder."""
    make_tiny_pipe().save_pretrained(folder / "model")
    rows = [f'{100 + i},"{text.replace(chr(34), 2 * chr(34))}"' for i, text in enumerate(CAPTIONS)]
    (folder / "captions.csv").write_text("image_id,caption\n" + "\n".join(rows) + "\n")
    (folder / "real").mkdir()
    draw = np.random.default_rng(0)
    for i in range(len(CAPTIONS)):
        pixels = draw.integers(0, 256, (40, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "real" / f"{100 + i:012d}.png")
    return folder


def options(place: Path, output: Path, **changes) -> Options:
    """Return options of a run of seconds: five prompts, two steps, batches of two."""
    given = dict(
        output=output,
        captions=str(place / "captions.csv"),
        reference=str(place / "real"),
        model=str(place / "model"),
        steps=2,
        batch=2,
        arms=("ours:preset=paper",),
        fewer_steps=(1,),
        mode="quality",
        resamples=40,
        device="cpu",
    )
    return Options(**{**given, **changes})


def pictures(folder: Path) -> dict[str, bytes]:
    """Return every picture of a run by its path in the run folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.glob("arms/*/*.png"))}


def same_results(one: Path, other: Path) -> None:
    """Check that two runs have the same pictures, figures and table, bit by bit."""
    assert pictures(one) == pictures(other) != {}
    for name in ("results.json", "per_image.csv", "table.md"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def whole_run(place: Path, output: Path) -> Path:
    """Run what nothing disturbs, with cheap features."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "make_extractor", cheap_extractor)
        evaluate(options(place, output))
    return output


def kill_self() -> None:
    """End this process as kill -9 would."""
    os.kill(os.getpid(), signal.SIGKILL)


def forked(*works) -> list[int]:
    """Run each work in a process of its own; return exit codes, negative for a signal, 1 for an exception."""
    children = []
    for work in works:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work()
                code = 0
            except BaseException as error:  # the parent sees the code; the text goes to the captured stderr
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


@contextmanager
def environment(**values):
    """Set environment variables while the context lasts."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, str(value))
        yield


def as_ranks(*works, world: int | None = None) -> list[int]:
    """Run the works as the processes of one gloo group, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def ranked(rank, work):
        def run():
            place = dict(RANK=rank, LOCAL_RANK=rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
            with environment(WORLD_SIZE=world or len(works), **place):
                work()

        return run

    return forked(*(ranked(rank, work) for rank, work in enumerate(works)))
