"""What the GPU suite measures, in order of importance: what a time budget cuts off is the least important."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from agentsd.bench.arm import Arm, RunArm, as_run
from agentsd.bench.arms import RUN_ARMS, STEP_ARMS
from agentsd.bench.baselines import channels_last, compiled

Kind = Literal["step", "call", "kernels"]
GRAPHS = ", CUDA graphs"
_COMPILED, _LAST = ", compiled", ", channels last"
_SAMPLED, _SKIPPING = "key/value sampling, stride 4", "full step every 3 + key/value sampling"
_STEPS = ("stock", _SAMPLED, "tomesd 0.5", "DeepCache 3", _SKIPPING)
# With random weights a tolerance sees errors that no trained model makes. The arms with fixed full steps say what so
# many UNet calls cost; the rows of presets say how many they made.
EVERY_2, EVERY_3 = "full every 2 steps", "full every 3 steps"
_CALLS = ("stock", "stock A/A", EVERY_2, "preset balanced", "DeepCache 3")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement of the suite: some arms at one size, batch and dtype.

    Attributes:
        kind: Steps of the UNet, whole calls of the pipeline, or which kernels a step runs.
        architecture: Name in `agentsd.bench.architectures`.
        size: Side of the pictures in pixels.
        dtype: Name of the weights' dtype.
        arms: Names in `suite_arms`, stock first.
        pictures: Pictures at a time; guidance doubles the samples.
        rounds: Pairs of times for each arm.
        seconds: What it may take: it is not started with less time left.
    """

    kind: Kind
    architecture: str
    size: int
    dtype: str = "float16"
    arms: tuple[str, ...]
    pictures: int = 1
    rounds: int = 6
    seconds: float = 20.0

    @property
    def batch(self) -> int:
        """Samples in one UNet call."""
        return 2 * self.pictures

    def __str__(self) -> str:
        what = {"step": "UNet steps", "call": "whole calls", "kernels": "kernels of a step"}[self.kind]
        return f"{self.architecture} {self.size}x{self.size}, {self.dtype}, {self.pictures} pictures: {what}"


def gpu_cells() -> tuple[Cell, ...]:
    """Return the cells of the suite, the most important first.

    Example:
        >>> str(gpu_cells()[0])
        'sd15 512x512, float16, 1 pictures: whole calls'
    """
    small, middle, large = (partial(Cell, architecture=name, size=size) for name, size in
                            (("sd15", 512), ("sd15", 768), ("sdxl", 1024)))  # fmt: skip
    plain = [
        small(kind="call", arms=_CALLS, rounds=4, seconds=30),
        small(kind="step", arms=_STEPS),
        small(kind="kernels", arms=("stock", _SAMPLED), seconds=10),
        large(kind="call", arms=_CALLS, rounds=2, seconds=60),
        large(kind="step", arms=_STEPS),
        large(kind="kernels", arms=("stock", _SAMPLED), seconds=10),
        middle(kind="step", arms=_STEPS),
        middle(kind="call", arms=("stock", EVERY_2, "preset balanced"), rounds=3),
    ]
    compiled_cells = [
        small(kind="step", arms=("stock", f"stock{_COMPILED}", _SAMPLED + _COMPILED), seconds=90),
        small(kind="call", arms=("stock", f"stock{_COMPILED}", f"{EVERY_2}{_COMPILED}"), rounds=3, seconds=90),
        small(kind="step", arms=("stock", f"stock{GRAPHS}", _SAMPLED + GRAPHS), seconds=90),
        large(kind="step", arms=("stock", f"stock{_COMPILED}"), seconds=120),
    ]
    larger = [
        small(kind="step", arms=_STEPS, pictures=4),
        small(kind="call", arms=("stock", EVERY_2, "DeepCache 3"), pictures=4, rounds=3, seconds=30),
        small(kind="step", arms=_STEPS, dtype="bfloat16"),
        large(kind="step", arms=_STEPS, dtype="bfloat16"),
        large(kind="step", arms=("stock", _SAMPLED, "DeepCache 3"), pictures=4, seconds=30),
        small(kind="step", arms=("stock", f"stock{_LAST}", _SAMPLED + _LAST)),
        large(kind="step", arms=("stock", f"stock{_LAST}", _SAMPLED + _LAST)),
    ]
    others = ("preset quality", "preset fast", "preset extreme", "preset gentle", EVERY_3, "DeepCache 5", "tomesd 0.5")
    rest = [small(kind="call", arms=("stock", *others), rounds=3, seconds=60)]
    rest += [large(kind="call", arms=("stock", name), rounds=2, seconds=30) for name in others]
    return (*plain, *compiled_cells, *larger, *rest)


def rehearsal_cells() -> tuple[Cell, ...]:
    """Return cells of every kind and twin on tiny architectures: seconds on a CPU.

    Example:
        >>> {cell.architecture for cell in rehearsal_cells()} == {"tiny", "tiny-xl"}
        True
    """
    tiny = partial(Cell, size=64, dtype="float32", rounds=1)
    return (
        tiny(kind="call", architecture="tiny", arms=("stock", EVERY_2, "preset balanced")),
        tiny(kind="step", architecture="tiny", arms=("stock", f"stock{GRAPHS}", f"stock{_LAST}")),
        tiny(kind="step", architecture="tiny-xl", arms=("stock", _SAMPLED, _SKIPPING)),
        tiny(kind="kernels", architecture="tiny-xl", arms=("stock",)),
    )


def suite_arms(kind: Kind, *, backend: str = "inductor") -> Mapping[str, Arm]:
    """Return all arms of the suite for a kind of measurement, with their twins.

    Args:
        kind: What is measured.
        backend: Compiler of the compiled twins.

    Example:
        >>> "stock, CUDA graphs" in suite_arms("step")
        True
    """
    plain: dict[str, Arm] = dict(RUN_ARMS if kind == "call" else STEP_ARMS)
    mode = "reduce-overhead" if backend == "inductor" else None
    twins: dict[str, Callable[[Arm], Arm]] = {
        _COMPILED: partial(compiled, backend=backend),
        GRAPHS: partial(compiled, backend=backend, mode=mode),
        _LAST: channels_last,
    }
    made = dict(plain)
    for words, twin in twins.items():
        for name, arm in plain.items():
            other = twin(arm)
            kept = as_run(other) if isinstance(arm, RunArm) else other
            made[name + words] = replace(arm, enter=kept.enter, settings=kept.settings)
    return made
