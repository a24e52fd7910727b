"""Choosing full steps for one pipeline from its own runs, and measuring the choice on held-out prompts."""

import math
from collections.abc import Sequence
from typing import Any

from agentsd.bench.lpips import find_weights, load_lpips
from agentsd.calibration.choosing import check_number_of_calls, choose, fewest
from agentsd.calibration.recording import Recording
from agentsd.calibration.result import Calibration, key_of
from agentsd.calibration.search import MOST_TRIES, Target, fewest_calls, largest_tolerance
from agentsd.calibration.store import Runs, folder_of
from agentsd.calibration.work import Place, Work, simulation_of
from agentsd.presets import preset
from agentsd.schedule import ListedSteps, Schedule, Skipping
from agentsd.system.numbers import is_whole
from agentsd.unet.controller import FEWEST_CALLS
from agentsd.unet.install import denoiser_of
from agentsd.unet.processor import SITE
from agentsd.unet.skipping import check_skipping

# Four to fit to and six held out. What is skipped depends on the solver far more than on the prompt.
PROMPTS = (
    "a photograph of a mountain lake at sunrise",
    "a portrait of an old fisherman, oil painting",
    "a red bicycle leaning against a brick wall",
    "a bowl of fruit on a wooden table",
    "a city street at night in the rain",
    "a cat asleep on a blue sofa",
    "an astronaut riding a horse, detailed illustration",
    "a field of sunflowers under a cloudy sky",
    "a small house in a snowy forest",
    "a bookshop with a green door",
)
_FITTED = 4
_FITTED_MOST = 10
_DEFAULT = 0.03
KINDS = ("listed", "tolerance")
_OURS = ("prompt", "generator", "output_type", "return_dict")  # arguments of the pipeline call that calibration sets


def calibrate(
    pipe: Any,
    prompts: Sequence[str] | None = None,
    *,
    num_inference_steps: int = 50,
    calls: int | None = None,
    tolerance: float | None = None,
    psnr: float | None = None,
    lpips: float | None = None,
    worst: bool = False,
    kind: str | None = None,
    held_out: Sequence[str] | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
    cache: bool = True,
    progress: bool = True,
    **call: Any,
) -> Calibration:
    """Fit skipped steps to one pipeline, one solver and one number of steps from its own runs.

    A few stock runs are recorded. Real runs then find the tolerance that meets a target. Or full steps are listed: the
    recorded runs show, without further calls, what each choice of them would cost. Held-out prompts measure the
    result. An interrupted calibration goes on where it was: finished runs are kept in the user's cache folder.

    Give one target at most: `calls`, `tolerance`, `psnr` or `lpips`. Without one it is `tolerance=0.03`.

    Args:
        pipe: A text-to-image pipeline that is not patched.
        prompts: One or more prompts; `None` takes ten of ours. The first half is fitted to, at most 10; the rest is
            held out. A single prompt is used for both, with other noise.
        num_inference_steps: Steps of the run.
        calls: Calls of the UNet or transformer that a picture may take.
        tolerance: Relative error of the final latent, in (0, 1].
        psnr: PSNR to the stock picture, in dB.
        lpips: LPIPS to the stock picture (AlexNet; needs its weights, see `agentsd.bench.lpips`).
        worst: Whether the worst 5% of the pictures must meet the target. `False` is the median; the worst is printed
            all the same.
        kind: `"tolerance"` finds the tolerance that meets the target, and leaves the full steps to run time, where hard
            prompts get more of them. `"listed"` lists the full steps, with fitted forecasts: every picture takes as
            many calls. `None` lists them for `calls`, and finds a tolerance for the other targets.
        held_out: Prompts of the measurement; `None` takes them from `prompts`.
        guidance_scale: Guidance; `None` is the pipeline's own.
        seed: Seed of the first picture's noise; each further prompt has the next.
        cache: Whether finished runs are kept on disk. `AGENTSD_CACHE` names another folder.
        progress: Whether to show a progress bar.
        call: Further arguments of the pipeline call, such as `height` and `width`.

    Returns:
        The calibration: `.schedule` for `agentsd.apply`, and what to expect.

    Raises:
        ValueError: If arguments contradict each other or are out of range, the pipeline is patched, or its scheduler
            cannot be calibrated.

    Example:
        >>> found = agentsd.calibrate(pipe, ["a red circle"], num_inference_steps=12, calls=8, progress=False)
        >>> found.mean_calls, found.stock_calls
        (8.0, 12)
        >>> with agentsd.apply(pipe, found.schedule):
        ...     image = pipe("a blue cross", num_inference_steps=12, output_type="pt").images
    """
    if kind is None:
        kind = "tolerance" if calls is None else "listed"
    target = _target(calls, {"tolerance": tolerance, "psnr": psnr, "lpips": lpips}, worst=worst, kind=kind)
    fitted, measured = _split(prompts, held_out)
    _check(pipe, num_inference_steps, seed)
    taken = next((name for name in _OURS if name in call), None)
    if taken is not None:
        raise ValueError(
            f"{taken}={call[taken]!r} cannot be given: calibration sets {', '.join(_OURS)} itself. Leave it out; "
            "prompts and seed choose the pictures."
        )
    arguments = {"num_inference_steps": num_inference_steps, **call}
    if guidance_scale is not None:
        arguments["guidance_scale"] = guidance_scale
    work = Work(pipe, arguments, Runs(folder_of(pipe, arguments) if cache else None), progress=progress)
    learned = list(enumerate(fitted, start=seed))
    checked = list(enumerate(measured, start=seed + len(fitted)))
    if lpips is not None:
        load_lpips(find_weights())  # missing weights show before any picture is made
    searches = isinstance(target, Target)
    with work.quiet():
        work.expect("stock pictures", len(learned) * (1 + MOST_TRIES * searches) + 2 * len(checked))
        stock = [work.stock(learned[0])]
        _check_calls(num_inference_steps, len(stock[0].values), target, kind)  # before the others are made
        stock += [work.stock(place) for place in learned[1:]]
        work.expect("search" if searches else "choice", len(learned) * MOST_TRIES * searches + 2 * len(checked))
        if isinstance(target, Target) and kind == "tolerance":
            schedule = _within(work, learned, target)
        else:
            schedule = _listed(work, learned, stock, target)
        work.expect("held-out pictures", 2 * len(checked))
        results = [work.compare(schedule, place, lpips=lpips is not None) for place in checked]
    excess = target.excess_of([one[target.measure] for one in results]) if isinstance(target, Target) else None
    return Calibration(
        schedule=schedule,
        target=f"{target} calls" if isinstance(target, int) else str(target),
        **key_of(pipe),
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        stock_calls=len(stock[0].values),
        calls=tuple(one["calls"] for one in results),
        psnr=tuple(None if math.isinf(one["psnr"]) else round(one["psnr"], 3) for one in results),
        latent_error=tuple(round(one["tolerance"], 6) for one in results),
        lpips=tuple(round(one["lpips"], 5) for one in results if "lpips" in one),
        excess=None if excess is None else round(excess, 3),
        prompts=tuple(fitted),
        held_out=tuple(measured),
        seed=seed,
    )


def _listed(work: Work, places: list[Place], stock: list[Recording], target: Target | int) -> Schedule:
    """Return the schedule of the fewest full steps that meets a target."""
    simulation = simulation_of(stock)
    sigmas = tuple(float(f"{one:.6g}") for one in stock[0].sigmas.tolist())

    def schedule_of(number: int) -> Schedule:
        full = choose(simulation, number)
        weights = tuple(tuple(round(one, 5) for one in weights) for weights in simulation.weights(full))
        return Schedule.constant(None, skipping=Skipping(listed=ListedSteps(sigmas=sigmas, full=full, weights=weights)))

    if isinstance(target, int):
        return schedule_of(target)
    chosen = {number: choose(simulation, number) for number in range(fewest(simulation.calls), simulation.calls + 1)}
    errors = {number: float(simulation.error(full)) for number, full in chosen.items()}
    goal = target.goal if target.measure == "tolerance" else _DEFAULT
    start = next(number for number in sorted(errors) if errors[number] <= goal)
    number = fewest_calls(lambda calls: work.excess(schedule_of(calls), places, target), errors, start)
    return schedule_of(number)


def _within(work: Work, places: list[Place], target: Target) -> Schedule:
    """Return the schedule of the largest tolerance that meets a target."""
    base = preset("balanced")
    start = target.goal if target.measure == "tolerance" else _DEFAULT
    found = largest_tolerance(lambda one: work.excess(base.with_tolerance(one), places, target), start)
    return base.with_tolerance(float(f"{found:.3g}"))


def _target(calls: int | None, goals: dict[str, float | None], *, worst: bool, kind: str) -> Target | int:
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; choose one of {', '.join(KINDS)}.")
    given = {name: goal for name, goal in goals.items() if goal is not None}
    if len(given) + (calls is not None) > 1:
        names = [*(["calls"] if calls is not None else []), *given]
        raise ValueError(f"{', '.join(names)} are several targets; give one of them.")
    if calls is not None:
        if not is_whole(calls, 2):
            raise ValueError(f"calls={calls!r} must be a whole number of at least 2.")
        if kind == "tolerance" or worst:
            raise ValueError(
                f"calls={calls} lists so many full steps; it goes neither with kind='tolerance' nor with worst=True."
            )
        return calls
    name, goal = next(iter(given.items()), ("tolerance", _DEFAULT))
    number = isinstance(goal, int | float) and not isinstance(goal, bool)
    most = 200.0 if name == "psnr" else 1.0
    if not number or not 0 < goal <= most:
        raise ValueError(f"{name}={goal!r} must lie in (0, {most:g}].")
    return Target(name, float(goal), worst)


def _check_calls(steps: int, calls: int, target: Target | int, kind: str) -> None:
    if isinstance(target, int):
        check_number_of_calls(target, calls)
    elif kind == "tolerance" and calls < FEWEST_CALLS:
        raise ValueError(
            f"num_inference_steps={steps} makes {calls} calls, and a tolerance skips none below {FEWEST_CALLS}; "
            "take more steps, or give calls to list full steps."
        )


def _split(prompts: Sequence[str] | None, held_out: Sequence[str] | None) -> tuple[list[str], list[str]]:
    for name, given in (("prompts", prompts), ("held_out", held_out)):
        if given is None:
            continue
        if isinstance(given, str) or not given or not all(isinstance(one, str) for one in given):
            raise ValueError(f"{name}={given!r} must be a list of one or more texts.")
    if prompts is None:
        return list(PROMPTS[:_FITTED]), list(PROMPTS[_FITTED:] if held_out is None else held_out)
    if held_out is not None:
        return list(prompts[:_FITTED_MOST]), list(held_out)
    number = min(max(len(prompts) // 2, 1), _FITTED_MOST)
    return list(prompts[:number]), list(prompts[number:] or prompts)


def _check(pipe: Any, steps: object, seed: object) -> None:
    denoiser = denoiser_of(pipe)
    if denoiser is pipe or not callable(pipe) or not hasattr(pipe, "scheduler"):
        raise ValueError(f"pipe={type(pipe).__name__} must be a pipeline: calibration makes pictures with it.")
    if SITE in denoiser.__dict__:
        raise ValueError("pipe is patched, so stock cannot be recorded; call agentsd.remove(pipe) first.")
    check_skipping(denoiser, preset("balanced"))
    if not is_whole(steps, 1):
        raise ValueError(f"num_inference_steps={steps!r} must be a whole number of at least 1.")
    if not is_whole(seed, 0):
        raise ValueError(f"seed={seed!r} must be a whole number of at least 0.")
