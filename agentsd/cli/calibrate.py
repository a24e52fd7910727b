"""Fit skipped steps to one model, solver and number of steps from its own runs, and measure them.

A tolerance that meets a target is found by real runs. With --calls, full steps are listed from a few recorded runs. The
figures are of prompts that were not used for that. Give one target at most; without one it is --tolerance 0.03. An
interrupted calibration goes on where it was. The result is JSON: agentsd generate --schedule FILE draws with it. In
Python, agentsd.apply(pipe, agentsd.Calibration.from_json(text).schedule) applies it.
"""

import argparse
from pathlib import Path

from agentsd.cli.arguments import one_of, side, whole
from agentsd.cli.printer import hide_loading_bars, note, say
from agentsd.pictures.settings import DEMO, DEMO_GUIDANCE, DTYPES, SCHEDULERS, Settings, default_dtype

HELP = "fit skipped steps to your model, solver and prompts, and measure them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `agentsd calibrate`."""
    parser.add_argument(
        "--model", default=DEMO, help="demo (bundled, the default), demo-sd15, a diffusers folder, or a hub id"
    )
    parser.add_argument("--scheduler", type=one_of(sorted(SCHEDULERS)), help="sampler (the model's own)")
    parser.add_argument("--steps", type=whole(1, 1000), default=50, help="denoising steps (50)")
    parser.add_argument("--guidance-scale", type=float, metavar="G", help="guidance (demo: 4; else the pipeline's)")
    parser.add_argument("--height", type=side, metavar="PIXELS", help="picture height (the model's own)")
    parser.add_argument("--width", type=side, metavar="PIXELS", help="picture width (the model's own)")
    parser.add_argument("--dtype", type=one_of(DTYPES), help=f"{', '.join(DTYPES)} (GPU: float16, CPU: float32)")
    parser.add_argument("--device", default="auto", help="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--prompt", dest="prompts", action="append", metavar="TEXT",
        help="a prompt of yours, several times for several; half of them are held out (ten of ours)",
    )  # fmt: skip
    parser.add_argument("--prompts-file", type=Path, metavar="FILE", help="prompts, one a line")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--calls", type=whole(2), help="UNet calls that a picture may take")
    target.add_argument("--tolerance", type=float, help="relative error of the final latent (0.03)")
    target.add_argument("--psnr", type=float, metavar="DB", help="PSNR to the stock picture")
    target.add_argument("--lpips", type=float, help="LPIPS to the stock picture; needs AlexNet's weights")
    parser.add_argument("--worst", action="store_true", help="ask the target of the worst 5%%, not of the median")
    parser.add_argument(
        "--kind", type=one_of(["listed", "tolerance"]),
        help="listed: full steps one by one; tolerance: the tolerance that meets the target (with --calls: listed)",
    )  # fmt: skip
    parser.add_argument("--seed", type=whole(0), default=0, help="seed of the first picture's noise (0)")
    parser.add_argument("--no-cache", action="store_true", help="keep no finished runs")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/calibration.json"),
        help="where the calibration goes (outputs/calibration.json)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Calibrate, print what to expect and write the calibration.

    Raises:
        ValueError: If an option is bad.
    """
    import agentsd
    from agentsd.cli.drawing import warn_of_words
    from agentsd.demo import held_out_prompts
    from agentsd.pictures.files import check_writable, prompts_from_file
    from agentsd.pictures.loading import choose_device, load_pipeline

    prompts = list(options.prompts or [])
    if options.prompts_file is not None:
        prompts += prompts_from_file(options.prompts_file)
    if options.model in DEMO_GUIDANCE:
        prompts = prompts or held_out_prompts(8)  # the words that the demo model knows
        warn_of_words(prompts)
    check_writable(options.output)
    guidance = DEMO_GUIDANCE.get(options.model) if options.guidance_scale is None else options.guidance_scale
    size = {name: value for name in ("height", "width") if (value := getattr(options, name)) is not None}
    device = choose_device(options.device)
    dtype = options.dtype or default_dtype(device.type)
    hide_loading_bars()
    settings = Settings(
        prompt="", model=options.model, steps=options.steps, guidance_scale=guidance, dtype=dtype,
        scheduler=options.scheduler, **size,
    )  # fmt: skip
    pipe = load_pipeline(settings, device)
    try:
        found = agentsd.calibrate(
            pipe,
            prompts or None,
            num_inference_steps=options.steps,
            calls=options.calls,
            tolerance=options.tolerance,
            psnr=options.psnr,
            lpips=options.lpips,
            worst=options.worst,
            kind=options.kind,
            guidance_scale=guidance,
            seed=options.seed,
            cache=not options.no_cache,
            **size,
        )
    except KeyboardInterrupt:
        if not options.no_cache:
            note("finished pictures are kept: the same command goes on where it was")
        raise
    found.save(options.output)
    say(str(found))
    say(f"{options.output}: the calibration; agentsd generate --schedule {options.output} draws with it")
    return 0
