"""Cost of self-attention against the number of tokens: the layers of the finest levels, alone, random weights.

A row is appended for each arm and grid as soon as the grid is measured; what is there already is left out.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from agentsd import PRESETS, PooledAgents, SampledKeys
from agentsd.attention.settings import Attention
from agentsd.bench.architectures import ARCHITECTURES, random_attention
from agentsd.bench.ratios import power_law, speedup
from agentsd.bench.rows import Row, append_row, key_of, newest, read_rows
from agentsd.cli.main import guard
from agentsd.schedule.text import attention_object
from agentsd.system.precision import dtype_name
from agentsd.system.timing import environment, interleave
from agentsd.unet.processor import LevelPlan, attend, level_plan

KEY = ("benchmark", "architecture", "arm", "settings", "grid", "batch", "dtype", "levels", "layers",
       "device", "threads", "torch", "diffusers")  # fmt: skip
STOCK = "stock"
Layers = dict[int, list[Any]]  # by how much coarser their grid is than the finest

ARMS: dict[str, Attention | None] = {
    STOCK: None,
    "paper, agent phase": PRESETS["paper"].attentions[0],
    "pooled agents, stride 4": PooledAgents(stride=4),
    "pooled agents, stride 8": PooledAgents(stride=8),
    "pooled agents, at most 256": PooledAgents(stride=4, max_agents=256),
    "key/value sampling, at most 256": SampledKeys(stride=4, max_keys=256),
}
# Arms that differ where coarser levels run too.
ARMS_OF_ALL: dict[str, Attention | None] = {
    STOCK: None,
    "key/value sampling, at most 256": ARMS["key/value sampling, at most 256"],
    "key/value sampling, at most 256, two levels": SampledKeys(stride=4, max_keys=256, max_downsample=2),
    "key/value sampling, at most 1024, two levels": SampledKeys(stride=4, max_keys=1024, max_downsample=2),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), default="sd15")
    parser.add_argument("--grid", type=int, nargs="+", default=[64, 96, 128, 160, 192], help="tokens a side")
    parser.add_argument("--batch", type=int, default=2, help="2: one picture with classifier-free guidance")
    parser.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="auto: what is fast here"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--levels", type=int, default=1, help="how many levels, from the finest on; sd15 has 4")
    parser.add_argument("--layers", type=int, help="time the first so many layers of each level; all by default")
    parser.add_argument("--rounds", type=int, default=3, help="rows with fewer are measured again")
    parser.add_argument("--limit-seconds", type=float, default=float("inf"), help="start no further grid after this")
    parser.add_argument("--output", type=Path, default=Path("outputs/scaling.jsonl"), help="rows are appended")
    args = parser.parse_args(argv)
    args.dtype = dtype_name(args.dtype, args.device)

    started = time.monotonic()
    kept = random_attention(args.architecture, args.levels, dtype=getattr(torch, args.dtype), device=args.device)
    layers = {factor: found[: args.layers] for factor, found in kept.items()}
    arms = ARMS if args.levels == 1 else ARMS_OF_ALL
    complete = True
    for grid in args.grid:
        wanted = {name: facts(args, name, arms[name], grid, layers) for name in arms}
        there = {key_of(row, KEY) for row in newest(read_rows(args.output), KEY) if row["rounds"] >= args.rounds}
        if all(key_of(row, KEY) in there for row in wanted.values()):
            continue
        if time.monotonic() - started > args.limit_seconds:
            complete = False
            tell(f"stopped by --limit-seconds before the grid {grid}; run again to go on")
            break
        for name, times in measure(layers, arms, grid, args).items():
            row = wanted[name] | times
            append_row(args.output, row)
            tell(f"{grid}x{grid} {name:36} {row['milliseconds']:10.2f} ms {row['speedup']:6.2f}x")
    for name, (grids, costs) in curves(read_rows(args.output)).items():
        if len(grids) > 1:
            tell(f"{name:36} cost ~ N^{power_law([grid**2 for grid in grids], costs):.2f}")
    return 0 if complete else 1


def facts(args: argparse.Namespace, name: str, config: Attention | None, grid: int, layers: Layers) -> Row:
    return {
        "benchmark": "self-attention alone",
        "weights": "random",
        "architecture": args.architecture,
        "arm": name,
        "settings": "" if config is None else json.dumps(attention_object(config)),
        "grid": grid,
        "batch": args.batch,
        "dtype": args.dtype,
        "levels": len(layers),
        "layers": sum(map(len, layers.values())),
        **environment(args.device),
    }


@torch.inference_mode()
def measure(layers: Layers, arms: dict[str, Attention | None], grid: int, args: argparse.Namespace) -> dict[str, Row]:
    """Return the times of every arm on a grid, the finest's side, by arm."""
    generator = torch.Generator().manual_seed(0)
    tokens = {}
    for factor, found in layers.items():
        drawn = torch.randn(args.batch, (grid // factor) ** 2, found[0].query_dim, generator=generator)
        tokens[factor] = drawn.to(args.device, getattr(torch, args.dtype))
    runs: dict[str, Callable[[], None]] = {}
    for name, config in arms.items():
        plans = {factor: plan(config, factor, grid // factor, args.device) for factor in layers}
        runs[name] = partial(run_layers, layers, plans, tokens)
    seconds = interleave(
        lambda name: runs[name](), dict.fromkeys(runs, nullcontext), rounds=args.rounds, device=args.device
    )
    found = {}
    for name, times in seconds.items():
        gain = speedup(seconds[STOCK], times)
        found[name] = {
            "milliseconds": round(1000 * statistics.median(times), 4),
            "seconds": [round(each, 6) for each in times],
            "speedup": round(gain.median, 4),
            "speedup_95": [round(gain.low, 4), round(gain.high, 4)],
            "rounds": gain.pairs,
        }
    return found


def plan(config: Attention | None, factor: int, grid: int, device: str) -> LevelPlan | None:
    """Return what an arm does on the grid of a level; `None` is stock."""
    if config is None or factor > config.max_downsample:
        return None
    level = level_plan(grid, grid, config.at_downsample(factor), torch.device(device))
    if level is None:
        raise ValueError(f"--grid {grid * factor} holds no whole cell of stride {config.stride}; give a larger one.")
    return level


def run_layers(layers: Layers, plans: dict[int, LevelPlan | None], tokens: dict[int, torch.Tensor]) -> None:
    for factor, found in layers.items():
        level = plans[factor]
        for attn in found:
            if level is None:
                attn(tokens[factor])
            else:
                attend(attn, tokens[factor], tokens[factor], level)


def curves(rows: list[Row]) -> dict[str, tuple[list[int], list[float]]]:
    """Return grids and milliseconds by arm, of the set-up measured last."""
    setup = [key for key in KEY if key not in ("arm", "settings", "grid")]
    rows = [row for row in rows if key_of(row, setup) == key_of(rows[-1], setup)]
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in sorted(newest(rows, ("arm", "grid")), key=lambda row: row["grid"]):
        grids, costs = found.setdefault(row["arm"], ([], []))
        grids.append(row["grid"])
        costs.append(row["milliseconds"])
    return found


def tell(text: object) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(guard("scaling.py", main))
