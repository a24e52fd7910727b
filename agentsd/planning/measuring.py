"""Measuring, on this device, where agents win: a plan that is never meant to be slower than stock."""

import json
import math
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from agentsd.attention.cells import grid_at
from agentsd.attention.settings import Attention
from agentsd.planning.cache import Measurements, cache_file
from agentsd.planning.inputs import random_inputs
from agentsd.planning.plans import LayerTiming, Plan, check_steps
from agentsd.presets import BY_SPEED, as_schedule, preset
from agentsd.schedule import Schedule
from agentsd.schedule.text import attention_object
from agentsd.system.numbers import is_whole
from agentsd.system.timing import interleave
from agentsd.unet.denoisers import denoiser_in
from agentsd.unet.install import denoiser_of
from agentsd.unet.noise import noise_source
from agentsd.unet.processor import SITE, attend, level_plan
from agentsd.unet.shallow import depth_under_noise, shallow_pass
from agentsd.unet.skipping import fit_skipping, other_cache
from agentsd.unet.traits import device_label, is_compiled, is_offloaded, layer_digest

if TYPE_CHECKING:
    from agentsd.unet.sites import Candidate

_LAYER_BUDGET = 0.5  # seconds for one layer shape and setting, both arms together
_STEP_ROUNDS = 3
DEFAULT_STEPS = 50


def plan(
    target: Any,
    schedule: str | Schedule | Attention = "balanced",
    *,
    height: int | None = None,
    width: int | None = None,
    batch: int = 2,
    ratio: float | None = None,
    target_speedup: float | None = None,
    steps: int | None = None,
    cache: bool = True,
) -> Plan:
    """Time stock and agent variants of every layer shape here, predict the speed-up, and keep stock what wins as stock.

    Args:
        target: A diffusers pipeline with a UNet where it will run (device, dtype), not patched, compiled or offloaded.
        schedule: A preset's name, a `Schedule` or settings of self-attention, see `agentsd.apply`.
        height: Picture height in pixels; the model's own by default.
        width: Picture width in pixels; the model's own by default.
        batch: Samples in one UNet call: pictures, doubled by classifier-free guidance.
        ratio: See `agentsd.apply`.
        target_speedup: Choose the gentlest of our presets that is predicted to reach this speed-up of the UNet; leave
            `schedule` out then.
        steps: Steps of the run for which `target_speedup` shall hold (50).
        cache: Keep measurements on disk (`AGENTSD_CACHE`, else the user's cache folder), by device, dtype, versions,
            architecture and shape, and use those kept.

    Returns:
        The plan, for `agentsd.apply(pipe, plan)`.

    Raises:
        ValueError: If arguments contradict each other or are out of range, the target is patched, compiled or
            offloaded, has nothing to patch or wants inputs that cannot be made up, or no preset is fast enough.

    Example:
        >>> made = agentsd.plan(pipe, "paper", cache=False)
        >>> patch = agentsd.apply(pipe, made)
        >>> patch.remove()
    """
    unet = denoiser_of(target)
    latent = _latent_size(target, unet, height, width)
    if not is_whole(batch, 1):
        raise ValueError(f"batch={batch!r} must be a whole number of at least 1.")
    _check_speedup(target_speedup, steps)
    _check_target(target, unet)
    if target_speedup is None:
        chosen = as_schedule(schedule, ratio)
        return _fitted(target, latent, batch, chosen, cache, asked=not isinstance(schedule, str))
    if schedule != "balanced" or ratio is not None:
        raise ValueError("target_speedup chooses the schedule; leave schedule and ratio out.")
    steps = DEFAULT_STEPS if steps is None else steps
    plans = [_fitted(target, latent, batch, preset(name), cache, asked=False) for name in BY_SPEED]
    reached = {name: made.predicted_speedup(steps) for name, made in zip(BY_SPEED, plans, strict=True)}
    for name, made in zip(BY_SPEED, plans, strict=True):
        if reached[name] >= target_speedup:
            return made
    possible = ", ".join(f"{name} {speed:.2f}x" for name, speed in reached.items())
    raise ValueError(
        f"target_speedup={target_speedup!r} is not reached here: {possible} are predicted for {steps} steps. Lower it."
    )


def _check_speedup(target_speedup: object, steps: object) -> None:
    if target_speedup is None:
        if steps is not None:
            raise ValueError(
                f"steps={steps!r} says for which run target_speedup shall hold; give both or neither, or ask the plan: "
                "plan.predicted_speedup(steps)."
            )
        return
    number = isinstance(target_speedup, int | float) and not isinstance(target_speedup, bool)
    if not number or not 1 <= target_speedup < math.inf:  # type: ignore[operator]
        raise ValueError(f"target_speedup={target_speedup!r} must be a number of at least 1; 1 is as fast as stock.")
    if steps is not None:
        check_steps(steps)


def _check_target(target: Any, unet: Any) -> None:
    if SITE in unet.__dict__:
        raise ValueError("target is patched, so stock cannot be timed; call agentsd.remove(target) first.")
    cache = other_cache(unet)
    if cache is not None:
        raise ValueError(f"{cache} is enabled on the target, so stock cannot be timed; switch it off first.")
    if is_offloaded(unet):
        raise ValueError(
            "target is offloaded: its weights are not on the device, and its layers cannot be timed one by one; "
            "call agentsd.plan before offloading is enabled, and agentsd.apply with the plan after."
        )
    if is_compiled(target if isinstance(target, nn.Module) else denoiser_in(target)):
        raise ValueError(
            "target is compiled, which joins layers with what surrounds them, and they cannot be timed one by one; "
            "call agentsd.plan before it is compiled (its times are those without the compiler), or apply a preset."
        )


def _fitted(target: Any, latent: tuple[int, int], batch: int, schedule: Schedule, cache: bool, *, asked: bool) -> Plan:
    unet = denoiser_of(target)
    schedule, refused = fit_skipping(unet, schedule, asked=asked)
    scheduler = getattr(target, "scheduler", None)
    if schedule.skips_steps and scheduler is not None and noise_source(scheduler):  # as it will run
        schedule = _at_depth(schedule, depth_under_noise(unet, schedule.skipping.depth))
    return replace(_plan(unet, latent, batch, schedule, cache), skipping_problem=refused)


def _at_depth(schedule: Schedule, depth: int) -> Schedule:
    return replace(schedule, skipping=replace(schedule.skipping, depth=depth))


@torch.inference_mode()
def _plan(unet: Any, latent: tuple[int, int], batch: int, schedule: Schedule, cache: bool) -> Plan:
    from agentsd.unet.sites import find_sites

    sites, _ = find_sites(unet)
    if not sites:
        raise ValueError(f"{type(unet).__name__} has no self-attention layer that agentsd can patch.")
    if schedule.skips_guidance:
        raise ValueError(
            f"guidance_interval={schedule.guidance_interval} is not covered by plans, which time one batch size; plan "
            "the schedule with (0, 1), and set the interval on the plan's schedule afterwards."
        )
    inputs = random_inputs(unet, *latent, batch)
    kept = Measurements(cache_file(unet, latent, batch) if cache else None)
    step = kept.get("step", lambda: _median_seconds(lambda: unet(**inputs), unet.device))
    shallow = None
    if schedule.skips_steps:
        shallow = kept.get(
            f"shallow {schedule.skipping.depth}", lambda: _shallow_seconds(unet, schedule.skipping.depth, inputs)
        )
    timings = []
    finest = min(site.level for site in sites)
    for setting in schedule.attentions:
        groups: dict[tuple[int, int, int], list[Candidate]] = {}
        for site in sites:
            if 2 ** (site.level - finest) <= setting.max_downsample:
                groups.setdefault((site.level, site.attn.query_dim, site.attn.heads), []).append(site)
        for (level, channels, heads), group in groups.items():
            grid = grid_at(level, *latent)
            here = setting.at_downsample(2 ** (level - finest))
            if here.count_tokens(*grid) is None:
                continue
            key = json.dumps(["layer", level, channels, heads, attention_object(here)])
            stock, agents = kept.get_pair(key, lambda: _layer_seconds(group[0], grid, batch, here))  # noqa: B023
            outer = sum(_is_outer(unet, site.name, schedule.skipping.depth) for site in group)
            timings.append(LayerTiming(level, grid, len(group), outer, setting, stock, agents))
    kept.save()
    return Plan(
        schedule,
        latent,
        batch,
        step,
        shallow,
        tuple(timings),
        device=device_label(unet.device),
        dtype=str(unet.dtype),
        architecture=layer_digest(unet),
    )


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
        elif not is_whole(side, factor) or side % factor:
            raise ValueError(f"{name}={side!r} must be a multiple of {factor}, in pixels.")
        else:
            latent.append(side // factor)
    return latent[0], latent[1]


def _median_seconds(run: Callable[[], object], device: Any, rounds: int = _STEP_ROUNDS) -> float:
    times = interleave(lambda _: run(), {"it": nullcontext}, rounds=rounds, device=device)["it"]
    return statistics.median(times)


def _shallow_seconds(unet: Any, depth: int, inputs: dict[str, Any]) -> float:
    sample = inputs["sample"]
    entering = unet.config.out_channels
    if depth:
        entering = unet.up_blocks[-1].resnets[-depth].in_channels - unet.down_blocks[0].resnets[0].in_channels
    feature = torch.randn(sample.shape[0], entering, *sample.shape[-2:]).to(sample)
    return _median_seconds(lambda: shallow_pass(unet, feature, depth, inputs), unet.device)


def _layer_seconds(site: "Candidate", grid: tuple[int, int], batch: int, setting: Attention) -> tuple[float, float]:
    """Return median seconds of one layer, stock and by the setting, on random tokens."""
    attn = site.attn
    weight = attn.to_q.weight
    tokens = torch.randn(batch, grid[0] * grid[1], attn.query_dim).to(weight.device, weight.dtype)
    level = level_plan(*grid, setting, weight.device)
    if level is None:
        raise ValueError(f"grid {grid[0]}x{grid[1]} holds no whole cell of stride {setting.stride}.")
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
    """Return whether the layer of that name runs at a skipped step."""
    parts = name.split(".")
    if parts[0] == "mid_block":
        return False
    stage, block, index = parts[0], int(parts[1]), int(parts[3])
    if stage == "down_blocks":
        return block == 0 and index < depth - 1
    return block == len(unet.up_blocks) - 1 and index >= len(unet.up_blocks[-1].resnets) - depth
