"""The step in progress: the denoiser's hooks write it, its layers and its forward read it."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from agentsd.unet.batch import Part

if TYPE_CHECKING:
    from agentsd.unet.processor import LevelPlan

_REMEMBERED_INPUTS = 4096  # of blocks awaiting their backward


@dataclass(frozen=True)
class StepContext:
    """What a step does.

    Attributes:
        levels: Settings by level; a layer whose level is missing runs stock attention.
        feature: Cached or forecast feature that a skipped step starts from; `None` at a full step.
        keep: Whether a full step leaves its feature.
        depth: How many layers run at a skipped step.
        guided: False where the unconditional half of the samples is left out.
        output: What a skipped step without layers returns its prediction in; `None` is a tuple.
        part: The pictures that need the whole denoiser, while the others take the feature; `None`: all do, or none.
    """

    levels: "Mapping[int, LevelPlan]" = field(default_factory=dict)
    feature: Tensor | None = None
    keep: bool = False
    depth: int = 1
    guided: bool = True
    output: type[Any] | None = None
    part: Part | None = None

    @property
    def runs(self) -> bool:
        """Whether the whole denoiser runs, for all pictures or some."""
        return self.feature is None or self.part is not None

    @property
    def needs_forward(self) -> bool:
        """Whether the step can only be run by our forward."""
        return self.feature is not None or not self.guided or (self.keep and self.depth == 0)


_STOCK = StepContext()


class StepSlot:
    """One step per thread, never copied or pickled. Outside a call it is empty, and every layer is stock."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._of_input: OrderedDict[int, StepContext] = OrderedDict()
        self.latest = _STOCK  # of any thread; stays after the call

    def recall(self, hidden_states: Tensor) -> None:
        """Remember the step by the block's input; when autograd recomputes a checkpoint, set the step of that time.

        The graph keeps that input alive until its backward, so its address identifies the call.
        """
        address = hidden_states.data_ptr()
        if torch._C._current_graph_task_id() == -1:
            self._of_input[address] = self.read()
            self._of_input.move_to_end(address)
            while len(self._of_input) > _REMEMBERED_INPUTS:
                self._of_input.popitem(last=False)
        else:
            self._local.context = self._of_input.get(address, self.latest)

    def write(self, context: StepContext, denoiser: nn.Module | None = None) -> None:
        """Set this thread's step; `denoiser` is the called module if that is a shallow copy of the patched one."""
        self.clear()
        self._local.context = context
        self._local.denoiser = denoiser
        self.latest = context

    def clear(self) -> None:
        """Forget this thread's step and what it left: nothing of ours acts until the next call."""
        self._local.context = _STOCK
        self._local.metric = None
        self._local.feature = None
        self._local.denoiser = None
        self._local.forward_ran = False
        if self.latest.feature is not None:
            self.latest = _STOCK

    def forget(self) -> None:
        """Forget what was left, in every thread."""
        self._local = threading.local()
        self._of_input.clear()
        self.latest = _STOCK

    def read(self) -> StepContext:
        """Return this thread's step; outside a call it is empty."""
        return getattr(self._local, "context", _STOCK)

    @property
    def denoiser(self) -> nn.Module | None:
        """The shallow copy that is called; `None` if the patched denoiser itself is."""
        return getattr(self._local, "denoiser", None)

    @property
    def forward_ran(self) -> bool:
        """Whether our forward ran in the call in progress."""
        return getattr(self._local, "forward_ran", False)

    def note_forward(self) -> None:
        """Note that our forward runs."""
        self._local.forward_ran = True

    def put_metric(self, metric: Tensor | None) -> None:
        """Leave the block's input (before norm1) for the layer that ranks by it."""
        self._local.metric = metric

    def take_metric(self) -> Tensor | None:
        """Return and forget the block's input."""
        metric: Tensor | None = getattr(self._local, "metric", None)
        self._local.metric = None
        return metric

    def put_feature(self, feature: Tensor) -> None:
        """Leave the feature of a full step."""
        self._local.feature = feature

    def take_feature(self) -> Tensor | None:
        """Return and forget the feature."""
        feature: Tensor | None = getattr(self._local, "feature", None)
        self._local.feature = None
        return feature

    def __deepcopy__(self, memo: dict[int, Any]) -> "StepSlot":
        return StepSlot()

    def __reduce__(self) -> tuple[type["StepSlot"], tuple[()]]:
        return StepSlot, ()
