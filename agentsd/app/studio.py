"""One loaded model and what the page makes with it: a picture stock, and the same by one or more settings."""

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from agentsd.bench.metrics import psnr, ssim
from agentsd.patch import Patch, apply
from agentsd.pictures.compare import picture_tensor
from agentsd.pictures.generate import call_arguments, resolve
from agentsd.pictures.loading import load_pipeline, set_scheduler
from agentsd.pictures.settings import Settings
from agentsd.schedule import Schedule
from agentsd.system.memory import is_out_of_memory
from agentsd.unet.using import Using

OnStep = Callable[[str, int, int], None]  # label of the picture, steps done, steps in all
_WARM_STEPS = 2


class CancelledError(Exception):
    """The visitor does not want the picture any more."""


@dataclass(frozen=True)
class Made:
    """One picture and how it came to be.

    Attributes:
        label: Name of the setting.
        picture: The picture.
        seconds: Of the whole pipeline call.
        steps: What each step was, see `Using.last_steps`.
        report: What is patched and what the run did; empty for stock.
    """

    label: str
    picture: Image.Image
    seconds: float
    steps: tuple[str, ...] = ()
    report: str = ""


@dataclass(frozen=True)
class Against:
    """A picture compared with the stock one.

    Attributes:
        made: The picture.
        speed_ratio: Stock time over its time.
        psnr_db: `None` if the pictures are equal.
        ssim: Structural similarity of the two.
    """

    made: Made
    speed_ratio: float
    psnr_db: float | None
    ssim: float


class Studio:
    """Holds one pipeline, patched once; each picture enters a block of its own.

    Args:
        device: Where models go.
        load: What loads a pipeline.
        dtype: Type of the weights.

    Example:
        >>> studio = Studio(torch.device("cpu"), load=lambda settings, device: pipe)
        >>> settings = Settings(prompt="a ring", steps=2, schedule=agentsd.preset("fast"), label="fast")
        >>> stock, (fast,) = studio.make(settings, [(settings.schedule, "fast")])
        >>> fast.made.label, len(fast.made.steps)
        ('fast', 2)
    """

    def __init__(
        self,
        device: torch.device,
        load: Callable[[Settings, torch.device], Any] = load_pipeline,
        dtype: str = "float32",
    ) -> None:
        self.device = device
        self.dtype = dtype
        self._load = load
        self._lock = threading.Lock()
        self._held: str | None = None
        self._pipe: Any = None
        self._patch: Patch | None = None
        self._scheduler: Any = None
        self._warm: set[tuple[object, ...]] = set()

    def make(
        self,
        settings: Settings,
        arms: Sequence[tuple[Schedule, str]],
        *,
        on_step: OnStep | None = None,
        cancelled: threading.Event | None = None,
    ) -> tuple[Made, list[Against]]:
        """Make a picture stock and by each setting, one after the other.

        Args:
            settings: The picture; its schedule does not matter here.
            arms: Schedules and their labels.
            on_step: Called after each step.
            cancelled: Once set, the next step ends the work.

        Returns:
            The stock picture, and the others compared with it.

        Raises:
            CancelledError: If `cancelled` was set.
            ValueError: If the model cannot be loaded, does not fit, or memory does not suffice.
        """
        with self._lock:
            try:
                patch = self._ready(settings)
                self._warm_up(settings, patch, arms, cancelled)
                stock = self._one(settings, "stock", patch.disabled(), on_step, cancelled)
                found = []
                for schedule, label in arms:
                    made = self._one(settings, label, patch.using(schedule), on_step, cancelled)
                    found.append(_against(stock, made))
                return stock, found
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self._patch is not None:
                    self._patch.reset()
                raise ValueError("Memory does not suffice for this picture. Choose a smaller size.") from error

    def settled(self, settings: Settings, picture: Image.Image) -> Settings:
        """Return the settings with every choice spelt out that was left to the model."""
        return resolve(self._pipe, dataclasses.replace(settings, dtype=self.dtype), picture)

    def _ready(self, settings: Settings) -> Patch:
        wanted = settings.model
        if self._held != wanted or self._patch is None:
            self._pipe = self._patch = self._held = None  # let go of the former model first
            pipe = self._load(dataclasses.replace(settings, scheduler=None, dtype=self.dtype), self.device)
            pipe.set_progress_bar_config(disable=True)
            self._patch = apply(pipe)
            self._pipe, self._scheduler, self._held = pipe, pipe.scheduler, wanted
            self._warm.clear()
        self._pipe.scheduler = self._scheduler
        if settings.scheduler is not None:
            set_scheduler(self._pipe, settings.scheduler)
        return self._patch

    def _warm_up(
        self,
        settings: Settings,
        patch: Patch,
        arms: Sequence[tuple[Schedule, str]],
        cancelled: threading.Event | None,
    ) -> None:
        """Make a few steps by all settings that are new at this size: no first call enters a time."""
        short = dataclasses.replace(settings, steps=_WARM_STEPS)
        size = (settings.width, settings.height, settings.guidance_scale == 1)
        for schedule, name in [(None, "stock"), *((schedule, schedule.to_json()) for schedule, _ in arms)]:
            if (name, *size) not in self._warm:
                block = patch.disabled() if schedule is None else patch.using(schedule)
                self._one(short, name, block, None, cancelled)
                self._warm.add((name, *size))

    def _one(
        self,
        settings: Settings,
        label: str,
        block: AbstractContextManager[Any],
        on_step: OnStep | None,
        cancelled: threading.Event | None,
    ) -> Made:
        def after_step(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            if cancelled is not None and cancelled.is_set():
                raise CancelledError
            if on_step is not None:
                on_step(label, step + 1, int(getattr(pipe, "num_timesteps", 0)))
            return values

        if cancelled is not None and cancelled.is_set():
            raise CancelledError
        with block as used:
            start = time.perf_counter()
            call = {**call_arguments([settings]), "output_type": "pil", "callback_on_step_end": after_step}
            picture = self._pipe(**call).images[0]
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds = time.perf_counter() - start
        if not isinstance(used, Using):
            return Made(label, picture, seconds)
        report = used.report()
        return Made(label, picture, seconds, used.last_steps, f"{report}\n\n{report.details()}")


def _against(stock: Made, made: Made) -> Against:
    ours, theirs = picture_tensor(made.picture), picture_tensor(stock.picture)
    decibels = float(psnr(ours, theirs))
    return Against(
        made,
        stock.seconds / made.seconds,
        decibels if math.isfinite(decibels) else None,
        float(ssim(ours, theirs)),
    )
