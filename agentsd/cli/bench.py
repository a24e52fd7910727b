"""Time a true architecture (random weights), every arm against stock: UNet steps, or with --pipeline whole calls.

A row is appended to a JSONL file as soon as its arms are measured, and what is there already is left out: run the
same command again after an interruption. --suite gpu measures in nine minutes what a GPU gains, into a folder.
"""

import argparse
import datetime
import time
from functools import partial
from pathlib import Path
from typing import Any

from agentsd.cli.arguments import one_of, side, unknown, whole
from agentsd.cli.printer import note, say

HELP = "time UNet steps or whole calls against stock and rivals"
_ARCHITECTURES = ("sd15", "sd21", "sdxl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `agentsd bench`."""
    parser.add_argument("--architecture", type=one_of(_ARCHITECTURES), default="sd15", help="sd15, sd21 or sdxl (sd15)")
    parser.add_argument("--pipeline", action="store_true", help="time pipe(...): text encoder, all steps, VAE")
    parser.add_argument("--steps", type=whole(1, 1000), default=20, help="steps of a pipeline call (20)")
    parser.add_argument("--size", type=side, nargs="+", default=[512], help="picture side in pixels (512)")
    parser.add_argument(
        "--batch", type=whole(1), default=2, help="samples in a UNet call; 2 is one picture with guidance (2)"
    )
    parser.add_argument(
        "--dtype", type=one_of(("auto", "float32", "bfloat16", "float16")), default="auto",
        help="auto, float32, bfloat16 or float16 (auto: what is fast here)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="arms by name (all); --list shows them")
    twins = partial(parser.add_argument, action="append_const", dest="twins", default=[])
    twins("--compile", const=", compiled", help="also stock and ours under torch.compile (minutes each)")
    twins("--channels-last", const=", channels last", help="also some arms with channels-last weights")
    parser.add_argument("--rounds", type=whole(1), default=4, help="pairs of times for each arm (4)")
    parser.add_argument("--group", type=whole(1), default=3, help="arms that share the stock runs of a round (3)")
    parser.add_argument("--again", action="store_true", help="measure also what the output holds already")
    parser.add_argument("--limit-seconds", type=float, default=float("inf"), help="start no further group after this")
    parser.add_argument("--list", action="store_true", help="list the arms, with a line about each, and leave")
    parser.add_argument(
        "--output", type=Path, help="rows are appended (outputs/speed.jsonl; with --suite the folder outputs/gpu)"
    )
    suite = parser.add_argument_group("suite")
    suite.add_argument("--suite", choices=("gpu",), help="measure what a GPU gains, the most important first")
    suite.add_argument("--minutes", type=float, default=9.0, help="time budget; run again to go on (9)")
    suite.add_argument("--dry-run", action="store_true", help="rehearse the suite on tiny models, also on a CPU")


def run(options: argparse.Namespace) -> int:
    """Measure; return 1 where an arm failed or time ran out.

    Raises:
        ValueError: If an option is bad.
    """
    _check_parts(options)
    if options.suite is not None:
        return _suite(options)
    options.output = options.output or Path("outputs/speed.jsonl")

    from agentsd.bench.speed import default_arms, known_arms

    known = known_arms(calls=options.pipeline, twins=tuple(options.twins))
    names = dict.fromkeys(["stock", *(options.arms or default_arms(known, calls=options.pipeline))])
    wrong = [name for name in names if name not in known]
    if wrong:
        raise ValueError(
            f"--arms {unknown(wrong[0], known)} `agentsd bench --list` shows all (twins: --compile, --channels-last)."
        )
    if options.list:
        from agentsd.bench.about import about_arm

        width = max(map(len, names))
        say("\n".join(f"{name:{width}}  {about_arm(name)}" for name in names))
        return 0
    if options.pipeline and options.batch % 2:
        raise ValueError(f"--batch {options.batch}: a pipeline call with guidance has an even number of samples.")
    return _measure(options, {name: known[name] for name in names})


def _check_parts(options: argparse.Namespace) -> None:
    """Refuse an option that would be passed over: one of the suite without it, or another one with it."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for name, default in vars(parser.parse_args([])).items():
        if name in ("suite", "device", "output") or getattr(options, name) == default:
            continue
        option = {"twins": "--compile or --channels-last"}.get(name, f"--{name.replace('_', '-')}")
        if options.suite is None and name in ("minutes", "dry_run"):
            raise ValueError(f"{option} is for the suite; add --suite gpu, or leave {option} out.")
        if options.suite is not None and name not in ("minutes", "dry_run"):
            raise ValueError(f"{option} has no effect on --suite {options.suite}; leave one of them out.")


def _suite(options: argparse.Namespace) -> int:
    from agentsd.bench.gpu_cells import gpu_cells, rehearsal_cells
    from agentsd.bench.gpu_suite import CALL_STEPS, REHEARSAL_STEPS, SPEED, Suite, described
    from agentsd.bench.rows import read_rows
    from agentsd.pictures.loading import choose_device

    started = time.monotonic()
    device = choose_device(options.device)
    if device.type != "cuda" and not options.dry_run:
        raise ValueError(f"--suite gpu needs a CUDA device, and this is {device}; rehearse it with --dry-run.")
    if not options.minutes > 0:
        raise ValueError(f"--minutes {options.minutes} must be above 0.")
    folder = options.output or Path("outputs/gpu")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {str(folder)!r} is a file; name a folder.")
    suite = Suite(
        folder,
        str(device),
        deadline=started + 60 * options.minutes,
        steps=REHEARSAL_STEPS if options.dry_run else CALL_STEPS,
        backend="eager" if options.dry_run else "inductor",
        tell=note,
    )
    left = suite.run(rehearsal_cells() if options.dry_run else gpu_cells())
    say("\n".join(described(read_rows(folder / SPEED))))
    say(f"rows are in {folder}; {f'{len(left)} cells are left, run the same command again' if left else 'complete'}")
    return 1 if left else 0


def _measure(options: argparse.Namespace, arms: dict[str, Any]) -> int:
    import torch

    from agentsd.bench.architectures import random_pipeline, random_unet
    from agentsd.bench.gpu_suite import described
    from agentsd.bench.probes import probe_arm
    from agentsd.bench.rows import read_rows
    from agentsd.bench.speed import Calls, Setup, Steps, measure
    from agentsd.pictures.files import check_writable
    from agentsd.pictures.loading import choose_device
    from agentsd.system.precision import dtype_name

    check_writable(options.output)
    started = time.monotonic()
    device = str(choose_device(options.device))
    dtype = dtype_name(options.dtype, device)
    setup = Setup(
        architecture=options.architecture,
        dtype=dtype,
        device=device,
        batch=options.batch,
        steps=options.steps if options.pipeline else None,
    )
    build = random_pipeline if options.pipeline else random_unet
    made: Any = build(options.architecture, dtype=getattr(torch, dtype), device=device)
    subject = (Calls if options.pipeline else Steps)(made, arms, setup)

    def also(name: str) -> dict[str, Any]:
        return probe_arm(arms[name], made.unet, partial(subject.run, name))

    began = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")
    complete = True
    for size in options.size:
        complete &= measure(
            subject,
            arms,
            size,
            options.output,
            rounds=options.rounds,
            group=options.group,
            again=options.again,
            deadline=started + options.limit_seconds,
            also=also if options.pipeline else None,
            tell=note,
        )
    for line in described(row for row in read_rows(options.output) if row["date"] >= began):
        say(line)
    say(f"rows are in {options.output}")
    return 0 if complete else 1
