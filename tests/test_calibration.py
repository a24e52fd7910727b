"""Calibration: the simulation is exact where predictions do not react, and what is chosen runs as it says."""

import json
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from matrix import ip_adapter, lora, text_to_image
from tiny import draw, make_tiny_pipe

import agentsd
from agentsd.calibration.choosing import choose, fewest
from agentsd.calibration.recording import record
from agentsd.calibration.result import Calibration
from agentsd.calibration.search import Target, largest_tolerance
from agentsd.calibration.simulation import Simulation
from agentsd.calibration.store import folder_of
from agentsd.calibration.work import simulation_of
from agentsd.schedule import ListedSteps, Phase, Schedule, Skipping
from agentsd.unet.listed import ListedController
from agentsd.unet.noise_levels import NoiseLevels

SOLVERS = [
    DDIMScheduler,
    PNDMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
]


def with_scheduler(kind):
    pipe = make_tiny_pipe()
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    return pipe


class Deaf(torch.nn.Module):
    """Stands for the UNet's first part: predictions then follow from the timestep alone."""

    def forward(self, sample):
        return torch.zeros(sample.shape[0], 16, *sample.shape[-2:])


@pytest.mark.parametrize("kind", SOLVERS)
def test_simulated_errors_are_exact_where_predictions_do_not_react(kind):
    pipe = with_scheduler(kind)
    pipe.unet.conv_in = Deaf()
    stock = record(pipe, "a", seed=0, num_inference_steps=12)
    simulation = simulation_of([stock])
    full = tuple(index for index in range(simulation.calls) if index < 4 or index % 2 == 0)
    listed = ListedSteps(sigmas=tuple(stock.sigmas.tolist()), full=full, weights=simulation.lines(full))
    with agentsd.apply(pipe, Schedule.constant(None, skipping=Skipping(listed=listed))) as patch:
        found = draw(pipe, "a", steps=12)[0]
        assert patch.report().skipping_problem is None
        assert patch.report().last_run.full == len(full)
    expected = simulation.errors(full, listed.weights)[0]
    assert expected > 1e-4
    assert float((found - stock.latent).norm() / stock.latent.norm()) == pytest.approx(expected, rel=0.02)


def test_solvers_that_add_noise_are_calibrated_too():
    pipe = with_scheduler(EulerAncestralDiscreteScheduler)
    found = agentsd.calibrate(pipe, ["a"], num_inference_steps=14, calls=9, progress=False, cache=False)
    assert found.calls == (9,)
    assert found.latent_error[0] < 0.2
    assert pipe.scheduler.step.__func__ is EulerAncestralDiscreteScheduler.step, "recording leaves no trace"


def test_the_choice_is_the_best_of_all():
    generator = np.random.default_rng(1)
    times = np.linspace(0, 1, 9)
    values = np.stack([np.cos(5 * times**2 * one) for one in generator.uniform(0.5, 2, 6)], axis=1)
    simulation = Simulation((values @ values.T)[None], generator.uniform(0.5, 1, 9), times)
    from itertools import combinations

    every = [(0, 1, *inner) for inner in combinations(range(2, 9), 4)]
    allowed = [full for full in every if max(np.diff((*full, 9))) <= 6]
    best = min(simulation.error(full) for full in allowed)
    assert simulation.error(choose(simulation, 6)) <= 1.5 * best
    assert simulation.error(choose(simulation, 6)) <= np.median([simulation.error(full) for full in allowed])


def test_a_last_call_that_hardly_moves_the_picture_is_skipped():
    values = np.random.default_rng(0).normal(size=(8, 30))
    moves = np.array([1.0] * 7 + [1e-4])
    assert choose(Simulation((values @ values.T)[None], moves, np.arange(8.0)), 7) == tuple(range(7))


def test_fitted_weights_beat_the_line():
    stock = record(make_tiny_pipe(), "a", seed=0, num_inference_steps=16)
    simulation = simulation_of([stock])
    full = choose(simulation, 8)
    assert simulation.errors(full, simulation.weights(full))[0] < simulation.errors(full, simulation.lines(full))[0]
    assert len(full) == 8
    with pytest.raises(ValueError, match=rf"calls=2 must lie in \[{fewest(16)}, 16\]"):
        choose(simulation, 2)


def test_calibrate_says_what_it_measured_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AGENTSD_CACHE", str(tmp_path))
    pipe = make_tiny_pipe()
    counter = []

    def count(*_):
        counter.append(1)

    count.agentsd_optional = True
    pipe.unet.conv_in.register_forward_hook(count)
    arguments = dict(num_inference_steps=14, tolerance=0.05, kind="listed", progress=False)
    found = agentsd.calibrate(pipe, ["a", "b", "c"], **arguments)
    listed = found.schedule.skipping.listed
    assert set(found.calls) == {len(listed.full)}
    assert found.stock_calls == 14
    assert found.held_out == ("b", "c")
    assert found.speedup == 14 / len(listed.full) > 1
    assert max(found.latent_error) < 0.2
    assert "times fewer" in str(found)
    before = len(counter)
    assert agentsd.calibrate(pipe, ["a", "b", "c"], **arguments) == found
    assert len(counter) == before, "finished runs are not made again"
    assert capsys.readouterr().out == ""
    path = tmp_path / "found.json"
    found.save(path)
    again = Calibration.from_json(path.read_text())
    assert again == found
    assert again.differences(pipe) == []
    assert again.differences(with_scheduler(EulerDiscreteScheduler))


def test_a_calibration_in_the_place_of_its_schedule_is_told():
    pipe = make_tiny_pipe()
    found = agentsd.calibrate(pipe, ["a"], num_inference_steps=12, calls=8, progress=False, cache=False)
    with pytest.raises(ValueError, match=r"schedule is a Calibration, which holds one; give its attribute \.schedule"):
        agentsd.apply(pipe, found)
    with pytest.raises(ValueError, match=r"the text of a calibration or of a plan, which holds one; read it with"):
        Schedule.from_json(found.to_json())


def set_scale(pipe):
    pipe.unet.set_adapters(["default"], [0.3])


CHANGES = [
    (lora, set_scale),
    (lora, lambda pipe: pipe.unet.disable_adapters()),
    (ip_adapter, lambda pipe: pipe.set_ip_adapter_scale(0.2)),
    (text_to_image, lambda pipe: pipe.enable_freeu(0.9, 0.2, 1.2, 1.4)),
]


@pytest.mark.parametrize(("build", "change"), CHANGES, ids=["LoRA scale", "LoRA off", "IP-Adapter scale", "FreeU"])
def test_runs_of_other_adapter_scales_are_not_taken_for_these(build, change):
    pipe, _ = build()
    before = folder_of(pipe, {})
    assert folder_of(pipe, {}) == before
    change(pipe)
    assert folder_of(pipe, {}) != before


KINDS_OF_PICTURES = {
    "tensor": torch.tensor,
    "bfloat16": lambda values: torch.tensor(values).bfloat16(),
    "array": np.array,
    "list": lambda values: [np.array(values)],
    "picture": lambda values: PIL.Image.fromarray(np.array(values, dtype=np.uint8)),
}


@pytest.mark.parametrize("make", KINDS_OF_PICTURES.values(), ids=list(KINDS_OF_PICTURES))
def test_runs_with_another_picture_are_not_taken_for_these(tiny_pipe, make):
    one, other = np.zeros((64, 64)), np.zeros((64, 64))
    other[30, 30] = 1  # in the middle, which the text of a tensor leaves out
    kept = make(one.tolist())
    assert folder_of(tiny_pipe, {"image": kept}) == folder_of(tiny_pipe, {"image": make(one.tolist())})
    assert folder_of(tiny_pipe, {"image": kept}) != folder_of(tiny_pipe, {"image": make(other.tolist())})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(calls=[]), "calls of the calibration holds 0 figures for 1 held-out prompts"),
        (dict(calls=["a"]), "calls='a' must be an integer of at least 1"),
        (dict(psnr=["a"]), "psnr='a' must be a finite number"),
        (dict(latent_error=[None]), "latent_error=None must be a finite number"),
        (dict(stock_calls="a"), "stock_calls='a' must be an integer of at least 1"),
        (dict(excess="a"), "excess='a' must be a finite number"),
        (dict(held_out=[]), r"held_out=\[\] of the calibration must name"),
    ],
)
def test_fields_of_a_calibration_are_checked_when_it_is_read(changes, message):
    made = Calibration(
        schedule=Schedule.constant(None), target="8 calls", model="m", scheduler="s", scheduler_config={},
        num_inference_steps=12, guidance_scale=None, stock_calls=12, calls=(8,), psnr=(None,), latent_error=(0.1,),
        lpips=(), excess=None, prompts=("a",), held_out=("a",), seed=0,
    )  # fmt: skip
    assert Calibration.from_json(made.to_json()) == made
    with pytest.raises(ValueError, match=message):
        Calibration.from_json(json.dumps({**json.loads(made.to_json()), **changes}))


def test_a_target_that_the_held_out_pictures_miss_is_named():
    found = agentsd.calibrate(
        make_tiny_pipe(), ["a"], held_out=["b"], num_inference_steps=12, tolerance=0.05, cache=False, progress=False
    )
    assert found.excess == pytest.approx(found.latent_error[0] / 0.05, rel=0.01)
    assert "target missed" not in str(replace(found, excess=1.0))
    assert "target missed: the error is 1.9 times what was asked for" in str(replace(found, excess=1.94))


def test_a_tolerance_is_found_for_a_picture_measure():
    found = agentsd.calibrate(make_tiny_pipe(), ["a"], num_inference_steps=12, psnr=45.0, progress=False, cache=False)
    assert 0 < found.schedule.skipping.tolerance <= 1
    assert found.target == "a median PSNR of 45 dB to stock"


def test_other_runs_than_the_listed_ones_skip_nothing_and_say_why():
    found = agentsd.calibrate(make_tiny_pipe(), ["a"], num_inference_steps=12, calls=7, progress=False, cache=False)
    pipe = make_tiny_pipe()
    stock = draw(pipe, steps=15)
    with agentsd.apply(pipe, found.schedule) as patch:
        assert torch.equal(draw(pipe, steps=15), stock)
        assert "listed for 12 calls" in patch.report().skipping_problem
        assert "7 of 12 listed as full" in str(patch.report())
        assert "full steps listed: 7 of 12" in patch.report().details()


def test_a_search_gets_past_tolerances_that_change_nothing():
    """Calls come in whole numbers, so a little less tolerance may give the same pictures."""
    found = largest_tolerance(lambda tolerance: 1.03 if tolerance > 0.02 else 0.4, 0.05)
    assert 0.018 < found <= 0.02


def test_a_run_that_enters_late_starts_with_two_full_steps():
    listed = ListedSteps(sigmas=(8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.0), full=(0, 1, 5), weights=((1.0,),) * 3)
    controller = ListedController(NoiseLevels(listed.sigmas, "epsilon"), listed)
    sample = torch.ones(1, 1, 1, 1)
    for index in (2, 3):
        assert controller.needs_full(index)
        controller.observe(index, sample, index * sample)
    assert not controller.needs_full(4)
    assert float(controller.forecast(4, sample)) == pytest.approx(3.7)  # the line, not the weights of calls 1 and 0


def test_listed_schedules_go_to_json_and_back():
    listed = ListedSteps(sigmas=(4.0, 2.0, 1.0, 0.0), full=(0, 1, 2))
    schedule = Schedule.constant(None, skipping=Skipping(listed=listed))
    assert Schedule.from_json(schedule.to_json()) == schedule
    assert json.loads(schedule.to_json())["skipping"]["listed"]["full"] == [0, 1, 2]
    assert [schedule.is_full(index, 3) for index in range(3)] == [True, True, True]
    assert "listed" not in Schedule.constant(None, 3).to_json(), "older settings keep their text"


SIGMAS = (4.0, 2.0, 1.0, 0.5, 0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ListedSteps(sigmas=SIGMAS, full=(0, 2, 3)), "hold call 1"),
        (lambda: ListedSteps(sigmas=SIGMAS, full=(0, 1, 4)), "rise from 0 to at most 3"),
        (lambda: ListedSteps(sigmas=SIGMAS, full=(0, 1, 3), weights=((1.0,), (1.0,))), "2 lists for 1 skipped"),
        (lambda: ListedSteps(sigmas=SIGMAS, full=(0, 1, 3), weights=((1.0, 0.0, 0.0),)), "1 to 2 of them"),
        (lambda: Skipping(listed=3), "listed=3 must be a ListedSteps"),
        (lambda: Skipping(listed=ListedSteps(sigmas=SIGMAS, full=(0, 1, 3)), tolerance=0.1), "does not go with listed"),
        (lambda: Skipping(listed=ListedSteps(sigmas=SIGMAS, full=(0, 1, 3)), depth=1), "does not go with listed"),
        (
            lambda: Schedule((Phase(1.0, None, 2),), Skipping(listed=ListedSteps(sigmas=SIGMAS, full=(0, 1, 3)))),
            "do not go with every=2",
        ),
        (lambda: agentsd.calibrate(make_tiny_pipe(), calls=9, psnr=30.0), "calls, psnr are several targets"),
        (lambda: agentsd.calibrate(make_tiny_pipe(), psnr=-1), r"psnr=-1 must lie in \(0, 200\]"),
        (lambda: agentsd.calibrate(make_tiny_pipe(), kind="best"), "kind='best' is unknown"),
        (lambda: agentsd.calibrate(make_tiny_pipe(), "a"), "prompts='a' must be a list"),
        (lambda: agentsd.calibrate(make_tiny_pipe().unet), "must be a pipeline"),
        (lambda: agentsd.calibrate(make_tiny_pipe(), output_type="pil"), "output_type='pil' cannot be given.*Leave it"),
        (lambda: agentsd.calibrate(make_tiny_pipe(), generator=None), "generator=None cannot be given.*seed choose"),
        (lambda: largest_tolerance(lambda tolerance: 100.0, 0.02), "down to 4.9e-06; ask for less"),
        (lambda: agentsd.calibrate(patched()), "agentsd.remove"),
    ],
)
def test_errors_name_the_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def patched():
    pipe = make_tiny_pipe()
    agentsd.apply(pipe)
    return pipe


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (Target("psnr", 40.0, worst=True), "a PSNR of 40 dB to stock in the worst 5%"),
        (Target("lpips", 0.08, worst=True), "an LPIPS of 0.08 to stock in the worst 5%"),
        (Target("tolerance", 0.02, worst=True), "an error of the final latent of 0.02 in the worst 5%"),
        (Target("tolerance", 0.02), "a median error of the final latent of 0.02"),
    ],
)
def test_a_target_is_said_in_words(target, text):
    assert str(target) == text
