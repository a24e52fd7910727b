"""Timing true architectures with random weights, every arm against stock: UNet steps or whole pipeline calls."""

import datetime
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from agentsd.bench.arm import Arm, RunArm
from agentsd.bench.arms import RUN_ARMS, STEP_ARMS, with_twins
from agentsd.bench.ratios import speedup
from agentsd.bench.rows import Row, append_row, key_of, newest, read_rows
from agentsd.planning.inputs import random_inputs
from agentsd.system.timing import environment, interleave, peak_memory

# What identifies a measurement. The settings change with our presets and with the rivals' versions.
KEY = ("benchmark", "architecture", "arm", "settings", "size", "batch", "dtype", "steps",
       "device", "threads", "torch", "diffusers")  # fmt: skip
# With random weights a tolerance sees errors that no trained model makes: fixed full steps say what calls cost.
_CALLS = (
    "stock", "stock A/A", "stock, steps / 2", "full every 2 steps", "tomesd 0.5", "DeepCache 3", "DeepCache 5",
    "T-GATE",
)  # fmt: skip
CALLS = tuple(name for name in RUN_ARMS if name in _CALLS or name.startswith("preset "))
# Which arms get twins, by the words of `agentsd.bench.arms.TWINS`; a compiled one takes minutes.
TWINNED = {
    ", compiled": (
        "stock", "paper, agent phase", "key/value sampling, stride 4",
        "full step every 3, last layer + key/value sampling", "preset balanced", "preset fast",
    ),
    ", channels last": (
        "stock", "no self-attention (ceiling)", "paper, agent phase", "key/value sampling, stride 4", "DeepCache 3",
        "full step every 3, last layer, no self-attention (ceiling)",
        "full step every 3, last layer + key/value sampling", "full step every 5, last layer + key/value sampling",
        "full step every 3 + key/value sampling", "full step every 5 + key/value sampling", "preset balanced",
        "preset fast",
    ),
}  # fmt: skip
_WARMUP_STEPS = 4
_PROMPT = "a red ring to the left of a small blue cross on a checkered gray background"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a row says of its measurement beyond arm and size.

    Attributes:
        architecture: One of `agentsd.bench.architectures.ARCHITECTURES`.
        dtype: Name of the weights' dtype.
        device: Where it runs.
        batch: Samples in one UNet call; 2 is one picture with guidance.
        steps: Steps of a pipeline call; `None` times UNet steps.
    """

    architecture: str
    dtype: str
    device: str
    batch: int = 2
    steps: int | None = None

    @property
    def benchmark(self) -> str:
        """What rows call it."""
        return "unet step" if self.steps is None else "pipeline call"

    def facts(self, name: str, arm: Arm, size: int) -> Row:
        """Return what a row says of a measurement before its times."""
        return {
            "benchmark": self.benchmark,
            "weights": "random",
            "architecture": self.architecture,
            "arm": name,
            "settings": arm.settings,
            "size": size,
            "batch": self.batch,
            "dtype": self.dtype,
            **({} if self.steps is None else {"steps": self.steps}),
            **environment(self.device),
        }


def missing_arms(setup: Setup, arms: Mapping[str, Arm], size: int, output: Path, rounds: int) -> list[str]:
    """Return the arms whose rows a result file lacks, or has with fewer rounds."""
    there = {key_of(row, KEY) for row in newest(read_rows(output), KEY) if row["rounds"] >= rounds}
    return [name for name, arm in arms.items() if key_of(setup.facts(name, arm, size), KEY) not in there]


def known_arms(*, calls: bool, twins: tuple[str, ...] = ()) -> dict[str, Arm]:
    """Return all arms of a kind of measurement, with the twins asked for.

    Args:
        calls: Whether whole pipeline calls are timed.
        twins: Keys of `TWINNED`.

    Example:
        >>> "stock, compiled" in known_arms(calls=False, twins=(", compiled",))
        True
    """
    known: Mapping[str, Arm] = RUN_ARMS if calls else STEP_ARMS
    everything = dict(known)
    for words in twins:
        everything = with_twins(everything, [name for name in TWINNED[words] if name in known], words)
    return everything


def default_arms(known: Mapping[str, Arm], *, calls: bool) -> list[str]:
    """Return the arms that are measured where none is named."""
    plain = RUN_ARMS if calls else STEP_ARMS
    return [name for name in known if name not in plain or not calls or name in CALLS]


class Steps:
    """One cycle of UNet steps; a UNet and a scheduler's timesteps, all that arms look at, stand for a pipeline."""

    def __init__(self, unet: Any, arms: Mapping[str, Arm], setup: Setup) -> None:
        from diffusers import DDIMScheduler

        self.unet = unet
        self.scheduler = DDIMScheduler()  # a scheduler that is not known would count as noisy
        self.pipe = self
        self.arms = arms
        self.setup = setup

    def prepare(self, size: int) -> None:
        """Make inputs for a picture size."""
        self.inputs = random_inputs(self.unet, size // 8, size // 8, self.setup.batch)

    def run(self, name: str, short: bool = False) -> None:
        """Run one cycle of an arm, on a timesteps tensor of its own, as a scheduler would make."""
        self.scheduler.timesteps = timesteps = torch.linspace(900, 100, self.arms[name].cycle).long()
        others = {key: value for key, value in self.inputs.items() if key not in ("sample", "timestep")}
        # Checked after the loop: a look at each output would make a GPU wait at every step.
        # DeepCache reads the timestep by position only. A CUDA graph writes each output into the same memory.
        outputs = [self.unet(self.inputs["sample"], t, **others).sample.clone() for t in timesteps]
        _check(name, torch.stack(outputs))

    def unit(self, name: str) -> int:
        """Return how many steps a run has."""
        return self.arms[name].cycle


class Calls:
    """A whole pipeline call."""

    def __init__(self, pipe: Any, arms: Mapping[str, RunArm], setup: Setup) -> None:
        self.pipe = pipe
        self.arms = arms
        self.setup = setup

    def prepare(self, size: int) -> None:
        """Take a picture size."""
        self.size = size

    def run(self, name: str, short: bool = False) -> None:
        """Call the pipeline as an arm does; `short` runs a few steps only."""
        prompts = [_PROMPT] * (self.setup.batch // 2)
        steps = self.setup.steps or 1
        steps = min(_WARMUP_STEPS, steps) if short else steps
        generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
        settings = {"height": self.size, "width": self.size, "generator": generators, "output_type": "pt"}
        _check(name, self.arms[name].run(self.pipe, prompts, num_inference_steps=steps, **settings).images)

    def unit(self, name: str) -> int:
        """Return 1: a run is one call."""
        return 1


def _check(name: str, output: torch.Tensor) -> None:
    if not torch.isfinite(output).all():
        raise FloatingPointError(f"{name} gave values that are not finite.")


@torch.inference_mode()
def measure(
    subject: Steps | Calls,
    arms: Mapping[str, Arm],
    size: int,
    output: Path,
    *,
    rounds: int = 4,
    group: int = 3,
    again: bool = False,
    deadline: float = math.inf,
    also: Callable[[str], Row] | None = None,
    tell: Callable[[str], object] = lambda text: None,
) -> bool:
    """Measure what a result file lacks at a size, group by group, and append each row as soon as it is measured.

    Args:
        subject: What is timed.
        arms: The arms, stock among them.
        size: Side of the pictures in pixels.
        output: The result file.
        rounds: Pairs of times for each arm; rows with fewer are measured anew.
        group: Arms that share the stock runs of a round.
        again: Measure also what the file holds.
        deadline: Start no group after this time of `time.monotonic`.
        also: Gives more fields for the row of an arm; called with its name while the arm is entered.
        tell: Takes lines of progress.

    Returns:
        Whether everything is there now.
    """
    setup = subject.setup
    facts = {name: setup.facts(name, arm, size) for name, arm in arms.items()}
    missing = list(arms) if again else missing_arms(setup, arms, size, output, rounds)
    if missing:
        subject.prepare(size)

    def enter(name: str) -> AbstractContextManager[Any]:
        return arms[name].enter(subject.pipe)

    others = [name for name in missing if name != "stock"]
    groups = [others[i : i + group] for i in range(0, len(others), group)] or ([[]] if missing else [])
    tell(f"{setup.benchmark} at {size}: {len(arms) - len(missing)} of {len(arms)} arms are measured")
    failed = []
    for number, members in enumerate(groups):
        if time.monotonic() > deadline:
            tell(f"out of time with {sum(map(len, groups[number:]))} arms left; run the same command again to go on")
            return False
        names = ["stock"]
        for name in members if number else ["stock", *members]:
            try:
                with enter(name):
                    # A compiled arm has to meet all its graphs before it is timed.
                    subject.run(name, short="compile" not in arms[name].settings)
            except Exception as error:  # one arm that cannot run here must not cost the others
                tell(f"{size} {name}: left out, {type(error).__name__}: {error}")
                failed.append(name)
            else:
                names.append(name)
        names = list(dict.fromkeys(names))
        if "stock" in failed:
            return False
        entries = {name: partial(enter, name) for name in names}
        seconds = interleave(subject.run, entries, rounds=rounds, warmup=0, device=setup.device)
        units = {name: [taken / subject.unit(name) for taken in times] for name, times in seconds.items()}
        for name in names:
            if name not in missing or (name == "stock" and number):
                continue
            with entries[name]():
                memory = peak_memory(partial(subject.run, name, short=True), device=setup.device)
                more = {} if also is None else also(name)
            gain = speedup(units["stock"], units[name])
            tell(f"{size} {name:38} {gain.median:5.2f}x [{gain.low:.2f}, {gain.high:.2f}] {gain.pairs} rounds")
            row = {
                **facts[name],
                "speedup": round(gain.median, 4),
                "speedup_95": [round(gain.low, 4), round(gain.high, 4)],
                "rounds": gain.pairs,
                "seconds": [round(second, 6) for second in units[name]],
                "stock_seconds": [round(second, 6) for second in units["stock"]],
                "peak_bytes": memory,
                **more,
                "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
            }
            append_row(output, row)
    return not failed
