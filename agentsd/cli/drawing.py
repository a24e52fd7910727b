"""Pictures and comparisons on the command line: checked before the work, written one by one, put into words."""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import agentsd
from agentsd.cli.picture_options import base_settings, comparison_arms
from agentsd.cli.printer import hide_loading_bars, note, say
from agentsd.cli.schedule_file import chosen_schedule, differences
from agentsd.pictures.files import Kind, check_writable, plan_files, prompts_from_file, read_record, write_picture
from agentsd.pictures.settings import DEMO_GUIDANCE, Settings, plan_pictures
from agentsd.schedule import Schedule


@dataclass(frozen=True)
class Job:
    """The pictures to make, all options checked.

    Attributes:
        pipe: The pipeline, not patched.
        groups: Settings, batch by batch.
        files: One file for each picture.
        environment: What times depend on.
        kind: Pictures or comparisons.
        quiet: Whether stdout is for JSON alone.
        arms: Schedules that a comparison shows beside stock, by label.
    """

    pipe: Any
    groups: Sequence[Sequence[Settings]]
    files: Sequence[Path]
    environment: dict[str, Any]
    kind: Kind
    quiet: bool
    arms: Mapping[str, Schedule]


def prepare(options: argparse.Namespace) -> Job:
    """Return what the options ask for, after everything that could fail before drawing.

    Args:
        options: Options of `agentsd generate` or `agentsd compare`.

    Raises:
        ValueError: If an option is bad; nothing is written then.
    """
    from agentsd.pictures.loading import choose_device, load_pipeline  # torch

    device = choose_device(options.device)
    record = None if options.from_png is None else read_record(options.from_png)
    schedule, calibration = chosen_schedule(options)
    base = base_settings(options, None if record is None else record["settings"], schedule, device.type)
    for line in () if record is None else record.get("notes", ()):
        note(f"{options.from_png}: {line}")
    kind: Kind = "picture"
    if options.compare or (record is not None and record.get("kind") == "comparison" and not options.stock):
        kind = "comparison"
    if kind == "comparison" and options.batch_size != 1:
        raise ValueError(f"--batch-size {options.batch_size}: a comparison times one picture at a time; leave it out.")
    prompts = list(options.prompt or [])
    if options.prompts_file is not None:
        prompts += prompts_from_file(options.prompts_file)
    if not prompts and record is not None:
        prompts = [base.prompt]
    pictures = plan_pictures(base, prompts, options.num_images)

    others = [] if record is None else [Settings.from_dict(one["settings"]) for one in record.get("others", ())]
    arms = comparison_arms(options, base, others)

    from agentsd.pictures.generate import batches, cut_prompts

    groups = list(batches(pictures, options.batch_size))
    files = plan_files(options.output, pictures, kind, force=options.force)
    if base.model in DEMO_GUIDANCE:
        warn_of_words(prompts)
    hide_loading_bars()
    pipe = load_pipeline(base, device)
    different = [] if calibration is None else differences(calibration, pipe, base)
    if different:
        note(f"warning: {options.schedule} was calibrated for another run: {'; '.join(different)}.")
    for schedule in arms.values():
        agentsd.apply(pipe, schedule, seed=base.agents_seed).remove()  # refuses now what cannot be patched
    for place, (tokens, most) in cut_prompts(pipe, prompts).items():
        note(f"warning: prompt {place + 1} has {tokens} tokens; the model reads the first {most}.")
    check_writable(files[0])

    from agentsd.system.timing import environment

    return Job(pipe, groups, files, {"agentsd": agentsd.__version__, **environment(device)}, kind, options.json, arms)


def warn_of_words(prompts: Sequence[str]) -> None:
    """Say which words the demo model does not know: it would draw something else without a word."""
    from agentsd.demo.captions import KNOWN, unknown_words

    found = dict.fromkeys(word for prompt in prompts for word in unknown_words(prompt))
    if found:
        words = list(found)
        more = f" and {len(words) - 8} more" if len(words) > 8 else ""
        note(f"warning: the demo model does not know {', '.join(map(repr, words[:8]))}{more}. It knows {KNOWN}.")


def _warn_of_full_steps(label: str, why: str | None) -> None:
    if why is not None:
        note(f"warning: {label} skipped no step: {why}.")


def draw(job: Job) -> list[dict[str, Any]]:
    """Draw batch by batch, and write every picture as soon as it is there; return one row for each picture."""
    from agentsd.pictures.compare import why_all_full
    from agentsd.pictures.generate import by_picture, generate, resolve

    first = job.groups[0][0]
    rows: list[dict[str, Any]] = []
    schedule = first.schedule
    if schedule is not None and len(job.groups[0]) > 1:
        schedule = by_picture(job.pipe, schedule)
        if schedule is None:
            schedule = first.schedule
            note("warning: pictures of a batch share their full steps with this model; drawn alone, they differ.")
    patch = None if schedule is None else agentsd.apply(job.pipe, schedule, seed=first.agents_seed)
    total = sum(map(len, job.groups))
    for group in job.groups:
        job.pipe.set_progress_bar_config(desc=f"picture {len(rows) + 1} of {total}", leave=False)
        began = time.perf_counter()
        made = generate(job.pipe, group)  # PIL pictures: whatever the device had to do is done
        seconds = round((time.perf_counter() - began) / len(group), 4)
        report = None if patch is None else patch.report()
        last = None if report is None else report.last_run
        if report is not None and not rows:
            _warn_of_full_steps(first.label, why_all_full(report))
        for settings, picture in zip(group, made, strict=True):
            path, settings = job.files[len(rows)], resolve(job.pipe, settings, picture)
            row = {"settings": settings.to_dict(), "seconds": seconds, "batch_size": len(group)}
            _write(path, picture, {"kind": "picture", **row, "environment": job.environment})
            rows.append({"path": str(path), **row})
            if not job.quiet:
                steps = "" if last is None else f", {last.calls:.3g} of {last.steps} steps full"
                say(f"{path}: {settings.label}, {seconds:.2f} s{steps}")
    return rows


def draw_comparisons(job: Job) -> list[dict[str, Any]]:
    """Draw every picture stock and by every arm, twice each; return one row for each comparison."""
    from tqdm import tqdm

    from agentsd.pictures.compare import compare_arms, strip, warm_up
    from agentsd.pictures.generate import resolve

    rows: list[dict[str, Any]] = []
    job.pipe.set_progress_bar_config(disable=True)  # no bar while the clock runs
    runs = 2 * (1 + len(job.arms))
    with tqdm(total=runs * len(job.groups) + 4 * len(job.arms), desc="warm-up, short runs", leave=False) as bar:
        for label, schedule in job.arms.items():
            warm_up(job.pipe, replace(job.groups[0][0], schedule=schedule, label=label))
            bar.update(4)
        for number, ((settings,), path) in enumerate(zip(job.groups, job.files, strict=True), start=1):
            bar.set_description(f"picture {number} of {len(job.groups)}, twice stock and twice by each schedule")
            results = compare_arms(job.pipe, settings, job.arms, on_run=bar.update)
            made = []
            for label, result in results.items():
                arm = resolve(job.pipe, replace(settings, schedule=job.arms[label], label=label), result.stock)
                made.append({"settings": arm.to_dict(), **result.to_dict()})
            record = {"kind": "comparison", **made[0], "others": made[1:], "environment": job.environment}
            _write(path, strip(results, about=_about(arm)), record)
            rows += [{"path": str(path), **row} for row in made]
            with bar.external_write_mode():
                for label, result in results.items() if number == 1 else ():
                    _warn_of_full_steps(label, result.all_full)
                for row in () if job.quiet else made:
                    say(f"{path}: {describe(row)}")
    return rows


def _about(settings: Settings) -> str:
    return (
        f"{Path(settings.model).name}, {settings.width}x{settings.height}, {settings.steps} steps, "
        f"seed {settings.seed}: {settings.prompt}"
    )


def _write(path: Path, picture: Any, record: dict[str, Any]) -> None:
    try:
        write_picture(path, picture, record)
    except OSError as error:  # the disk is full, the folder gone
        raise ValueError(f"a picture cannot be written: {error}.") from error


def describe(row: dict[str, Any]) -> str:
    """Return one comparison in words.

    Example:
        >>> row = {"stock_seconds": [4.0, 4.0], "agentsd_seconds": [2.0, 2.0], "speed_ratio": 2.0, "psnr_db": None}
        >>> describe({**row, "ssim": 1.0, "settings": {"label": "fast"}})
        'fast is 2.0x faster (4.00 s stock, 2.00 s agentsd), equal pictures'
    """
    from agentsd.pictures.compare import likeness_in_words, speed_in_words

    stock, agents = (statistics.fmean(row[f"{arm}_seconds"]) for arm in ("stock", "agentsd"))
    return (
        f"{row['settings']['label']} is {speed_in_words(row['speed_ratio'])} ({stock:.2f} s stock, {agents:.2f} s "
        f"agentsd), {likeness_in_words(row['psnr_db'], row['ssim'])}"
    )


def summary(rows: Sequence[dict[str, Any]], environment: dict[str, Any]) -> str:
    """Return all comparisons in words, and where they were made."""
    from agentsd.pictures.compare import likeness_in_words, speed_in_words

    settings, lines = rows[0]["settings"], []
    by_label: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_label.setdefault(row["settings"]["label"], []).append(row)
    for label, own in by_label.items():
        if len(own) > 1:
            ratio = statistics.median(row["speed_ratio"] for row in own)
            decibels = sorted(float("inf") if row["psnr_db"] is None else row["psnr_db"] for row in own)
            median = statistics.median(decibels)
            worst = "" if decibels[0] == float("inf") else f", the least alike {decibels[0]:.1f} dB"
            equal = decibels.count(float("inf"))
            if equal < len(own) and median == float("inf"):
                alike = f"{equal} of them equal"
            else:
                ssim = statistics.median(row["ssim"] for row in own)
                alike = likeness_in_words(None if equal == len(own) else median, ssim)
            lines.append(f"{label}, median of {len(own)} pictures: {speed_in_words(ratio)}, {alike}{worst}")
    names = ["stock", *(by_label if len(by_label) > 1 else ["agentsd"])]
    order = ", ".join([*names, *reversed(names)])
    lines.append(
        f"{settings['width']}x{settings['height']}, {settings['steps']} steps, {settings['dtype']}, "
        f"{environment['device']}, {environment['threads']} CPU threads, torch {environment['torch']}, diffusers "
        f"{environment['diffusers']}; whole pipeline calls in the order {order} after a warm-up"
    )
    return "\n".join(lines)
