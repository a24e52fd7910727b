"""Hold plans against measurement: predicted and measured speed-up of UNet steps, by picture size (random weights)."""

import argparse
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from diffusers import DDIMScheduler

import agentsd
from agentsd.bench.architectures import ARCHITECTURES, random_unet
from agentsd.bench.ratios import speedup
from agentsd.bench.rows import append_row
from agentsd.cli.main import guard
from agentsd.planning.inputs import random_inputs
from agentsd.system.precision import dtype_name
from agentsd.system.timing import environment, interleave


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), default="sd15")
    parser.add_argument(
        "--size", type=int, nargs="+", default=[256, 384, 512, 768, 1024], help="picture side in pixels"
    )
    parser.add_argument("--preset", nargs="+", choices=sorted(agentsd.PRESETS), default=["balanced"])
    parser.add_argument("--steps", type=int, default=6, help="UNet steps of the patched run that is timed")
    parser.add_argument("--batch", type=int, default=2, help="samples a UNet call; 2: one picture with guidance")
    parser.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="auto: what is fast here"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("outputs/plans.jsonl"), help="rows are appended")
    args = parser.parse_args(argv)
    args.dtype = dtype_name(args.dtype, args.device)

    unet = random_unet(args.architecture, dtype=getattr(torch, args.dtype), device=args.device)
    worst = 0.0
    for size in args.size:
        for preset in args.preset:
            row = check(unet, size, preset, args)
            append_row(args.output, row)
            worst = max(worst, abs(row["error"]))
            print(
                f"{args.architecture} {size} {preset}: predicted {row['predicted']:.2f}x, measured "
                f"{row['measured']:.2f}x, unplanned {row['unplanned']:.2f}x",
                file=sys.stderr,
                flush=True,
            )
    print(f"largest error of a prediction: {worst:.1%}", file=sys.stderr)
    return 0


class Stand:
    """A UNet and a scheduler's timesteps: all that a patch needs of a pipeline."""

    def __init__(self, unet) -> None:
        self.unet = unet
        self.scheduler = DDIMScheduler()  # a scheduler that is not known would count as noisy


@torch.inference_mode()
def check(unet, size: int, preset: str, args: argparse.Namespace) -> dict:
    """Return one row: the prediction, what the planned patch measures, and what the preset without a plan does."""
    inputs = random_inputs(unet, size // 8, size // 8, args.batch)
    others = {key: value for key, value in inputs.items() if key not in ("sample", "timestep")}
    made = agentsd.plan(unet, preset, height=size, width=size, batch=args.batch, cache=False)
    stand = Stand(unet)

    def run(name: str) -> None:
        number = 1 if name == "stock" else args.steps
        stand.scheduler.timesteps = torch.linspace(900, 100, number).long()  # a tensor of its own, as in a real run
        for t in stand.scheduler.timesteps:
            unet(inputs["sample"], t, **others)

    arms = {
        "stock": nullcontext,
        "planned": partial(applied, stand, made),
        "unplanned": partial(applied, stand, preset),
    }
    seconds = interleave(run, arms, rounds=args.rounds, device=args.device)
    step = {name: [time / (1 if name == "stock" else args.steps) for time in times] for name, times in seconds.items()}
    measured, unplanned = (speedup(step["stock"], step[name]) for name in ("planned", "unplanned"))
    predicted = made.predicted_speedup(args.steps)
    return {
        "benchmark": "plan",
        "weights": "random",
        "architecture": args.architecture,
        "preset": preset,
        "settings": agentsd.PRESETS[preset].to_json(),
        "size": size,
        "batch": args.batch,
        "dtype": args.dtype,
        "steps": args.steps,
        "predicted": round(predicted, 4),
        "measured": round(measured.median, 4),
        "measured_95": [round(measured.low, 4), round(measured.high, 4)],
        "unplanned": round(unplanned.median, 4),
        "unplanned_95": [round(unplanned.low, 4), round(unplanned.high, 4)],
        "error": round(predicted / measured.median - 1, 4),
        "stock_levels": sorted({level for one in made.schedule.attentions for level in made.stock_levels(one)}),
        "rounds": measured.pairs,
        **environment(args.device),
    }


def applied(stand, schedule):
    patch = agentsd.apply(stand.unet, schedule)
    patch.attach(stand)
    return patch


if __name__ == "__main__":
    sys.exit(guard("plan_check.py", main))
