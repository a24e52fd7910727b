"""Time UNet steps of a true architecture (random weights): every arm against stock, as rows of a JSONL file."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

from agentsd.architectures import ARCHITECTURES, random_inputs, random_unet
from agentsd.arms import STEP_ARMS as ARMS
from agentsd.arms import stock
from agentsd.bench import environment, interleave, peak_memory, speedup


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), default="sd15")
    parser.add_argument("--size", type=int, nargs="+", default=[512], help="picture side in pixels")
    parser.add_argument("--batch", type=int, default=2, help="2: one picture with classifier-free guidance")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("results/speed.jsonl"), help="rows are appended")
    args = parser.parse_args(argv)

    names = ["stock", *(name for name in args.arms if name != "stock")]
    unet = random_unet(args.architecture, dtype=getattr(torch, args.dtype), device=args.device)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for size in args.size:
        for row in measure(unet, names, size, args):
            with args.output.open("a") as file:
                file.write(json.dumps(row) + "\n")
    return 0


class Stand:
    """A UNet and a scheduler's timesteps in the place of a pipeline: all that the arms look at."""

    def __init__(self, unet) -> None:
        self.unet = unet
        self.scheduler = SimpleNamespace(config=SimpleNamespace(num_train_timesteps=1000), timesteps=None)


@torch.inference_mode()
def measure(unet, names: list[str], size: int, args: argparse.Namespace) -> Iterator[dict]:
    inputs = random_inputs(unet, size // 8, size // 8, args.batch)
    pipe = Stand(unet)

    def run(name: str) -> None:
        # A run is one cycle of the arm, on a timesteps tensor of its own, as a scheduler would make.
        pipe.scheduler.timesteps = timesteps = torch.linspace(900, 100, ARMS[name].cycle).long()
        for t in timesteps:
            # DeepCache reads the timestep by position only.
            output = unet(inputs["sample"], t, **{k: v for k, v in inputs.items() if k not in ("sample", "timestep")})
            if not torch.isfinite(output.sample).all():
                raise RuntimeError(f"{name} gave values that are not finite.")

    def enter(name: str) -> AbstractContextManager:
        arm = ARMS[name].enter
        return nullcontext() if arm is stock else arm(pipe)

    entries = {name: partial(enter, name) for name in names}
    seconds = interleave(run, entries, rounds=args.rounds, device=args.device)
    step = {name: [time / ARMS[name].cycle for time in times] for name, times in seconds.items()}
    for name in names:
        with entries[name]():
            memory = peak_memory(partial(run, name), device=args.device)
        gain = speedup(step["stock"], step[name])
        print(f"{size} {name:38} {gain.median:5.2f}x [{gain.low:.2f}, {gain.high:.2f}]", file=sys.stderr, flush=True)
        yield {
            "benchmark": "unet step",
            "weights": "random",
            "architecture": args.architecture,
            "arm": name,
            "size": size,
            "batch": args.batch,
            "dtype": args.dtype,
            "speedup": round(gain.median, 4),
            "speedup_95": [round(gain.low, 4), round(gain.high, 4)],
            "rounds": gain.pairs,
            "seconds": [round(second, 4) for second in step[name]],
            "peak_bytes": memory,
            **environment(args.device),
        }


if __name__ == "__main__":
    sys.exit(main())
