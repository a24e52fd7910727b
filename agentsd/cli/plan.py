"""Time cheaper self-attention on this device, layer by layer, and keep stock where it does not win.

The plan is for one model, device, dtype, picture size and batch. It is written as JSON:
agentsd.apply(pipe, agentsd.Plan.from_json(text)) applies it.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from agentsd.cli.arguments import one_of, side, whole
from agentsd.cli.printer import hide_loading_bars, say
from agentsd.pictures.settings import DEMO, DTYPES, Settings, default_dtype
from agentsd.presets import PRESETS

if TYPE_CHECKING:
    from agentsd.planning.plans import Plan

HELP = "time cheaper attention on this device, and keep what wins"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `agentsd plan`."""
    parser.add_argument("--model", default=DEMO, help="demo (bundled, the default), a diffusers folder, or a hub id")
    parser.add_argument(
        "--dtype", type=one_of(DTYPES), help=f"{', '.join(DTYPES)} (float16 on a GPU, float32 on a CPU)"
    )
    parser.add_argument("--device", default="auto", help="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps")
    parser.add_argument("--height", type=side, metavar="PIXELS", help="picture height (the model's own)")
    parser.add_argument("--width", type=side, metavar="PIXELS", help="picture width (the model's own)")
    parser.add_argument("--batch", type=whole(1), default=2, help="samples in a UNet call; guidance doubles them (2)")
    parser.add_argument("--preset", type=one_of(PRESETS), default="balanced", help=f"{', '.join(PRESETS)} (balanced)")
    parser.add_argument(
        "--stride", type=whole(1), metavar="N",
        help="one sampled key and value for each cell of N tokens in both directions (4); not for presets that have "
        "an attention of their own",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/plan.json"), help="where the plan goes (outputs/plan.json)"
    )


def run(options: argparse.Namespace) -> int:
    """Measure a plan, print it in words and write it.

    Raises:
        ValueError: If an option is bad.
    """
    import agentsd
    from agentsd.pictures.files import check_writable
    from agentsd.pictures.loading import choose_device, load_pipeline
    from agentsd.system.writing import write_whole

    schedule = agentsd.preset(options.preset)
    if not schedule.attentions:  # the presets that skip steps leave attention stock
        schedule = schedule.with_attention(agentsd.SampledKeys(stride=options.stride or 4, min_keys=64))
    elif options.stride is not None:
        raise ValueError(
            f"--stride {options.stride} contradicts --preset {options.preset}, which has an attention of its own; "
            "leave one of them out."
        )
    check_writable(options.output)
    device = choose_device(options.device)
    dtype = options.dtype or default_dtype(device.type)
    hide_loading_bars()
    pipe = load_pipeline(Settings(prompt="", model=options.model, dtype=dtype), device)
    plan = agentsd.plan(pipe, schedule, height=options.height, width=options.width, batch=options.batch)
    write_whole(options.output, plan.to_json() + "\n")
    say(describe(plan, pipe.vae_scale_factor))
    say(f"{options.output}: the plan; agentsd.apply(pipe, agentsd.Plan.from_json(text)) applies it")
    return 0


def describe(plan: "Plan", factor: int = 8) -> str:
    """Return a plan in words, a line for each layer shape.

    Args:
        plan: The plan.
        factor: Pixels of a latent in each direction.
    """
    from agentsd.pictures.compare import speed_in_words

    height, width = plan.latent
    lines = [f"{plan.device}, {plan.dtype}, batch {plan.batch}, {factor * height}x{factor * width} pixels"]
    for timing in plan.timings:
        ratio = timing.stock_seconds / timing.agent_seconds
        verdict = "used" if timing.wins else "not used, stock stays"
        kind = type(timing.attention).__name__
        lines.append(
            f"  {timing.layers} layers at {timing.grid[0]}x{timing.grid[1]} tokens: {kind} is {speed_in_words(ratio)}, "
            f"{verdict}"
        )
    if not plan.timings:
        lines.append("  no layer is large enough to gain")
    saved = sum(t.layers * (t.stock_seconds - t.agent_seconds) for t in plan.timings if t.wins)
    ratio = plan.step_seconds / max(plan.step_seconds - saved, 1e-9)
    lines.append(
        f"a full UNet step takes {plan.step_seconds:.3g} s with stock attention, and is predicted to be "
        f"{speed_in_words(ratio)} with the plan"
    )
    if plan.skipping_problem is not None:
        lines.append(f"no step is skipped: {plan.skipping_problem}")
    return "\n".join(lines)
