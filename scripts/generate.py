#!/usr/bin/env python
"""Draw pictures from text with agent attention, or stock beside it with times and likeness.

Without --model the bundled demo model draws: no network, no GPU needed. Settings are kept inside every PNG;
--from-png repeats one, with whatever other options you add.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

import agentsd
from agentsd.patch import apply
from agentsd.pictures.compare import compare, side_by_side, warm_up
from agentsd.pictures.files import Kind, check_writable, plan_files, prompts_from_file, read_record, write_picture
from agentsd.pictures.generate import batches, generate, resolve
from agentsd.pictures.loading import choose_device, load_pipeline
from agentsd.pictures.settings import (
    DEMO,
    DEMO_SD15,
    DTYPES,
    SCHEDULERS,
    Settings,
    changed_schedule,
    labelled_schedule,
    plan_pictures,
    with_model_defaults,
)
from agentsd.presets import PRESETS
from agentsd.system.timing import environment as describe_environment


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="generate.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    picture = made.add_argument_group("picture")
    picture.add_argument("--prompt", action="append", help="what to draw; may be given several times")
    picture.add_argument("--prompts-file", type=Path, metavar="FILE", help="text file with one prompt per line")
    picture.add_argument("--negative-prompt", metavar="TEXT", help="what to keep out")
    picture.add_argument("--num-images", type=int, default=1, metavar="N", help="pictures per prompt (1)")
    picture.add_argument("--seed", type=int, help="seed of the first picture, the next has seed + 1 (0)")
    picture.add_argument("--steps", type=int, help="denoising steps (demo: 50; else the pipeline's default)")
    picture.add_argument("--guidance-scale", type=float, metavar="G", help="guidance (demo: 4; else the pipeline's)")
    picture.add_argument("--height", type=int, metavar="PIXELS", help="height (the model's own)")
    picture.add_argument("--width", type=int, metavar="PIXELS", help="width (the model's own)")
    picture.add_argument("--from-png", type=Path, metavar="FILE", help="repeat a PNG of this script, with what you add")
    model = made.add_argument_group("model")
    model.add_argument(
        "--model",
        help=f"{DEMO} (bundled, the default), {DEMO_SD15} (its weights, SD 1.5's process), a folder, or a hub id",
    )
    model.add_argument("--scheduler", choices=sorted(SCHEDULERS), help="sampler (the model's own)")
    model.add_argument("--dtype", choices=sorted(DTYPES), help="arithmetic (float16 on a GPU, float32 on a CPU)")
    model.add_argument("--device", default="auto", help="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps")
    model.add_argument("--batch-size", type=int, default=1, metavar="N", help="pictures at a time (1)")
    agents = made.add_argument_group("agent attention")
    agents.add_argument("--preset", choices=sorted(PRESETS), help="schedule (balanced)")
    agents.add_argument("--ratio", type=float, help="share of tokens merged, with --preset paper")
    agents.add_argument("--reuse", type=int, metavar="N", help="a full step every N steps")
    agents.add_argument("--depth", type=int, metavar="D", help="last UNet layers that run at skipped steps")
    agents.add_argument("--agents-seed", type=int, metavar="SEED", help="seed of the merge destinations (0)")
    agents.add_argument("--stock", action="store_true", help="leave the pipeline as it is")
    agents.add_argument("--compare", action="store_true", help="stock beside agentsd in one PNG, with times and PSNR")
    output = made.add_argument_group("output")
    output.add_argument("--output", type=Path, default=Path("outputs"), metavar="PATH", help="PNG or folder (outputs)")
    output.add_argument("--force", action="store_true", help="replace files that exist")
    output.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else, to stdout")
    return made


def base_settings(options: argparse.Namespace, recorded: dict[str, Any] | None, device_type: str) -> Settings:
    """Join the options given, the settings of a recorded picture and the defaults; raises ValueError if they clash."""
    agents = {name: getattr(options, name) for name in ("preset", "ratio", "reuse", "depth")}
    given = [f"--{name.replace('_', '-')}" for name, value in agents.items() if value is not None]
    if options.stock and (options.compare or given):
        raise ValueError(f"--stock contradicts {'--compare' if options.compare else given[0]}; leave one of them out.")
    names = ("negative_prompt", "seed", "steps", "guidance_scale", "height", "width")
    names += ("model", "scheduler", "dtype", "agents_seed")
    changes = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    before = None if recorded is None else Settings.from_dict(recorded)
    if options.stock:
        changes |= {"schedule": None, "label": "stock"}
    elif before is None or options.preset is not None or ((given or options.compare) and before.schedule is None):
        changes["schedule"], changes["label"] = labelled_schedule(
            **{name: value for name, value in agents.items() if value is not None}
        )
    elif given:
        del agents["preset"]
        changes["schedule"], changes["label"] = changed_schedule(before.schedule, before.label, **agents)
    if before is not None:
        return dataclasses.replace(before, **changes)
    changes.setdefault("dtype", "float32" if device_type == "cpu" else "float16")
    return with_model_defaults(Settings(prompt="", **changes))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for bad input."""
    options = parser().parse_args(argv)
    try:
        device = choose_device(options.device)
        record = None if options.from_png is None else read_record(options.from_png)
        base = base_settings(options, None if record is None else record["settings"], device.type)
        kind: Kind = "picture"
        if options.compare or (record is not None and record.get("kind") == "comparison" and not options.stock):
            kind = "comparison"
        prompts = list(options.prompt or [])
        if options.prompts_file is not None:
            prompts += prompts_from_file(options.prompts_file)
        if not prompts and record is not None:
            prompts = [base.prompt]
        pictures = plan_pictures(base, prompts, options.num_images)
        groups = list(batches(pictures, 1 if kind == "comparison" else options.batch_size))
        files = plan_files(options.output, pictures, kind, force=options.force)
        pipe = load_pipeline(base, device)
        if base.schedule is not None:
            apply(pipe, base.schedule, seed=base.agents_seed).remove()  # tells now what cannot be patched
        check_writable(files[0])
    except (ValueError, TypeError, OSError) as error:
        return fail(error)
    environment = {"agentsd": agentsd.__version__, **describe_environment(device)}
    try:
        rows = (draw_comparisons if kind == "comparison" else draw)(pipe, groups, files, environment, options.json)
    except OSError as error:  # the disk is full, the folder gone
        return fail(f"a picture cannot be written: {error}.")
    if options.json:
        print(json.dumps({"kind": kind, "environment": environment, "pictures": rows}, indent=1))
    elif kind == "comparison":
        print(summary(rows, environment))
    return 0


def fail(error: object) -> int:
    """Say an error in one line; returns the exit code."""
    print(f"generate.py: error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def draw(
    pipe: Any, groups: list[list[Settings]], files: list[Path], environment: dict[str, Any], quiet: bool
) -> list[dict[str, Any]]:
    """Draw batch by batch, writing every picture as soon as it is there; returns one row per picture."""
    first, rows = groups[0][0], []
    if first.schedule is not None:
        apply(pipe, first.schedule, seed=first.agents_seed)
    total = sum(map(len, groups))
    for group in groups:
        pipe.set_progress_bar_config(desc=f"picture {len(rows) + 1} of {total}", leave=False)
        began = time.perf_counter()
        made = generate(pipe, group)  # PIL pictures: whatever the device had to do is done
        seconds = round((time.perf_counter() - began) / len(group), 4)
        for settings, picture in zip(group, made, strict=True):
            path, settings = files[len(rows)], resolve(pipe, settings, picture)
            row = {"settings": settings.to_dict(), "seconds": seconds, "batch_size": len(group)}
            write_picture(path, picture, {"kind": "picture", **row, "environment": environment})
            rows.append({"path": str(path), **row})
            if not quiet:
                print(f"{path}: {settings.label}, {seconds:.2f} s")
    return rows


def draw_comparisons(
    pipe: Any, groups: list[list[Settings]], files: list[Path], environment: dict[str, Any], quiet: bool
) -> list[dict[str, Any]]:
    """Draw every picture stock and patched, twice each; returns one row per comparison."""
    rows: list[dict[str, Any]] = []
    pipe.set_progress_bar_config(disable=True)  # no bar while the clock runs
    with tqdm(total=4 * len(groups) + 4, desc="warm-up, 4 short runs", leave=False) as bar:
        warm_up(pipe, groups[0][0])
        bar.update(4)
        for (settings,), path in zip(groups, files, strict=True):
            bar.set_description(f"picture {len(rows) + 1} of {len(groups)}, twice stock and twice agentsd")
            result = compare(pipe, settings, on_run=bar.update)
            settings = resolve(pipe, settings, result.stock)
            row = {"settings": settings.to_dict(), **result.to_dict()}
            write_picture(
                path,
                side_by_side(result, settings.label),
                {"kind": "comparison", **row, "environment": environment},
            )
            rows.append({"path": str(path), **row})
            if not quiet:
                tqdm.write(f"{path}: {describe(rows[-1])}", file=sys.stdout)
    return rows


def describe(row: dict[str, Any]) -> str:
    """Say one comparison in one line."""
    stock, agents = (statistics.fmean(row[f"{arm}_seconds"]) for arm in ("stock", "agentsd"))
    likeness = "equal pictures" if row["psnr_db"] is None else f"PSNR {row['psnr_db']:.1f} dB, SSIM {row['ssim']:.3f}"
    return (
        f"stock {stock:.2f} s, agentsd ({row['settings']['label']}) {agents:.2f} s, "
        f"ratio {row['speed_ratio']:.2f}; {likeness} against stock"
    )


def summary(rows: list[dict[str, Any]], environment: dict[str, Any]) -> str:
    """Say all comparisons and where they were made."""
    settings = rows[0]["settings"]
    ratio = statistics.median(row["speed_ratio"] for row in rows)
    decibels = [row["psnr_db"] for row in rows if row["psnr_db"] is not None]
    likeness = f"median PSNR {statistics.median(decibels):.1f} dB, " if decibels else ""
    return (
        f"stock time / agentsd time {ratio:.2f} (median of {len(rows)}; above 1 is faster), "
        f"{likeness}median SSIM {statistics.median(row['ssim'] for row in rows):.3f}\n"
        f"at {settings['width']}x{settings['height']}, {settings['steps']} steps, {settings['dtype']}, "
        f"{environment['device']}, {environment['threads']} CPU threads, "
        f"torch {environment['torch']}, diffusers {environment['diffusers']}; "
        "whole pipeline calls in the order stock, agentsd, agentsd, stock after a warm-up"
    )


if __name__ == "__main__":
    sys.exit(main())
