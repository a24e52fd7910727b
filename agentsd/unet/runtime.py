"""What a patched denoiser carries, and what happens at each of its calls: read the step, decide, keep features."""

import threading
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from agentsd.attention.settings import Attention
from agentsd.planning.plans import Plan
from agentsd.schedule import Schedule
from agentsd.system.warning import warn_user
from agentsd.unet.callers import calling_eta
from agentsd.unet.choices import Choices
from agentsd.unet.conditions import changed_condition, conditions_of, find_knobs
from agentsd.unet.decisions import Decision, FixedSteps, Policy, Step
from agentsd.unet.forward import bind_arguments, shallow_copy
from agentsd.unet.guidance import conditional_half, guidance_obstacle, is_twice
from agentsd.unet.levels import plan_mismatches, step_levels
from agentsd.unet.noise import noise_source, takes_eta
from agentsd.unet.processor import Site, original_processor
from agentsd.unet.progress import Progress
from agentsd.unet.record import RunRecord
from agentsd.unet.reuse import foreign_processor, obstacle
from agentsd.unet.runs import Cached, Run, Runs, fits, halves
from agentsd.unet.shallow import depth_under_noise
from agentsd.unet.slot import StepContext, StepSlot
from agentsd.unet.steps import Position
from agentsd.unet.transforms import in_transform, requires_gradient, trains

if TYPE_CHECKING:
    from agentsd.unet.sites import Candidate, Skipped

_GRADIENTS = "gradients are taken through the UNet, and a skipped step has none; call it under torch.no_grad()"
_NO_RUN = "the timestep is a number, a copy or one of many in no order: its run cannot be told"
_BYPASSED = "other code has replaced the UNet's forward since agentsd.apply; call it again"


class Runtime:
    """Everything a patched denoiser carries (on `denoiser._agentsd`); copies and pickles start with no run in progress.

    Pipelines are held weakly and lost in a copy: the scheduler is then that of the function that calls the denoiser.
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
        self.sites = [Site(layer.name, layer.level, original_processor(layer.attn), self.slot) for layer in layers]
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
        self.runs = Runs()
        self.choices = Choices(self.seed)
        self.warned: set[str] = set()
        self.bypassed = False  # whether the last call that needed our forward ran another one

    def __getstate__(self) -> dict[str, Any]:
        volatile = {"pipes", "users", "local", "runs", "choices", "warned", "bypassed"}
        return {key: value for key, value in self.__dict__.items() if key not in volatile}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fresh()

    def policy(self) -> Policy:
        """Return what decides between full and skipped steps: a new one for every run, and for each call of a step."""
        return FixedSteps(self.schedule)

    def begin(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the step of a call from its arguments and leave its settings for the layers."""
        self.local.run = None
        self.slot.write(StepContext())
        arguments = bind_arguments(args, kwargs)
        sample = arguments.get("sample")
        if sample is None:  # the UNet's own error follows
            return
        self.sample = (sample.shape[-2], sample.shape[-1])
        for mismatch in plan_mismatches(self.plan, sample):
            self.warn_once(mismatch)
        position = self._progress().position(arguments.get("timestep"))
        if position is None or not getattr(self.local, "enabled", True):
            self.record.note(position, skipped=False, stock=True)
            return
        if position.run is not None and (self.schedule.skips_steps or self.schedule.skips_guidance):
            self.local.run = self.runs.at(position.run, position.index, self._progress().reader.runs)
        guided = self._guided(denoiser, position, arguments)
        depth, feature = 0, None
        decision, forced = Decision(True, "the schedule skips no steps"), False
        if self.schedule.skips_steps:
            depth = self._depth(denoiser, arguments.get("timestep"))
            given = arguments if guided else conditional_half(arguments)
            decision, forced, feature = self._decide(denoiser, position, given, depth)
        # The last step leaves its feature too, although nobody needs it: in a compiled graph it is as any full step.
        keep = self.schedule.skips_steps and feature is None and self.local.run is not None
        levels = step_levels(self, position, sample) if feature is None or depth > 0 else {}
        stock = feature is None and guided and not levels
        reason = decision.why if forced else None
        self.record.note(position, skipped=feature is not None, stock=stock, reason=reason)
        self.slot.write(StepContext(levels, feature, keep, depth, guided), shallow_copy(denoiser))

    def end(self, *, failed: bool) -> None:
        """Keep the feature that a full step left, for the steps that follow in its run; none of a failed call."""
        context, feature = self.slot.read(), self.slot.take_feature()
        if context.needs_forward and not failed:
            self.bypassed = not self.slot.forward_ran
        self.slot.clear()
        run: Run | None = getattr(self.local, "run", None)
        self.local.run = None
        step: Step | None = self.local.__dict__.pop("step", None)
        if feature is None or run is None or step is None or failed or run.call is None or _is_last(step.position):
            return
        if in_transform():  # what a transform computes is not to outlive it
            run.drop()
            return
        # A copy: the original may be a view of a larger tensor, or memory of a CUDA graph.
        fresh = Cached(feature.detach().clone(), run.index, conditions=self.local.conditions)
        before = run.kept.get(run.call)
        alike = before is not None and before.index < fresh.index and fits(before.feature, fresh.feature)
        if self.schedule.skipping.forecast and before is not None and alike and run.settled:
            gap = fresh.index - before.index
            fresh = replace(fresh, change=fresh.feature - before.feature, gap=gap)
        run.keep(fresh)
        run.policies[run.call].observe(step, fresh.feature)

    def _decide(
        self, denoiser: nn.Module, position: Position, arguments: dict[str, Any], depth: int
    ) -> tuple[Decision, bool, Tensor | None]:
        """Decide between a full and a skipped step; this is the one place.

        Returns:
            The decision, whether it had to be full although the policy skips, and what a skipped step starts from.
        """
        run: Run | None = self.local.run
        sample: Tensor = arguments["sample"]
        if run is None:
            return self._forced(_NO_RUN)
        if run.knobs is None:
            run.knobs, run.foreign = find_knobs(denoiser), foreign_processor(denoiser)
        transformed = in_transform()
        context = arguments.get("encoder_hidden_states")
        run.enter(position.index, None if transformed else context)
        self.local.conditions = {} if transformed else conditions_of(arguments, run.knobs)
        if run.call is None:
            return self._forced("a step has too many calls to tell them apart", quiet=True)
        cached = run.kept.get(run.call)
        if self.schedule.skips_guidance and cached is not None and halves(sample, cached.feature):
            cached = cached.conditional()  # guidance ends here
        changed = None
        if cached is not None and not transformed and fits(cached.feature, sample):
            changed = changed_condition(cached.conditions, self.local.conditions)
            if changed is not None:
                run.drop()
        if run.call not in run.policies:
            run.policies[run.call] = self.policy()
        policy = run.policies[run.call]
        step = self.local.step = Step(position, sample, cached, self._progress().scheduler())
        if _is_last(position):
            run.kept.pop(run.call, None)
        wanted: Decision = policy.decide(step)
        if wanted.full:
            return wanted, False, None
        if not run.settled:
            return self._forced("the calls of this step cannot be told apart yet", quiet=True)
        problem = self._obstacle(denoiser, arguments, depth, run)
        if problem is None and changed is not None:
            problem = f"{changed} changed within the run"
        if problem is None and cached is not None and not fits(cached.feature, sample):
            if self.schedule.skips_guidance and halves(cached.feature, sample):
                return self._forced("guidance starts, and half of the samples has no cached feature", quiet=True)
            problem = "the batch or picture size changed within the run"
        if problem is not None:
            return self._forced(problem)
        if cached is None:
            return self._forced("no earlier step has left a feature", quiet=True)
        return wanted, False, policy.forecast(step)

    def _obstacle(self, denoiser: nn.Module, arguments: dict[str, Any], depth: int, run: Run) -> str | None:
        if in_transform():
            return "derivatives are taken through the UNet, and a skipped step has none"
        if run.foreign is not None:
            return f"attention processor {run.foreign} of other code may read the layers at every step"
        if torch.is_grad_enabled():
            if run.trains is None:
                run.trains = trains(denoiser)
            if not denoiser.training and (run.trains or requires_gradient(arguments)):
                return _GRADIENTS
        problem = obstacle(denoiser, arguments, depth) or (_BYPASSED if self.bypassed else None)
        return self._fresh_noise(arguments.get("timestep")) if problem is None and depth == 0 else problem

    def _forced(self, problem: str, *, quiet: bool = False) -> tuple[Decision, bool, None]:
        if not quiet:
            self.skipping_problem = problem
            self.warn_once(f"agentsd cannot reuse features: {problem}; the whole UNet runs instead.")
        return Decision(True, problem), True, None

    def _progress(self) -> Progress:
        progress: Progress | None = getattr(self.local, "progress", None)
        if progress is None:
            progress = self.local.progress = Progress(self.pipes)
        return progress

    def _guided(self, denoiser: nn.Module, position: Position, arguments: dict[str, Any]) -> bool:
        """Return whether this call runs with all its samples, and not with the conditional half alone."""
        if self.schedule.is_guided(position.index, position.total):
            return True
        sample: Tensor = arguments["sample"]
        batch = sample.shape[0]
        scheduler = self._progress().scheduler()
        pipes = [pipe for pipe in list(self.pipes) if scheduler is not None and pipe.scheduler is scheduler]
        problem = _BYPASSED if self.bypassed else guidance_obstacle(denoiser, pipes, batch)
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

    def _depth(self, denoiser: nn.Module, timestep: object) -> int:
        """Return how many layers run at a skipped step: one instead of none where the scheduler adds fresh noise."""
        asked = self.schedule.skipping.depth
        problem = None if asked or self.local.run is None else self._fresh_noise(timestep)
        if problem is None:
            return asked
        depth = depth_under_noise(denoiser, asked)
        if depth == 0:  # no layer can run alone, and the step will be full
            return 0
        self.noise_problem = problem
        self.warn_once(
            f"agentsd does not reuse the UNet's prediction: {problem}. Its last layer runs on an earlier feature "
            "instead, as Skipping(depth=1) says without this warning."
        )
        return depth

    def _fresh_noise(self, timestep: object) -> str | None:
        """Return why the steps of the run must be taken to add noise that an earlier prediction does not know."""
        run: Run | None = self.local.run
        scheduler = self._progress().scheduler()
        if run is None or scheduler is None or not isinstance(timestep, Tensor):
            return noise_source(scheduler)
        if run.eta is None:
            run.eta = calling_eta(timestep, scheduler) if takes_eta(scheduler) else 0.0
        return noise_source(scheduler, run.eta)

    def left_stock(self, attention: Attention) -> frozenset[int]:
        """Return the levels that the plan leaves stock under these settings."""
        return frozenset() if self.plan is None else self.plan.stock_levels(attention)

    def forget(self) -> None:
        """Let go of what calls have left: the runs in progress, their features and choices, in every thread."""
        self.local = threading.local()
        self.runs = Runs()
        self.choices.clear()
        self.slot.forget()

    def reset(self) -> None:
        """Forget the features and choices of all calls so far, and what the last run did."""
        enabled = getattr(self.local, "enabled", True)  # `disabled` may be in force in this thread
        self.forget()
        self.local.enabled = enabled
        self.record = RunRecord()

    def warn_once(self, message: str) -> None:
        """Warn at the user's line, unless this denoiser said the same before."""
        if message not in self.warned:
            self.warned.add(message)
            warn_user(message)


def _is_last(position: Position) -> bool:
    return position.index == position.total - 1
