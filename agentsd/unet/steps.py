"""Which step of the denoising run a UNet call belongs to, read from the timestep alone.

Diffusers pipelines iterate `for t in scheduler.timesteps`, so the `t` that reaches the UNet is a *view*: its storage
offset is the step index. That needs no synchronisation with the GPU, resolves repeated timesteps (Heun, PNDM) and
needs neither the pipeline's loop nor its callbacks.
"""

import numbers
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from agentsd.unet.transforms import in_transform

_REMEMBERED_RUNS = 8  # pipelines that may take turns in one thread


@dataclass(frozen=True)
class Position:
    """Step `index` of a run of `total` steps; `run` is equal for calls of one run, `None` if the run is unknown."""

    index: int
    total: int
    run: int | None = None


@dataclass
class _Run:
    number: int
    timesteps: Tensor  # held: its address identifies the run, and must not go to another tensor
    start: int
    known: bool  # whether a known scheduler has these timesteps
    last: int = -1
    values: list[float] | None = None
    ordered: bool | None = None  # whether the values only fall or only rise; None: not looked at


@dataclass
class StepReader:
    """Turns the timestep argument of successive UNet calls into positions within their runs.

    A run is all calls on one timesteps tensor; schedulers create a new one for every run. It starts at the first step
    seen: image-to-image enters its schedule half-way and counts from there.

    Example:
        >>> timesteps = torch.tensor([900, 600, 300])
        >>> [StepReader().read(t, []) for t in timesteps[:1]]
        [Position(index=0, total=3, run=1)]
        >>> StepReader().read(250, [])
        Position(index=749, total=1000, run=None)
    """

    _runs: list[_Run] = field(default_factory=list)
    _started: int = 0

    def read(self, timestep: object, timesteps: Iterable[Tensor], *, train_steps: int = 1000) -> Position | None:
        """Return the position of this call in its run, or `None` if it cannot be known.

        Tried in order: a view of one of `timesteps`; a view of some other tensor of steps; the value among
        `timesteps` (copied tensors, with a forward cursor); the value as a share of the `train_steps` of training.

        Args:
            timestep: The timestep that the UNet got: a tensor (scalar, or one value per sample) or a number.
            timesteps: The `timesteps` of the schedulers known to drive this UNet.
            train_steps: Number of training timesteps; a bare number is a share of it.

        Returns:
            The position; `None` for samples at different timesteps (training) and for anything not a number.
        """
        if isinstance(timestep, numbers.Real):  # numpy's numbers too
            return _by_share(float(timestep), train_steps)
        if not isinstance(timestep, torch.Tensor) or timestep.numel() == 0:
            return None
        known = list(timesteps)
        if _is_single_element(timestep) and not in_transform():  # there, tensors have no storage
            for candidate in known:
                if shares_memory(timestep, candidate):
                    offset = timestep.storage_offset() - candidate.storage_offset()
                    stride = max(1, candidate.stride(0)) if candidate.ndim else 1
                    return self._position(candidate, int(offset) // stride, candidate.shape[0], known)
            size = timestep.untyped_storage().nbytes() // timestep.element_size()
            position = self._in_a_loop(timestep, size) if size > 1 else None
            if position is not None:
                return position
        values = timestep.detach().flatten()
        try:
            value = float(values[0])
            if values.numel() > 1 and not bool((values == values[0]).all()):
                return None
        except RuntimeError:  # one timestep per sample of torch.func.vmap
            return None
        return self._by_value(value, known) or _by_share(value, train_steps)

    def copy(self) -> "StepReader":
        """Return a reader that goes on from here by itself.

        Example:
            >>> timesteps, reader = torch.tensor([900, 600, 600]), StepReader()
            >>> [reader.read(t.clone(), [timesteps]).index for t in timesteps[:2]]
            [0, 1]
            >>> reader.copy().read(timesteps[2].clone(), [timesteps]).index
            2
            >>> reader.read(timesteps[2].clone(), [timesteps]).index
            2
        """
        return StepReader([replace(run) for run in self._runs], self._started)

    def timesteps_of(self, number: int) -> Tensor | None:
        """Return the timesteps of a run."""
        return next((run.timesteps for run in self._runs if run.number == number), None)

    def enters_late(self, number: int | None) -> bool:
        """Return whether a run on timesteps of no known scheduler did not enter at their start."""
        return any(run.number == number and not run.known and run.start > 0 for run in self._runs)

    @property
    def runs(self) -> frozenset[int]:
        """Numbers of the runs that may go on."""
        return frozenset(run.number for run in self._runs)

    def _in_a_loop(self, timestep: Tensor, size: int) -> Position | None:
        """Return the position in a tensor that no known scheduler has; `None` if its values are in no order.

        A batch of random timesteps, for losses or classification, looks the same otherwise.
        """
        position = self._position(timestep, int(timestep.storage_offset()), size, None)
        if position is None:
            return None
        run = self._run(timestep, 0, None)
        if run.ordered is None:
            values = timestep.detach().as_strided((size,), (1,), 0).tolist()
            run.ordered = values in (sorted(values), sorted(values, reverse=True))
        if not run.ordered:
            return None
        return position

    def _run(self, timesteps: Tensor, first: int, known: list[Tensor] | None) -> _Run:
        for run in self._runs:
            if shares_memory(run.timesteps, timesteps):
                self._runs = [
                    *(other for other in self._runs if other is not run),
                    run,
                ]  # the least recent stands first
                return run
        if known is not None:  # a run is over once its scheduler has other timesteps
            self._runs = [
                run for run in self._runs if not run.known or any(shares_memory(run.timesteps, one) for one in known)
            ]
        self._started += 1
        run = _Run(self._started, timesteps, first, known is not None)
        self._runs = [*self._runs[1 - _REMEMBERED_RUNS :], run]
        return run

    def _position(self, timesteps: Tensor, index: int, total: int, known: list[Tensor] | None) -> Position | None:
        if not 0 <= index < total:
            return None
        run = self._run(timesteps, index, known)
        if index < run.last == total - 1:
            run.start = index  # the run had ended: the next one has the same timesteps
        run.start, run.last = min(run.start, index), index
        return Position(index - run.start, total - run.start, run.number)

    def _by_value(self, value: float, known: list[Tensor]) -> Position | None:
        for timesteps in known:
            run = next((run for run in self._runs if run.timesteps is timesteps), None)
            values = timesteps.flatten().tolist() if run is None or run.values is None else run.values
            start = 0 if run is None else run.last
            if run is not None and values[start : start + 2] == [value, value]:
                start += 1  # of equal steps in a row (Heun, PNDM) each call is the next
            # From the last step onwards: of equal steps further apart, each is found in its turn.
            hits = [i for i in (*range(start, len(values)), *range(start)) if values[i] == value]
            if hits:
                self._run(timesteps, hits[0], known).values = values
                return self._position(timesteps, hits[0], len(values), known)
        return None


def _is_single_element(timestep: Tensor) -> bool:
    return timestep.numel() == 1 or not any(timestep.stride())


def shares_memory(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are views of one memory, as a step is of its scheduler's timesteps."""
    return (
        one.device == other.device
        and one.dtype == other.dtype
        and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    )


def _by_share(value: float, train_steps: int) -> Position:
    index = train_steps - 1 - round(value)
    return Position(min(max(index, 0), train_steps - 1), train_steps)
