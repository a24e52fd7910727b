"""Evaluate on captions: distances from real pictures, likeness to stock, and fair times, on one page.

Without options the bundled demo model draws its own held-out captions; --reference demo compares with rendered scenes.
May be stopped at any moment: the same command goes on where it was. Several processes, GPUs or machines: start it with
torchrun or accelerate launch. What the figures mean and how to repeat published protocols: docs/evaluation.md.
"""

import argparse
import logging
import sys
from pathlib import Path

from agentsd.cli.arguments import one_of
from agentsd.cli.printer import hide_loading_bars, say
from agentsd.evaluation.options import CROPS, DEMO_NUM, FEATURES, MODES, RESIZES, Options
from agentsd.evaluation.protocols import PROTOCOLS
from agentsd.pictures.settings import DTYPES, SCHEDULERS

HELP = "quality and speed on captions, as a page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `agentsd evaluate`; those that are not given keep the defaults of `Options`."""
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/evaluation"), help="run folder (outputs/evaluation)"
    )
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS), help="a published protocol; fills in what it fixes")
    parser.add_argument("--mode", choices=MODES, help="quality, timing, or all (all)")
    prompts = parser.add_argument_group("prompts and reference")
    prompts.add_argument("--captions", help="demo, or COCO .json, .csv, .tsv, .txt (demo)")
    prompts.add_argument("--class-names", type=Path, metavar="FILE", help="1,000 ImageNet names, for --protocol paper")
    prompts.add_argument(
        "--num", type=int, help=f"how many prompts, the first of the file (demo: {DEMO_NUM}; else all)"
    )
    prompts.add_argument(
        "--reference", help="demo (rendered), folder of real pictures (sub-folders too), or .npz with mu and sigma"
    )
    prompts.add_argument("--crop", choices=CROPS, help="how reference pictures get the shape of the generated (center)")
    model = parser.add_argument_group("model")
    model.add_argument("--model", help="demo (bundled, the default), a local diffusers folder, or a hub id")
    model.add_argument("--steps", type=int, help="denoising steps of stock (demo: 50; else the pipeline's default)")
    model.add_argument("--guidance-scale", type=float, metavar="G", help="guidance (demo: 4; else the pipeline's)")
    model.add_argument("--size", type=int, metavar="PIXELS", help="side of the pictures (the model's own)")
    model.add_argument(
        "--scheduler", type=one_of(SCHEDULERS), help=f"sampler: {', '.join(SCHEDULERS)} (the model's own)"
    )
    model.add_argument("--dtype", type=one_of(DTYPES), help=f"arithmetic: {', '.join(DTYPES)} (float32)")
    model.add_argument("--device", help="auto, cpu, cuda, cuda:1, mps (auto; with several processes a GPU each)")
    model.add_argument("--batch", type=int, metavar="N", help="pictures at a time (1)")
    model.add_argument("--seed", type=int, help="seed of all noise (0)")
    arms = parser.add_argument_group("arms (stock and stock A/A are always there)")
    arms.add_argument(
        "--arm", dest="arms", action="append", metavar="NAME:KEY=VALUE,...",
        help="keys preset, tolerance, ratio, every, depth, rival, steps, noise, or a preset's name alone (balanced)",
    )  # fmt: skip
    arms.add_argument(
        "--fewer-steps", type=int, nargs="+", metavar="N",
        help="steps of the stock arms of equal time; 0: none (measured for each arm)",
    )  # fmt: skip
    metrics = parser.add_argument_group("metrics and times")
    metrics.add_argument(
        "--features", choices=FEATURES, help="inception for FID and KID, demo for rendered scenes (auto)"
    )
    metrics.add_argument("--inception-weights", type=Path, metavar="PATH", help="FID-Inception weights (torch's cache)")
    metrics.add_argument("--resize", choices=RESIZES, help="how Inception's input is resized (clean)")
    metrics.add_argument("--lpips", action="store_true", help="measure LPIPS to stock (AlexNet)")
    metrics.add_argument("--lpips-weights", type=Path, metavar="PATH", help="torchvision's AlexNet (torch's cache)")
    metrics.add_argument(
        "--to-stock", action="store_true", help="distance of an arm's pictures from stock's: FID to stock"
    )
    metrics.add_argument("--clip-model", help="CLIP model for the CLIP score: a folder or hub id")
    metrics.add_argument("--resamples", type=int, metavar="N", help="draws of the intervals (1000; Inception: 200)")
    metrics.add_argument(
        "--timing-prompts", type=int, metavar="N", help="batches of prompts timed, twice by each arm (8)"
    )
    metrics.add_argument("--retime", action="store_true", help="time anew although times are there")
    several = parser.add_argument_group("several machines")
    several.add_argument("--merge", type=Path, nargs="+", metavar="FOLDER", help="run folders to take pictures from")
    several.add_argument("--wait-hours", type=float, metavar="H", help="how long processes wait for the slowest (24)")


def run(options: argparse.Namespace) -> int:
    """Evaluate, print the table and what it says in words.

    Raises:
        ValueError: If an option is bad.
        UnfinishedError: If the disk is full or a process died; the same command goes on.
    """
    given = {name: value for name, value in vars(options).items() if name in Options.names()}
    for name in ("arms", "fewer_steps", "merge"):
        if name in given:
            given[name] = tuple(given[name])
    chosen = Options(**given)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("agentsd.evaluation").setLevel(logging.INFO)
    hide_loading_bars()

    from agentsd.evaluation.run import evaluate
    from agentsd.evaluation.verdicts import sentences

    outcome = evaluate(chosen)
    if outcome.results is not None:
        say((outcome.folder / "table.md").read_text(encoding="utf-8"))
        for sentence in sentences(outcome.results):
            say(sentence)
        say(f"{outcome.folder / 'report.html'}: the page")
    return 0
