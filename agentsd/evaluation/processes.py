"""Several processes on one or more machines, as torchrun or accelerate starts them; few and small exchanges."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from agentsd.bench.store import UnfinishedError

logger = logging.getLogger(__name__)

T = TypeVar("T")
_LAUNCHER = "start the processes with torchrun or accelerate launch, which set it"


@dataclass(frozen=True)
class Group:
    """This process among `world`; every exchange must be reached by all of them."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes what belongs to all."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return the value of every process, by rank.

        Raises:
            UnfinishedError: If another process has died.

        Example:
            >>> Group().gather(3)
            [3]
        """
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        try:
            dist.all_gather_object(values, value)
        except RuntimeError as error:
            raise UnfinishedError(
                f"Another of the {self.world} processes died or did not answer (this is process {self.rank}; its own "
                "messages say why). Every finished picture is kept: start the same command again, with as many "
                f"processes as you like. ({str(error).splitlines()[0]})"
            ) from error
        return values

    def share(self, value: T) -> T:
        """Return what process 0 has; raises UnfinishedError if another process has died."""
        return self.gather(value)[0]

    def together(self, work: Callable[[], T]) -> T:
        """Do work that may fail in any process, wait for all, and fail in all if it failed in one.

        Args:
            work: What to do here.

        Returns:
            What the work of this process returned.

        Raises:
            ValueError: If a process found bad input.
            UnfinishedError: If the work stopped in a process, or another process has died.

        Example:
            >>> Group().together(lambda: 2 + 2)
            4
        """
        result, failure = None, None
        try:
            result = work()
        except (ValueError, UnfinishedError, OSError, MemoryError, RuntimeError) as error:
            failure = error
            if self.world > 1:  # at once: the others may take hours until they hear of it
                logger.error("process %d of %d: %s", self.rank, self.world, error)
        reports = self.gather(None if failure is None else (isinstance(failure, ValueError), str(failure)))
        if failure is not None:
            raise failure
        failed = [(rank, report) for rank, report in enumerate(reports) if report is not None]
        if failed:
            rank, (bad_input, message) = failed[0]
            raise (ValueError if bad_input else UnfinishedError)(f"process {rank} of {self.world}: {message}")
        return result  # type: ignore[return-value]  # work has returned


@contextmanager
def process_group(*, wait_hours: float = 24.0) -> Iterator[Group]:
    """Join the processes that torchrun or accelerate started; alone if there is no such launcher.

    The exchanges go through gloo on the CPU, whatever the device: they are few, and a GPU that is busy or lost
    cannot block them. accelerate's own state is not used: on a machine without GPU it takes every process for the
    only one.

    Args:
        wait_hours: How long a process waits for the slowest one.

    Yields:
        This process's place.

    Raises:
        ValueError: If the environment describes the processes only in part.
        UnfinishedError: If the processes do not find each other.

    Example:
        >>> with process_group() as group:
        ...     group.world
        1
    """
    place = {name: _whole_number(name, default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1))}
    rank, world = place["RANK"], place["WORLD_SIZE"]
    if not 0 <= rank < world:
        raise ValueError(f"RANK={rank} must lie below WORLD_SIZE={world}; {_LAUNCHER}.")
    if world == 1:
        yield Group()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE={world} is set but {', '.join(missing)} is not; {_LAUNCHER}, or unset WORLD_SIZE."
        )
    try:
        dist.init_process_group("gloo", timeout=timedelta(hours=wait_hours))
    except (RuntimeError, ValueError) as error:
        raise UnfinishedError(
            f"The {world} processes did not find each other at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']}: {str(error).splitlines()[0]}. Is the address right and the port free?"
        ) from error
    try:
        yield Group(rank, world, _whole_number("LOCAL_RANK", rank))
    finally:
        # Left to the interpreter's end, gloo's threads may abort the process.
        dist.destroy_process_group()


def _whole_number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise ValueError(f"{name}={text!r} must be a whole number; {_LAUNCHER}.")
    return int(text)
