"""`using`: another schedule for a block, a thread or a task, on one installed patch; runs in progress; log records."""

import asyncio
import copy
import logging
import pickle
import threading
import time
import warnings

import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, EulerAncestralDiscreteScheduler, StableDiffusionPipeline
from probe import COPY, MIXED, POOL
from tiny import draw, make_controlnet, make_tiny_pipe

import agentsd
from agentsd import Phase, Schedule, Skipping
from agentsd.unet.record import LastRun, RunRecord
from agentsd.unet.steps import Position

FAST, QUALITY = "extreme", Schedule.constant(None, 2, skipping=Skipping(depth=0, forecast=0.2))
STEPS = 14


def twin_of(pipe) -> StableDiffusionPipeline:
    """A pipeline of the same parts, with a scheduler and a tokenizer of its own: both keep state during a call."""
    own = dict(scheduler=DDIMScheduler.from_config(pipe.scheduler.config), tokenizer=copy.deepcopy(pipe.tokenizer))
    parts = {**pipe.components, **own}
    twin = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    twin.set_progress_bar_config(disable=True)
    return twin


@pytest.fixture
def pair():
    """Two pipelines on one UNet, the patch of both."""
    first = make_tiny_pipe()
    second = twin_of(first)
    patch = agentsd.apply(first)
    patch.attach(second)
    return first, second, patch


def used(patch, pipe, schedule, seed=0, **kwargs):
    with patch.using(schedule):
        return draw(pipe, seed=seed, steps=STEPS, **kwargs)


class TestThreads:
    def test_each_thread_has_its_own_schedule(self, pair):
        first, second, patch = pair
        work = [(first, FAST, 1), (second, QUALITY, 2)]
        wanted = [used(patch, *one) for one in work]
        assert not torch.equal(wanted[0], used(patch, first, QUALITY, 1))  # a wrong preset would show
        made, errors, barrier = {0: [], 1: []}, [], threading.Barrier(2)

        def run(place):
            try:
                for _ in range(3):
                    barrier.wait(60)
                    # The sleep hands the turn to the other thread in the middle of the run.
                    made[place].append(
                        used(patch, *work[place], callback_on_step_end=lambda *a: time.sleep(0.001) or {})
                    )
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(place,)) for place in made]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        for place, pictures in made.items():
            assert len(pictures) == 3
            assert all(torch.equal(picture, wanted[place]) for picture in pictures)

    def test_a_bare_thread_does_not_follow_the_block(self, pair):
        _, _, patch = pair
        found = []
        with patch.using(FAST):
            thread = threading.Thread(target=lambda: found.append(patch.schedule))
            thread.start()
            thread.join()
        assert found == [agentsd.preset("balanced")]


class TestTasks:
    def test_tasks_keep_their_schedules_also_in_worker_threads(self, pair):
        first, second, patch = pair
        wanted = [used(patch, first, FAST, 1), used(patch, second, QUALITY, 2)]

        async def job(pipe, schedule, seed):
            with patch.using(schedule) as block:
                await asyncio.sleep(0)
                image = await asyncio.to_thread(draw, pipe, seed=seed, steps=STEPS)
                return image, patch.schedule, block.last_run

        async def both():
            return await asyncio.gather(job(first, FAST, 1), job(second, QUALITY, 2))

        made = asyncio.run(both())
        assert all(torch.equal(one[0], picture) for one, picture in zip(made, wanted, strict=True))
        assert [one[1] for one in made] == [agentsd.preset(FAST), QUALITY]
        assert [one[2].full + one[2].skipped for one in made] == [STEPS, STEPS]
        assert made[0][2] != made[1][2]
        assert patch.schedule == agentsd.preset("balanced")

    def test_stock_follows_a_task_into_a_worker_thread(self, pair):
        first, _, patch = pair
        with patch.disabled():
            stock = draw(first)
            again = asyncio.run(asyncio.to_thread(draw, first))
        assert torch.equal(again, stock)
        assert not torch.equal(used(patch, first, POOL), draw(first, steps=STEPS))


class TestBlocks:
    @pytest.mark.parametrize(
        "schedule",
        ["extreme", "paper", "gentle", QUALITY, POOL, MIXED, Schedule.constant(None, guidance_interval=(0.3, 1.0))],
        ids=["extreme", "paper", "gentle", "fixed", "pooled", "mixed", "guidance"],
    )
    def test_a_block_draws_as_if_the_schedule_were_applied(self, schedule, tiny_pipe):
        with agentsd.apply(tiny_pipe, schedule):
            wanted = draw(tiny_pipe, steps=STEPS)
        for base in ("balanced", "paper"):
            with agentsd.apply(tiny_pipe, base) as patch:
                assert torch.equal(used(patch, tiny_pipe, schedule), wanted)

    def test_blocks_nest_and_end(self, pair):
        _, _, patch = pair
        with patch.using("fast"):
            with patch.using(tolerance=0.1), patch.using():
                assert patch.schedule.skipping.tolerance == 0.1
            with pytest.raises(ZeroDivisionError), patch.using("extreme"):
                1 / 0  # noqa: B018
            assert patch.schedule == agentsd.preset("fast")
        assert patch.schedule == agentsd.preset("balanced")

    def test_stock_holds_in_any_order(self, pair):
        first, _, patch = pair
        with patch.disabled():
            stock = draw(first, steps=STEPS)
            assert torch.equal(used(patch, first, "extreme"), stock)
        with patch.using("extreme"):
            fast = draw(first, steps=STEPS)
            with patch.disabled():
                assert torch.equal(draw(first, steps=STEPS), stock)
            assert torch.equal(draw(first, steps=STEPS), fast)
        assert not torch.equal(fast, stock)

    def test_a_schedule_that_changes_within_a_run_starts_anew(self, pair):
        first, _, patch = pair
        block = None

        def switch(pipe, step, *rest):
            nonlocal block
            if step == 6:
                block = patch.using(Schedule.constant(None, 20))
                block.__enter__()
            return {}

        draw(first, steps=STEPS, callback_on_step_end=switch)
        found = patch.report().last_run
        block.__exit__(None, None, None)
        # Of steps 7 to 13 the first, which has no feature under the new schedule, and the last.
        assert found == LastRun(full=2, skipped=5, stock=2, forced=(("no earlier step has left a feature", 1),))

    def test_a_copy_made_in_a_block_keeps_the_schedule_of_the_patch(self, pair):
        first, _, patch = pair
        with patch.using("extreme"):
            twins = (copy.deepcopy(first.unet), pickle.loads(pickle.dumps(first.unet)))
            assert [agentsd.report(twin).schedule for twin in twins] == [agentsd.preset("balanced")] * 2

    def test_what_a_block_came_to_stays_out_of_the_patch(self, pair):
        first, _, patch = pair
        with patch.using(Schedule.constant(None, 2)) as block:
            assert block.last_run is None
            draw(first, steps=4)
            assert patch.report().last_run == block.last_run
        assert block.last_run == LastRun(full=3, skipped=1, stock=3, forced=())
        assert block.report().schedule == block.schedule == Schedule.constant(None, 2)
        assert patch.report().last_run is None
        first.unet.train()
        with patch.using(Schedule.constant(None, 2)) as block, pytest.warns(UserWarning, match="does not skip steps"):
            draw_with_gradients(first)
        assert "trained" in block.report().skipping_problem
        assert patch.report().skipping_problem is None


def draw_with_gradients(pipe):
    sample, text = torch.randn(1, 4, 16, 16), torch.randn(1, 3, 32)
    for t in torch.tensor([900, 700, 500, 300]):
        pipe.unet(sample, t, text)


class TestImpossible:
    def test_a_depth_that_nobody_keeps(self, pair):
        _, _, patch = pair
        deep = Schedule.constant(None, 2, skipping=COPY)
        with pytest.raises(ValueError, match=r"has depth=1, and this patch caches the feature of none: .* tolerance"):
            patch.using(deep).__enter__()

    def test_the_depth_that_the_patch_keeps(self, tiny_pipe):
        deep = Schedule.constant(None, 2, skipping=COPY)
        with agentsd.apply(tiny_pipe, deep):
            wanted = draw(tiny_pipe, steps=6)
        with agentsd.apply(tiny_pipe, Schedule.constant(None, 4, skipping=COPY)) as patch:
            with patch.using(deep):
                assert torch.equal(draw(tiny_pipe, steps=6), wanted)
            with pytest.raises(ValueError, match=r"has depth=2, and this patch caches the feature of depth 1"):
                patch.using(Schedule.constant(None, 2, skipping=Skipping(depth=2))).__enter__()

    @pytest.mark.filterwarnings("ignore:agentsd does not skip")
    def test_noise_needs_a_layer_that_nobody_keeps(self, pair):
        first, _, patch = pair
        first.scheduler = EulerAncestralDiscreteScheduler.from_config(first.scheduler.config)
        with patch.using(Schedule.constant(None, 2)) as block:
            draw(first, steps=4)
        assert block.last_run.skipped == 0
        assert "adds fresh noise" in block.report().skipping_problem

    def test_a_plan(self, pair):
        _, _, patch = pair
        plan = agentsd.Plan(agentsd.preset("fast"), (16, 16), 2, 1.0, None, (), "cpu", "torch.float32", "")
        with pytest.raises(ValueError, match=r"schedule is a Plan, .* use plan\.schedule here"):
            patch.using(plan).__enter__()
        with patch.using(plan.schedule):
            pass

    def test_wrong_arguments(self, pair):
        _, _, patch = pair
        with pytest.raises(ValueError, match=r"preset 'fsat' is unknown\. Did you mean 'fast'\?"):
            patch.using("fsat").__enter__()
        with pytest.raises(ValueError, match=r"tolerance=2 must lie in \(0, 1\]"):
            patch.using(tolerance=2).__enter__()
        with pytest.raises(ValueError, match=r"tolerance=0\.1 does not go with schedule=.*whose full steps are fixed"):
            patch.using(QUALITY, tolerance=0.1).__enter__()

    def test_a_denoiser_that_skips_no_steps(self):
        patch = agentsd.apply(make_controlnet(), "paper")
        with pytest.raises(ValueError, match=rf"{ControlNetModel.__name__} is a ControlNet, which predicts no noise"):
            patch.using(Schedule((Phase(1.0, None, 2),))).__enter__()

    def test_a_patch_that_is_not_in_force(self, pair):
        first, _, patch = pair
        agentsd.apply(first, "fast")
        with pytest.raises(ValueError, match=r"not in force \(replaced by a later agentsd\.apply\); take the one"):
            patch.using("fast").__enter__()


class TestRunsInProgress:
    @pytest.mark.parametrize("deed", ["apply", "remove", "handle"])
    def test_a_patch_that_goes_during_a_run_of_another_thread_is_a_warning(self, deed, pair):
        first, second, patch = pair
        inside, go_on = threading.Event(), threading.Event()

        def wait(pipe, step, *rest):
            if step == 2:
                inside.set()
                go_on.wait(60)
            return {}

        thread = threading.Thread(target=draw, args=(second,), kwargs=dict(callback_on_step_end=wait), name="worker-7")
        thread.start()
        assert inside.wait(60)
        deeds = dict(
            apply=lambda: agentsd.apply(first, "fast"), remove=lambda: agentsd.remove(first), handle=patch.remove
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            deeds[deed]()
        go_on.set()
        thread.join()
        (warning,) = [one for one in caught if issubclass(one.category, RuntimeWarning)]
        assert "the run in thread 'worker-7' is at step 3 of 5" in str(warning.message)
        assert "patch.using" in str(warning.message)
        assert warning.filename == __file__

    def test_also_from_a_callback(self, pair):
        first, _, patch = pair
        with pytest.warns(RuntimeWarning, match="takes off the patch of UNet2DConditionModel while it is in use"):
            draw(first, callback_on_step_end=lambda *_: patch.remove() or {})

    def test_not_after_a_run_that_ended_or_failed(self, pair):
        first, second, _ = pair
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            draw(first)
            with pytest.raises(ZeroDivisionError):
                draw(first, callback_on_step_end=lambda *_: 1 / 0)
            timesteps = torch.tensor([900, 700, 500, 300])
            first.unet(torch.randn(1, 4, 16, 16), timesteps[0], torch.randn(1, 3, 32))
            with pytest.raises(ZeroDivisionError), agentsd.apply(first):
                draw(second, callback_on_step_end=lambda *_: 1 / 0)
            agentsd.apply(first).remove()

    def test_two_threads_do_not_mix_their_records(self):
        record = RunRecord()

        def run():
            for index in range(2, 4):
                record.note(Position(index, 4, 1), share=0.0, stock=False)

        for index in range(4):
            record.note(Position(index, 4, 1), share=1.0, stock=False)
            if index == 1:
                thread = threading.Thread(target=run)
                thread.start()
                thread.join()
        assert record.last_run == LastRun(full=4, skipped=0, stock=0, forced=())


class TestLog:
    def test_one_record_for_each_finished_run(self, pair, caplog):
        first, _, patch = pair
        with caplog.at_level(logging.INFO, "agentsd"):
            draw(first, steps=STEPS)
            with patch.using(Schedule.constant(None, 2)):
                draw(first, steps=4)
            with pytest.raises(ZeroDivisionError):
                draw(first, callback_on_step_end=lambda *_: 1 / 0)
            with patch.using("fast"):
                draw(first, steps=4)  # too few to skip any: each is forced full
        records = [one for one in caplog.records if one.name == "agentsd"]
        assert {one.levelname for one in records} == {"INFO"}
        assert [one.steps for one in records] == [STEPS, 4, 4]
        assert [one.schedule for one in records] == ["balanced", Schedule.constant(None, 2).to_json(), "fast"]
        assert [one.tolerance for one in records] == [0.03, None, 0.06]
        assert (records[1].full, records[1].skipped, records[1].forced) == (3, 1, 0)
        assert records[2].forced == 4
        assert records[2].getMessage() == "run of 4 steps: 4 full, 0 skipped, 4 forced full"

    def test_a_step_of_several_calls_ends_with_the_last(self):
        record = RunRecord()
        for index in range(2):
            for call in range(3):
                record.note(Position(index, 2, 1), share=1.0, stock=False)
                told = record.finished(Position(index, 2, 1))
                assert (told is not None) == (index == 1 and call == 2)
        assert record.finished(Position(1, 2, 1)) is None
