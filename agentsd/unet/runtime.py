"""What a patched denoiser carries, and what happens at each of its calls: read the step, set it, keep features."""

import functools
import hashlib
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from agentsd.attention.settings import Attention, PooledAgents
from agentsd.attention.tokens import CellPattern, cell_pattern, draw_tokens
from agentsd.planning.plans import Plan
from agentsd.schedule import Schedule
from agentsd.unet.guidance import conditional_half, for_both_halves, guidance_obstacle, is_twice
from agentsd.unet.processor import SITE, AgentAttnProcessor, LevelPlan, Site, StepContext, StepSlot, level_plan
from agentsd.unet.reuse import bind_arguments, depth_under_noise, draws_noise, obstacle, shallow_pass
from agentsd.unet.steps import Position, StepReader, shares_memory

if TYPE_CHECKING:
    from agentsd.unet.sites import Candidate, Skipped

_CACHED_CHOICES = 256  # cell patterns and drawn tokens
_REMEMBERED_RUNS = 4  # runs that may take turns on one UNet in one thread, each with its features
_LONGEST_CHAIN = 32  # functions around a UNet's forward that are looked through
KEEPER = "_agentsd_slot"  # on the module that sees the deep feature


@dataclass(frozen=True)
class _Kept:
    """The feature of full step `index`, and its change since the full step `gap` steps before."""

    feature: Tensor
    index: int
    change: Tensor | None = None
    gap: int = 1

    def conditional(self) -> "_Kept":
        """Return what was kept for the second half of the samples."""
        half = self.feature.shape[0] // 2
        return replace(self, feature=self.feature[half:], change=None if self.change is None else self.change[half:])

    def at(self, position: Position, schedule: Schedule) -> Tensor:
        """Return what to start a step from."""
        if self.change is None:
            return self.feature
        distance = position.index - self.index
        weight = schedule.forecast_at(position.index, position.total, gap=self.gap, distance=distance)
        return torch.add(self.feature, self.change, alpha=weight * distance / self.gap)


_Calls: TypeAlias = "list[tuple[Tensor | None, int]]"  # context and number of the calls of a step


class _RunFeatures:
    """Features of one run, by call: some pipelines call several times a step, for guidance branches or views.

    A call is told by its context, and among calls with one context by their order. A call that is none of the run's,
    such as one to warm up on its first timestep, looks like one more of these: several with one context are taken for
    the rule when two steps had as many.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.index = -1
        self.call = -1
        self.settled = True  # whether the call in progress is known to be the one of the step before
        self.kept: dict[int, _Kept] = {}
        self.twice: dict[int, bool] = {}  # by samples in a call: whether guidance repeats them
        self._steps: tuple[_Calls, _Calls, _Calls] = ([], [], [])  # the step in progress last
        self._calls = 0

    def enter(self, index: int, context: Tensor | None) -> None:
        """Tell which call this is, of step `index`."""
        if index != self.index:
            self.index, self._steps = index, (*self._steps[1:], [])
            going_on = {call for _, call in self._steps[1]}
            self.kept = {call: kept for call, kept in self.kept.items() if call in going_on}
        alike = [[call for known, call in step if _same(known, context)] for step in self._steps]
        if not alike[1]:  # a context made anew at every step: by order alone
            alike = [[call for _, call in step] for step in self._steps]
        earlier, before, now = alike
        self.settled = len(before) in (1, len(earlier))
        if len(now) < len(before):
            self.call = before[len(now)]
        else:
            self.call, self._calls = self._calls, self._calls + 1
        # Held, so that another tensor cannot come to its address.
        self._steps[2].append((None if context is None else context.detach(), self.call))


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape


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
        self.reuse_problem: str | None = None
        self.noise_problem: str | None = None
        self.guidance_problem: str | None = None
        self._fresh()

    def _fresh(self) -> None:
        self.pipes: weakref.WeakSet[Any] = weakref.WeakSet()
        self.local = threading.local()
        self.choices: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self.lock = threading.Lock()
        self.warned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        volatile = {"pipes", "local", "choices", "lock", "warned"}
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
            self.slot.write(StepContext())
            return
        if position.run is not None and (self.schedule.skips_steps or self.schedule.skips_guidance):
            self.local.run = self._run(position.run, position.index)
        guided = self._guided(denoiser, position, arguments)
        depth = self._depth(denoiser, arguments.get("timestep")) if self.schedule.skips_steps else 0
        feature, keep = self._reuse(denoiser, position, arguments if guided else conditional_half(arguments), depth)
        attends = feature is None or depth > 0
        levels = self._levels(position, sample) if attends else {}
        self.slot.write(StepContext(levels, feature, keep, depth, guided))

    def end(self, *, failed: bool) -> None:
        """Keep the feature that a full step left, for the steps that follow in its run; none of a failed call."""
        self.slot.in_call = False
        feature = self.slot.take_feature()
        context = self.slot.read()
        if context.feature is not None:
            self.slot.write(replace(context, feature=None))  # not to be held until the next call
        run: _RunFeatures | None = getattr(self.local, "run", None)
        if feature is not None and run is not None and not failed:
            # A copy: the original may be a view of a larger tensor, or memory of a CUDA graph.
            fresh = _Kept(feature.detach().clone(), run.index)
            before = run.kept.get(run.call)
            alike = before is not None and before.index < fresh.index and _fits(before.feature, fresh.feature)
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
        problem = _replaced_forward(denoiser) or guidance_obstacle(denoiser, pipes, batch)
        if problem is None:
            run: _RunFeatures | None = self.local.run
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
        run: _RunFeatures | None = self.local.run
        if run is None:
            self._cannot_reuse("the timestep is a number, a copy or one of many in no order: its run cannot be told")
            return None, False
        run.enter(position.index, arguments.get("encoder_hidden_states"))
        last = position.index == position.total - 1
        kept = run.kept.pop(run.call, None) if last else run.kept.get(run.call)
        if self.schedule.is_full(position.index, position.total) or not run.settled:
            return None, not last
        problem = obstacle(denoiser, arguments, depth) or _replaced_forward(denoiser)
        if problem is None and depth == 0:
            problem = self._fresh_noise(arguments.get("timestep"))
        if self.schedule.skips_guidance and kept is not None and _halves(arguments["sample"], kept.feature):
            kept = kept.conditional()  # guidance ends here
        if problem is None and kept is not None and not _fits(kept.feature, arguments["sample"]):
            if self.schedule.skips_guidance and _halves(kept.feature, arguments["sample"]):
                return None, not last  # guidance sets in: the other half of the features has to be made first
            problem = "the batch or picture size changed within the run"
        if problem is not None:
            self._cannot_reuse(problem)
        elif kept is not None:
            return kept.at(position, self.schedule), False
        return None, not last

    def _cannot_reuse(self, problem: str) -> None:
        self.reuse_problem = problem
        self.warn_once(f"agentsd cannot reuse features: {problem}; the whole UNet runs instead.")

    def _run(self, number: int, index: int) -> "_RunFeatures":
        runs: list[_RunFeatures] = getattr(self.local, "runs", [])
        run = next((run for run in runs if run.number == number and run.index <= index), None)
        if run is None:
            run = _RunFeatures(number)
        going_on = [other for other in runs if other.number != number and other.number in self.local.reader.runs]
        self.local.runs = [*going_on, run][-_REMEMBERED_RUNS:]  # the least recent goes first
        return run

    def forget(self) -> None:
        """Let go of what calls have left: the runs in progress and their features, in every thread."""
        self.local = threading.local()
        self.slot.forget()

    def _levels(self, position: Position, sample: Tensor) -> dict[int, LevelPlan]:
        attention = self.schedule.at(position.index, position.total)
        levels: dict[int, LevelPlan] = {}
        if attention is None:
            return levels
        random = not isinstance(attention, PooledAgents) and attention.randomize
        index = position.index if random else None

        def pattern(height: int, width: int, stride: int) -> CellPattern:
            return self._pattern(index, height, width, stride, sample.device)

        def draw(height: int, width: int, stride: int) -> Tensor:
            return self._drawn(index, height, width, stride, sample.device)

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

    def _pattern(self, index: int | None, height: int, width: int, stride: int, device: torch.device) -> CellPattern:
        def make() -> CellPattern:
            generator = None if index is None else self._generator(index, height, width, stride)
            return cell_pattern(height, width, stride, generator).to(device)

        made: CellPattern = self._cached(("pattern", index, height, width, stride, device), make)
        return made

    def _drawn(self, index: int | None, height: int, width: int, stride: int, device: torch.device) -> Tensor:
        def make() -> Tensor:
            # Steps in a row draw each token of a cell in turn, then in another order: layers that run at every fourth
            # step alone (reuse) must not meet the same one each time.
            row, place = divmod(index or 0, stride**2)
            generator = None if index is None else self._generator("sample", row, height, width, stride)
            return draw_tokens(height, width, stride, place, generator).to(device)

        made: Tensor = self._cached(("drawn", index, height, width, stride, device), make)
        return made

    def _generator(self, *words: object) -> torch.Generator:
        """Return a generator that depends on what is drawn, not on what ran before: equal calls give equal images."""
        text = " ".join(str(word) for word in (self.seed, *words))
        digest = hashlib.blake2b(text.encode(), digest_size=7).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest))

    def _cached(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        with self.lock:
            if key not in self.choices:
                with torch.inference_mode(False):  # an inference tensor could not serve a training step later
                    self.choices[key] = make()
                if len(self.choices) > _CACHED_CHOICES:
                    self.choices.popitem(last=False)
            return self.choices[key]

    def warn_once(self, message: str) -> None:
        """Warn, unless this denoiser said the same before."""
        if message not in self.warned:
            self.warned.add(message)
            warnings.warn(message, UserWarning, stacklevel=2)


def _original(attn: Any) -> Any:
    """Return the layer's processor; the stock one in the place of a left-over of ours, which would call itself."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    return AttnProcessor2_0() if isinstance(attn.processor, AgentAttnProcessor) else attn.processor


def _replaced_forward(denoiser: nn.Module) -> str | None:
    """Return that `scheduled_forward` is no longer what the denoiser runs, or `None` if it is, perhaps wrapped."""
    wrapped: list[Any] = [denoiser.__dict__.get(name) for name in ("forward", "_old_forward")]
    for forward in wrapped:  # grows while it is walked
        if isinstance(forward, functools.partial):
            if forward.func is scheduled_forward:
                return None
            wrapped.append(forward.func)
        if len(wrapped) < _LONGEST_CHAIN:
            wrapped.append(getattr(forward, "__wrapped__", None))
            cells = getattr(forward, "__closure__", None) or ()
            wrapped += [content for content in map(_content, cells) if callable(content)]
    return "other code has replaced the UNet's forward since agentsd.apply; call it again"


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the cell is empty as yet
        return None


def _fits(feature: Tensor, sample: Tensor) -> bool:
    return (
        feature.shape[0] == sample.shape[0]
        and feature.shape[-2:] == sample.shape[-2:]
        and feature.device == sample.device
    )


def _halves(feature: Tensor, sample: Tensor) -> bool:
    return 2 * feature.shape[0] == sample.shape[0] and feature.shape[-2:] == sample.shape[-2:]


def grid_at(level: int, height: int, width: int) -> tuple[int, int]:
    """Return the token grid after `level` halvings of a latent; stride-2 convolutions round up.

    Example:
        >>> grid_at(1, 65, 97)
        (33, 49)
    """
    for _ in range(level):
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width


def on_block_call(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Leave the block's input for its self-attention to rank by: the published ranking is before norm1."""
    site: Site | None = block.attn1.__dict__.get(SITE)
    if site is not None:
        if block.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            site.slot.recall(args[0] if args else kwargs["hidden_states"], in_call=site.slot.in_call)
        plan = site.slot.read().levels.get(site.level)
        if plan is not None and plan.pattern is not None:
            site.slot.put_metric(args[0] if args else kwargs["hidden_states"])


def on_deep_feature(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None) -> None:
    """Leave the deep feature of a full step: the input of the last up block, or the output of one of its layers."""
    slot: StepSlot | None = module.__dict__.get(KEEPER)
    if slot is not None and slot.read().keep and slot.read().depth:
        if output is None:
            output = args[0] if args else kwargs["hidden_states"]
        slot.put_feature(output[0] if isinstance(output, tuple) else output)


# Root hooks run outside compiled graphs; left to the compiler they would break `fullgraph=True`.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def on_denoiser_call(denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Read the step from the timestep, set it for the layers, and say once if the layers are no longer ours."""
    runtime: Runtime = denoiser.__dict__[SITE]
    runtime.begin(denoiser, args, kwargs)
    replaced = sum(type(attn.processor) is not AgentAttnProcessor for attn in runtime.attentions)
    if replaced:
        runtime.warn_once(
            f"{replaced} of the {len(runtime.sites)} attention processors that agentsd installed have been replaced by "
            "other code (attention slicing, xformers, fuse_qkv_projections, PAG, ...); those layers do not use agent "
            "attention now. If that was not meant, call agentsd.apply again afterwards."
        )
    for site in runtime.sites:
        if site.problem is not None:
            runtime.warn_once(f"agentsd at {site.name}: {site.problem}.")


@torch.compiler.disable  # type: ignore[untyped-decorator]
def after_denoiser_call(denoiser: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Keep what the steps to come will reuse; called after an exception too."""
    runtime: Runtime = denoiser.__dict__[SITE]
    runtime.end(failed=output is None)


def scheduled_forward(denoiser: Any, original: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Stand in for the UNet's forward: start from the step's feature if it has one, else run the original.

    Installed as `functools.partial(scheduled_forward, unet, original)`, which copies and pickles with the UNet; a
    closure would keep calling the UNet it was made for. `original` is `None` for the class's own forward.
    """
    runtime: Runtime | None = denoiser.__dict__.get(SITE)
    context = StepContext() if runtime is None else runtime.slot.read()
    if not context.guided:
        args, kwargs = (), conditional_half(bind_arguments(args, kwargs))
    if runtime is not None and context.feature is not None:
        arguments = bind_arguments(args, kwargs)
        output = shallow_pass(denoiser, context.feature, context.depth, arguments)
    elif original is None:
        output = type(denoiser).forward(denoiser, *args, **kwargs)
    else:
        output = original(*args, **kwargs)
    if runtime is not None and context.keep and context.depth == 0:
        runtime.slot.put_feature(output[0])
    return output if context.guided else for_both_halves(output)
