"""Time batches of the demo model: stock, full steps chosen for the batch, and full steps chosen by picture.

Each row of the result file is one arm on one batch under one process and solver. The arms take turns: stock, batch,
picture, then the other way round. Times are CPU seconds of the process on a CPU, and wall time on a GPU; text encoder
included, VAE excluded. UNet calls are steps that a picture ran in full, on average over the batch. Batches that the
result file holds are left out.
"""

import argparse
import datetime
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

import agentsd
from agentsd.bench.batch_tables import ARMS, BATCH, MEASURED, SCHEDULES
from agentsd.bench.combinations import COMBINATIONS
from agentsd.bench.metrics import psnr
from agentsd.bench.rows import append_row, key_of, read_rows
from agentsd.demo import held_out_prompts
from agentsd.demo.processes import demo_pipeline, scheduler_class
from agentsd.system.timing import environment, synchronize

ROOT = Path(__file__).resolve().parents[2]
KEY = ("combination", "number", "arm", "settings", "rules", "device", "torch")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--combination", nargs="+", default=list(MEASURED), choices=list(COMBINATIONS))
    parser.add_argument("--batches", type=int, default=2, help="batches of each combination")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit-seconds", type=float, default=float("inf"), help="start no further batch after this")
    parser.add_argument("--output", type=Path, default=ROOT / "results/demo/batches.jsonl", help="rows are appended")
    args = parser.parse_args(argv)
    started = time.monotonic()
    there = {key_of(row, KEY) for row in read_rows(args.output)}
    for name in args.combination:
        process, kind, extra, steps, guidance = COMBINATIONS[name]
        pipe: Any = None
        for number in range(args.batches):
            facts = {
                **environment(args.device), "dtype": "float32", "weights": "demo model", "combination": name,
                "steps": steps, "guidance": guidance, "size": 256, "batch": BATCH, "number": number,
            }  # fmt: skip
            if all(key_of({**facts, **one}, KEY) in there for one in ARMS.values()):
                continue
            if time.monotonic() - started > args.limit_seconds:
                print("stopped at the limit; start the same command again", file=sys.stderr)
                return 1
            if pipe is None:
                pipe = demo_pipeline(process).to(args.device)
                pipe.scheduler = scheduler_class(kind).from_config({**pipe.scheduler.config, **extra})
                pipe("a red circle", num_inference_steps=2)  # the first call pays for what is set up once
            for row in measure(pipe, number, steps, guidance):
                append_row(args.output, {**facts, **row})
                print(f"{name}, batch {number}: {row}", file=sys.stderr, flush=True)
    return 0


def measure(pipe: Any, number: int, steps: int, guidance: float) -> list[dict[str, Any]]:
    """Draw one batch by every arm, there and back; return a row for each."""
    prompts = held_out_prompts(BATCH * (number + 1))[-BATCH:]
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    pictures: dict[str, torch.Tensor] = {}
    runs: dict[str, tuple[float, int]] = {"stock": (float(steps), steps)}
    for arm in (*ARMS, *list(ARMS)[::-1]):
        schedule = SCHEDULES[arm]
        with nullcontext() if schedule is None else agentsd.apply(pipe, schedule) as patch:
            generators = [torch.Generator().manual_seed(number * BATCH + place) for place in range(BATCH)]
            clock = time.process_time if pipe.device.type == "cpu" else time.perf_counter
            synchronize(pipe.device)
            start = clock()
            latents = pipe(
                prompts, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="latent"
            ).images
            synchronize(pipe.device)
            seconds[arm].append(round(clock() - start, 3))
            run = None if patch is None else patch.report().last_run
        if run is not None:
            runs[arm] = run.calls, run.full + len(run.partial)
        if arm not in pictures:
            with torch.inference_mode():
                picture = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
            pictures[arm] = (picture / 2 + 0.5).clamp(0, 1)
    found = []
    for arm, settings in ARMS.items():
        near = psnr(pictures[arm], pictures["stock"])
        found.append(
            {
                "arm": arm,
                **settings,
                "calls": runs[arm][0],
                "unet_launches": runs[arm][1],
                "seconds": seconds[arm],
                "psnr_stock": [round(min(float(one), 120.0), 3) for one in near],
                "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
            }
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
