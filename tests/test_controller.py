"""Which steps the controller skips, what it forecasts, and that pipelines keep to the tolerance."""

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given
from hypothesis import strategies as st
from probe import may_miss_steps
from tiny import make_tiny_pipe

import agentsd
from agentsd import Phase, Schedule
from agentsd.schedule import Skipping
from agentsd.unet.controller import FEWEST_CALLS, Controller
from agentsd.unet.noise_levels import NoiseLevels, moves_of, noise_levels

FALLING = (*tuple(2.0 ** (2 - 0.4 * i) for i in range(20)), 0.0)


def drive(controller, truth, *, sample=None):
    """Run a controller on predictions `truth(index)`; return the full steps and the largest error of its forecasts."""
    sample = torch.zeros(1, 1, 2, 2) if sample is None else sample
    full, worst = [], 0.0
    for index in range(controller.calls):
        true = truth(index)
        if controller.needs_full(index):
            full.append(index)
            controller.observe(index, sample, true)
        else:
            worst = max(worst, float((controller.forecast(index, sample) - true).abs().max()))
    return full, worst


def test_constant_predictions_are_skipped_up_to_the_cap():
    full, worst = drive(
        Controller(NoiseLevels(FALLING, "epsilon"), tolerance=0.01), lambda index: torch.ones(1, 1, 2, 2)
    )
    assert full == [0, 1, 2, 7, 12, 17]  # the last call too may be a skipped one
    assert worst == 0


def test_noise_is_not_skipped():
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(1, 1, 8, 8, generator=generator) for _ in range(20)]
    full, _ = drive(
        Controller(NoiseLevels(FALLING, "epsilon"), tolerance=0.001),
        lambda index: values[index],
        sample=torch.zeros(1, 1, 8, 8),
    )
    assert full == list(range(20))


def test_small_errors_where_all_is_noise_do_not_allow_long_skips():
    """The forecast's error rises with 1 / sigma ** 2 here: what the first steps show is next to nothing."""
    sigmas = (*tuple(300.0 * 1.6 ** (-i) for i in range(16)), 0.0)
    full, _ = drive(
        Controller(NoiseLevels(sigmas, "epsilon"), tolerance=0.03),
        lambda index: torch.full((1, 1, 2, 2), 24.0 * (-1) ** index / max(sigmas[index], 30.0) ** 2),
    )
    assert full[3] == 4, full  # noise level 46: the picture begins to form


@given(st.floats(0.001, 0.2), st.floats(1.1, 4.0))
def test_a_larger_tolerance_never_takes_more_full_steps(tolerance, factor):
    def truth(index):
        return torch.full((1, 1, 2, 2), math.sin(index / 3))

    tight, _ = drive(Controller(NoiseLevels(FALLING, "epsilon"), tolerance=tolerance), truth)
    loose, _ = drive(Controller(NoiseLevels(FALLING, "epsilon"), tolerance=tolerance * factor), truth)
    assert len(loose) <= len(tight) + 1  # greedy: the last stretch may be cut differently


def test_the_forecast_follows_nine_tenths_of_the_line():
    controller = Controller(NoiseLevels(FALLING, "epsilon"), tolerance=1.0)
    zeros = torch.zeros(1, 1, 1, 1)
    for index, value in enumerate((0.0, 1.0, 2.0)):
        controller.observe(index, zeros, torch.full((1, 1, 1, 1), value))
    # The levels are a geometric row: steps are equally long in -log(sigma).
    assert controller.forecast(3, zeros).item() == pytest.approx(2.9, abs=1e-5)
    assert controller.forecast(4, zeros).item() == pytest.approx(3.8, abs=1e-5)


def turned_after(first, second, third):
    """Minus the cosine between the changes of three values, 0 where it is positive."""
    before, after = (second - first).flatten(), (third - second).flatten()
    return max(-float(before @ after / (before.norm() * after.norm())), 0.0)


def share_after(first, second, third):
    """What a forecast extrapolates after three values of one copy, from its definition."""
    return 0.9 - 1.2 * turned_after(first, second, third)


TURNS = [(1.0, 0.0, 0.0), (0.3, 0.0, 0.0), (-1.0, 0.0, 1.0), (-0.3, 0.0, 1.0), (0.0, 1.0, 0.0), (-1.0, 1.0, 0.5**0.5)]


@pytest.mark.parametrize(("ratio", "aside", "turned"), TURNS)
@pytest.mark.parametrize("noisy", [False, True])
def test_the_share_falls_where_the_last_two_changes_are_opposite(ratio, aside, turned, noisy):
    controller = Controller(NoiseLevels(FALLING, "epsilon"), tolerance=1.0, noisy=noisy)
    values = [torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([1.0 + ratio, aside])]
    for index, value in enumerate(
        values
    ):  # of the noise, or of the denoised picture: that is the sample less the noise
        controller.observe(index, *predicted(index, value.view(1, 1, 1, 2), noisy=noisy))
    found = seen_in(controller.forecast(3, torch.zeros(1, 1, 1, 2)), 3, noisy=noisy).flatten()
    share = 0.7 - 0.5 * turned**2 if noisy else 0.9 - 1.2 * turned
    torch.testing.assert_close(found, values[2] + share * (values[2] - values[1]), atol=1e-5, rtol=1e-5)
    assert turned == pytest.approx(turned_after(*values))


def predicted(index, value, *, noisy):
    """Return a sample of zeros, and the predicted noise that shows the controller a value."""
    return torch.zeros_like(value), -value / FALLING[index] if noisy else value


def seen_in(prediction, index, *, noisy):
    """Return what the controller sees in the predicted noise of a sample of zeros."""
    return -prediction * FALLING[index] if noisy else prediction


@pytest.mark.parametrize("pictures", [1, 3])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_forecasts_follow_what_two_copies_share_more_than_what_sets_them_apart(pictures, noisy, scale):
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(2 * pictures, 3, 4, 5, generator=generator) for _ in range(3)]
    controller = Controller(NoiseLevels(FALLING, "epsilon"), tolerance=1.0, noisy=noisy)

    def guide(value):
        unconditional, conditional = value.chunk(2)
        return unconditional + scale * (conditional - unconditional)

    for index, value in enumerate(values):
        controller.observe(index, *predicted(index, value, noisy=noisy), guide=guide)
    found = seen_in(controller.forecast(3, torch.zeros_like(values[0])), 3, noisy=noisy)
    for place in range(pictures):
        copies = [value[place::pictures] for value in values]
        turned = turned_after(*(guide(one) for one in copies))
        change = copies[2] - copies[1]
        common = change.mean(0, keepdim=True)
        expected = (0.9 - 1.2 * turned) * common + (0.5 - 0.8 * turned) * (change - common)
        if noisy:
            expected = (0.7 - 0.5 * turned**2) * change
        torch.testing.assert_close(found[place::pictures], copies[2] + expected, atol=1e-4, rtol=1e-4)


def test_a_guide_that_keeps_all_samples_leaves_each_alone():
    """Guidance in two calls: each has one copy of a picture, whose errors count times the scale."""
    controllers = [Controller(NoiseLevels(FALLING, "epsilon"), tolerance=1.0) for _ in range(2)]
    generator = torch.Generator().manual_seed(0)
    zeros = torch.zeros(2, 1, 2, 2)
    for index in range(3):
        value = torch.randn(2, 1, 2, 2, generator=generator)
        for controller, guide in zip(controllers, (None, lambda error: 7.5 * error), strict=True):
            controller.observe(index, zeros, value, guide=guide)
    alone, scaled = (controller.forecast(3, zeros) for controller in controllers)
    torch.testing.assert_close(alone, scaled)


@pytest.mark.parametrize("copies", [1, 2])
def test_before_two_changes_were_seen_the_share_is_seven_tenths(copies):
    controller = Controller(NoiseLevels(FALLING, "epsilon"), tolerance=1.0)
    zeros = torch.zeros(copies, 1, 1, 1)
    rising = torch.tensor([1.0, 3.0])[:copies].view(copies, 1, 1, 1)
    for index in range(2):
        controller.observe(index, zeros, index * rising, guide=lambda error: error.sum(0, keepdim=True))
    torch.testing.assert_close(controller.forecast(2, zeros), 1.7 * rising, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_kinds_of_prediction_forecast_the_same_noise(kind):
    generator = torch.Generator().manual_seed(0)
    samples = [torch.randn(2, 4, 4, 4, generator=generator) for _ in range(4)]
    noises = [torch.randn(2, 4, 4, 4, generator=generator) for _ in range(4)]

    def predict(index, noise):
        alpha = 1 / math.sqrt(1 + FALLING[index] ** 2)
        sigma = FALLING[index] * alpha
        if kind == "epsilon":
            return noise
        picture = (samples[index] - sigma * noise) / alpha
        return picture if kind == "sample" else (noise - sigma * samples[index]) / alpha

    shares = torch.tensor([share_after(*(noise[place] for noise in noises[:3])) for place in range(2)])
    expected = noises[2] + shares.view(2, 1, 1, 1) * (noises[2] - noises[1])
    for noisy in (False, True):
        controller = Controller(NoiseLevels(FALLING, kind), tolerance=1.0, noisy=noisy)
        for index in range(3):
            controller.observe(index, samples[index], predict(index, noises[index]))
        found = controller.forecast(3, samples[3])
        if not noisy:
            torch.testing.assert_close(found, predict(3, expected), atol=1e-4, rtol=1e-4)
        else:  # the picture is extrapolated; the fresh noise of the sample stays in the prediction
            moved = controller.forecast(3, samples[3] + 1)
            assert (moved - found).abs().max() > 0.01 or kind == "sample"


def test_a_forecast_leaves_out_half_of_an_error_that_alternates():
    """Noises 0, 1, 0, 1: forecasts of 1.7 and 0.3 are off by -1.7 and 0.7, so half of the last error goes."""
    controller = Controller(NoiseLevels(FALLING, "epsilon"), tolerance=1.0)
    zeros = torch.zeros(1, 1, 1, 1)
    for index, value in enumerate((0.0, 1.0, 0.0, 1.0)):
        controller.observe(index, zeros, torch.full((1, 1, 1, 1), value))
    assert controller.forecast(4, zeros).item() == pytest.approx(1 - 0.3 * 1 - 0.5 * 0.7, abs=1e-5)


@pytest.mark.parametrize(("angle", "share"), [(180, 0.5), (135, 0.5 * (2 * math.sqrt(0.5) - 1)), (120, 0), (60, 0)])
def test_the_share_that_is_left_out_follows_the_angle_between_errors(angle, share):
    controller = Controller(NoiseLevels(FALLING, "epsilon"), tolerance=1.0)
    turned = torch.tensor([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
    first = torch.tensor([1.0, 0.0])
    # Values whose forecast errors are `first`, then `turned`: steps are equally long in -log(sigma).
    values = [torch.zeros(2), torch.zeros(2), first, first + 0.9 * first + turned]
    zeros = torch.zeros(1, 1, 1, 2)
    for index, value in enumerate(values):
        controller.observe(index, zeros, value.view(1, 1, 1, 2))
    expected = values[3] + share_after(*values[1:]) * (values[3] - values[2]) - share * turned
    torch.testing.assert_close(controller.forecast(4, zeros).flatten(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("sign", "counts"), [(1, 1.0), (-1, 0.5)])
def test_half_of_an_error_that_alternates_counts(sign, counts):
    """A quarter of its power, so half of its size."""
    controller = Controller(NoiseLevels(FALLING, "epsilon"), tolerance=1.0)
    zeros = torch.zeros(1, 1, 1, 1)
    for index, value in enumerate((0.0, 0.0, 1.0, 1.9 + sign)):  # errors 1 and then `sign`
        controller.observe(index, zeros, torch.full((1, 1, 1, 1), value))
    controller.needs_full(4)
    sigma, after = FALLING[4:6]
    expected = (sigma - after) * (1 + sigma**2) ** -0.325 * counts
    controller.forecast(4, zeros)
    assert controller.cost == pytest.approx(expected, rel=1e-4)


def test_errors_alternate_after_guidance():
    """Both halves rise by 10 a step, but their guided difference alternates."""
    controller = Controller(NoiseLevels(FALLING, "epsilon"), tolerance=1.0)
    zeros = torch.zeros(2, 1, 1, 1)
    for index, value in enumerate((0.0, 1.0, 0.0, 1.0)):
        rising = 10.0 * index
        prediction = torch.tensor([rising - value, rising + value]).view(2, 1, 1, 1)
        controller.observe(index, zeros, prediction, guide=lambda error: error[1:] - error[:1])
    unconditional, conditional = controller.forecast(4, zeros).flatten().tolist()
    # Forecasts go back by 0.3 of the last change, 10 and 1, and leave out half of their last error: the first forecast
    # is 0.7 of the line, the second goes back by 0.3 of it.
    common = 30 - 0.3 * 10 - 0.5 * (30 - (20 - 0.3 * 10))
    apart = 1 - 0.3 * 1 - 0.5 * (1 - (0 + 0.3 * 1))
    assert (unconditional + conditional) / 2 == pytest.approx(common, abs=1e-4)
    assert (conditional - unconditional) / 2 == pytest.approx(apart, abs=1e-4)


def test_held_bytes_are_those_of_two_predictions_and_an_error():
    controller = Controller(NoiseLevels(FALLING, "epsilon"), tolerance=0.1)
    drive(controller, lambda index: torch.full((1, 1, 2, 2), float(index)))
    assert controller.nbytes == 3 * 4 * 4


def test_the_second_visit_of_a_noise_level_costs_nothing():
    sigmas = (8.0, 4.0, 4.0, 2.0, 2.0, 1.0, 1.0, 0.5, 0.5, 0.0)
    controller = Controller(NoiseLevels(sigmas, "epsilon"), tolerance=1e-6)
    full, _ = drive(controller, lambda index: torch.full((1, 1, 2, 2), math.log(sigmas[index]) ** 2))
    assert full == [0, 1, 2, 3, 5, 7]  # 0.5 for the second time is call 8, which is skipped too


def test_calls_of_a_level_that_is_visited_twice_count_by_half_of_the_steps_around_them():
    sigmas = (8.0, 4.0, 4.0, 2.0, 2.0, 1.0, 1.0, 0.0)
    assert moves_of(sigmas) == (2.0, 2.0, 1.0, 1.0, 0.5, 0.5, 0.5)
    assert moves_of((8.0, 4.0, 4.0, 2.0, 1.0, 0.0)) == (4.0, 0.0, 2.0, 1.0, 1.0)  # PNDM: twice at the start alone


def test_levels_that_rise_again_count_calls_as_time():
    sigmas = (8.0, 4.0, 2.0, 3.0, 1.0, 0.0)
    assert Controller(NoiseLevels(sigmas, "epsilon"), tolerance=0.1).times == (0.0, 1.0, 2.0, 3.0, 4.0)


@pytest.mark.parametrize(
    ("scheduler", "calls"),
    [
        (DDIMScheduler, 20),
        (PNDMScheduler, 21),
        (EulerDiscreteScheduler, 20),
        (HeunDiscreteScheduler, 39),
        (DPMSolverMultistepScheduler, 20),
        (UniPCMultistepScheduler, 20),
    ],
)
def test_levels_of_schedulers_fall_to_zero(scheduler, calls):
    made = scheduler(skip_prk_steps=True) if scheduler is PNDMScheduler else scheduler()
    made.set_timesteps(20)
    levels = noise_levels(made)
    assert len(levels.sigmas) == calls + 1
    assert levels.sigmas[-1] == 0
    assert all(later <= earlier for earlier, later in zip(levels.sigmas, levels.sigmas[1:], strict=False))


def test_what_cannot_be_read_is_said():
    class Mine:
        config = type("C", (), {"prediction_type": "flow"})
        timesteps = torch.arange(3)

    assert (
        noise_levels(Mine()) == "Mine predicts 'flow', which is none of epsilon, v_prediction, sample, flow_prediction"
    )


def count_calls(pipe):
    counter = []
    pipe.unet.conv_in.register_forward_hook(may_miss_steps(lambda *_: counter.append(1)))
    return counter


def run(pipe, steps=20, **kwargs):
    generator = torch.Generator().manual_seed(0)
    return pipe("a", num_inference_steps=steps, output_type="latent", generator=generator, **kwargs).images


@pytest.mark.parametrize(
    ("scheduler", "guidance"),
    [
        (DDIMScheduler, 1.0),
        (DDIMScheduler, 7.5),
        (DPMSolverMultistepScheduler, 7.5),
        (EulerDiscreteScheduler, 7.5),
        (HeunDiscreteScheduler, 7.5),
        (UniPCMultistepScheduler, 7.5),
    ],
)
def test_pipelines_skip_within_the_tolerance(scheduler, guidance):
    pipe = make_tiny_pipe()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    counter = count_calls(pipe)
    stock = run(pipe, guidance_scale=guidance)
    stock_calls = len(counter)
    counter.clear()
    with agentsd.apply(pipe, tolerance=0.05) as patch:
        found = run(pipe, guidance_scale=guidance)
        calls = len(counter)
        assert patch.report().skipping_problem is None
    assert calls < 0.75 * stock_calls
    assert (found - stock).norm() < 0.1 * stock.norm()


def test_equal_runs_under_a_tolerance_give_equal_pictures_and_remove_restores():
    pipe = make_tiny_pipe()
    stock = run(pipe)
    with agentsd.apply(pipe, tolerance=0.05):
        assert torch.equal(run(pipe), run(pipe))
    assert torch.equal(run(pipe), stock)


def test_fresh_noise_is_seen_by_the_forecast():
    pipe = make_tiny_pipe()
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    stock = run(pipe, steps=30)
    with agentsd.apply(pipe, tolerance=0.05):
        found = run(pipe, steps=30)
    assert (found - stock).norm() < 0.1 * stock.norm()


def test_short_runs_are_left_alone_and_the_report_says_so():
    pipe = make_tiny_pipe()
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    stock = run(pipe, steps=FEWEST_CALLS - 1)
    with agentsd.apply(pipe) as patch:
        assert torch.equal(run(pipe, steps=FEWEST_CALLS - 1), stock)
        assert f"skips none below {FEWEST_CALLS}" in patch.report().skipping_problem


def test_a_bare_unet_says_that_it_needs_the_pipeline():
    pipe = make_tiny_pipe()
    stock = run(pipe)
    with agentsd.apply(pipe.unet) as patch:
        assert torch.equal(run(pipe), stock)
        assert "call agentsd.apply on the pipeline" in patch.report().skipping_problem


def test_the_larger_error_of_a_batch_decides():
    levels = NoiseLevels(FALLING, "epsilon")
    smooth, rough = Controller(levels, tolerance=0.05), Controller(levels, tolerance=0.05)

    def truth(index, size):
        return torch.stack([torch.full((1, 2, 2), index * 0.01), torch.full((1, 2, 2), (index % 2) * size)])

    many, _ = drive(rough, lambda index: truth(index, 1.0), sample=torch.zeros(2, 1, 2, 2))
    few, _ = drive(smooth, lambda index: truth(index, 0.0), sample=torch.zeros(2, 1, 2, 2))
    assert len(few) < len(many)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Skipping(tolerance=0), r"tolerance=0 must lie in \(0, 1\]"),
        (lambda: Skipping(tolerance=0.1, depth=1), "depth=1 does not go with a tolerance"),
        (lambda: Skipping(max_skipped=3), "max_skipped=3 goes with a tolerance only"),
        (lambda: Schedule((Phase(1.0, None, 2),), Skipping(tolerance=0.1)), "does not go with every=2"),
        (lambda: agentsd.apply(make_tiny_pipe(), Schedule.constant(None, 3), tolerance=0.1), "full steps are fixed"),
        (lambda: agentsd.apply(make_tiny_pipe(), tolerance=2), r"tolerance=2 must lie in \(0, 1\]"),
    ],
)
def test_errors_name_the_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_schedules_with_a_tolerance_go_to_json_and_back():
    schedule = agentsd.preset("fast").with_tolerance(0.07)
    assert Schedule.from_json(schedule.to_json()) == schedule
    assert "tolerance" not in Schedule.constant(None, 3).to_json(), "older settings keep their text"
