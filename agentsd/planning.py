"""Measuring, on this device, where agents win: a plan that is never meant to be slower than stock."""

import hashlib
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from agentsd.architectures import random_inputs
from agentsd.bench import environment, interleave
from agentsd.config import AgentConfig, Schedule
from agentsd.patch import choose_schedule, denoiser_of
from agentsd.plans import LayerTiming, Plan
from agentsd.presets import FRONT, preset_schedule
from agentsd.processor import SITE, LevelPlan, attend
from agentsd.reuse import max_depth, shallow_pass
from agentsd.runtime import grid_at
from agentsd.tokens import cell_pattern

if TYPE_CHECKING:
    from agentsd.sites import Candidate

_LAYER_BUDGET = 0.5  # seconds for one layer shape and setting, both arms together
_STEP_ROUNDS = 3


def plan(
    target: Any,
    height: int | None = None,
    width: int | None = None,
    batch: int = 2,
    *,
    ratio: float | None = None,
    preset: str | None = None,
    config: AgentConfig | None = None,
    schedule: Schedule | None = None,
    reuse: int | None = None,
    reuse_depth: int | None = None,
    target_speedup: float | None = None,
    steps: int = 50,
    cache: bool = True,
) -> Plan:
    """Time stock and agent variants of every layer shape here, predict the speed-up, and keep stock what wins as stock.

    Args:
        target: A diffusers pipeline with a UNet, not patched, where it will run (device and dtype).
        height: Picture height in pixels; the model's own by default.
        width: Picture width in pixels; the model's own by default.
        batch: Samples in one UNet call: pictures, doubled by classifier-free guidance.
        ratio: See `agentsd.apply`.
        preset: See `agentsd.apply`.
        config: See `agentsd.apply`.
        schedule: See `agentsd.apply`.
        reuse: See `agentsd.apply`.
        reuse_depth: See `agentsd.apply`.
        target_speedup: Choose the gentlest of the presets `agentsd.FRONT` that is predicted to reach this speed-up of
            the UNet, in the place of a schedule of your own.
        steps: Steps of the run for which `target_speedup` shall hold.
        cache: Keep measurements on disk (`AGENTSD_CACHE`, else the user's cache folder), by device, dtype, versions,
            architecture and shape, and use those kept.

    Returns:
        The plan, for `agentsd.apply(pipe, plan=...)`.

    Raises:
        ValueError: If arguments contradict each other, the target is patched or has nothing to patch, a size is no
            multiple of the VAE's factor, or no preset reaches `target_speedup`.

    Example:
        >>> made = agentsd.plan(pipe, preset="paper", cache=False)
        >>> patch = agentsd.apply(pipe, plan=made)
        >>> patch.remove()
    """
    unet = denoiser_of(target)
    latent = _latent_size(target, unet, height, width)
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch={batch!r} must be a whole number of at least 1.")
    if SITE in unet.__dict__:
        raise ValueError("target is patched, so stock cannot be timed; call agentsd.remove(target) first.")
    chosen = (ratio, preset, config, schedule, reuse, reuse_depth)
    if target_speedup is None:
        return _plan(unet, latent, batch, choose_schedule(*chosen), cache)
    if any(value is not None for value in chosen):
        raise ValueError("target_speedup chooses the schedule; give it without ratio, preset, config, schedule, reuse.")
    plans = [_plan(unet, latent, batch, preset_schedule(name), cache) for name in FRONT]
    reached = {name: made.predicted_speedup(steps) for name, made in zip(FRONT, plans, strict=True)}
    for name, made in zip(FRONT, plans, strict=True):
        if reached[name] >= target_speedup:
            return made
    told = ", ".join(f"{name} {speed:.2f}x" for name, speed in reached.items())
    raise ValueError(
        f"target_speedup={target_speedup!r} is not reached here: {told} are predicted for {steps} steps. "
        "Lower it, or run fewer steps."
    )


@torch.inference_mode()
def _plan(unet: Any, latent: tuple[int, int], batch: int, schedule: Schedule, cache: bool) -> Plan:
    from agentsd.sites import find_sites

    sites, _ = find_sites(unet)
    if not sites:
        raise ValueError(f"{type(unet).__name__} has no self-attention layer that agentsd can patch.")
    if schedule.reuses and schedule.reuse_depth > max_depth(unet):
        raise ValueError(f"reuse_depth={schedule.reuse_depth} must be at most {max_depth(unet)} for this UNet.")
    if schedule.skips_guidance:
        raise ValueError(
            f"guidance_interval={schedule.guidance_interval} is not covered by plans, which time one batch size; plan "
            "the schedule with (0, 1), and set the interval on the plan's schedule afterwards."
        )
    kept = _Measurements(_cache_file(unet, latent, batch) if cache else None)
    inputs = random_inputs(unet, *latent, batch)
    step = kept.get("step", lambda: _median_seconds(lambda: unet(**inputs), unet.device))
    shallow = None
    if schedule.reuses:
        shallow = kept.get(
            f"shallow {schedule.reuse_depth}", lambda: _shallow_seconds(unet, schedule.reuse_depth, inputs)
        )
    timings = []
    finest = min(site.level for site in sites)
    for setting in schedule.configs:
        groups: dict[tuple[int, int, int], list[Candidate]] = {}
        for site in sites:
            if 2 ** (site.level - finest) <= setting.max_downsample:
                groups.setdefault((site.level, site.attn.query_dim, site.attn.heads), []).append(site)
        for (level, channels, heads), group in groups.items():
            grid = grid_at(level, *latent)
            here = setting.at_downsample(2 ** (level - finest))
            if here.count_tokens(*grid) is None:
                continue
            key = json.dumps(["layer", level, channels, heads, asdict(here)])
            stock, agents = kept.get_pair(key, lambda: _layer_seconds(group[0], grid, batch, here))  # noqa: B023
            outer = sum(_is_outer(unet, site.name, schedule.reuse_depth) for site in group)
            timings.append(LayerTiming(level, grid, len(group), outer, setting, stock, agents))
    kept.save()
    return Plan(schedule, latent, batch, step, shallow, tuple(timings))


def _latent_size(target: Any, unet: Any, height: int | None, width: int | None) -> tuple[int, int]:
    factor = int(getattr(target, "vae_scale_factor", 8))
    size = getattr(unet.config, "sample_size", None)
    default = (size, size) if isinstance(size, int) else size
    latent = []
    for name, side, own in (("height", height, 0), ("width", width, 1)):
        if side is None:
            if default is None:
                raise ValueError(f"{name}=None needs a model that states its size; give {name} in pixels.")
            latent.append(int(default[own]))
        elif isinstance(side, bool) or not isinstance(side, int) or side < factor or side % factor:
            raise ValueError(f"{name}={side!r} must be a multiple of {factor}, in pixels.")
        else:
            latent.append(side // factor)
    return latent[0], latent[1]


def _median_seconds(run: Callable[[], object], device: Any, rounds: int = _STEP_ROUNDS) -> float:
    times = interleave(lambda _: run(), {"it": nullcontext}, rounds=rounds, device=device)["it"]
    return statistics.median(times)


def _shallow_seconds(unet: Any, depth: int, inputs: dict[str, Any]) -> float:
    sample = inputs["sample"]
    entering = unet.up_blocks[-1].resnets[-depth].in_channels - unet.down_blocks[0].resnets[0].in_channels
    feature = torch.randn(sample.shape[0], entering, *sample.shape[-2:]).to(sample)
    return _median_seconds(lambda: shallow_pass(unet, feature, depth, inputs), unet.device)


def _layer_seconds(site: "Candidate", grid: tuple[int, int], batch: int, setting: AgentConfig) -> tuple[float, float]:
    """Return median seconds of one layer, stock and by the setting, on random tokens."""
    attn = site.attn
    weight = attn.to_q.weight
    tokens = torch.randn(batch, grid[0] * grid[1], attn.query_dim).to(weight.device, weight.dtype)
    counts = setting.count_tokens(*grid)
    if counts is None:
        raise ValueError(f"grid {grid[0]}x{grid[1]} holds no whole cell of stride {setting.stride}.")
    pattern = cell_pattern(*grid, setting.stride).to(weight.device) if setting.uses_ranking else None
    level = LevelPlan(*grid, setting, counts, pattern)
    runs: dict[str, Callable[[], object]] = {
        "stock": lambda: attn(tokens),
        "agents": lambda: attend(attn, tokens, tokens, level),
    }
    arms = dict.fromkeys(runs, nullcontext)
    start = time.perf_counter()
    interleave(lambda name: runs[name](), arms, rounds=1, device=weight.device)
    rounds = int(_LAYER_BUDGET / max(time.perf_counter() - start, 1e-6))
    times = interleave(lambda name: runs[name](), arms, rounds=min(max(rounds, 3), 100), device=weight.device)
    return statistics.median(times["stock"]), statistics.median(times["agents"])


def _is_outer(unet: Any, name: str, depth: int) -> bool:
    """Return whether the layer of that name runs at a step that reuses deep features."""
    parts = name.split(".")
    if parts[0] == "mid_block":
        return False
    stage, block, index = parts[0], int(parts[1]), int(parts[3])
    if stage == "down_blocks":
        return block == 0 and index < depth - 1
    return block == len(unet.up_blocks) - 1 and index >= len(unet.up_blocks[-1].resnets) - depth


def _cache_file(unet: Any, latent: tuple[int, int], batch: int) -> Path:
    from agentsd import __version__

    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("AGENTSD_CACHE") or Path(home) / "agentsd")
    key = {
        "agentsd": __version__,
        "environment": environment(unet.device),
        "dtype": str(unet.dtype),
        "unet": {name: value for name, value in dict(unet.config).items() if not name.startswith("_")},
        "latent": latent,
        "batch": batch,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    return folder / "plans" / f"{digest[:32]}.json"


class _Measurements:
    """Seconds by name, kept in a file that is replaced as a whole; without a file they are measured anew."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.seconds: dict[str, list[float]] = {}
        self.changed = False
        if path is not None and path.exists():
            try:
                found = json.loads(path.read_text())
                self.seconds = {name: [float(value) for value in values] for name, values in found.items()}
            except (ValueError, TypeError, AttributeError) as error:
                warnings.warn(f"agentsd measures anew: {path} is not a cache of plans ({error}).", stacklevel=4)

    def get(self, name: str, measure: Callable[[], float]) -> float:
        return self.get_all(name, lambda: (measure(),))[0]

    def get_pair(self, name: str, measure: Callable[[], tuple[float, float]]) -> tuple[float, float]:
        first, second = self.get_all(name, measure)
        return first, second

    def get_all(self, name: str, measure: Callable[[], tuple[float, ...]]) -> list[float]:
        if name not in self.seconds:
            self.seconds[name] = list(measure())
            self.changed = True
        return self.seconds[name]

    def save(self) -> None:
        if self.path is None or not self.changed:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self.path.parent, suffix=".partial", delete=False) as file:
            json.dump(self.seconds, file)
        os.replace(file.name, self.path)
