"""Speed against quality of every arm on the bundled demo model: same prompts and seeds, stock as reference."""

import argparse
import json
import math
import statistics
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from agentsd.arms import RUN_ARMS
from agentsd.bench import environment, interleave, speedup
from agentsd.demo import held_out_prompts, model_path, parse_caption
from agentsd.demo.attributes import attribute_accuracy, load_classifier, matches, picture_scores
from agentsd.metrics import psnr, relative_l2, ssim


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--prompts", type=int, default=24, help="held-out prompts, half of them with two objects")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--batch", type=int, default=4, help="prompts a call")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--arms", nargs="+", choices=list(RUN_ARMS), default=list(RUN_ARMS), metavar="ARM")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("results/demo/front.jsonl"), help="written anew")
    args = parser.parse_args(argv)

    names = ["stock", *(name for name in args.arms if name != "stock")]
    pipe = StableDiffusionPipeline.from_pretrained(model_path(), torch_dtype=getattr(torch, args.dtype))
    pipe.to(args.device).set_progress_bar_config(disable=True)
    prompts = held_out_prompts(args.prompts, seed=args.seed)
    latents: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for start in range(0, len(prompts), args.batch):
        chunk = prompts[start : start + args.batch]

        def run(name: str, chunk: list[str] = chunk, start: int = start) -> None:
            # One generator a picture: pictures do not depend on the batch.
            noise = [torch.Generator().manual_seed(args.seed * 100_003 + start + i) for i in range(len(chunk))]
            steps = max(1, round(args.steps / RUN_ARMS[name].fewer_steps))
            made = pipe(
                chunk,
                num_inference_steps=steps,
                guidance_scale=args.guidance_scale,
                generator=noise,
                output_type="latent",
            ).images
            latents[name].append(made.float().cpu())

        entries = {name: partial(RUN_ARMS[name].enter, pipe) for name in names}
        # Each chunk is a round of its own; the order turns from chunk to chunk, as interleave does within one call.
        order = entries if start // args.batch % 2 == 0 else dict(reversed(entries.items()))
        if start == 0:
            interleave(run, {name: entries[name] for name in names[:1]}, rounds=1, warmup=0, device=args.device)
            latents[names[0]].clear()
        for name, times in interleave(run, order, rounds=1, warmup=0, device=args.device).items():
            seconds[name] += times
        print(f"{start + len(chunk)} of {len(prompts)} prompts", file=sys.stderr, flush=True)

    classifier = load_classifier()
    wanted = [parse_caption(prompt).combos for prompt in prompts]
    joined = {name: torch.cat(parts) for name, parts in latents.items()}
    pictures = {name: decode(pipe, joined[name]) for name in names}
    rows = []
    for name in names:
        scores = picture_scores(classifier, to_bytes(pictures[name]))
        gain = speedup(seconds["stock"], seconds[name])
        likeness = psnr(pictures[name], pictures["stock"])
        rows.append(
            {
                "benchmark": "demo front",
                "weights": "bundled demo model",
                "arm": name,
                "prompts": len(prompts),
                "steps": args.steps,
                "guidance_scale": args.guidance_scale,
                "batch": args.batch,
                "dtype": args.dtype,
                "size": 256,
                "speedup": round(gain.median, 4),
                "speedup_95": [round(gain.low, 4), round(gain.high, 4)],
                "timed": "pipeline call without VAE decoding",
                "psnr_db_median": finite(likeness.median().item()),
                "psnr_db_p5": finite(likeness.quantile(0.05).item()),
                "ssim_median": round(ssim(pictures[name], pictures["stock"]).median().item(), 4),
                "latent_l2_median": round(statistics.median(relative_l2(joined[name], joined["stock"]).tolist()), 4),
                "attribute_accuracy": attribute_accuracy(scores, wanted),
                "right": int(matches(scores, wanted).sum()),
                **environment(args.device),
            }
        )
        print({k: rows[-1][k] for k in ("arm", "speedup", "psnr_db_median", "ssim_median", "attribute_accuracy")},
              file=sys.stderr, flush=True)  # fmt: skip
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 0


def finite(value: float) -> float | None:
    """Return a rounded number, `None` for the infinite PSNR of equal pictures."""
    return round(value, 3) if math.isfinite(value) else None


@torch.inference_mode()
def decode(pipe: StableDiffusionPipeline, latents: torch.Tensor) -> torch.Tensor:
    vae = pipe.vae
    parts = []
    for part in latents.split(8):
        scaled = part.to(vae.device, vae.dtype) / vae.config.scaling_factor
        parts.append((vae.decode(scaled).sample.float().cpu() / 2 + 0.5).clamp(0, 1))
    return torch.cat(parts)


def to_bytes(pictures: torch.Tensor) -> np.ndarray:
    return (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()


if __name__ == "__main__":
    sys.exit(main())
