"""The GPU suite: runs its cells in order of importance within a time budget, and goes on where it was."""

import datetime
import gc
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from agentsd.bench.architectures import random_pipeline
from agentsd.bench.arm import Arm
from agentsd.bench.gpu_cells import Cell, suite_arms
from agentsd.bench.probes import kernels, probe_arm
from agentsd.bench.rows import Row, append_row, key_of, newest, read_rows
from agentsd.bench.speed import KEY, Calls, Setup, Steps, measure, missing_arms
from agentsd.system.timing import synchronize

SPEED, KERNELS = "speed.jsonl", "kernels.jsonl"
CALL_STEPS, REHEARSAL_STEPS = 20, 6
_KERNEL_KEY = ("architecture", "arm", "size", "batch", "dtype", "device", "torch")


class Suite:
    """One start of the suite on one device.

    Args:
        folder: Where rows go, and what is not measured again.
        device: Where it runs.
        deadline: Time of `time.monotonic` after which nothing is started.
        steps: Steps of a pipeline call.
        backend: Compiler of the compiled arms.
        tell: Takes lines of progress.
    """

    def __init__(
        self,
        folder: Path,
        device: str,
        *,
        deadline: float = math.inf,
        steps: int = CALL_STEPS,
        backend: str = "inductor",
        tell: Callable[[str], object] = lambda text: None,
    ) -> None:
        self.folder, self.device, self.deadline, self.steps = folder, device, deadline, steps
        self.backend, self.tell = backend, tell
        self._built: tuple[tuple[str, str], Any] | None = None

    def run(self, cells: Sequence[Cell]) -> list[Cell]:
        """Run cells in order; return those that are not complete."""
        left = []
        for number, cell in enumerate(cells, start=1):
            if self.deadline - time.monotonic() < cell.seconds:
                self.tell(f"{number} of {len(cells)}: {cell}: no time left")
                left.append(cell)
                continue
            self.tell(f"{number} of {len(cells)}: {cell}")
            try:
                complete = self._run(cell)
            except (torch.OutOfMemoryError, MemoryError) as error:
                self.tell(f"  left out, the memory does not suffice: {' '.join(str(error).split())[:200]}")
                self._built = None
                complete = False
            if not complete:
                left.append(cell)
        return left

    def _run(self, cell: Cell) -> bool:
        setup = Setup(
            architecture=cell.architecture,
            dtype=cell.dtype,
            device=self.device,
            batch=cell.batch,
            steps=self.steps if cell.kind == "call" else None,
        )
        known = suite_arms(cell.kind, backend=self.backend)
        arms = {name: known[name] for name in cell.arms}
        if cell.kind == "kernels":
            return self._kernels(cell, setup, arms)
        if not missing_arms(setup, arms, cell.size, self.folder / SPEED, cell.rounds):
            self.tell("  measured before")
            return True
        pipe = self._pipeline(cell.architecture, cell.dtype)
        made: Any = Calls if cell.kind == "call" else Steps
        subject = made(pipe if cell.kind == "call" else pipe.unet, arms, setup)

        def also(name: str) -> Row:
            return probe_arm(arms[name], pipe.unet, partial(subject.run, name))

        return measure(
            subject,
            arms,
            cell.size,
            self.folder / SPEED,
            rounds=cell.rounds,
            group=len(arms),
            deadline=self.deadline,
            also=also,
            tell=lambda text: self.tell(f"  {text}"),
        )

    def _pipeline(self, architecture: str, dtype: str) -> Any:
        """Return the pipeline of a cell; one is kept, because two may not fit."""
        key = (architecture, dtype)
        if self._built is None or self._built[0] != key:
            self._built = None
            gc.collect()
            if torch.device(self.device).type == "cuda":
                torch.cuda.empty_cache()
            self._built = key, random_pipeline(architecture, dtype=getattr(torch, dtype), device=self.device)
        return self._built[1]

    @torch.inference_mode()
    def _kernels(self, cell: Cell, setup: Setup, arms: Mapping[str, Arm]) -> bool:
        there = {key_of(row, _KERNEL_KEY) for row in read_rows(self.folder / KERNELS)}
        for name in cell.arms:
            row = setup.facts(name, arms[name], cell.size)
            if key_of(row, _KERNEL_KEY) in there:
                continue
            subject = Steps(self._pipeline(cell.architecture, cell.dtype).unet, arms, setup)
            subject.prepare(cell.size)
            with arms[name].enter(subject.pipe):
                subject.run(name)
                synchronize(self.device)
                row["kernels"] = kernels(partial(subject.run, name), self.device)
            row["date"] = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")
            append_row(self.folder / KERNELS, row)
        return True


def described(rows: Iterable[Row]) -> list[str]:
    """Return the rows of the suite in words, one line for each arm but stock.

    Example:
        >>> row = {"architecture": "sd15", "size": 512, "dtype": "float16", "batch": 2, "benchmark": "unet step"}
        >>> described([{**row, "arm": "DeepCache 3", "speedup": 2.04, "speedup_95": [2.0, 2.1], "peak_bytes": 2**30}])
        ['sd15 512, float16, batch 2, unet step: DeepCache 3 2.04x [2.00, 2.10], 1.0 GiB']
    """
    lines = []
    for row in newest(rows, KEY):
        if row["arm"] == "stock":
            continue
        low, high = row["speedup_95"]
        line = f"{row['architecture']} {row['size']}, {row['dtype']}, batch {row['batch']}, {row['benchmark']}: "
        line += f"{row['arm']} {row['speedup']:.2f}x [{low:.2f}, {high:.2f}]"
        if row["peak_bytes"]:
            line += f", {row['peak_bytes'] / 2**30:.1f} GiB"
        if row.get("full_calls", row.get("unet_calls")) != row.get("unet_calls"):
            line += f", UNet in full at {row['full_calls']} of {row['unet_calls']} steps"
        if row.get("skipped_without_wait") is False:
            line += ", a skipped step waits for the device"
        lines.append(line)
    return lines
