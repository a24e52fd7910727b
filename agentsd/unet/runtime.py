"""The state of a patched denoiser, and what happens at each call: read the step, decide, keep features."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from agentsd.attention.settings import Attention
from agentsd.planning.plans import Plan
from agentsd.schedule import Schedule
from agentsd.unet.adaptive import WithinTolerance
from agentsd.unet.conditions import changed_condition, conditional_conditions, conditions_of
from agentsd.unet.decisions import Decision, FixedSteps, Policy, Step
from agentsd.unet.denoisers import Layout, denoiser_in
from agentsd.unet.depth import fresh_noise, guidance_scale, left_out, skipped_depth
from agentsd.unet.forward import shallow_copy
from agentsd.unet.guidance import BYPASSED, conditional_half, runs_guided
from agentsd.unet.levels import plan_mismatches, step_levels
from agentsd.unet.processor import Site, original_processor
from agentsd.unet.progress import Progress
from agentsd.unet.runs import Cached, Run, fits, halves
from agentsd.unet.skipping import obstacle
from agentsd.unet.slot import StepContext, StepSlot
from agentsd.unet.state import State
from agentsd.unet.steps import Position
from agentsd.unet.traits import is_compiled
from agentsd.unet.transforms import in_transform, requires_gradient, trains

if TYPE_CHECKING:
    from agentsd.unet.sites import Candidate, Skipped

_GRADIENTS = "gradients are taken through the UNet, and a skipped step has none; call it under torch.no_grad()"
_COMPILED = "the denoiser is compiled, and calls of other batch sizes would be compiled anew"
_NO_RUN = "the timestep is a number, a copy or one of many in no order, so its run is unknown"
_NOT_SETTLED = "the calls of this step are not identified yet"


class Runtime(State):
    """The state of a patched denoiser (`denoiser._agentsd`). Copies and pickles start with no run in progress.

    Pipelines are held weakly, and a copy has none: its scheduler is that of the function that calls the denoiser.
    """

    def __init__(
        self,
        schedule: Schedule,
        seed: int,
        layers: "list[Candidate]",
        skipped: "list[Skipped]",
        layout: Layout,
        plan: Plan | None = None,
    ) -> None:
        super().__init__(schedule, seed)
        self.layout = layout
        self.slot = StepSlot()
        self.attentions = [layer.attn for layer in layers]
        self.sites = [Site(layer.name, layer.level, original_processor(layer.attn), self.slot) for layer in layers]
        self.skipped = tuple((layer.name, layer.reason) for layer in skipped)
        self.finest = min((site.level for site in self.sites), default=0)
        self.plan = plan
        self.depth = 0  # of the layer that leaves its feature; 0: none does
        self.sample: tuple[int, int] | None = None

    def policy(self) -> Policy:
        """Return what decides between full and skipped steps: a new one for every run, and for each call of a step."""
        return WithinTolerance(self.schedule.skipping) if self._adapts else FixedSteps(self.schedule)

    def begin(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the step of a call from its arguments and leave its settings for the layers."""
        self.local.run = self.local.step = self.local.position = None
        copied = shallow_copy(denoiser)
        self.slot.write(StepContext(), copied)
        arguments = self.layout.bind(args, kwargs)
        sample = arguments[self.layout.sample] = self.layout.joined(arguments.get(self.layout.sample))
        if not isinstance(sample, Tensor):  # the denoiser's own error follows
            if self.layout.lists and self.schedule.skips_steps:
                self.skipping_problem = "the pictures of a call differ in size"
            return
        self.sample = (sample.shape[-2], sample.shape[-1])
        for mismatch in plan_mismatches(self.plan, sample):
            self.warn_once(mismatch)
        if self.layout.scales_time:
            arguments["timestep"] = self.progress().step_of(arguments.get("timestep"))
        position = self.progress().position(arguments.get("timestep"))
        if position is None or not self.enabled:
            self.record.note(position, share=1.0, stock=True)
            return
        self.local.position = position
        if position.run is not None:
            self.activity.note(position)
            if self.schedule.skips_steps or self.schedule.skips_guidance:
                going_on = self.progress().reader.runs
                self.local.run = self.runs.at(position.run, position.index, going_on, self.schedule)
                self.local.run.look_at(denoiser)
        guided = runs_guided(self, denoiser, position, arguments)
        decision, feature, depth = Decision(True, "the schedule skips no steps"), None, 0
        if self.schedule.skips_steps:
            if not self._adapts:
                depth = skipped_depth(self, denoiser, arguments.get("timestep"))
            given = arguments if guided else conditional_half(arguments)
            decision, feature = self._decide(denoiser, position, given, depth, guided=guided)
        part = None if feature is None else decision.part
        runs = feature is None or part is not None
        # The last step leaves its feature too, although no step needs it: a compiled graph treats all full steps alike.
        keep = self.schedule.skips_steps and runs and self.local.run is not None
        levels = step_levels(self, position, sample) if runs or depth > 0 else {}
        stock = feature is None and guided and not levels
        reason = decision.why if decision.forced else None
        share = part.share if part is not None else float(runs)
        self.record.note(position, share=share, stock=stock, reason=reason)
        output = None if feature is None else self.local.run.outputs.get(self.local.run.call)
        self.slot.write(StepContext(levels, feature, keep, depth, guided, output, part), copied)

    def end(self, output: Any) -> None:
        """Keep the feature that a full step left, for the steps that follow in its run; none of a failed call.

        Args:
            output: What the denoiser returned; `None` of a failed call.
        """
        failed = output is None
        context, feature = self.slot.read(), self.slot.take_feature()
        if context.needs_forward and not failed:
            self.bypassed = not self.slot.forward_ran
        self.slot.clear()
        run: Run | None = getattr(self.local, "run", None)
        self.local.run = None
        step: Step | None = getattr(self.local, "step", None)
        self.local.step = None
        if not failed:
            self.finish(getattr(self.local, "position", None))
        if feature is None or run is None or step is None or failed or run.call is None or _is_last(step.position):
            return
        if in_transform():  # tensors of a transform must not outlive it
            run.drop()
            return
        policy: Policy = run.policies[run.call]
        run.conditions[run.call] = (step.sample.shape, self.local.conditions)
        run.outputs[run.call] = None if isinstance(output, tuple) else type(output)
        if not policy.keeps:
            # A copy: the original may be a view of a larger tensor, or memory of a CUDA graph.
            fresh = Cached(feature.detach().clone(), run.index, shape=step.sample.shape)
            before = run.kept.get(run.call)
            alike = before is not None and before.index < fresh.index and fits(before, step.sample)
            if self.schedule.skipping.forecast and before is not None and alike and run.settled:
                gap = fresh.index - before.index
                fresh = replace(fresh, change=fresh.feature - before.feature, gap=gap)
            run.keep(fresh)
        policy.observe(step, feature, context.part)
        run.trim()

    @property
    def _adapts(self) -> bool:
        return self.schedule.skipping.by_noise_level

    def _decide(
        self, denoiser: nn.Module, position: Position, arguments: dict[str, Any], depth: int, *, guided: bool
    ) -> tuple[Decision, Tensor | None]:
        """Return whether the step is full, and the feature that a skipped step starts from. It decides alone."""
        run: Run | None = self.local.run
        sample: Tensor = arguments[self.layout.sample]
        if run is None:
            return self._forced(_NO_RUN)
        transformed = in_transform()
        run.enter(position.index, None if transformed else arguments.get("encoder_hidden_states"))
        if run.call is None:
            return self._forced("the step has too many calls", quiet=True)
        cached = run.kept.get(run.call)
        if self.schedule.skips_guidance and cached is not None and halves(sample.shape, cached.shape):
            cached = cached.conditional()  # guidance ends here
        self.local.conditions = {} if transformed else conditions_of(arguments, self.layout, run.knobs or [])
        changed = None if transformed else self._changed(run, sample)
        policy: Policy = run.policies.setdefault(run.call, self.policy())
        if _is_last(position):
            run.kept.pop(run.call, None)
        scheduler = self.progress().scheduler()
        pipes = tuple(pipe for pipe in list(self.pipes) if scheduler is not None and pipe.scheduler is scheduler)
        noisy = self._adapts and fresh_noise(self, arguments.get("timestep")) is not None
        rest = (guidance_scale(self, pipes), self.layout.sign, left_out(self), self.layout.conditional_first)
        apart = self.schedule.skipping.by_picture and not self._compiled(run, denoiser)
        step = Step(position, sample, cached, scheduler, noisy, pipes, run.copies, guided, *rest, apart)
        problem = self._obstacle(denoiser, arguments, depth, run) if policy.keeps else None
        if policy.keeps and (problem is not None or not run.settled):
            run.drop()
            return self._forced(problem or _NOT_SETTLED, quiet=problem is None)
        self.local.step = step
        wanted = policy.decide(step)
        if wanted.forced:
            self.skipping_problem = wanted.why
        if wanted.full:
            return self._forced(f"{changed} changed within the run") if changed and policy.keeps else (wanted, None)
        if not run.settled:
            return self._forced(_NOT_SETTLED, quiet=True)
        if not policy.keeps:
            problem = self._obstacle(denoiser, arguments, depth, run)
        if problem is None and changed is not None:
            problem = f"{changed} changed within the run"
        if problem is None and cached is not None and not fits(cached, sample):
            if self.schedule.skips_guidance and halves(cached.shape, sample.shape):
                return self._forced("guidance starts, and half of the samples has no cached feature", quiet=True)
            problem = "the batch or picture size changed within the run"
        if problem is not None:
            return self._forced(problem)
        if cached is None and not policy.keeps:
            return self._forced("no earlier step has left a feature", quiet=True)
        return wanted, policy.forecast(step)

    def _compiled(self, run: Run, denoiser: nn.Module) -> bool:
        """Return whether calls of another batch size would be compiled anew."""
        if run.compiled is None:
            run.compiled = is_compiled(denoiser) or any(hasattr(denoiser_in(pipe), "_orig_mod") for pipe in self.pipes)
            if run.compiled:
                self.batch_problem = _COMPILED
                self.warn_once(f"agentsd does not choose steps by picture: {_COMPILED}. The largest error decides.")
        return run.compiled

    def _changed(self, run: Run, sample: Tensor) -> str | None:
        """Return which condition changed since the last full step of this call; if one did, forget its feature."""
        shape, before = (None, {}) if run.call is None else run.conditions.get(run.call, (None, {}))
        if shape is None:
            return None
        if self.schedule.skips_guidance and shape[0] == 2 * sample.shape[0]:
            before = conditional_conditions(before, shape[0])
        elif shape != sample.shape:
            return None  # another batch or size is another reason
        changed = changed_condition(before, self.local.conditions)
        if changed is not None:
            run.drop()
        return changed

    def _obstacle(self, denoiser: nn.Module, arguments: dict[str, Any], depth: int, run: Run) -> str | None:
        if in_transform():
            return "derivatives are taken through the UNet, and a skipped step has none"
        if torch.is_grad_enabled():
            if run.trains is None:
                run.trains = trains(denoiser)
            if not denoiser.training and (run.trains or requires_gradient(arguments)):
                return _GRADIENTS
        problem = obstacle(denoiser, arguments, depth) or run.foreign_code() or (BYPASSED if self.bypassed else None)
        return (
            fresh_noise(self, arguments.get("timestep"))
            if problem is None and depth == 0 and not self._adapts
            else problem
        )

    def _forced(self, problem: str, *, quiet: bool = False) -> tuple[Decision, None]:
        if not quiet:
            self.skipping_problem = problem
            self.warn_once(f"agentsd does not skip steps: {problem}. They are full instead.")
        return Decision(True, problem, forced=True), None

    def progress(self) -> Progress:
        """Return where this thread's calls stand."""
        progress: Progress | None = getattr(self.local, "progress", None)
        if progress is None:
            progress = self.local.progress = Progress(self.pipes)
        return progress

    def left_stock(self, attention: Attention) -> frozenset[int]:
        """Return the levels that the plan leaves stock under these settings."""
        return frozenset() if self.plan is None else self.plan.stock_levels(attention)


def _is_last(position: Position) -> bool:
    return position.index == position.total - 1
