"""What is compared: our schedules, rivals and baselines, each a context manager on a pipeline.

What is missing and why (HiDiffusion, Faster-Diffusion, the official AgentSD): `docs/benchmarks.md`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agentsd.attention.settings import Attention, PooledAgents, SampledKeys
from agentsd.bench.rankings import Ranker, SharedRanking, rank_in_windows, ranked_by, ranking_free
from agentsd.patch import apply
from agentsd.presets import PRESETS
from agentsd.schedule import Schedule, Skipping
from agentsd.unet.processor import SITE, Site

Enter = Callable[[Any], AbstractContextManager[Any]]
# Cached features as they are, without a forecast: of the last layer, as DeepCache does, or of the prediction.
COPIED_LAYER = Skipping(depth=1, forecast=0.0, last_full=False)
COPIED_PREDICTION = Skipping(depth=0, forecast=0.0, last_full=False)


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


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # rivals are installed for development only
        return "not installed"


def stock(pipe: Any) -> AbstractContextManager[Any]:
    """Return the pipeline as users have it: fused scaled-dot-product attention."""
    return nullcontext(pipe)


def unfused_arm() -> Arm:
    """Return attention as diffusers computed it before torch had a fused one: what older papers call the baseline."""

    @contextmanager
    def arm(pipe: Any) -> Iterator[None]:
        from diffusers.models.attention_processor import AttnProcessor

        with _restored(pipe.unet):
            pipe.unet.set_attn_processor(AttnProcessor())
            yield

    return Arm(arm)


def agent_arm(schedule: Schedule) -> Arm:
    """Return the arm that applies a schedule of ours."""
    cycle = max(phase.every for phase in schedule.phases)
    return Arm(lambda pipe: apply(pipe, schedule), cycle, schedule.to_json())


def ranking_arm(schedule: Schedule, ranker: Callable[[], Ranker]) -> Arm:
    """Return the arm that applies a schedule of ours, with rankings by another way than the published."""

    @contextmanager
    def enter(pipe: Any) -> Iterator[None]:
        with apply(pipe, schedule), ranked_by(pipe.unet, ranker()):
            yield

    return Arm(enter, settings=schedule.to_json())


def compiled(arm: Arm, backend: Any = "inductor") -> Arm:
    """Return the arm with the UNet under `torch.compile`, mode "default"; graphs are kept from entry to entry."""

    @contextmanager
    def enter(pipe: Any) -> Iterator[None]:
        with arm.enter(pipe), _restored(pipe.unet):
            pipe.unet.compile(backend=backend)
            yield

    return Arm(enter, arm.cycle, f"torch.compile {arm.settings}".strip())


def channels_last(arm: Arm) -> Arm:
    """Return the arm with the UNet's weights in the memory format of `torch.channels_last`; their values stay."""

    @contextmanager
    def enter(pipe: Any) -> Iterator[None]:
        pipe.unet.to(memory_format=torch.channels_last)
        try:
            with arm.enter(pipe):
                yield
        finally:
            pipe.unet.to(memory_format=torch.contiguous_format)

    return Arm(enter, arm.cycle, f"channels_last {arm.settings}".strip())


def no_self_attention_arm(every: int = 1) -> Arm:
    """Return the arm without any self-attention: the ceiling of every attention method, not a picture anyone wants."""
    schedule = Schedule.constant(None, every, skipping=COPIED_LAYER)

    @contextmanager
    def enter(pipe: Any) -> Iterator[None]:
        with apply(pipe, schedule):
            carried = [module.__dict__.get(SITE) for module in pipe.unet.modules()]
            sites = [site for site in carried if isinstance(site, Site)]
            before = [site.original for site in sites]
            for site in sites:
                site.original = _Identity()
            try:
                yield
            finally:
                for site, original in zip(sites, before, strict=True):
                    site.original = original

    return Arm(enter, every, schedule.to_json() if every > 1 else "")


def tomesd_arm(ratio: float) -> Arm:
    """Return token merging by the package tomesd (https://github.com/dbolya/tomesd)."""

    @contextmanager
    def arm(pipe: Any) -> Iterator[None]:
        import tomesd

        with _restored(pipe.unet):
            tomesd.apply_patch(pipe.unet, ratio=ratio)
            try:
                yield
            finally:
                tomesd.remove_patch(pipe.unet)

    return Arm(arm, settings=f"tomesd {_version('tomesd')}")


def deepcache_arm(interval: int) -> Arm:
    """Return deep feature reuse by the package DeepCache (https://github.com/horseee/DeepCache), branch 0."""

    @contextmanager
    def arm(pipe: Any) -> Iterator[None]:
        from DeepCache import DeepCacheSDHelper

        helper = DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=interval, cache_branch_id=0)
        with _restored(pipe.unet):
            helper.enable()
            try:
                yield
            finally:
                helper.disable()

    return Arm(arm, interval, f"DeepCache {_version('DeepCache')}")


def kv_downsampling_arm(factor: int) -> Arm:
    """Return nearest-neighbour downsampling of keys and values at the finest level (ToDo, arXiv 2402.13573)."""
    return _finest_level_arm(_Downsampled(factor))


def tiled_attention_arm(side: int) -> Arm:
    """Return attention within tiles of `side x side` tokens at the finest level, as HyperTile has it by default."""
    return _finest_level_arm(_Tiled(side))


def _finest_level_arm(processor: Any) -> Arm:
    @contextmanager
    def arm(pipe: Any) -> Iterator[None]:
        from agentsd.unet.sites import find_sites

        sites, _ = find_sites(pipe.unet)
        finest = min(site.level for site in sites)
        with _restored(pipe.unet):
            for site in sites:
                if site.level == finest:
                    site.attn.processor = processor
            yield

    return Arm(arm)


def attention_broadcast_arm(every: int) -> Arm:
    """Return self-attention computed at every so many steps between timesteps 800 and 100, by the hook in diffusers.

    Pyramid Attention Broadcast (arXiv 2408.12588) with the package's defaults. It is documented for transformers, whose
    pipelines tell the timestep; on a UNet a hook of ours does.
    """

    @contextmanager
    def arm(pipe: Any) -> Iterator[None]:
        from diffusers import PyramidAttentionBroadcastConfig
        from diffusers.hooks import apply_pyramid_attention_broadcast

        current = [0]

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            current[0] = int(args[1] if len(args) > 1 else kwargs["timestep"])

        config = PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=every, current_timestep_callback=lambda: current[0]
        )
        with _restored(pipe.unet):
            handle = pipe.unet.register_forward_pre_hook(note, with_kwargs=True)
            try:
                apply_pyramid_attention_broadcast(pipe.unet, config)
                yield
            finally:
                handle.remove()

    return Arm(arm, every, f"diffusers {_version('diffusers')}")


@contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    """Put back the attributes of a module and all in it as they were: packages leave some behind, T-GATE all."""
    before = [(part, dict(part.__dict__)) for part in module.modules()]
    try:
        yield
    finally:
        for part, attributes in before:
            part.__dict__.clear()
            part.__dict__.update(attributes)


class _Identity:
    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states


class _Downsampled:
    """Attention of all queries to every `factor`-th key and value in both directions of a square grid."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        batch, number, channels = hidden_states.shape
        side = _side(number)
        grid = hidden_states.view(batch, side, side, channels)[:, :: self.factor, :: self.factor]
        few = grid.reshape(batch, -1, channels)
        query, key, value = (
            project(tokens).view(batch, tokens.shape[1], attn.heads, -1).transpose(1, 2)
            for project, tokens in ((attn.to_q, hidden_states), (attn.to_k, few), (attn.to_v, few))
        )
        attended = F.scaled_dot_product_attention(query, key, value, scale=attn.scale).transpose(1, 2)
        output: Tensor = attn.to_out[1](attn.to_out[0](attended.flatten(2)))
        return output


class _Tiled:
    """Attention of each token to those of its own tile of `side x side` tokens; a smaller grid is one tile."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        from diffusers.models.attention_processor import AttnProcessor2_0

        batch, number, channels = hidden_states.shape
        whole = _side(number)
        side = min(self.side, whole)
        tiles, left = divmod(whole, side)
        if left:
            raise ValueError(f"a grid of side {whole} is not divided by tiles of side {side}.")
        # [B, rows of tiles, rows of a tile, columns of tiles, columns of a tile, C], and the tiles to the front
        grid = hidden_states.view(batch, tiles, side, tiles, side, channels).transpose(2, 3)
        output: Tensor = AttnProcessor2_0()(attn, grid.reshape(-1, side * side, channels))
        grid = output.view(batch, tiles, tiles, side, side, channels).transpose(2, 3)
        return grid.reshape(batch, number, channels)


def _side(number: int) -> int:
    side = math.isqrt(number)
    if side * side != number:
        raise ValueError(f"{number} tokens are no square grid; this baseline takes square pictures only.")
    return side


SAMPLED_4, SAMPLED_8 = (SampledKeys(stride=stride, min_keys=64, max_keys=256) for stride in (4, 8))
_TWO_LEVELS = replace(SAMPLED_8, max_downsample=2)
_PAPER_EARLY, _PAPER_LATE = PRESETS["paper"].attentions

# What a single denoising step (or a cycle of them) costs; "stock A/A" must come out at 1.00.
STEP_ARMS = MappingProxyType(
    {
        "stock": Arm(stock),
        "stock A/A": Arm(stock),
        "no self-attention (ceiling)": no_self_attention_arm(),
        "tomesd 0.5": tomesd_arm(0.5),
        "K/V downsampling 2 (ToDo)": kv_downsampling_arm(2),
        "tiles of 32x32 (HyperTile)": tiled_attention_arm(32),
        "paper, agent phase": agent_arm(Schedule.constant(_PAPER_EARLY)),
        "paper, merge phase": agent_arm(Schedule.constant(_PAPER_LATE)),
        "paper, agent phase, no ranking (ceiling)": ranking_arm(Schedule.constant(_PAPER_EARLY), lambda: ranking_free),
        "pooled agents, stride 4": agent_arm(Schedule.constant(PooledAgents())),
        "sampled agents, stride 4": agent_arm(Schedule.constant(SAMPLED_4)),
        "sampled agents, stride 8": agent_arm(Schedule.constant(SAMPLED_8)),
        "DeepCache 3": deepcache_arm(3),
        "DeepCache 5": deepcache_arm(5),
        "reuse 3": agent_arm(Schedule.constant(None, 3, skipping=COPIED_LAYER)),
        "reuse 3, no self-attention (ceiling)": no_self_attention_arm(every=3),
        "reuse 5, no self-attention (ceiling)": no_self_attention_arm(every=5),
        "reuse 3 + sampled agents": agent_arm(Schedule.constant(SAMPLED_8, 3, skipping=COPIED_LAYER)),
        "reuse 5 + sampled agents": agent_arm(Schedule.constant(SAMPLED_8, 5, skipping=COPIED_LAYER)),
        "prediction reuse 3 + sampled agents": agent_arm(Schedule.constant(SAMPLED_8, 3, skipping=COPIED_PREDICTION)),
        "prediction reuse 5 + sampled agents": agent_arm(Schedule.constant(SAMPLED_8, 5, skipping=COPIED_PREDICTION)),
        "reuse 3 + sampled agents, two levels": agent_arm(Schedule.constant(_TWO_LEVELS, 3, skipping=COPIED_LAYER)),
        "reuse 5 + sampled agents, two levels": agent_arm(Schedule.constant(_TWO_LEVELS, 5, skipping=COPIED_LAYER)),
    }
)


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
        >>> with RUN_ARMS["stock, steps / 2"].enter(pipe):
        ...     image = RUN_ARMS["stock, steps / 2"].run(pipe, "a red circle", num_inference_steps=4).images[0]
    """

    fewer_steps: float = 1.0
    call: Callable[..., Any] = _call

    def run(self, pipe: Any, *args: Any, num_inference_steps: int, **kwargs: Any) -> Any:
        """Call the pipeline as the arm does, for a stock run of `num_inference_steps`; enter the arm first."""
        steps = max(1, round(num_inference_steps / self.fewer_steps))
        return self.call(pipe, *args, num_inference_steps=steps, **kwargs)


def tgate_arm(gate: float = 0.4) -> RunArm:
    """Return T-GATE 1.0.0 (https://github.com/HaozheLiu-ST/T-GATE), which has a call of its own and no undo.

    Until the gate it reuses self-attention for five steps at a time; from the gate on it keeps cross-attention fixed
    and leaves classifier-free guidance out, which halves the batch. Its other settings are its defaults.

    Args:
        gate: Share of the run at which the gate is: its authors put it at step 10 of 25.

    Returns:
        The arm, for `StableDiffusionPipeline` alone.
    """

    @contextmanager
    def enter(pipe: Any) -> Iterator[None]:
        from tgate import TgateSDLoader

        with _restored(pipe.unet):
            TgateSDLoader(pipe)
            try:
                yield
            finally:
                del pipe.tgate

    def call(pipe: Any, *args: Any, num_inference_steps: int, **kwargs: Any) -> Any:
        step = max(1, round(gate * num_inference_steps))
        return pipe.tgate(*args, num_inference_steps=num_inference_steps, gate_step=step, **kwargs)

    return RunArm(enter, settings=f"tgate {_version('tgate')}, gate {gate:g}", call=call)


def _as_run(arm: Arm) -> RunArm:
    return RunArm(arm.enter, arm.cycle, arm.settings)


def run_arm(schedule: Schedule) -> RunArm:
    """Return the arm that applies a schedule of ours to whole runs."""
    return _as_run(agent_arm(schedule))


def _front() -> dict[str, RunArm]:
    arms = {"stock": RunArm(stock), "stock A/A": RunArm(stock)}
    arms |= {f"stock, steps / {share:g}": RunArm(stock, fewer_steps=share) for share in (1.5, 2.0, 3.0, 4.0)}
    arms |= {f"preset {name}": run_arm(schedule) for name, schedule in PRESETS.items()}
    rivals = ("tomesd 0.5", "K/V downsampling 2 (ToDo)", "tiles of 32x32 (HyperTile)", "DeepCache 3", "DeepCache 5")
    arms |= {name: _as_run(STEP_ARMS[name]) for name in rivals}
    arms["unfused attention"] = _as_run(unfused_arm())
    arms["attention broadcast 2 (PAB)"] = _as_run(attention_broadcast_arm(2))
    arms["T-GATE"] = tgate_arm()
    rankers: dict[str, Callable[[], Ranker]] = {
        "one ranking a grid": lambda: SharedRanking(calls=1),
        "one ranking a grid for 5 steps": lambda: SharedRanking(calls=5),
        "ranking in windows": lambda: rank_in_windows,
    }
    arms |= {f"paper, {name}": _as_run(ranking_arm(PRESETS["paper"], ranker)) for name, ranker in rankers.items()}
    settings: dict[str, Attention]
    settings = {f"pooled agents, stride {stride}": PooledAgents(stride=stride) for stride in (4, 8)}
    settings["sampled agents, stride 2"] = SampledKeys(stride=2)
    settings["sampled agents, stride 4"] = SAMPLED_4
    settings["sampled agents, stride 8"] = SAMPLED_8
    settings["sampled agents, stride 4, always the same"] = replace(SAMPLED_4, randomize=False)
    settings["sampled agents, stride 4, two levels"] = replace(SAMPLED_4, max_downsample=2)
    arms |= {name: run_arm(Schedule.constant(setting)) for name, setting in settings.items()}
    arms |= {f"reuse {k}": run_arm(Schedule.constant(None, k, skipping=COPIED_LAYER)) for k in (2, 3, 5)}
    for every in (3, 5):
        for forecast, told in {0.0: "", 0.2: ", forecast 0.2"}.items():
            for depth, what in {1: "reuse", 0: "prediction reuse"}.items():
                skipping = Skipping(depth=depth, forecast=forecast, last_full=False)
                schedule = Schedule.constant(SAMPLED_8, every, skipping=skipping)
                arms[f"{what} {every} + sampled agents{told}"] = run_arm(schedule)
    for words, interval in {"from 20%": (0.2, 1.0), "until 40%": (0.0, 0.4)}.items():
        for name in ("quality", "balanced"):
            arms[f"preset {name}, guidance {words}"] = run_arm(replace(PRESETS[name], guidance_interval=interval))
    return arms


# What a whole run costs in time and quality.
RUN_ARMS = MappingProxyType(_front())


def kind_of(arm: str) -> str:
    """Return who an arm of the front belongs to: stock, fewer (steps), preset, ours, paper or rival.

    Example:
        >>> kind_of("reuse 3 + sampled agents"), kind_of("DeepCache 3")
        ('ours', 'rival')
    """
    if arm in ("stock", "stock A/A", "unfused attention"):
        return "stock"
    if arm.startswith("stock, steps"):
        return "fewer"
    if arm.startswith("preset "):
        return "paper" if arm == "preset paper" else "preset"
    ours = ("pooled agents", "sampled agents", "reuse ", "prediction reuse ", "paper, ")
    return "ours" if arm.startswith(ours) else "rival"


# What anyone can do to a UNet, with or without us, by the words that follow an arm's name.
TWINS: dict[str, Callable[[Arm], Arm]] = {", compiled": compiled, ", channels last": channels_last}


def with_twins(arms: Mapping[str, Arm], names: Iterable[str], words: str) -> dict[str, Arm]:
    """Return the arms with a twin of each named one, run arms as run arms.

    Example:
        >>> list(with_twins({"stock": Arm(stock)}, ["stock"], ", compiled"))
        ['stock', 'stock, compiled']
    """
    result = dict(arms)
    for name in names:
        twin = TWINS[words](arms[name])
        result[name + words] = replace(arms[name], enter=twin.enter, settings=twin.settings)
    return result
