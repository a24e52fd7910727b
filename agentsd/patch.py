"""Install agent attention on a pipeline or UNet, follow its steps, report, and restore it exactly."""

import hashlib
import threading
import warnings
import weakref
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from agentsd.config import AgentConfig, Schedule
from agentsd.presets import DEFAULT_PRESET, preset_schedule
from agentsd.processor import SITE, AgentAttnProcessor, LevelPlan, Site, StepContext, StepSlot
from agentsd.report import LayerReport, Report
from agentsd.steps import Position, StepReader
from agentsd.tokens import CellPattern, cell_pattern

if TYPE_CHECKING:
    from agentsd.sites import Candidate, Skipped

_CACHED_PATTERNS = 256
_REPLACED = "processor replaced by other code: not patched any more"


class _State:
    """Everything a patched denoiser carries (on `denoiser._agentsd`); copies and pickles start with no run in progress.

    Pipelines are held weakly and lost in a copy: the step is then read from the timestep alone.
    """

    def __init__(self, schedule: Schedule, seed: int, layers: "list[Candidate]", skipped: "list[Skipped]") -> None:
        self.schedule = schedule
        self.seed = seed
        self.slot = StepSlot()
        self.attentions = [layer.attn for layer in layers]
        self.sites = [Site(layer.name, layer.level, layer.attn.processor, self.slot) for layer in layers]
        self.skipped = tuple((layer.name, layer.reason) for layer in skipped)
        self.finest = min(site.level for site in self.sites)
        self.sample: tuple[int, int] | None = None
        self._fresh()

    def _fresh(self) -> None:
        self.pipes: weakref.WeakSet[Any] = weakref.WeakSet()
        self.local = threading.local()
        self.patterns: OrderedDict[tuple[Any, ...], CellPattern] = OrderedDict()
        self.lock = threading.Lock()
        self.warned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        volatile = {"pipes", "local", "patterns", "lock", "warned"}
        return {key: value for key, value in self.__dict__.items() if key not in volatile}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fresh()

    def read_step(self, timestep: object) -> Position | None:
        if not hasattr(self.local, "reader"):
            self.local.reader = StepReader()
        schedulers = [pipe.scheduler for pipe in list(self.pipes) if getattr(pipe, "scheduler", None) is not None]
        timesteps = [scheduler.timesteps for scheduler in schedulers if torch.is_tensor(scheduler.timesteps)]
        train_steps = next((int(scheduler.config.num_train_timesteps) for scheduler in schedulers), 1000)
        position: Position | None = self.local.reader.read(timestep, timesteps, train_steps=train_steps)
        return position

    def context(self, position: Position | None, sample: Tensor) -> StepContext:
        if position is None or not getattr(self.local, "enabled", True):
            return StepContext()
        config = self.schedule.at(position.index, position.total)
        if config is None:
            return StepContext()
        levels = {}
        for level in sorted({site.level for site in self.sites}):
            if 2 ** (level - self.finest) > config.max_downsample:
                continue
            height, width = grid_at(level, sample.shape[-2], sample.shape[-1])
            counts = config.count_tokens(height, width)
            if counts is None:
                continue
            pattern = None
            if config.uses_ranking:
                index = position.index if config.randomize else None
                pattern = self._pattern(index, height, width, config.stride, sample.device)
            levels[level] = LevelPlan(height, width, config, counts, pattern)
        return StepContext(levels)

    def _pattern(self, index: int | None, height: int, width: int, stride: int, device: torch.device) -> CellPattern:
        key = (index, height, width, stride, device)
        with self.lock:
            if key not in self.patterns:
                generator = None
                if index is not None:
                    # Drawn from what the step is, not from what ran before: equal calls give equal images.
                    words = f"{self.seed} {index} {height} {width} {stride}".encode()
                    digest = hashlib.blake2b(words, digest_size=7).digest()
                    generator = torch.Generator().manual_seed(int.from_bytes(digest))
                self.patterns[key] = cell_pattern(height, width, stride, generator).to(device)
                if len(self.patterns) > _CACHED_PATTERNS:
                    self.patterns.popitem(last=False)
            return self.patterns[key]

    def warn_once(self, message: str) -> None:
        if message not in self.warned:
            self.warned.add(message)
            warnings.warn(message, UserWarning, stacklevel=2)


class Patch:
    """Handle on a patched denoiser; as a context manager it restores the denoiser on leaving.

    Example:
        >>> with agentsd.apply(unet, preset="paper") as patch:
        ...     len(patch.report().layers)
        7
        >>> patch.active
        False
    """

    def __init__(self, denoiser: nn.Module, state: _State) -> None:
        self._denoiser = denoiser
        self._state = state

    @property
    def active(self) -> bool:
        """Whether this patch is still installed (not removed, nor replaced by a later `apply`)."""
        return self._denoiser.__dict__.get(SITE) is self._state

    @property
    def schedule(self) -> Schedule:
        """The schedule in force."""
        return self._state.schedule

    def remove(self) -> None:
        """Restore the denoiser exactly; does nothing if it is restored already or patched anew."""
        if self.active:
            _uninstall(self._denoiser)

    def report(self) -> Report:
        """Return which layers were patched, at which grid, with how many features and agents, and which were not."""
        return _report(self._denoiser, self._state)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Run stock attention in this thread while the context lasts, without taking the patch off."""
        local = self._state.local
        before = getattr(local, "enabled", True)
        local.enabled = False
        try:
            yield
        finally:
            local.enabled = before

    def __enter__(self) -> "Patch":
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return str(self.report()) if self.active else f"Patch on {type(self._denoiser).__name__}: removed"


def apply(
    target: Any,
    ratio: float | None = None,
    *,
    preset: str | None = None,
    config: AgentConfig | None = None,
    schedule: Schedule | None = None,
    seed: int = 0,
) -> Patch:
    """Patch a pipeline's UNet in place, so that its spatial self-attention follows an agent-attention schedule.

    The schedule runs by itself at every call of the pipeline; the pipeline's loop and callbacks stay untouched.
    Applying again replaces the earlier patch.

    Args:
        target: A diffusers pipeline with a UNet, or the UNet (or ControlNet) itself, compiled or not.
        ratio: Share of tokens merged before attention, in [0, 1): replaces the preset's merge ratio.
        preset: Name of a preset, see `agentsd.PRESETS`; the default is `"balanced"`.
        config: Settings for every step, instead of a preset.
        schedule: A schedule of your own, instead of a preset.
        seed: Seed of the random merge destinations; equal seeds give equal images, whatever ran before.

    Returns:
        The handle: `.remove()`, `.report()`, and a context manager.

    Raises:
        ValueError: If arguments contradict each other or are out of range, or nothing in the target can be patched.
        TypeError: If the target is neither a pipeline with a UNet nor a module.

    Example:
        >>> patch = agentsd.apply(pipe, ratio=0.4)
        >>> image = pipe("a red circle", num_inference_steps=2, output_type="pt").images
        >>> patch.remove()
    """
    chosen = _choose_schedule(ratio, preset, config, schedule)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed={seed!r} must be an integer.")
    denoiser = _denoiser(target)
    pipes = [target] if denoiser is not target and hasattr(target, "scheduler") else []
    earlier = denoiser.__dict__.get(SITE)
    if earlier is not None:
        pipes += list(earlier.pipes)  # other pipelines on the same UNet keep their schedulers known
        _uninstall(denoiser)
    state = _install(denoiser, chosen, seed)
    for pipe in pipes:
        state.pipes.add(pipe)
    return Patch(denoiser, state)


def remove(target: Any) -> None:
    """Restore a pipeline's UNet (or the UNet given) exactly; does nothing if it is not patched.

    Args:
        target: What was given to `apply`, or a copy of it.

    Raises:
        TypeError: If the target is neither a pipeline with a UNet nor a module.
    """
    denoiser = _denoiser(target)
    if SITE in denoiser.__dict__:
        _uninstall(denoiser)


def report(target: Any) -> Report:
    """Return what is patched on a pipeline's UNet (or on the UNet given).

    Args:
        target: What was given to `apply`, or a copy of it.

    Returns:
        The report.

    Raises:
        ValueError: If the target is not patched.
        TypeError: If the target is neither a pipeline with a UNet nor a module.
    """
    denoiser = _denoiser(target)
    state = denoiser.__dict__.get(SITE)
    if state is None:
        raise ValueError(f"target {type(target).__name__} is not patched; call agentsd.apply(target) first.")
    return _report(denoiser, state)


def grid_at(level: int, height: int, width: int) -> tuple[int, int]:
    """Return the token grid after `level` halvings of a latent; stride-2 convolutions round up.

    Example:
        >>> grid_at(1, 65, 97)
        (33, 49)
    """
    for _ in range(level):
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width


def _choose_schedule(
    ratio: float | None, preset: str | None, config: AgentConfig | None, schedule: Schedule | None
) -> Schedule:
    given = [name for name, value in (("config", config), ("schedule", schedule)) if value is not None]
    if given and (ratio is not None or preset is not None or len(given) > 1):
        others = [name for name, value in (("ratio", ratio), ("preset", preset)) if value is not None]
        raise ValueError(
            f"{' and '.join(given + others)} were given together, but config and schedule each say everything; "
            "give one of: config, schedule, or preset and/or ratio."
        )
    if config is not None:
        if not isinstance(config, AgentConfig):
            raise ValueError(f"config={config!r} must be an AgentConfig.")
        return Schedule.constant(config)
    if schedule is not None:
        if not isinstance(schedule, Schedule):
            raise ValueError(f"schedule={schedule!r} must be a Schedule.")
        return schedule
    return preset_schedule(DEFAULT_PRESET if preset is None else preset, ratio)


def _denoiser(target: Any) -> nn.Module:
    module = target if isinstance(target, nn.Module) else getattr(target, "unet", None)
    if module is None and getattr(target, "transformer", None) is not None:
        raise ValueError(
            f"{type(target).__name__} denoises with {type(target.transformer).__name__}, a transformer whose attention "
            "joins text and image tokens; agentsd patches pipelines with a UNet (SD 1.x, 2.x, SDXL and kin)."
        )
    if not isinstance(module, nn.Module):
        raise TypeError(f"target={type(target).__name__} must be a diffusers pipeline with a UNet, or the UNet itself.")
    compiled: nn.Module = getattr(module, "_orig_mod", module)
    return compiled


def _install(denoiser: nn.Module, schedule: Schedule, seed: int) -> _State:
    from agentsd.sites import find_sites

    candidates, skipped = find_sites(denoiser)
    if not candidates:
        raise ValueError(_nothing_found(denoiser, [layer.reason for layer in skipped]))
    state = _State(schedule, seed, candidates, skipped)
    for layer, site in zip(candidates, state.sites, strict=True):
        setattr(layer.attn, SITE, site)
        layer.attn.set_processor(AgentAttnProcessor())
        layer.block.register_forward_pre_hook(_on_block_call, with_kwargs=True)
    setattr(denoiser, SITE, state)
    denoiser.register_forward_pre_hook(_on_denoiser_call, with_kwargs=True)
    return state


def _nothing_found(denoiser: nn.Module, reasons: list[str]) -> str:
    found = "; ".join(f"{count} layers: {reason}" for reason, count in Counter(reasons).items())
    return (
        f"{type(denoiser).__name__} has no self-attention layer that agentsd can patch. "
        f"Found: {found or 'no attention layer at all'}. "
        "Supported: diffusers UNets whose levels hold Transformer2DModel (SD 1.x, 2.x, SDXL and kin)."
    )


def _uninstall(denoiser: nn.Module) -> None:
    # Found by walking the module, not from saved handles, so that copies and unpickled models can be restored too.
    for module in denoiser.modules():
        site = module.__dict__.get(SITE)
        if isinstance(site, Site):
            # Somebody else's processor, installed after ours, is theirs to keep.
            if isinstance(module.processor, AgentAttnProcessor):
                module.processor = site.original
            delattr(module, SITE)
        _drop_hook(module, _on_block_call)
    _drop_hook(denoiser, _on_denoiser_call)
    delattr(denoiser, SITE)


def _drop_hook(module: nn.Module, hook: Any) -> None:
    for key in [key for key, value in module._forward_pre_hooks.items() if value is hook]:
        del module._forward_pre_hooks[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)


def _report(denoiser: nn.Module, state: _State) -> Report:
    sample = state.sample
    size = getattr(getattr(denoiser, "config", None), "sample_size", None)
    if sample is None and size is not None:
        sample = (size, size) if isinstance(size, int) else (size[0], size[1])
    layers = tuple(
        LayerReport(
            name=site.name,
            downsample=2 ** (site.level - state.finest),
            grid=None if sample is None else grid_at(site.level, *sample),
            problem=site.problem if type(attn.processor) is AgentAttnProcessor else _REPLACED,
        )
        for site, attn in zip(state.sites, state.attentions, strict=True)
    )
    return Report(type(denoiser).__name__, state.schedule, layers, state.skipped, state.seed)


def _on_block_call(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Leave the block's input for its self-attention to rank by: the published ranking is before norm1."""
    site: Site | None = block.attn1.__dict__.get(SITE)
    if site is not None:
        plan = site.slot.read().levels.get(site.level)
        if plan is not None and plan.pattern is not None:
            site.slot.put_metric(args[0] if args else kwargs["hidden_states"])


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _on_denoiser_call(denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Read the step from the timestep and leave the step's settings for the layers."""
    state: _State = denoiser.__dict__[SITE]
    sample = args[0] if args else kwargs["sample"]
    timestep = args[1] if len(args) > 1 else kwargs.get("timestep")
    state.sample = (sample.shape[-2], sample.shape[-1])
    state.slot.write(state.context(state.read_step(timestep), sample))
    replaced = sum(type(attn.processor) is not AgentAttnProcessor for attn in state.attentions)
    if replaced:
        state.warn_once(
            f"{replaced} of the {len(state.sites)} attention processors that agentsd installed have been replaced by "
            "other code (attention slicing, xformers, fuse_qkv_projections, PAG, ...); those layers do not use agent "
            "attention now. If that was not meant, call agentsd.apply again afterwards."
        )
    for site in state.sites:
        if site.problem is not None:
            state.warn_once(f"agentsd at {site.name}: {site.problem}.")
