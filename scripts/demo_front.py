"""Speed against quality of every arm on the bundled demo model: same prompts and seeds, stock as reference.

Every call is kept in a work folder: after an interruption or --limit-seconds run the same command again, and add arms
or prompts later without running the others anew. Rows are written for the arms that are complete.
"""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path

import torch

from agentsd.bench.arms import RUN_ARMS
from agentsd.bench.front import measure
from agentsd.bench.samples import Store
from agentsd.cli.main import guard
from agentsd.evaluation.demo_front import DemoFront, front_rows
from agentsd.pictures.settings import SCHEDULERS
from agentsd.system.precision import dtype_name
from agentsd.system.writing import write_whole

WARMUP_STEPS = 4


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--prompts", type=int, default=24, help="held-out prompts, half of them with two objects")
    made.add_argument(
        "--timed-prompts", type=int, metavar="N", help="time the first N, draw the others for quality alone (all)"
    )
    made.add_argument("--steps", type=int, default=25)
    made.add_argument("--guidance-scale", type=float, default=4.0)
    made.add_argument("--scheduler", choices=list(SCHEDULERS), help="the model's own: DDIM")
    made.add_argument("--batch", type=int, default=4, help="prompts a call")
    made.add_argument("--group", type=int, default=3, help="arms that share the stock call of a pair")
    made.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="auto: what is fast here"
    )
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--arms", nargs="+", choices=list(RUN_ARMS), default=list(RUN_ARMS), metavar="ARM")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--limit-seconds", type=float, default=float("inf"), help="start no further call after this")
    made.add_argument("--work", type=Path, default=Path("outputs/front"), help="latents and times of every call")
    made.add_argument("--output", type=Path, default=Path("outputs/demo/front.jsonl"), help="written anew")
    return made


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    args.dtype = dtype_name(args.dtype, args.device)
    front = DemoFront(
        prompts=args.prompts,
        steps=args.steps,
        guidance_scale=args.guidance_scale,
        batch=args.batch,
        dtype=args.dtype,
        device=args.device,
        seed=args.seed,
        scheduler=args.scheduler,
    )
    parts = front.chunks
    timed = parts if args.timed_prompts is None else [part for part in parts if part.start < args.timed_prompts]
    if not timed:
        parser().error(f"--timed-prompts {args.timed_prompts}: at least 1; without a time there is no row.")
    arms = {name: RUN_ARMS[name] for name in args.arms if name != "stock"}
    store = Store(args.work, front.setup)
    tell(f"kept in {store.folder}")
    started = time.monotonic()
    warm_up = partial(front.draw, steps=min(WARMUP_STEPS, args.steps))
    run = partial(measure, front.pipe, front.draw, arms, store, group=args.group, warm_up=warm_up, tell=tell)
    complete = run(timed, limit_seconds=args.limit_seconds)
    if len(timed) < len(parts):
        left = args.limit_seconds - (time.monotonic() - started)
        complete &= run(parts, timed=False, limit_seconds=left)
    rows = list(front_rows(front, store, arms, tell))
    write_whole(args.output, "".join(json.dumps(row) + "\n" for row in rows))
    tell(f"{len(rows)} of {len(arms) + 1} arms are complete: {args.output}")
    return 0 if complete else 1


def tell(text: object) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(guard("demo_front.py", main))
