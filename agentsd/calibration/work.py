"""The runs of one calibration: stock, with a schedule, and what tells them apart."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from agentsd.bench.metrics import psnr, relative_l2
from agentsd.calibration.recording import Outcome, Recording, outcome, record
from agentsd.calibration.search import Target
from agentsd.calibration.simulation import Simulation
from agentsd.calibration.store import Runs
from agentsd.patch import apply
from agentsd.schedule import Schedule
from agentsd.unet.controller import Controller
from agentsd.unet.noise_levels import NoiseLevels

Place = tuple[int, str]  # seed and prompt of a picture


class Work:
    """Makes the runs of a calibration, each once, and compares them.

    Args:
        pipe: The pipeline.
        call: Arguments of its calls.
        runs: Where runs are kept.
        progress: Whether to show a progress bar.

    Example:
        >>> work = Work(pipe, {"num_inference_steps": 12}, Runs(None), progress=False)
        >>> work.compare(agentsd.preset("gentle"), (0, "a red circle"))["calls"]
        12
    """

    def __init__(self, pipe: Any, call: dict[str, Any], runs: Runs, *, progress: bool) -> None:
        from tqdm.auto import tqdm

        self.pipe, self.call, self.runs = pipe, call, runs
        self.bar = tqdm(desc="calibration", unit="picture", disable=not progress, leave=False)
        self._counted: set[str] = set()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Hide the pipeline's own progress bar, and end ours on leaving."""
        had = dict(getattr(self.pipe, "_progress_bar_config", {}))
        self.pipe.set_progress_bar_config(**{**had, "disable": True})
        try:
            yield
        finally:
            self.pipe.set_progress_bar_config(**had)
            self.bar.close()

    def expect(self, what: str, pictures: int) -> None:
        """Show what comes now, and how many pictures are still to come at most."""
        self.bar.set_description(what, refresh=False)
        self.bar.total = self.bar.n + pictures
        self.bar.refresh()

    def stock(self, place: Place) -> Recording:
        """Return the stock run of a seed and prompt."""
        seed, prompt = place
        run = self.runs.get(Recording, repr(place), lambda: record(self.pipe, prompt, seed=seed, **self.call))
        self._count(repr(place))
        return run

    def skipped(self, schedule: Schedule, place: Place) -> Outcome:
        """Return what a schedule makes of a seed and prompt."""
        seed, prompt = place

        def make() -> Outcome:
            with apply(self.pipe, schedule):
                return outcome(self.pipe, prompt, seed=seed, **self.call)

        name = repr((*place, schedule.to_json()))
        run = self.runs.get(Outcome, name, make)
        self._count(name)
        return run

    def _count(self, name: str) -> None:
        if name not in self._counted:
            self._counted.add(name)
            self.bar.update()

    def compare(self, schedule: Schedule, place: Place, *, lpips: bool = False) -> dict[str, Any]:
        """Return the calls of a picture and its distances to stock: of the latent, in PSNR, perhaps in LPIPS."""
        stock, run = self.stock(place), self.skipped(schedule, place)
        pictures = run.picture[None], stock.picture[None]
        found: dict[str, Any] = {
            "calls": int(run.calls),
            "tolerance": float(relative_l2(run.latent[None], stock.latent[None])),
            "psnr": float(psnr(*pictures)),
        }
        if lpips:
            from agentsd.bench.lpips import lpips as distance

            found["lpips"] = float(distance(*pictures))
        return found

    def excess(self, schedule: Schedule, places: Sequence[Place], target: Target) -> float:
        """Return by what factor the pictures of a schedule miss a target; at most 1 if they meet it."""
        lpips = target.measure == "lpips"
        return target.excess_of([self.compare(schedule, place, lpips=lpips)[target.measure] for place in places])


def simulation_of(runs: Sequence[Recording]) -> Simulation:
    """Return recorded runs as inner products.

    Raises:
        ValueError: If the runs are of different solvers or numbers of steps.

    Example:
        >>> simulation_of([Work(pipe, {"num_inference_steps": 12}, Runs(None), progress=False).stock((0, "a"))]).calls
        12
    """
    products = []
    for run in runs:
        if run.sigmas.shape != runs[0].sigmas.shape or not bool((run.sigmas == runs[0].sigmas).all()):
            raise ValueError("runs have different noise levels; give runs of one solver and one number of steps.")
        values = run.values.double().flatten(1)
        products.append((values @ values.T / run.latent.double().square().sum()).numpy())
    levels = NoiseLevels(tuple(run.sigmas.tolist()), "epsilon")
    times = np.asarray(Controller(levels, tolerance=1.0).times)
    return Simulation(np.stack(products), runs[0].sensitivities.double().numpy(), times)
