"""Gauge skipping under many processes and solvers: UNet calls against likeness to stock and to the converged picture.

Every arm runs the same prompts, one picture a call. A row holds the UNet calls of each picture and its distance to two
references: stock of the same solver and steps, and the converged picture (DPM++ 2M, 100 steps, same noise). A row is
appended as soon as its arm is measured. Arms that the output holds already are left out. References and pictures of
other solvers are kept beside the output, so combinations of one process share them.
"""

import argparse
import datetime
import functools
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

import agentsd
from agentsd.bench.combinations import COMBINATIONS
from agentsd.bench.metrics import psnr
from agentsd.bench.rows import append_row, key_of, read_rows
from agentsd.bench.skippers import SKIPPERS, skipping_by
from agentsd.bench.solvers import SOLVERS, Solver
from agentsd.cli.main import guard
from agentsd.demo import held_out_prompts
from agentsd.demo.processes import demo_pipeline, scheduler_class
from agentsd.system.timing import environment
from agentsd.system.writing import whole_file
from agentsd.unet.controller import RULES

TOLERANCES = (0.015, 0.03, 0.06, 0.12)
FITTED = 3  # prompts that a calibrated schedule is fitted to; none of them is measured
EQUAL_CALLS = (0.03, 0.12)
# What solvers need to know of flow matching, with the shift of the process.
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
FLOW_SOLVERS = {
    "DPM++ 2M": Solver("DPMSolverMultistepScheduler", FLOW),
    "UniPC": Solver("UniPCMultistepScheduler", FLOW),
    "DEIS": Solver("DEISMultistepScheduler", FLOW),
}  # the noise levels of Karras and AYS are those of other processes
Drawn = tuple[torch.Tensor, torch.Tensor, list[int]]  # pictures [B, 3, h, w], latents [B, 4, h, w], UNet calls
KEY = ("combination", "arm", "settings", "rules", "pictures", "size", "dtype", "torch", "device")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument(
        "--combination", nargs="+", default=list(COMBINATIONS), choices=list(COMBINATIONS), metavar="NAME"
    )
    made.add_argument("--pictures", type=int, default=16)
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--arms", choices=["ours", "rivals", "solvers"], nargs="+", default=["ours", "rivals", "solvers"])
    made.add_argument("--tolerance", type=float, nargs="+", default=list(TOLERANCES), help="what ours is run with")
    made.add_argument(
        "--calls", type=int, nargs="*", default=[], help="full steps of calibrated schedules, an arm for each number"
    )
    made.add_argument(
        "--equal-calls-at", type=float, nargs="*", default=list(EQUAL_CALLS), metavar="TOLERANCE",
        help="those of the tolerances whose UNet calls the solvers get as steps",
    )  # fmt: skip
    made.add_argument("--size", type=int, help="side of the pictures in pixels (256)")
    made.add_argument("--limit-seconds", type=float, default=float("inf"), help="start no further arm after this")
    made.add_argument("--output", type=Path, default=Path("outputs/gauge.jsonl"), help="rows are appended")
    return made


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    started = time.monotonic()
    return 0 if all(measure(name, args, started) for name in args.combination) else 1


class Gauge:
    """One combination: its pipeline, prompts and references."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        process, kind, extra, self.steps, self.guidance = COMBINATIONS[name]
        self.flow = process == "flow"
        self.device = torch.device(args.device)
        self.pipe = demo_pipeline(process).to(self.device)
        self.base = dict(self.pipe.scheduler.config)
        self.size = {} if args.size is None else {"height": args.size, "width": args.size}
        self.prompts = held_out_prompts(args.pictures)
        self.fitted = held_out_prompts(args.pictures + FITTED)[-FITTED:]
        self.calls = 0
        self.pipe.unet.conv_in.register_forward_hook(self._count)
        self.set(kind, extra)

    def _count(self, *args: Any) -> None:
        self.calls += 1

    _count.agentsd_optional = True  # type: ignore[attr-defined]  # it counts full steps, so it may miss others

    def set(self, kind: str, extra: dict[str, Any]) -> None:
        if self.flow and kind != "FlowMatchScheduler":
            extra = FLOW
        self.pipe.scheduler = scheduler_class(kind).from_config({**self.base, **extra})

    def draw(
        self, enter: AbstractContextManager[Any], steps: int, timesteps: list[int] | None = None, first: int = 0
    ) -> Drawn:
        """Draw the prompts from number `first` on."""
        latents, calls = [], []
        length = {"num_inference_steps": steps} if timesteps is None else {"timesteps": timesteps}
        with enter:
            for number in range(first, len(self.prompts)):
                self.calls = 0
                latents.append(
                    self.pipe(
                        self.prompts[number],
                        **length,
                        guidance_scale=self.guidance,
                        **self.size,
                        generator=torch.Generator().manual_seed(number),
                        output_type="latent",
                    ).images
                )
                calls.append(self.calls)
        joined = torch.cat(latents)
        with torch.inference_mode():
            pictures = self.pipe.vae.decode(joined / self.pipe.vae.config.scaling_factor).sample
        return (pictures / 2 + 0.5).clamp(0, 1), joined, calls


def kept(args: argparse.Namespace, facts: dict[str, Any], name: str, draw: Callable[[int], Drawn]) -> Drawn:
    """Return pictures of stock: those kept beside the output, and new ones for the prompts that lack one.

    Args:
        args: Options of the command.
        facts: Settings of the rows.
        name: Names the solver, steps and process.
        draw: Draws the prompts from a number on.
    """
    # The text of the settings names the file: a reference with other settings is another file.
    settings = {key: facts.get(key) for key in ("device", "torch", "dtype", "size", "guidance")}
    text = hashlib.sha256(json.dumps([name, settings], sort_keys=True).encode()).hexdigest()[:16]
    path = args.output.parent / "gauge-references" / f"{text}.pt"
    pictures, latents, calls = torch.empty(0), torch.empty(0), []
    if path.exists():
        pictures, latents, calls = torch.load(path, map_location=args.device, weights_only=True)
    if len(calls) < args.pictures:
        drawn = draw(len(calls))
        if calls:
            drawn = torch.cat([pictures, drawn[0]]), torch.cat([latents, drawn[1]]), [*calls, *drawn[2]]
        pictures, latents, calls = drawn
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as fresh:
            torch.save(drawn, fresh)
    count = args.pictures
    return pictures[:count], latents[:count], calls[:count]


def measure(name: str, args: argparse.Namespace, started: float) -> bool:
    """Measure the arms of a combination; return whether the time was enough."""
    facts = {**environment(args.device), "dtype": "float32", "weights": "demo model", "combination": name,
             "pictures": args.pictures, "steps": COMBINATIONS[name][3], "guidance": COMBINATIONS[name][4],
             **({} if args.size is None else {"size": args.size})}  # fmt: skip
    there = {key_of(row, KEY): row for row in read_rows(args.output)}
    gauge = Gauge(name, args)
    process, kind, extra = COMBINATIONS[name][:3]
    gauge.set("DPMSolverMultistepScheduler", {})
    to_the_end = functools.partial(gauge.draw, nullcontext(), 100, None)
    converged, goal, _ = kept(args, facts, f"converged, {process}", to_the_end)
    gauge.set(kind, extra)
    stock, latents, full = kept(args, facts, name, functools.partial(gauge.draw, nullcontext(), gauge.steps, None))

    def named(arm: str, settings: str) -> dict[str, Any]:
        return {**facts, "arm": arm, "settings": settings, **({"rules": RULES} if settings else {})}

    def keep(arm: str, settings: str, drawn: Drawn) -> float:
        pictures, found, calls = drawn
        row = {
            **named(arm, settings),
            "calls": calls,
            "stock_calls": full,
            "psnr_stock": rounded(psnr(pictures, stock)),
            "psnr_converged": rounded(psnr(pictures, converged)),
            "latent_error": rounded(relative(found, latents), 5),
            "latent_error_converged": rounded(relative(found, goal), 5),
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        }
        append_row(args.output, row)
        near = row["psnr_stock"]
        print(
            f"{name} | {arm:34} {statistics.mean(calls):5.1f} of {full[0]} calls, to stock "
            f"{statistics.median(near):5.1f} (worst {min(near):5.1f}), to converged "
            f"{statistics.median(row['psnr_converged']):5.1f} dB, error {statistics.median(row['latent_error']):.4f}",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        return statistics.mean(calls)

    def key(arm: str, settings: str) -> tuple[Any, ...]:
        return key_of(named(arm, settings), KEY)

    def wanted(arm: str, settings: str) -> bool:
        return key(arm, settings) not in there

    def expired() -> bool:
        return time.monotonic() - started > args.limit_seconds

    if wanted("stock", ""):
        keep("stock", "", (stock, latents, full))
    counts = set()
    for tolerance in args.tolerance if "ours" in args.arms else ():
        schedule = agentsd.preset("balanced").with_tolerance(tolerance)
        arm, settings = f"tolerance {tolerance:g}", schedule.to_json()
        if expired():
            return False
        if wanted(arm, settings):
            mean = keep(arm, settings, gauge.draw(agentsd.apply(gauge.pipe, schedule), gauge.steps))
        else:
            mean = statistics.mean(there[key(arm, settings)]["calls"])
        counts |= {round(mean)} if tolerance in args.equal_calls_at else set()
    for number in args.calls:
        if expired():
            return False
        if wanted(f"calibrated, {number} calls", ""):
            found = agentsd.calibrate(
                gauge.pipe, gauge.fitted, held_out=gauge.fitted[:1], num_inference_steps=gauge.steps, calls=number,
                guidance_scale=gauge.guidance, seed=1000, progress=False, **gauge.size,
            )  # fmt: skip
            keep(f"calibrated, {number} calls", "", gauge.draw(agentsd.apply(gauge.pipe, found.schedule), gauge.steps))
    for steps in sorted(counts) if "solvers" in args.arms else ():
        for label, solver in (FLOW_SOLVERS if gauge.flow else SOLVERS).items():
            if expired():
                return False
            gauge.pipe.scheduler = solver.make(gauge.base)
            timesteps = None
            if solver.timesteps is not None:
                timesteps = solver.timesteps(gauge.pipe.scheduler, steps, COMBINATIONS[name][0] == "sdxl")
            if wanted(f"{label}, {steps} steps", ""):
                draw = functools.partial(gauge.draw, nullcontext(), steps, timesteps)
                keep(f"{label}, {steps} steps", "", kept(args, facts, f"{label}, {steps} steps, {process}", draw))
    gauge.set(kind, extra)
    for rival, make in SKIPPERS.items() if "rivals" in args.arms else ():
        if expired():
            return False
        if wanted(rival, ""):
            keep(rival, "", gauge.draw(skipping_by(gauge.pipe, make), gauge.steps))
    return True


def rounded(values: torch.Tensor, digits: int = 3) -> list[float]:
    return [round(min(float(value), 120.0), digits) for value in values]


def relative(found: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (found - other).flatten(1).norm(dim=1) / other.flatten(1).norm(dim=1)


if __name__ == "__main__":
    sys.exit(guard("gauge.py", main))
