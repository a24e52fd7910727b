"""What a patched denoiser carries, and what happens at each of its calls: read the step, set it, keep features."""

import threading
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from agentsd.attention.cells import grid_at
from agentsd.attention.settings import Attention, PooledAgents
from agentsd.attention.tokens import CellPattern
from agentsd.planning.plans import Plan
from agentsd.schedule import Schedule
from agentsd.system.warning import warn_user
from agentsd.unet.adaptive import adapt
from agentsd.unet.choices import Choices
from agentsd.unet.forward import bind_arguments, replaced_forward
from agentsd.unet.guidance import conditional_half, guidance_obstacle, is_twice
from agentsd.unet.noise import draws_noise
from agentsd.unet.processor import AgentAttnProcessor, LevelPlan, Site, StepContext, StepSlot, level_plan
from agentsd.unet.record import RunRecord
from agentsd.unet.reuse import obstacle
from agentsd.unet.runs import Cached, Run, fits, halves
from agentsd.unet.shallow import depth_under_noise
from agentsd.unet.steps import Position, StepReader, shares_memory

if TYPE_CHECKING:
    from agentsd.unet.sites import Candidate, Skipped

_REMEMBERED_RUNS = 4  # runs that may take turns on one UNet in one thread, each with its features


class Runtime:
    """Everything a patched denoiser carries (on `denoiser._agentsd`); copies and pickles start with no run in progress.

    Pipelines are held weakly and lost in a copy: the step is then read from the timestep alone.
    """

    def __init__(
        self,
        schedule: Schedule,
        seed: int,
        layers: "list[Candidate]",
        skipped: "list[Skipped]",
        plan: Plan | None = None,
    ) -> None:
        self.schedule = schedule
        self.seed = seed
        self.slot = StepSlot()
        self.attentions = [layer.attn for layer in layers]
        self.sites = [Site(layer.name, layer.level, _original(layer.attn), self.slot) for layer in layers]
        self.skipped = tuple((layer.name, layer.reason) for layer in skipped)
        self.finest = min(site.level for site in self.sites)
        self.plan = plan
        self.sample: tuple[int, int] | None = None
        self.skipping_problem: str | None = None
        self.noise_problem: str | None = None
        self.guidance_problem: str | None = None
        self.record = RunRecord()
        self._fresh()

    def _fresh(self) -> None:
        self.pipes: weakref.WeakSet[Any] = weakref.WeakSet()
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()  # pipelines that ran this UNet when they were patched
        self.local = threading.local()
        self.choices = Choices(self.seed)
        self.warned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        volatile = {"pipes", "users", "local", "choices", "warned"}
        return {key: value for key, value in self.__dict__.items() if key not in volatile}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fresh()

    def _position(self, timestep: object) -> Position | None:
        if not hasattr(self.local, "reader"):
            self.local.reader = StepReader()
        # Read live, at every call: users swap schedulers.
        schedulers = [pipe.scheduler for pipe in list(self.pipes) if getattr(pipe, "scheduler", None) is not None]
        candidates = [getattr(scheduler, "timesteps", None) for scheduler in schedulers]
        timesteps = [candidate for candidate in candidates if isinstance(candidate, Tensor)]
        train_steps = next(
            (int(getattr(scheduler.config, "num_train_timesteps", 1000)) for scheduler in schedulers), 1000
        )
        position: Position | None = self.local.reader.read(timestep, timesteps, train_steps=train_steps)
        return position

    def begin(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the step of a call from its arguments and leave its settings for the layers."""
        self.slot.in_call = True
        arguments = bind_arguments(args, kwargs)
        sample = arguments.get("sample")
        if sample is None:  # the UNet's own error follows
            self.slot.write(StepContext())
            return
        self.sample = (sample.shape[-2], sample.shape[-1])
        if self.plan is not None and self.sample != self.plan.latent:
            height, width = self.plan.latent
            self.warn_once(
                f"agentsd runs a plan made for {height}x{width} latents on {self.sample[0]}x{self.sample[1]}; "
                "what was faster there need not be here. Make a plan for this size."
            )
        if self.plan is not None and sample.shape[0] != self.plan.batch:
            self.warn_once(
                f"agentsd runs a plan made for UNet calls of {self.plan.batch} samples on {sample.shape[0]} (pictures, "
                "doubled by guidance); what was faster there need not be here. Make a plan with this batch."
            )
        self.local.run = None
        position = self._position(arguments.get("timestep"))
        if position is None or not getattr(self.local, "enabled", True):
            self.record.note(position, skipped=False, stock=True)
            self.slot.write(StepContext())
            return
        if position.run is not None and (self.schedule.skips_steps or self.schedule.skips_guidance):
            self.local.run = self._run(position.run, position.index)
        self.local.forced = None
        guided = self._guided(denoiser, position, arguments)
        given = arguments if guided else conditional_half(arguments)
        if self.schedule.skipping.tolerance is None:
            depth = self._depth(denoiser, arguments.get("timestep")) if self.schedule.skips_steps else 0
            feature, keep = self._reuse(denoiser, position, given, depth)
        else:
            depth = 0
            feature, keep = self._adapt(denoiser, position, given, guided=guided)
        attends = feature is None or depth > 0
        levels = self._levels(position, sample) if attends else {}
        stock = feature is None and guided and not levels
        self.record.note(position, skipped=feature is not None, stock=stock, reason=self.local.forced)
        self.slot.write(StepContext(levels, feature, keep, depth, guided))

    def end(self, *, failed: bool) -> None:
        """Keep the feature that a full step left, for the steps that follow in its run; none of a failed call."""
        self.slot.in_call = False
        feature = self.slot.take_feature()
        context = self.slot.read()
        if context.feature is not None:
            self.slot.write(replace(context, feature=None))  # not to be held until the next call
        run: Run | None = getattr(self.local, "run", None)
        self.local.run = None
        if feature is None or run is None or failed:
            return
        if run.observing is not None:
            run.observing(feature)
        else:
            # A copy: the original may be a view of a larger tensor, or memory of a CUDA graph.
            fresh = Cached(feature.detach().clone(), run.index)
            before = run.kept.get(run.call)
            alike = before is not None and before.index < fresh.index and fits(before.feature, fresh.feature)
            if self.schedule.skipping.forecast and before is not None and alike:
                gap = fresh.index - before.index
                fresh = replace(fresh, change=fresh.feature - before.feature, gap=gap)
            run.kept[run.call] = fresh

    def _guided(self, denoiser: nn.Module, position: Position, arguments: dict[str, Any]) -> bool:
        """Return whether this call runs with all its samples, and not with the conditional half alone."""
        if self.schedule.is_guided(position.index, position.total):
            return True
        sample: Tensor = arguments["sample"]
        batch = sample.shape[0]
        pipes = self._driving(arguments.get("timestep"))
        problem = replaced_forward(denoiser) or guidance_obstacle(denoiser, pipes, batch)
        if problem is None:
            run: Run | None = self.local.run
            twice = {} if run is None else run.twice
            if batch not in twice:  # once in a run: comparing waits for the device
                twice[batch] = is_twice(sample)
            if not twice[batch]:
                problem = "the halves of a call are different samples, so it is not one that a pipeline guides"
        if problem:
            self.guidance_problem = problem
            self.warn_once(f"agentsd cannot leave out guidance: {problem}; it is computed at every step instead.")
        return problem is not None

    def _driving(self, timestep: object) -> list[Any]:
        """Return the pipelines whose scheduler this timestep comes from."""
        found = []
        for pipe in list(self.pipes):
            timesteps = getattr(getattr(pipe, "scheduler", None), "timesteps", None)
            if isinstance(timestep, Tensor) and isinstance(timesteps, Tensor) and shares_memory(timestep, timesteps):
                found.append(pipe)
        return found

    def _depth(self, denoiser: nn.Module, timestep: object) -> int:
        """Return how many layers run on a reused feature: one in the place of none where noise is drawn anew."""
        asked = self.schedule.skipping.depth
        problem = None if asked else self._fresh_noise(timestep)
        if problem is None:
            return asked
        depth = depth_under_noise(denoiser, asked)
        if depth == 0:  # no layer can run alone, and the step will be whole
            return 0
        self.noise_problem = problem
        self.warn_once(
            f"agentsd does not reuse the UNet's prediction: {problem}. Its last layer runs on an earlier feature "
            "instead, as Skipping(depth=1) says without this warning."
        )
        return depth

    def _fresh_noise(self, timestep: object) -> str | None:
        """Return that the scheduler in use draws noise of which an earlier prediction knows nothing, if it does."""
        for pipe in self._driving(timestep) or list(self.pipes):
            if draws_noise(getattr(pipe, "scheduler", None)):
                return f"{type(pipe.scheduler).__name__} adds fresh noise at every step, of which it knows nothing"
        return None

    def _reuse(
        self, denoiser: nn.Module, position: Position, arguments: dict[str, Any], depth: int
    ) -> tuple[Tensor | None, bool]:
        """Return the feature to start from (`None`: full step), and whether a full step has to leave its feature."""
        if not self.schedule.skips_steps:
            return None, False
        run: Run | None = self.local.run
        if run is None:
            self._cannot_reuse("the timestep is a number, a copy or one of many in no order: its run cannot be told")
            return None, False
        run.enter(position.index, arguments.get("encoder_hidden_states"))
        last = position.index == position.total - 1
        kept = run.kept.pop(run.call, None) if last else run.kept.get(run.call)
        if self.schedule.is_full(position.index, position.total) or not run.settled:
            return None, not last
        problem = obstacle(denoiser, arguments, depth) or replaced_forward(denoiser)
        if problem is None and depth == 0:
            problem = self._fresh_noise(arguments.get("timestep"))
        if self.schedule.skips_guidance and kept is not None and halves(arguments["sample"], kept.feature):
            kept = kept.conditional()  # guidance ends here
        if problem is None and kept is not None and not fits(kept.feature, arguments["sample"]):
            if self.schedule.skips_guidance and halves(kept.feature, arguments["sample"]):
                return None, not last  # guidance sets in: the other half of the features has to be made first
            problem = "the batch or picture size changed within the run"
        if problem is not None:
            self._cannot_reuse(problem)
        elif kept is not None:
            return kept.at(position, self.schedule), False
        return None, not last

    def _adapt(
        self, denoiser: nn.Module, position: Position, arguments: dict[str, Any], *, guided: bool
    ) -> tuple[Tensor | None, bool]:
        """Return the forecast for a skipped step (`None`: full step), and whether a full step leaves its prediction."""
        run: Run | None = self.local.run
        if run is None:
            self._cannot_reuse("the timestep is a number, a copy or one of many in no order: its run is not known")
            return None, False
        sample: Tensor = arguments["sample"]
        run.enter(position.index, arguments.get("encoder_hidden_states"))
        run.observing = None
        problem = obstacle(denoiser, arguments, 0) or replaced_forward(denoiser)
        if problem is not None or not run.settled:
            run.controllers.pop(run.call, None)
            if problem is not None:
                self._cannot_reuse(problem)
            return None, False
        pipes = self._driving(arguments.get("timestep")) or list(self.pipes)
        feature, observe, reason = adapt(run, pipes, position, sample, self.schedule.skipping, guided=guided)
        run.observing = observe
        if reason is not None:
            self.skipping_problem = self.local.forced = reason
        return feature, observe is not None

    def _cannot_reuse(self, problem: str) -> None:
        self.skipping_problem = self.local.forced = problem
        self.warn_once(f"agentsd cannot reuse features: {problem}; the whole UNet runs instead.")

    def _run(self, number: int, index: int) -> Run:
        runs: list[Run] = getattr(self.local, "runs", [])
        run = next((run for run in runs if run.number == number and run.index <= index), None)
        if run is None:
            run = Run(number)
        going_on = [other for other in runs if other.number != number and other.number in self.local.reader.runs]
        self.local.runs = [*going_on, run][-_REMEMBERED_RUNS:]  # the least recent goes first
        return run

    def forget(self) -> None:
        """Let go of what calls have left: the runs in progress and their features, in every thread."""
        self.local = threading.local()
        self.slot.forget()

    def reset(self) -> None:
        """Forget the features and choices of all calls so far, and what the last run did."""
        enabled = getattr(self.local, "enabled", True)  # `disabled` may be in force in this thread
        self.forget()
        self.local.enabled = enabled
        self.choices = Choices(self.seed)
        self.record = RunRecord()

    def _levels(self, position: Position, sample: Tensor) -> dict[int, LevelPlan]:
        attention = self.schedule.at(position.index, position.total)
        levels: dict[int, LevelPlan] = {}
        if attention is None:
            return levels
        random = not isinstance(attention, PooledAgents) and attention.randomize
        index = position.index if random else None

        def pattern(height: int, width: int, stride: int) -> CellPattern:
            return self.choices.pattern(index, height, width, stride, sample.device)

        def draw(height: int, width: int, stride: int) -> Tensor:
            return self.choices.drawn(index, height, width, stride, sample.device)

        for level in sorted({site.level for site in self.sites}):
            downsample = 2 ** (level - self.finest)
            if downsample > attention.max_downsample or level in self.left_stock(attention):
                continue
            height, width = grid_at(level, sample.shape[-2], sample.shape[-1])
            here = attention.at_downsample(downsample)
            made = level_plan(height, width, here, sample.device, pattern=pattern, draw=draw)
            if made is not None:
                levels[level] = made
        return levels

    def left_stock(self, attention: Attention) -> frozenset[int]:
        """Return the levels that the plan leaves stock under these settings."""
        return frozenset() if self.plan is None else self.plan.stock_levels(attention)

    def warn_once(self, message: str) -> None:
        """Warn, unless this denoiser said the same before."""
        if message not in self.warned:
            self.warned.add(message)
            warn_user(message)


def _original(attn: Any) -> Any:
    """Return the layer's processor; the stock one in the place of a left-over of ours, which would call itself."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    return AttnProcessor2_0() if isinstance(attn.processor, AgentAttnProcessor) else attn.processor
