"""Where a thread's calls stand in their runs, and which scheduler drives them."""

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from agentsd.unet.callers import calling_scheduler, calling_step
from agentsd.unet.steps import Position, StepReader, shares_memory
from agentsd.unet.transforms import in_transform


class Progress:
    """The runs of one thread on a denoiser.

    Args:
        pipes: Pipelines that are known to use the denoiser.

    Example:
        >>> pipe.scheduler.set_timesteps(2)
        >>> progress = Progress([])
        >>> progress.position(pipe.scheduler.timesteps[0]).total
        2
        >>> progress.scheduler() is pipe.scheduler
        True
    """

    def __init__(self, pipes: Any) -> None:
        self.reader = StepReader()
        self.number: int | None = None  # of the run in progress
        self._pipes = pipes
        self._found: weakref.WeakSet[Any] = weakref.WeakSet()  # schedulers of pipelines that are not known
        self._looked: set[int | None] = set()  # runs whose scheduler was looked for

    def step_of(self, timestep: object) -> object:
        """Return the step of the scheduler that a timestep was computed from; the timestep itself if none is found.

        Example:
            >>> pipe.scheduler.set_timesteps(2)
            >>> t = pipe.scheduler.timesteps[1]
            >>> Progress([pipe]).step_of(t / 1000) is t
            True
        """
        if in_transform():
            return timestep
        schedulers = self._schedulers()
        if isinstance(timestep, Tensor) and any(shares_memory(timestep, steps) for steps in _timesteps(schedulers)):
            return timestep
        found = calling_step(schedulers)
        if found is None:
            return timestep
        if not any(found[1] is one for one in schedulers):
            self._found.add(found[1])
        return found[0]

    def position(self, timestep: object) -> Position | None:
        """Return the position of a call in its run, or `None` if it cannot be known; remember its scheduler."""
        position = self._read(timestep)
        self.number = None if position is None else position.run
        if not isinstance(timestep, Tensor) or in_transform() or _stands_alone(timestep):
            return position
        if self.scheduler() is None and (self.number is None or self.number not in self._looked):
            found = calling_scheduler(timestep)  # of a pipeline that apply does not know, or of a user's own loop
            if found is not None:
                self._found.add(found)
                position = self._read(timestep)
                self.number = None if position is None else position.run
            self._looked = {self.number, *self._looked} & set(self.reader.runs)
        if self.scheduler() is None and self.reader.enters_late(self.number):
            # It may be any part of a longer tensor, and its index says nothing.
            self.number = None
            return self._read(float(timestep.flatten()[0]))
        return position

    def outlook(self, timestep: object) -> Position | None:
        """Return the position of a call that is still to come.

        Of equal steps in a row (Heun, PNDM) each call is the next; this one does not count.
        """
        reader, number = self.reader, self.number
        self.reader = reader.copy()
        try:
            return self.position(timestep)
        finally:
            self.reader, self.number = reader, number

    def _read(self, timestep: object) -> Position | None:
        schedulers = self._schedulers()
        timesteps = _timesteps(schedulers)
        trained = next((int(getattr(one.config, "num_train_timesteps", 1000)) for one in schedulers), 1000)
        position: Position | None = self.reader.read(timestep, timesteps, train_steps=trained)
        return position

    def _schedulers(self) -> list[Any]:
        # Read live, at every call: users swap schedulers.
        mine = [pipe.scheduler for pipe in list(self._pipes) if getattr(pipe, "scheduler", None) is not None]
        return [*mine, *(one for one in list(self._found) if not any(one is other for other in mine))]

    def scheduler(self) -> Any:
        """Return the scheduler of the run in progress; `None` if it is not known."""
        number = self.number
        mine: Tensor | None = None if number is None else self.reader.timesteps_of(number)
        if mine is None:
            return None
        for scheduler in self._schedulers():
            timesteps = getattr(scheduler, "timesteps", None)
            if isinstance(timesteps, Tensor) and shares_memory(timesteps, mine):
                return scheduler
        return None


def _timesteps(schedulers: Iterable[Any]) -> list[Tensor]:
    return [steps for one in schedulers if isinstance(steps := getattr(one, "timesteps", None), Tensor)]


def _stands_alone(timestep: Tensor) -> bool:
    """Return whether a timestep is no view of a longer tensor; it leads to no scheduler then."""
    return timestep.untyped_storage().nbytes() <= timestep.element_size()
