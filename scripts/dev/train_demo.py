#!/usr/bin/env python
"""Train the bundled demo model from nothing, or resume it: autoencoder, text encoder, UNet stages, classifier.

The whole recipe takes about two hours on two CPU cores. Everything that is finished in the work folder is reused.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import pathlib
import sys

import torch

from agentsd.cli.main import guard
from agentsd.demo.training.recipe import STAGES
from agentsd.demo.training.stages import POOL_SCENES, train_demo


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder of checkpoints and cached latents")
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("outputs/demo-model"),
        help="folder of the exported pipeline",
    )
    parser.add_argument("--scenes", type=int, default=POOL_SCENES, help="size of the training pool")
    parser.add_argument(
        "--minutes", type=float, nargs=len(STAGES), metavar="M", help="compute minutes of each UNet stage"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run that the work folder holds")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    arguments = parser.parse_args()
    if (arguments.work / "coarse.pt").exists() and not arguments.resume:
        parser.error(f"--work {arguments.work} holds a run already; add --resume or name another folder.")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    stages = STAGES
    if arguments.minutes is not None:
        stages = tuple(
            dataclasses.replace(stage, steps=0, minutes=minutes)
            for stage, minutes in zip(STAGES, arguments.minutes, strict=True)
        )
    train_demo(arguments.work, arguments.output, stages=stages, scenes=arguments.scenes)


if __name__ == "__main__":
    sys.exit(guard("train_demo.py", main))
