"""Speed against quality of every arm on the bundled demo model: same prompts and seeds, stock as reference.

Every call is kept in a work folder: after an interruption or --limit-seconds run the same command again, and add arms
or prompts later without running the others anew. Rows are written for the arms that are complete.
"""

import argparse
import json
import math
import sys
import time
from functools import partial
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from agentsd.bench.arm import RunArm
from agentsd.bench.arms import RUN_ARMS
from agentsd.bench.front import collect, drawer, measure
from agentsd.bench.likeness import decode, likeness, pairs
from agentsd.bench.samples import Chunk, Store, chunks, digest_of
from agentsd.demo import held_out_prompts, model_path, parse_caption
from agentsd.demo.attributes import attribute_accuracy, load_classifier, matches, picture_scores
from agentsd.pictures.generate import SCHEDULERS, set_scheduler
from agentsd.system.precision import dtype_name
from agentsd.system.timing import environment
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
    made.add_argument("--output", type=Path, default=Path("results/demo/front.jsonl"), help="written anew")
    return made


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    args.dtype = dtype_name(args.dtype, args.device)
    folder = model_path()
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, args.dtype))
    pipe.to(args.device).set_progress_bar_config(disable=True)
    prompts = held_out_prompts(args.prompts, seed=args.seed)
    parts = chunks(prompts, args.batch)
    arms = {name: RUN_ARMS[name] for name in args.arms if name != "stock"}
    setup = {
        "model": digest_of(folder),
        "steps": args.steps,
        "guidance_scale": args.guidance_scale,
        "batch": args.batch,
        "dtype": args.dtype,
        "seed": args.seed,
        **environment(args.device),
    }
    if args.scheduler is not None:
        set_scheduler(pipe, args.scheduler)
        setup["scheduler"] = args.scheduler
    store = Store(args.work, setup)
    tell(f"kept in {store.folder}")

    draw = drawer(pipe, steps=args.steps, guidance_scale=args.guidance_scale, seed=args.seed)
    timed = parts if args.timed_prompts is None else [part for part in parts if part.start < args.timed_prompts]
    if not timed:
        parser().error(f"--timed-prompts {args.timed_prompts}: at least 1; without a time there is no row.")
    started = time.monotonic()
    warm_up = partial(draw, steps=min(WARMUP_STEPS, args.steps))
    run = partial(measure, pipe, draw, arms, store, group=args.group, warm_up=warm_up, tell=tell)
    complete = run(timed, limit_seconds=args.limit_seconds)
    if len(timed) < len(parts):
        left = args.limit_seconds - (time.monotonic() - started)
        complete &= run(parts, timed=False, limit_seconds=left)
    rows = report(pipe, store, arms, parts, args)
    write_whole(args.output, "".join(json.dumps(row) + "\n" for row in rows))
    tell(f"{len(rows)} of {len(arms) + 1} arms are complete: {args.output}")
    return 0 if complete else 1


def report(
    pipe: StableDiffusionPipeline, store: Store, arms: dict[str, RunArm], parts: list[Chunk], args: argparse.Namespace
) -> list[dict]:
    """Return a row for every complete arm, stock first."""
    classifier = load_classifier()
    wanted = [parse_caption(prompt).combos for chunk in parts for prompt in chunk.prompts]
    rows, reference = [], None
    for name, samples in collect(store, arms, parts).items():
        if all(math.isnan(sample.stock_seconds) for sample in samples):
            tell(f"{name}: left out, it has failed where it was to be timed; run the same command again")
            continue
        latents = torch.cat([sample.latents for sample in samples])
        pictures = decode(pipe, latents)
        if reference is None:  # stock comes first
            reference = pictures, latents
        scores = picture_scores(classifier, (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy())
        right = matches(scores, wanted)
        row = {
            "benchmark": "demo front",
            "weights": "bundled demo model",
            "arm": name,
            "settings": "" if name == "stock" else arms[name].settings,
            "prompts": len(wanted),
            "scheduler": type(pipe.scheduler).__name__,
            "steps": args.steps,
            "guidance_scale": args.guidance_scale,
            "batch": args.batch,
            "dtype": args.dtype,
            "size": pictures.shape[-1],
            "seed": args.seed,
            "timed": "pipeline call without VAE decoding",
            **pairs(samples),
            **likeness(pictures, reference[0], latents, reference[1]),
            "attribute_accuracy": attribute_accuracy(scores, wanted),
            "right": int(right.sum()),
            "right_each": [int(value) for value in right],
            **environment(args.device),
        }
        rows.append(row)
        tell({k: row[k] for k in ("arm", "speedup", "psnr_db_median", "ssim_median", "attribute_accuracy")})
    return rows


def tell(text: object) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
