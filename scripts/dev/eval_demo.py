#!/usr/bin/env python
"""Measure the demo model: attribute accuracy on held-out prompts, beside that of real renderings of the same scenes.

Writes a JSON result and a picture grid under outputs/demo/. Pictures are kept batch by batch in a work folder: after an
interruption run the same command again; a second process with --backwards halves the time.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import platform
import sys
import time

import numpy as np
import torch
from PIL import Image

from agentsd.cli.main import guard
from agentsd.demo import MODEL_PATH
from agentsd.demo.attributes import attribute_accuracy, load_classifier, matches, picture_scores
from agentsd.demo.captions import held_out_scenes, parse_caption
from agentsd.demo.checksums import digest_of
from agentsd.demo.render import render_batch
from agentsd.demo.training.pool import save_atomically
from agentsd.pictures.loading import dtype_argument
from agentsd.system.precision import dtype_name
from agentsd.system.writing import write_whole


def picture_grid(pictures: np.ndarray, columns: int = 6) -> Image.Image:
    """Pictures (n, h, h, 3) side by side, row by row, on white."""
    number, side = pictures.shape[:2]
    rows = -(-number // columns)
    canvas = np.full((rows * side, columns * side, 3), 255, dtype=np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * side, index % columns * side
        canvas[top : top + side, left : left + side] = picture
    return Image.fromarray(canvas)


def main() -> None:
    """Parse the arguments, generate, score and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=MODEL_PATH, help="diffusers folder")
    parser.add_argument("--prompts", type=int, default=200, help="held-out prompts, half of them pairs")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps")
    parser.add_argument("--guidance", type=float, default=4.0, help="guidance scale")
    parser.add_argument("--batch", type=int, default=4, help="prompts a batch")
    parser.add_argument("--seed", type=int, default=0, help="seed of prompts and noise")
    parser.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="auto: what is fast here"
    )
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("outputs/eval_demo"), help="finished batches")
    parser.add_argument("--backwards", action="store_true", help="begin with the last batch")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("outputs/demo/attribute_accuracy.json"))
    parser.add_argument(
        "--grid", type=pathlib.Path, default=pathlib.Path("outputs/demo/samples.png"), help="picture grid"
    )
    arguments = parser.parse_args()
    arguments.dtype = dtype_name(arguments.dtype)

    from diffusers import StableDiffusionPipeline

    held_out = held_out_scenes(arguments.prompts, seed=arguments.seed)
    prompts = [text for text, _ in held_out]
    wanted = [parse_caption(text).combos for text in prompts]
    classifier = load_classifier(arguments.model / "attribute_classifier")
    real = attribute_accuracy(picture_scores(classifier, render_batch([scene for _, scene in held_out])), wanted)
    print("real renderings:", real, flush=True)

    pipeline = StableDiffusionPipeline.from_pretrained(
        arguments.model, **dtype_argument(getattr(torch, arguments.dtype)), local_files_only=True
    )
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    began = time.monotonic()
    words = (digest_of(arguments.model), arguments.steps, arguments.guidance, arguments.seed, arguments.dtype)
    folder = arguments.work / "-".join(map(str, (*words, arguments.prompts, arguments.batch)))
    folder.mkdir(parents=True, exist_ok=True)
    starts = list(range(0, len(prompts), arguments.batch))
    for start in reversed(starts) if arguments.backwards else starts:
        if (folder / f"{start}.npy").exists():
            continue
        batch = prompts[start : start + arguments.batch]
        # One generator a picture: the result does not depend on the batch size.
        noise = [torch.Generator().manual_seed(arguments.seed * 100_003 + start + i) for i in range(len(batch))]
        pictures = pipeline(
            batch,
            num_inference_steps=arguments.steps,
            guidance_scale=arguments.guidance,
            generator=noise,
            output_type="np",
        ).images
        save_atomically(folder / f"{start}.npy", np.round(pictures * 255).astype(np.uint8))
        print(f"prompt {start + len(batch)} of {len(prompts)}, {time.monotonic() - began:.0f} s", flush=True)
    pictures = np.concatenate([np.load(folder / f"{start}.npy") for start in starts])
    scores = picture_scores(classifier, pictures)
    result = {
        "prompts": len(prompts),
        "steps": arguments.steps,
        "scheduler": type(pipeline.scheduler).__name__,
        "guidance": arguments.guidance,
        "seed": arguments.seed,
        "dtype": arguments.dtype,
        "generated": attribute_accuracy(scores, wanted),
        "real_renderings": real,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "wrong": [text for text, right in zip(prompts, matches(scores, wanted), strict=True) if not right],
    }
    write_whole(arguments.output, json.dumps(result, indent=1) + "\n")
    picture_grid(pictures[:24]).save(arguments.grid)
    print(json.dumps({key: value for key, value in result.items() if key != "wrong"}, indent=1))


if __name__ == "__main__":
    sys.exit(guard("eval_demo.py", main))
