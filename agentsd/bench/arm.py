"""What an arm is: a way to run a pipeline that leaves it as it was."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn

Enter = Callable[[Any], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Arm:
    """A way to run a pipeline: entered with the pipeline, left restored.

    Args:
        enter: Gives the context manager.
        cycle: Steps until its costs repeat.
        settings: What it does beyond its name, as text: results measured under other settings are not its own.
    """

    enter: Enter
    cycle: int = 1
    settings: str = ""


def _call(pipe: Any, *args: Any, **kwargs: Any) -> Any:
    return pipe(*args, **kwargs)


@dataclass(frozen=True)
class RunArm(Arm):
    """An arm over whole runs.

    Args:
        enter: See `Arm`.
        cycle: See `Arm`.
        settings: See `Arm`.
        fewer_steps: Divides the number of steps (the baseline of equal time).
        call: What is called with the pipeline and the arguments of a pipeline call, where that is not `pipe(...)`.

    Example:
        >>> from contextlib import nullcontext
        >>> halved = RunArm(nullcontext, fewer_steps=2.0)
        >>> with halved.enter(pipe):
        ...     image = halved.run(pipe, "a red circle", num_inference_steps=4).images[0]
    """

    fewer_steps: float = 1.0
    call: Callable[..., Any] = _call

    def run(self, pipe: Any, *args: Any, num_inference_steps: int, **kwargs: Any) -> Any:
        """Call the pipeline as the arm does, for a stock run of `num_inference_steps`; enter the arm first."""
        steps = max(1, round(num_inference_steps / self.fewer_steps))
        return self.call(pipe, *args, num_inference_steps=steps, **kwargs)


def as_run(arm: Arm) -> RunArm:
    """Return an arm over whole runs that does what an arm over steps does."""
    return RunArm(arm.enter, arm.cycle, arm.settings)


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Put back the attributes of a module and all in it as they were: packages leave some behind, T-GATE all."""
    before = [(part, dict(part.__dict__)) for part in module.modules()]
    try:
        yield
    finally:
        for part, attributes in before:
            part.__dict__.clear()
            part.__dict__.update(attributes)


def version_of(package: str) -> str:
    """Return the version of a package that an arm uses, or that it is missing.

    Example:
        >>> version_of("no such package")
        'not installed'
    """
    try:
        return version(package)
    except PackageNotFoundError:  # rivals are installed for development only
        return "not installed"
