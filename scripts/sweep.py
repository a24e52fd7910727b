"""Which settings of agents lose least: errors of single layers and of final pictures on the bundled demo model.

By default one setting at a time leaves the centre; with --product all are combined. Every call is kept in a work
folder: run the same command again to go on, and add values without running the others anew.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from agentsd import AgentConfig, Phase, Schedule
from agentsd.arms import RUN_ARMS, RunArm, agent_arm
from agentsd.bench import environment
from agentsd.demo import held_out_prompts, model_path
from agentsd.front import Chunk, Store, chunks, collect, decode, digest_of, drawer, likeness, measure, replace_file
from agentsd.metrics import relative_l2
from agentsd.precision import dtype_name
from agentsd.processor import attend, level_plan
from agentsd.runtime import grid_at
from agentsd.sites import Candidate, find_sites

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
    def config(self) -> AgentConfig:
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name != "phase"}
        return AgentConfig(**fields)

    @property
    def arm(self) -> RunArm:
        phases = {
            "whole": (Phase(1.0, self.config),),
            "early": (Phase(0.5, self.config), Phase(1.0, None)),
            "late": (Phase(0.5, None), Phase(1.0, self.config)),
        }
        arm = agent_arm(Schedule(phases[self.phase]))
        return RunArm(arm.enter, arm.cycle, arm.settings)

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(self).items())


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
    made.add_argument("--limit-seconds", type=float, default=float("inf"), help="start no further call after this")
    made.add_argument("--work", type=Path, default=Path("outputs/front"), help="latents, shared with demo_front.py")
    made.add_argument("--output", type=Path, default=Path("results/demo/sweep.jsonl"), help="written anew")
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
            setting.config  # noqa: B018
        except ValueError as error:
            tell(f"left out: {setting}: {error}")
        else:
            found[setting] = None
    return list(found)


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    args.dtype = dtype_name(args.dtype, args.device)
    settings = settings_of(args)
    folder = model_path()
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, args.dtype))
    pipe.to(args.device).set_progress_bar_config(disable=True)
    parts = chunks(held_out_prompts(args.prompts, seed=args.seed), args.batch)
    store = Store(
        args.work,
        {
            "model": digest_of(folder),
            "steps": args.steps,
            "guidance_scale": args.guidance_scale,
            "batch": args.batch,
            "dtype": args.dtype,
            "seed": args.seed,
            **environment(args.device),
        },
    )
    draw = drawer(pipe, steps=args.steps, guidance_scale=args.guidance_scale, seed=args.seed)
    arms = {} if args.layers_only else {str(setting): setting.arm for setting in settings}
    complete = measure(
        pipe, draw, arms, store, parts, group=1, timed=False, limit_seconds=args.limit_seconds, tell=tell
    )
    samples = collect(store, arms, parts)
    inputs = list(layer_inputs(pipe, draw, parts[0], args.steps))
    rows, reference = [], None
    pictures = {}
    for name, kept in samples.items():
        latents = torch.cat([sample.latents for sample in kept])
        pictures[name] = decode(pipe, latents), latents
    reference = pictures.get("stock")
    for setting in settings:
        row: dict[str, Any] = {
            "benchmark": "sweep",
            "weights": "bundled demo model",
            **dataclasses.asdict(setting),
            "prompts": args.prompts,
            "steps": args.steps,
            "guidance_scale": args.guidance_scale,
            "dtype": args.dtype,
            "seed": args.seed,
            "layer_l2": layer_errors(setting.config, inputs),
        }
        if str(setting) in pictures and reference is not None:
            row |= likeness(pictures[str(setting)][0], reference[0], pictures[str(setting)][1], reference[1])
        elif not args.layers_only:
            continue
        rows.append(row | environment(args.device))
        tell({"setting": str(setting), "layer_l2": row["layer_l2"], "psnr_db_median": row.get("psnr_db_median")})
    replace_file(args.output, "".join(json.dumps(row) + "\n" for row in rows).encode())
    tell(f"{len(rows)} of {len(settings)} settings are complete: {args.output}")
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


def layer_errors(config: AgentConfig, inputs: list[LayerInput]) -> dict[str, float]:
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
    sys.exit(main())
