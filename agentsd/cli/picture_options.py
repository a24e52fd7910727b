"""Options of the commands that draw, and the settings that they mean."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentsd.bench.about import about_preset
from agentsd.cli.arguments import one_of
from agentsd.pictures.settings import (
    DEMO,
    DEMO_SD15,
    DTYPES,
    SCHEDULERS,
    Settings,
    changed_schedule,
    default_dtype,
    labelled_schedule,
    with_model_defaults,
)
from agentsd.presets import PRESETS
from agentsd.schedule import Schedule

_AGENTS = ("preset", "tolerance", "ratio", "every", "depth")
_FIELDS = (
    "negative_prompt", "seed", "steps", "guidance_scale", "height", "width", "model", "scheduler", "dtype",
    "agents_seed",
)  # fmt: skip


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    """Add what decides a picture, the model, the schedule, and where pictures go."""
    width = max(map(len, PRESETS))
    lines = [f"  {name:{width}}  {about_preset(name)}" for name in PRESETS]
    parser.epilog = "\n".join(["presets:", *lines])
    picture = parser.add_argument_group("picture")
    picture.add_argument("--prompt", action="append", help="what to draw; may be given several times")
    picture.add_argument("--prompts-file", type=Path, metavar="FILE", help="text file with one prompt per line")
    picture.add_argument("--negative-prompt", metavar="TEXT", help="what to keep out")
    picture.add_argument("--num-images", type=int, default=1, metavar="N", help="pictures per prompt (1)")
    picture.add_argument("--seed", type=int, help="seed of the first picture, the next has seed + 1 (0)")
    picture.add_argument("--steps", type=int, help="denoising steps (demo: 50; else the pipeline's default)")
    picture.add_argument("--guidance-scale", type=float, metavar="G", help="guidance (demo: 4; else the pipeline's)")
    picture.add_argument("--height", type=int, metavar="PIXELS", help="height (the model's own)")
    picture.add_argument("--width", type=int, metavar="PIXELS", help="width (the model's own)")
    picture.add_argument(
        "--from-png", type=Path, metavar="FILE", help="take the settings of a PNG that agentsd or A1111 wrote"
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        help=f"{DEMO} (bundled, the default; it knows six colours and five shapes), {DEMO_SD15} (its weights, SD 1.5's "
        "process), a folder, or a hub id",
    )
    model.add_argument(
        "--scheduler", type=one_of(SCHEDULERS), help=f"sampler: {', '.join(SCHEDULERS)} (the model's own)"
    )
    model.add_argument(
        "--dtype", type=one_of(DTYPES), help=f"arithmetic: {', '.join(DTYPES)} (float16 on a GPU, float32 on a CPU)"
    )
    model.add_argument("--device", default="auto", help="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps")
    model.add_argument("--batch-size", type=int, default=1, metavar="N", help="pictures at a time (1)")
    agents = parser.add_argument_group("schedule")
    agents.add_argument(
        "--preset", type=one_of(PRESETS), action=_Presets,
        help=f"{', '.join(PRESETS)} (balanced); agentsd compare takes several",
    )  # fmt: skip
    agents.add_argument(
        "--tolerance", type=float, metavar="T",
        help="relative error that the final latent may have; 0.015 is quality, 0.03 balanced, 0.06 fast",
    )  # fmt: skip
    agents.add_argument(
        "--schedule", type=Path, metavar="FILE",
        help="JSON that agentsd calibrate wrote, or that Schedule.to_json() returned",
    )  # fmt: skip
    agents.add_argument("--ratio", type=float, help="share of tokens merged, with --preset paper")
    agents.add_argument("--every", type=int, metavar="N", help="a full step every N steps")
    agents.add_argument("--depth", type=int, metavar="D", help="last UNet layers that run at skipped steps")
    agents.add_argument("--agents-seed", type=int, metavar="SEED", help="seed of random cells and keys (0)")
    output = parser.add_argument_group("output")
    output.add_argument("--output", type=Path, default=Path("outputs"), metavar="PATH", help="PNG or folder (outputs)")
    output.add_argument("--force", action="store_true", help="replace files that exist")
    output.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else, to stdout")


class _Presets(argparse.Action):
    """Keeps the first preset as `preset`, and all as `presets`."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        given = [*getattr(namespace, "presets", []), values]
        namespace.presets, namespace.preset = given, given[0]


def comparison_arms(
    options: argparse.Namespace, base: Settings, others: Sequence[Settings] = ()
) -> dict[str, Schedule]:
    """Return the schedules beside stock, by label: that of the settings, and further ones.

    Args:
        options: The options.
        base: What `base_settings` returned.
        others: Further arms of a recorded comparison; presets or a schedule that are given replace them.

    Raises:
        ValueError: If several presets are given where one picture is drawn.
    """
    presets = getattr(options, "presets", [])
    if len(presets) > 1 and not options.compare:
        raise ValueError(f"--preset is given {len(presets)} times; give one, or compare them with agentsd compare.")
    if base.schedule is None:
        return {}
    arms = {base.label: base.schedule}
    changes = {name: getattr(options, name) for name in _AGENTS if name != "preset"}
    for name in presets[1:]:
        schedule, label = labelled_schedule(name, **changes)
        arms[label] = schedule
    for other in others if not presets and options.schedule is None else ():
        if other.schedule is not None:
            schedule, label = changed_schedule(other.schedule, other.label, **changes)
            arms[label] = schedule
    return arms


def base_settings(
    options: argparse.Namespace, recorded: Mapping[str, Any] | None, read: Schedule | None, device_type: str
) -> Settings:
    """Join the options given, the settings of a recorded picture, a schedule from a file and the defaults.

    Args:
        options: The options.
        recorded: Fields of `Settings` out of a picture; `None` without one.
        read: What `--schedule` names; `None` without it.
        device_type: Kind of the device, for the default dtype.

    Returns:
        The settings, without a prompt.

    Raises:
        ValueError: If options contradict each other or are out of range.
    """
    agents = {name: getattr(options, name) for name in _AGENTS}
    given = [f"--{name.replace('_', '-')}" for name, value in agents.items() if value is not None]
    given += [] if read is None else ["--schedule"]
    if options.stock and (options.compare or given):
        raise ValueError(f"--stock contradicts {'--compare' if options.compare else given[0]}; leave one of them out.")
    changes = {name: getattr(options, name) for name in _FIELDS if getattr(options, name) is not None}
    if recorded is not None and "dtype" not in recorded:  # of another program
        recorded = {**recorded, "dtype": default_dtype(device_type)}
    before = None if recorded is None else Settings.from_dict(dict(recorded))
    if options.stock:
        changes |= {"schedule": None, "label": "stock"}
    elif read is not None:
        del agents["preset"]
        changes["schedule"], changes["label"] = changed_schedule(read, options.schedule.stem, **agents)
    elif before is None or options.preset is not None or ((given or options.compare) and before.schedule is None):
        changes["schedule"], changes["label"] = labelled_schedule(
            **{name: value for name, value in agents.items() if value is not None}
        )
    elif given and before.schedule is not None:
        del agents["preset"]
        changes["schedule"], changes["label"] = changed_schedule(before.schedule, before.label, **agents)
    if before is not None:
        return with_model_defaults(dataclasses.replace(before, **changes))
    changes.setdefault("dtype", default_dtype(device_type))
    return with_model_defaults(Settings(prompt="", **changes))
