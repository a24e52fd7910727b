"""What a patch keeps between calls of its denoiser, and which of it a copy leaves behind."""

import threading
import weakref
from typing import Any

from agentsd.schedule import Schedule
from agentsd.system.warning import warn_user
from agentsd.unet.activity import Activity
from agentsd.unet.choices import Choices
from agentsd.unet.controlnets import controls_of
from agentsd.unet.inforce import HasBlocks
from agentsd.unet.metrics import log_run
from agentsd.unet.record import RunRecord
from agentsd.unet.runs import Runs
from agentsd.unet.slot import StepSlot
from agentsd.unet.steps import Position


class State(HasBlocks):
    """Schedules in force, pipelines, runs in progress and choices; copies and pickles start with no run in progress."""

    slot: StepSlot

    def __init__(self, schedule: Schedule, seed: int) -> None:
        super().__init__(schedule)
        self.seed = seed
        self._fresh()

    def _fresh(self) -> None:
        self.pipes: weakref.WeakSet[Any] = weakref.WeakSet()
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()  # pipelines that held this denoiser when they were patched
        self.controls: weakref.WeakSet[Any] = weakref.WeakSet()  # their ControlNets
        self.key = object()
        self.activity = Activity()
        self.local = threading.local()
        self.runs = Runs()
        self.choices = Choices(self.seed)
        self.warned: set[str] = set()
        self.bypassed = False  # whether the last call that needed our forward ran another one

    def __getstate__(self) -> dict[str, Any]:
        volatile = {"pipes", "users", "controls", "key", "activity", "local", "runs", "choices", "warned", "bypassed"}
        return {key: value for key, value in self.__dict__.items() if key not in volatile}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fresh()

    def finish(self, position: Position | None) -> None:
        """Log a run whose last step has ended, and let go of its ControlNet's residuals."""
        if position is not None and position.run is not None and position.index == position.total - 1:
            self.activity.done()
            for control in controls_of(self):
                control.end()
            done = self.record.finished(position)
            if done is not None:
                log_run(done, self.schedule)

    def forget(self) -> None:
        """Let go of what calls have left: the runs in progress, their features and choices, in every thread."""
        self.local = threading.local()
        self.runs = Runs()
        self.choices.clear()
        self.slot.forget()
        for control in controls_of(self):
            control.forget()

    def reset(self) -> None:
        """Forget the features and choices of all calls so far, and what the last run did."""
        self.forget()
        for one in (self.base, self.now):
            one.record = RunRecord()

    def warn_once(self, message: str) -> None:
        """Warn at the user's line, unless this denoiser said the same before."""
        if message not in self.warned:
            self.warned.add(message)
            warn_user(message)
