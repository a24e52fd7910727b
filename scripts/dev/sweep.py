"""Which settings lose least on the bundled demo model: of agents, or with --reuse, of the reuse of deep features.

Agents: errors of single layers and of final pictures; by default one setting at a time leaves the centre, with
--product all are combined. Reuse: where whole steps stand, how far features are forecast, and what one reused step
costs. Every call is kept in a work folder: run the same command again to go on, and add values without running the
others anew.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from agentsd import MergedTokens, Phase, PooledAgents, SampledKeys, Schedule, Skipping
from agentsd.attention.cells import grid_at
from agentsd.attention.settings import Attention
from agentsd.bench.arm import RunArm
from agentsd.bench.arms import RUN_ARMS
from agentsd.bench.front import collect, measure
from agentsd.bench.likeness import likeness
from agentsd.bench.metrics import relative_l2
from agentsd.bench.ours import run_arm
from agentsd.bench.samples import Chunk, Store
from agentsd.cli.main import guard
from agentsd.evaluation.demo_front import DemoFront, pictures_of
from agentsd.presets import BY_SPEED, PRESETS
from agentsd.system.precision import dtype_name
from agentsd.system.timing import environment
from agentsd.system.writing import write_whole
from agentsd.unet.processor import attend, level_plan
from agentsd.unet.sites import Candidate, find_sites

AXES: dict[str, tuple] = {
    "broadcast_exponent": (0.3, 0.5, 0.7, 1.0),
    "shortcut": (0.0, 0.025, 0.075, 0.15),
    "stride": (2, 4, 8),
    "agents": ("pool", "merge", "sample"),
    "phase": ("whole", "early", "late"),
    "max_downsample": (1, 2, 4),
}
CENTRE = {"broadcast_exponent": 0.3, "shortcut": 0.075, "stride": 4, "agents": "pool", "phase": "whole",
          "max_downsample": 1}  # fmt: skip
MOMENTS = (0.1, 0.5, 0.9)  # shares of the run at which single layers are looked at


@dataclasses.dataclass(frozen=True)
class Setting:
    """A point of the sweep."""

    broadcast_exponent: float
    shortcut: float
    stride: int
    agents: str
    phase: str
    max_downsample: int

    @property
    def attention(self) -> Attention:
        grid = {"stride": self.stride, "max_downsample": self.max_downsample}
        broadcast = {"broadcast_exponent": self.broadcast_exponent, "shortcut": self.shortcut}
        if self.agents != "sample":
            return (PooledAgents if self.agents == "pool" else MergedTokens)(**grid, **broadcast)
        for name, value in broadcast.items():
            if value != CENTRE[name]:
                raise ValueError(f"{name}={value!r} does not apply to sampled keys.")
        return SampledKeys(**grid)

    @property
    def arm(self) -> RunArm:
        phases = {
            "whole": (Phase(1.0, self.attention),),
            "early": (Phase(0.5, self.attention), Phase(1.0, None)),
            "late": (Phase(0.5, None), Phase(1.0, self.attention)),
        }
        return run_arm(Schedule(phases[self.phase]))

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(self).items())


# Layers at a reused step, and how far features are forecast: not at all, and as the presets do.
DEPTHS, FORECASTS = (1, 0), (0.0, 0.2)


@dataclasses.dataclass(frozen=True)
class ReuseSetting:
    """Which steps of a run reuse features, how deep, and how far these are forecast; attention is as in `quality`."""

    layout: str
    phases: tuple[tuple[float, int], ...]  # until which share of the run, whole steps every so many
    forecast: float = 0.0
    last_full: bool = False
    depth: int = 1

    @property
    def schedule(self) -> Schedule:
        attention = PRESETS["quality"].attentions[0]
        phases = tuple(Phase(until, attention, every) for until, every in self.phases)
        return Schedule(phases, Skipping(depth=self.depth, forecast=self.forecast, last_full=self.last_full))

    @property
    def arm(self) -> RunArm:
        return run_arm(self.schedule)

    def __str__(self) -> str:
        return f"{self.layout}, depth {self.depth}, forecast {self.forecast}"


def reuse_settings(steps: int) -> list[ReuseSetting]:
    """Return uniform reuse, the layouts of the presets, and runs of `steps` steps of which a single one reuses."""
    found = [ReuseSetting("no reuse", ((1.0, 1),))]
    for every in (2, 3, 4, 5):
        for depth in DEPTHS:
            for forecast in FORECASTS:
                found.append(ReuseSetting(f"every {every} steps", ((1.0, every),), forecast, depth=depth))
    for name in BY_SPEED:
        schedule = PRESETS[name]
        phases = tuple((phase.until, phase.every) for phase in schedule.phases)
        if schedule.skips_steps:
            for depth in DEPTHS:
                layout = f"as {name}"
                found.append(
                    ReuseSetting(layout, phases, schedule.skipping.forecast, schedule.skipping.last_full, depth)
                )
    for step in range(1, steps, max(1, steps // 6)):
        after = ((1.0, 1),) if step < steps - 1 else ()
        phases = ((step / steps, 1), ((step + 1) / steps, 2), *after)
        found.append(ReuseSetting(f"step {step} alone", phases, FORECASTS[-1], depth=0))
    return found


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, values in AXES.items():
        made.add_argument(f"--{name.replace('_', '-')}", nargs="+", type=type(values[0]), default=list(values))
    made.add_argument("--product", action="store_true", help="all combinations instead of one setting at a time")
    made.add_argument("--prompts", type=int, default=8)
    made.add_argument("--steps", type=int, default=25)
    made.add_argument("--guidance-scale", type=float, default=4.0)
    made.add_argument("--batch", type=int, default=4, help="prompts a call")
    made.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="auto: what is fast here"
    )
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--layers-only", action="store_true", help="draw no pictures but the stock ones")
    made.add_argument("--reuse", action="store_true", help="sweep the reuse of deep features instead of agents")
    made.add_argument("--limit-seconds", type=float, default=float("inf"), help="start no further call after this")
    made.add_argument("--work", type=Path, default=Path("outputs/front"), help="latents, shared with demo_front.py")
    made.add_argument(
        "--output", type=Path, help="written anew (outputs/demo/sweep.jsonl, with --reuse outputs/demo/reuse.jsonl)"
    )
    return made


def settings_of(args: argparse.Namespace) -> list[Setting]:
    """Return the points of the sweep that a configuration can express, the centre first."""
    values = {name: getattr(args, name) for name in AXES}
    if args.product:
        points = [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]
    else:
        points = [CENTRE, *(CENTRE | {name: value} for name in values for value in values[name])]
    found: dict[Setting, None] = {}
    for point in points:
        setting = Setting(**point)
        try:
            setting.attention  # noqa: B018
        except ValueError as error:
            tell(f"left out: {setting}: {error}")
        else:
            found[setting] = None
    return list(found)


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    args.dtype = dtype_name(args.dtype, args.device)
    settings: Sequence[Setting | ReuseSetting] = reuse_settings(args.steps) if args.reuse else settings_of(args)
    output = args.output or Path(f"outputs/demo/{'reuse' if args.reuse else 'sweep'}.jsonl")
    front = DemoFront(
        prompts=args.prompts,
        steps=args.steps,
        guidance_scale=args.guidance_scale,
        batch=args.batch,
        dtype=args.dtype,
        device=args.device,
        seed=args.seed,
    )
    pipe, draw, parts, store = front.pipe, front.draw, front.chunks, Store(args.work, front.setup)
    arms = {} if args.layers_only else {str(setting): setting.arm for setting in settings}
    complete = measure(
        pipe, draw, arms, store, parts, group=1, timed=False, limit_seconds=args.limit_seconds, tell=tell
    )
    samples = collect(store, arms, parts)
    inputs = [] if args.reuse else list(layer_inputs(pipe, draw, parts[0], args.steps))
    rows, reference = [], None
    pictures = {}
    for name, kept in samples.items():
        pictures[name] = pictures_of(pipe, [sample.latents for sample in kept])
    reference = pictures.get("stock")
    for setting in settings:
        row: dict[str, Any] = {
            "benchmark": "reuse sweep" if args.reuse else "sweep",
            "weights": "bundled demo model",
            **dataclasses.asdict(setting),
            "prompts": args.prompts,
            "steps": args.steps,
            "guidance_scale": args.guidance_scale,
            "dtype": args.dtype,
            "seed": args.seed,
        }
        if isinstance(setting, ReuseSetting):
            row["full_steps"] = [step for step in range(args.steps) if setting.schedule.is_full(step, args.steps)]
        else:
            row["layer_l2"] = layer_errors(setting.attention, inputs)
        if str(setting) in pictures and reference is not None:
            row |= likeness(pictures[str(setting)][0], reference[0], pictures[str(setting)][1], reference[1])
        elif not args.layers_only:
            continue
        rows.append(row | environment(args.device))
        figures = {key: row[key] for key in ("layer_l2", "psnr_db_median") if key in row}
        tell({"setting": str(setting), **figures})
    write_whole(output, "".join(json.dumps(row) + "\n" for row in rows))
    tell(f"{len(rows)} of {len(settings)} settings are complete: {output}")
    return 0 if complete else 1


@dataclasses.dataclass
class LayerInput:
    """What a self-attention layer got in a stock run and gave: its tokens, what it ranks by, its output, and where."""

    site: Candidate
    downsample: int
    grid: tuple[int, int]
    metric: torch.Tensor
    tokens: torch.Tensor
    output: torch.Tensor


def layer_inputs(pipe: Any, draw: Any, chunk: Chunk, steps: int) -> Iterator[LayerInput]:
    """Run a chunk stock and yield what every self-attention layer got at some moments of it."""
    sites, _ = find_sites(pipe.unet)
    finest = min(site.level for site in sites)
    moments = {int(share * steps) for share in MOMENTS}
    call, found, handles = [-1], [], []

    def on_unet(module: Any, args: tuple, kwargs: dict) -> None:
        call[0] += 1
        call[1:] = [tuple(args[0].shape[-2:])]

    def on_block(module: Any, args: tuple, kwargs: dict, site: Candidate) -> None:
        if call[0] in moments:
            metric = args[0] if args else kwargs["hidden_states"]
            grid = grid_at(site.level, *call[1])
            tokens = site.block.norm1(metric)
            found.append(LayerInput(site, 2 ** (site.level - finest), grid, metric, tokens, site.attn(tokens)))

    handles.append(pipe.unet.register_forward_pre_hook(on_unet, with_kwargs=True))
    for site in sites:
        handles.append(site.block.register_forward_pre_hook(partial(on_block, site=site), with_kwargs=True))
    try:
        draw(RUN_ARMS["stock"], chunk)
    finally:
        for handle in handles:
            handle.remove()
    yield from found


def layer_errors(config: Attention, inputs: list[LayerInput]) -> dict[str, float]:
    """Return, by downsampling, the median relative distance of agent attention's output from softmax attention's."""
    errors: dict[str, list[float]] = {}
    for given in inputs:
        if given.downsample > config.max_downsample:
            continue
        here = config.at_downsample(given.downsample)
        level = level_plan(*given.grid, here, given.tokens.device)
        if level is None:
            continue
        ours = attend(given.site.attn, given.tokens, given.metric, level)
        errors.setdefault(str(given.downsample), []).extend(relative_l2(ours, given.output).tolist())
    return {level: round(statistics.median(values), 4) for level, values in errors.items()}


def tell(text: object) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(guard("sweep.py", main))
