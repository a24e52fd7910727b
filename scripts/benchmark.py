"""Time a true architecture (random weights), every arm against stock: UNet steps, or with --pipeline whole calls.

A row is appended to a JSONL file as soon as its arms are measured, and what is there already is left out: run the
same command again after an interruption.
"""

import argparse
import datetime
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler

from agentsd.bench.architectures import ARCHITECTURES, random_pipeline, random_unet
from agentsd.bench.arm import Arm, RunArm
from agentsd.bench.arms import RUN_ARMS, STEP_ARMS, with_twins
from agentsd.bench.ratios import speedup
from agentsd.bench.rows import append_row, key_of, newest, read_rows
from agentsd.planning.inputs import random_inputs
from agentsd.system.precision import dtype_name
from agentsd.system.timing import environment, interleave, peak_memory

# What tells a measurement from others. The settings change with our presets and with the rivals' versions.
KEY = ("benchmark", "architecture", "arm", "settings", "size", "batch", "dtype", "steps",
       "device", "threads", "torch", "diffusers")  # fmt: skip
_CALLS = ("stock", "stock A/A", "stock, steps / 2", "tomesd 0.5", "DeepCache 3", "DeepCache 5", "T-GATE")
CALLS = tuple(name for name in RUN_ARMS if name in _CALLS or name.startswith("preset "))
# Which arms get twins, by the words of `agentsd.bench.arms.TWINS`; a compiled one takes minutes.
TWINNED = {
    ", compiled": (
        "stock", "paper, agent phase", "key/value sampling, stride 4",
        "full step every 3, last layer + key/value sampling", "preset balanced", "preset fast",
    ),
    ", channels last": (
        "stock", "no self-attention (ceiling)", "paper, agent phase", "key/value sampling, stride 4", "DeepCache 3",
        "full step every 3, last layer, no self-attention (ceiling)",
        "full step every 3, last layer + key/value sampling", "full step every 5, last layer + key/value sampling",
        "full step every 3 + key/value sampling", "full step every 5 + key/value sampling", "preset balanced",
        "preset fast",
    ),
}  # fmt: skip
WARMUP_STEPS = 4
PROMPT = "a red ring to the left of a small blue cross on a checkered gray background"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--architecture", choices=sorted(ARCHITECTURES), default="sd15")
    made.add_argument("--pipeline", action="store_true", help="time pipe(...): text encoder, all steps, VAE")
    made.add_argument("--steps", type=int, default=20, help="of a pipeline call")
    made.add_argument("--size", type=int, nargs="+", default=[512], help="picture side in pixels")
    made.add_argument("--batch", type=int, default=2, help="samples a UNet call; 2: one picture with guidance")
    made.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="auto: what is fast here"
    )
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--arms", nargs="+", metavar="ARM", help="default: all that the kind of measurement has")
    twins = partial(made.add_argument, action="append_const", dest="twins", default=[])
    twins("--compile", const=", compiled", help="also stock and ours under torch.compile (minutes each)")
    twins("--channels-last", const=", channels last", help="also some arms with channels-last weights")
    made.add_argument("--rounds", type=int, default=4, help="pairs of times for each arm; rows with fewer are redone")
    made.add_argument("--group", type=int, default=3, help="arms that share the stock runs of a round")
    made.add_argument("--again", action="store_true", help="measure also what the output holds already")
    made.add_argument("--limit-seconds", type=float, default=float("inf"), help="start no further group after this")
    made.add_argument("--list", action="store_true", help="list the arms and leave")
    made.add_argument("--output", type=Path, default=Path("results/speed.jsonl"), help="rows are appended")
    return made


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    args.dtype = dtype_name(args.dtype, args.device)
    started = time.monotonic()
    arms = chosen_arms(args)
    if args.list:
        print("\n".join(arms))
        return 0
    if args.pipeline and args.batch % 2:
        parser().error(f"--batch {args.batch}: a pipeline call with guidance has an even number of samples.")
    build = random_pipeline if args.pipeline else random_unet
    subject = (Calls if args.pipeline else Steps)(
        build(args.architecture, dtype=getattr(torch, args.dtype), device=args.device), arms, args
    )
    complete = True
    for size in args.size:
        complete &= measure(subject, arms, size, args, started)
    return 0 if complete else 1


def chosen_arms(args: argparse.Namespace) -> dict[str, Arm]:
    known: Mapping[str, Arm] = RUN_ARMS if args.pipeline else STEP_ARMS
    everything = dict(known)
    for words in args.twins:
        everything = with_twins(everything, [name for name in TWINNED[words] if name in known], words)
    default = [*(CALLS if args.pipeline else STEP_ARMS), *everything.keys() - known.keys()]
    names = dict.fromkeys(["stock", *(args.arms or sorted(default, key=list(everything).index))])
    unknown = [name for name in names if name not in everything]
    if unknown:
        parser().error(
            f"--arms {unknown} unknown; choose from: {'; '.join(everything)} (twins: --compile, --channels-last)."
        )
    return {name: everything[name] for name in names}


class Steps:
    """One cycle of UNet steps; a UNet and a scheduler's timesteps, all that arms look at, stand for a pipeline."""

    benchmark = "unet step"
    steps = None

    def __init__(self, unet: Any, arms: Mapping[str, Arm], args: argparse.Namespace) -> None:
        self.unet = unet
        self.scheduler = DDIMScheduler()  # a scheduler that is not known would count as noisy
        self.pipe = self
        self.arms = arms
        self.args = args

    def prepare(self, size: int) -> None:
        self.inputs = random_inputs(self.unet, size // 8, size // 8, self.args.batch)

    def run(self, name: str, short: bool = False) -> None:
        # A run is one cycle of the arm, on a timesteps tensor of its own, as a scheduler would make.
        self.scheduler.timesteps = timesteps = torch.linspace(900, 100, self.arms[name].cycle).long()
        others = {key: value for key, value in self.inputs.items() if key not in ("sample", "timestep")}
        # Checked after the loop: a look at each output would make a GPU wait at every step.
        # DeepCache reads the timestep by position only.
        outputs = [self.unet(self.inputs["sample"], t, **others).sample for t in timesteps]
        check(name, torch.stack(outputs))

    def unit(self, name: str) -> int:
        return self.arms[name].cycle


class Calls:
    """A whole pipeline call."""

    benchmark = "pipeline call"

    def __init__(self, pipe: Any, arms: Mapping[str, RunArm], args: argparse.Namespace) -> None:
        self.pipe = pipe
        self.arms = arms
        self.args = args
        self.steps = args.steps

    def prepare(self, size: int) -> None:
        self.size = size

    def run(self, name: str, short: bool = False) -> None:
        prompts = [PROMPT] * (self.args.batch // 2)
        steps = min(WARMUP_STEPS, self.steps) if short else self.steps
        generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
        settings = {"height": self.size, "width": self.size, "generator": generators, "output_type": "pt"}
        check(name, self.arms[name].run(self.pipe, prompts, num_inference_steps=steps, **settings).images)

    def unit(self, name: str) -> int:
        return 1


def check(name: str, output: torch.Tensor) -> None:
    if not torch.isfinite(output).all():
        raise RuntimeError(f"{name} gave values that are not finite.")


@torch.inference_mode()
def measure(
    subject: Steps | Calls, arms: Mapping[str, Arm], size: int, args: argparse.Namespace, started: float
) -> bool:
    """Measure what is missing at a size, group by group; return whether everything is there now."""
    subject.prepare(size)

    def facts(name: str) -> dict[str, Any]:
        return {
            "benchmark": subject.benchmark,
            "weights": "random",
            "architecture": args.architecture,
            "arm": name,
            "settings": arms[name].settings,
            "size": size,
            "batch": args.batch,
            "dtype": args.dtype,
            **({} if subject.steps is None else {"steps": subject.steps}),
            **environment(args.device),
        }

    def enter(name: str) -> AbstractContextManager[Any]:
        return arms[name].enter(subject.pipe)

    rows = [] if args.again else newest(read_rows(args.output), KEY)
    there = {key_of(row, KEY) for row in rows if row["rounds"] >= args.rounds}
    missing = [name for name in arms if key_of(facts(name), KEY) not in there]
    others = [name for name in missing if name != "stock"]
    groups = [others[i : i + args.group] for i in range(0, len(others), args.group)] or ([[]] if missing else [])
    tell(f"{subject.benchmark} at {size}: {len(arms) - len(missing)} of {len(arms)} arms are there")
    failed = []
    for number, group in enumerate(groups):
        if time.monotonic() - started > args.limit_seconds:
            tell(f"stopped by --limit-seconds with {sum(map(len, groups[number:]))} arms left; run again to go on")
            return False
        names = ["stock"]
        for name in group if number else ["stock", *group]:
            try:
                with enter(name):
                    # A compiled arm has to meet all its graphs before it is timed.
                    subject.run(name, short="compile" not in arms[name].settings)
            except Exception as error:  # one arm that cannot run here must not cost the others
                tell(f"{size} {name}: left out, {type(error).__name__}: {error}")
                failed.append(name)
            else:
                names.append(name)
        names = list(dict.fromkeys(names))
        if "stock" in failed:
            return False
        entries = {name: partial(enter, name) for name in names}
        seconds = interleave(subject.run, entries, rounds=args.rounds, warmup=0, device=args.device)
        units = {name: [taken / subject.unit(name) for taken in times] for name, times in seconds.items()}
        for name in names:
            if name not in missing or (name == "stock" and number):
                continue
            with entries[name]():
                memory = peak_memory(partial(subject.run, name, short=True), device=args.device)
            gain = speedup(units["stock"], units[name])
            tell(f"{size} {name:38} {gain.median:5.2f}x [{gain.low:.2f}, {gain.high:.2f}] {gain.pairs} rounds")
            row = {
                **facts(name),
                "speedup": round(gain.median, 4),
                "speedup_95": [round(gain.low, 4), round(gain.high, 4)],
                "rounds": gain.pairs,
                "seconds": [round(second, 4) for second in units[name]],
                "stock_seconds": [round(second, 4) for second in units["stock"]],
                "peak_bytes": memory,
                "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
            }
            append_row(args.output, row)
    return not failed


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
