"""Draw a few prompts of the demo model under every preset, and join two of them to docs/img/strip.png.

The process is that of Stable Diffusion 1.5 (DPM++ 2M Karras, 25 steps, guidance 7.5). Each row of the result file is
one whole pipeline call: its UNet calls, its CPU seconds on one thread, and its likeness to the stock picture of the
same noise. Every second prompt takes the arms in reverse order, so a slow drift of the machine does not favour one.
Calls that the result file holds already are left out, as long as their pictures are there.
"""

import argparse
import datetime
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

import agentsd
from agentsd.bench.currency import facts_of
from agentsd.bench.metrics import psnr, relative_l2, ssim
from agentsd.bench.rows import Row, append_row, key_of, newest, read_rows
from agentsd.bench.strip_tables import FEWER, FEWER_ARMS, SCHEDULES, SHOWN, STEPS
from agentsd.demo import held_out_prompts
from agentsd.demo.processes import demo_pipeline
from agentsd.system.timing import environment

ROOT = Path(__file__).resolve().parents[2]
GUIDANCE = 7.5
DPM, UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
# Name -> schedule (None is stock), scheduler, steps.
ARMS: dict[str, tuple[agentsd.Schedule | None, str, int]] = {
    **{name: (schedule, DPM, STEPS) for name, schedule in SCHEDULES.items()},
    **{name: (None, solver, FEWER) for name, solver in zip(FEWER_ARMS, (DPM, UNIPC), strict=True)},
}
KEY = ("prompt", "arm", "settings", "rules", "device", "torch")
COLUMNS = ("stock", *SHOWN, FEWER_ARMS[0])  # the columns of the strip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="*", default=list(range(9)), help="numbers of held-out prompts")
    parser.add_argument("--shown", type=int, nargs=2, default=(0, 1), help="the prompts of the strip")
    parser.add_argument("--limit-seconds", type=float, default=float("inf"), help="start no further call after this")
    parser.add_argument("--results", type=Path, default=ROOT / "results/demo/strip.jsonl", help="rows are appended")
    parser.add_argument("--pictures", type=Path, default=ROOT / "outputs/strip", help="folder of single pictures")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/img/strip.png")
    args = parser.parse_args(argv)
    args.pictures.mkdir(parents=True, exist_ok=True)
    if not measure(args):
        print("stopped at the limit; start the same command again", file=sys.stderr)
        return 1
    strip(newest(read_rows(args.results), KEY), args.shown, args.pictures).save(args.output, optimize=True)
    print(args.output)
    return 0


def measure(args: argparse.Namespace) -> bool:
    """Draw what is missing; return whether everything is there."""
    started = time.monotonic()
    facts = {
        **environment(), "dtype": "float32", "weights": "demo model", "process": "sd15",
        "solver": "DPM++ 2M Karras", "guidance_scale": GUIDANCE, "size": 256,
    }  # fmt: skip
    there = {key_of(row, KEY) for row in read_rows(args.results)}
    texts = held_out_prompts(max([*args.prompts, *args.shown]) + 1)
    pipe: Any = None
    for number in args.prompts:
        stock_first = ["stock", *(list(ARMS)[1:] if number % 2 == 0 else list(ARMS)[:0:-1])]
        for arm in stock_first:
            schedule, solver, steps = ARMS[arm]
            row = {**facts, "prompt": texts[number], "number": number, "arm": arm, "steps": steps,
                   **facts_of(schedule)}  # fmt: skip
            if key_of(row, KEY) in there and picture_of(args.pictures, number, arm).exists():
                continue
            if time.monotonic() - started > args.limit_seconds:
                return False
            if pipe is None:
                pipe = demo_pipeline("sd15")
                base = dict(pipe.scheduler.config)
                pipe(texts[0], num_inference_steps=2)  # the first call of a process pays for what is set up once
            pipe.scheduler = scheduler_of(solver, base)
            picture, latents, calls, seconds = draw(pipe, schedule, texts[number], steps, number)
            torch.save((picture, latents), picture_of(args.pictures, number, arm))
            stock, stock_latents = torch.load(picture_of(args.pictures, number, "stock"))
            near = float(psnr(picture, stock))
            row |= {
                "calls": calls,
                "cpu_seconds": round(seconds, 2),
                "psnr_db": None if near == float("inf") else round(near, 2),
                "ssim": round(float(ssim(picture, stock)), 4),
                "latent_l2": round(float(relative_l2(latents, stock_latents)), 4),
                "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
            }
            append_row(args.results, row)
            print(f"{number} {arm:30} {calls} calls {seconds:.1f} s {near:.1f} dB", file=sys.stderr, flush=True)
    return True


def scheduler_of(kind: str, base: dict[str, Any]) -> Any:
    import diffusers

    extra = {"use_karras_sigmas": True} if kind == DPM else {}
    return getattr(diffusers, kind).from_config({**base, **extra})


def draw(
    pipe: Any, schedule: agentsd.Schedule | None, prompt: str, steps: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, int, float]:
    """Return picture [1, 3, h, w], latents, UNet calls and CPU seconds of one whole call."""
    calls, latents = [0], []

    def count(*_: Any) -> None:
        calls[0] += 1

    count.agentsd_optional = True  # type: ignore[attr-defined]  # it counts full steps, so it may miss others

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        latents[:] = [tensors["latents"]]
        return {}

    handle = pipe.unet.conv_in.register_forward_hook(count)  # which no skipped step reaches
    enter: AbstractContextManager[Any] = nullcontext() if schedule is None else agentsd.apply(pipe, schedule)
    with enter:
        start = time.process_time()
        picture = pipe(
            prompt,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
            callback_on_step_end=keep,
        ).images
        seconds = time.process_time() - start
    handle.remove()
    return picture.clamp(0, 1), latents[0], calls[0], seconds


def picture_of(folder: Path, number: int, arm: str) -> Path:
    return folder / f"{number}-{arm.replace('/', ' or ')}.pt"


def strip(rows: list[Row], numbers: tuple[int, int], folder: Path, side: int = 256, gap: int = 12) -> Image.Image:
    """Join pictures to a grid: an arm a column, a prompt a row, UNet calls, seconds and dB under each."""
    head, foot, left = 44, 62, 12
    big, small = (ImageFont.load_default(size) for size in (24, 19))
    width = left * 2 + len(COLUMNS) * side + (len(COLUMNS) - 1) * gap
    canvas = Image.new("RGB", (width, head + len(numbers) * (side + foot)), "white")
    draw_on = ImageDraw.Draw(canvas)
    found = {(row["number"], row["arm"]): row for row in rows}
    for column, arm in enumerate(COLUMNS):
        x = left + column * (side + gap)
        draw_on.text((x + side / 2, head / 2), arm, "black", big, anchor="mm")
        for place, number in enumerate(numbers):
            y = head + place * (side + foot)
            picture, _ = torch.load(picture_of(folder, number, arm))
            pixels = (picture[0].permute(1, 2, 0) * 255).round().byte().numpy()
            canvas.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS), (x, y))
            row = found[number, arm]
            time_and_near = f"{row['cpu_seconds']:.0f} s" + ("" if arm == "stock" else f", {row['psnr_db']:.1f} dB")
            draw_on.text((x + side / 2, y + side + 16), f"{row['calls']} UNet calls", "black", small, anchor="mm")
            draw_on.text((x + side / 2, y + side + 39), time_and_near, "black", small, anchor="mm")
    return canvas


if __name__ == "__main__":
    sys.exit(main())
