"""One object for those who want it: a pipeline together with its patch."""

from typing import Any

from agentsd.patch import Patch, apply
from agentsd.planning.plans import Plan
from agentsd.schedule import AgentConfig, Schedule
from agentsd.unet.report import Report


class AgentPipeline:
    """A diffusers pipeline with agent attention; calling it returns the pipeline's own output.

    Attributes and methods that are not its own are the pipeline's (`to`, `scheduler`, `load_lora_weights`, ...).

    Args:
        pipe: Pipeline to patch; it stays patched until `.remove()`.
        ratio: See `agentsd.apply`.
        preset: See `agentsd.apply`.
        config: See `agentsd.apply`.
        schedule: See `agentsd.apply`.
        reuse: See `agentsd.apply`.
        reuse_depth: See `agentsd.apply`.
        plan: See `agentsd.apply`.
        seed: See `agentsd.apply`.

    Raises:
        ValueError: See `agentsd.apply`.

    Example:
        >>> fast = AgentPipeline(pipe, preset="paper")
        >>> image = fast("a red circle", num_inference_steps=2, output_type="pt").images
        >>> stock = fast("a red circle", num_inference_steps=2, output_type="pt", agents=False).images
        >>> fast.remove()
    """

    def __init__(
        self,
        pipe: Any,
        ratio: float | None = None,
        *,
        preset: str | None = None,
        config: AgentConfig | None = None,
        schedule: Schedule | None = None,
        reuse: int | None = None,
        reuse_depth: int | None = None,
        plan: Plan | None = None,
        seed: int = 0,
    ) -> None:
        self.pipe = pipe
        self.patch: Patch = apply(
            pipe,
            ratio,
            preset=preset,
            config=config,
            schedule=schedule,
            reuse=reuse,
            reuse_depth=reuse_depth,
            plan=plan,
            seed=seed,
        )

    def __call__(self, *args: Any, agents: bool = True, **kwargs: Any) -> Any:
        """Run the pipeline; `agents=False` runs this one call on stock attention."""
        if agents:
            return self.pipe(*args, **kwargs)
        with self.patch.disabled():
            return self.pipe(*args, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> "AgentPipeline":
        """Move the pipeline, as its own `to` does; returns this object."""
        self.pipe.to(*args, **kwargs)
        return self

    def remove(self) -> None:
        """Restore the pipeline exactly."""
        self.patch.remove()

    def report(self) -> Report:
        """Return what was patched."""
        return self.patch.report()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("pipe", "patch"):
            object.__setattr__(self, name, value)
        else:
            setattr(self.pipe, name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.patch.attach(self.pipe)

    def __getattr__(self, name: str) -> Any:
        if name in ("pipe", "patch"):  # not set yet (copying, unpickling): do not recurse
            raise AttributeError(name)
        return getattr(self.pipe, name)
