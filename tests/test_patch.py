"""The handle: disabled, reset, a UNet that is out of use, what the last run did, and whose line warnings name."""

import gc
import inspect
import pickle
import warnings
from dataclasses import dataclass

import pytest
import torch
from diffusers import LCMScheduler
from probe import AGENTS, COPY, MERGE, MIXED, POOL, assert_same, snapshot, unet_inputs
from tiny import draw, make_tiny_pipe, make_tiny_unet

import agentsd
from agentsd import Phase, SampledKeys, Schedule
from agentsd.unet.record import LastRun, RunRecord
from agentsd.unet.steps import Position


class TestDisabled:
    @pytest.fixture
    def stock(self):
        return draw(make_tiny_pipe())

    def test_one_call_runs_stock(self, tiny_pipe, stock):
        patch = agentsd.apply(tiny_pipe, MIXED)
        patched = draw(tiny_pipe)
        with patch.disabled():
            assert torch.equal(draw(tiny_pipe), stock)
        assert torch.equal(draw(tiny_pipe), patched)
        assert not torch.equal(patched, stock)

    def test_also_after_another_apply(self, tiny_pipe, stock):
        patch = agentsd.apply(tiny_pipe, MIXED)
        agentsd.apply(tiny_pipe, MERGE)
        with patch.disabled():
            assert torch.equal(draw(tiny_pipe), stock)

    def test_a_failing_call_does_not_leave_it_off(self, tiny_pipe):
        patch = agentsd.apply(tiny_pipe, MIXED)
        patched = draw(tiny_pipe)
        with pytest.raises(ZeroDivisionError), patch.disabled():
            draw(tiny_pipe, callback_on_step_end=lambda *_: 1 / 0)
        assert torch.equal(draw(tiny_pipe), patched)


class TestReset:
    def test_pictures_stay_and_memory_is_free(self, tiny_unet):
        patch = agentsd.apply(tiny_unet, Schedule.constant(AGENTS, 4))
        sample, text = unet_inputs()
        timesteps = torch.tensor([900, 700, 500, 300])
        with torch.no_grad():
            first = [tiny_unet(sample, t, text).sample for t in timesteps]
            tiny_unet(sample, torch.tensor([900, 700])[0], text)  # a run that is not finished
        assert tiny_unet._agentsd.choices._cache
        patch.reset()
        gc.collect()
        assert not tiny_unet._agentsd.choices._cache
        assert patch.report().last_run is None
        assert getattr(tiny_unet._agentsd.local, "runs", []) == []
        with torch.no_grad():
            again = [tiny_unet(sample, t, text).sample for t in timesteps.clone()]
        assert all(map(torch.equal, first, again))
        assert patch.active

    def test_a_disabled_patch_stays_disabled(self, tiny_pipe):
        stock = draw(tiny_pipe)
        patch = agentsd.apply(tiny_pipe, MIXED)
        with patch.disabled():
            patch.reset()
            assert torch.equal(draw(tiny_pipe), stock)
        assert not torch.equal(draw(tiny_pipe), stock)


class TestAnotherUNet:
    def test_the_patch_is_not_in_force_and_says_so(self, tiny_pipe):
        patch = agentsd.apply(tiny_pipe, MIXED)
        first, tiny_pipe.unet = tiny_pipe.unet, make_tiny_unet(seed=1)
        assert not patch.active
        report = patch.report()
        assert not report.active
        assert report.inactive_reason == "StableDiffusionPipeline runs another denoiser now; call agentsd.apply again"
        assert "NOT IN FORCE: StableDiffusionPipeline runs another denoiser now" in str(report)
        assert "runs another denoiser now" in repr(patch)
        with pytest.raises(ValueError, match=r"runs another UNet2DConditionModel than the one that was patched"):
            agentsd.report(tiny_pipe)
        tiny_pipe.unet = first
        assert patch.active

    def test_remove_restores_the_first_too(self, tiny_pipe):
        first, before = tiny_pipe.unet, snapshot(tiny_pipe.unet)
        agentsd.apply(tiny_pipe, MIXED)
        tiny_pipe.unet = make_tiny_unet(seed=1)
        second = snapshot(tiny_pipe.unet)
        agentsd.apply(tiny_pipe, MIXED)
        agentsd.remove(tiny_pipe)
        assert_same(before, snapshot(first))
        assert_same(second, snapshot(tiny_pipe.unet))

    def test_remove_restores_it_when_there_is_none_now(self, tiny_pipe):
        first, before = tiny_pipe.unet, snapshot(tiny_pipe.unet)
        agentsd.apply(tiny_pipe, MIXED)
        tiny_pipe.unet = None
        agentsd.remove(tiny_pipe)
        assert_same(before, snapshot(first))

    def test_a_handle_restores_its_own(self, tiny_pipe):
        first, before = tiny_pipe.unet, snapshot(tiny_pipe.unet)
        patch = agentsd.apply(tiny_pipe, MIXED)
        tiny_pipe.unet = make_tiny_unet(seed=1)
        patch.remove()
        assert_same(before, snapshot(first))

    def test_another_pipeline_on_the_first_keeps_it_in_force(self, tiny_pipe):
        first, other = tiny_pipe.unet, make_tiny_pipe()
        other.unet = first
        agentsd.apply(tiny_pipe, MIXED)
        patch = agentsd.apply(other, MIXED)
        tiny_pipe.unet = make_tiny_unet(seed=1)
        assert patch.active
        agentsd.apply(other, POOL)  # the first pipeline has left
        agentsd.remove(tiny_pipe)
        assert hasattr(first, "_agentsd")

    def test_a_compiled_or_wrapped_unet_is_in_use(self, tiny_pipe):
        patch = agentsd.apply(tiny_pipe, MIXED)
        unet = tiny_pipe.unet
        tiny_pipe.unet = torch.nn.Sequential(unet)
        assert patch.active
        tiny_pipe.unet = torch.compile(unet)
        assert patch.active

    def test_a_pipeline_that_is_gone_does_not_count(self):
        pipe = make_tiny_pipe()
        unet, patch = pipe.unet, agentsd.apply(pipe, MIXED)
        del pipe
        gc.collect()
        assert patch.active
        assert unet is patch._denoiser


@dataclass
class Unhashable:
    unet: object
    scheduler: object


class WithoutWeakReferences:
    __slots__ = ("scheduler", "unet")

    def __init__(self, unet, scheduler):
        self.unet, self.scheduler = unet, scheduler


@pytest.mark.parametrize("kind", [Unhashable, WithoutWeakReferences])
def test_what_cannot_be_remembered_changes_nothing(tiny_pipe, kind):
    target = kind(tiny_pipe.unet, tiny_pipe.scheduler)
    stock = snapshot(tiny_pipe.unet)
    with pytest.raises(TypeError, match=rf"target={kind.__name__} cannot be remembered .* give its denoiser alone"):
        agentsd.apply(target)
    assert_same(stock, snapshot(tiny_pipe.unet))
    patch = agentsd.apply(tiny_pipe)
    with pytest.raises(TypeError, match="target="):
        agentsd.apply(target)
    with pytest.raises(TypeError, match=rf"pipe={kind.__name__} cannot be remembered"):
        patch.attach(target)
    assert patch.active


class TestLastRun:
    def test_full_and_skipped_steps(self, tiny_pipe):
        schedule = Schedule((Phase(0.25, SampledKeys(stride=2, min_keys=1), 5), Phase(1.0, SampledKeys(stride=2), 2)))
        patch = agentsd.apply(tiny_pipe, schedule)
        assert patch.report().last_run is None
        draw(tiny_pipe, steps=20)
        assert patch.report().last_run == LastRun(full=9, skipped=11, stock=0, forced=())
        assert "last run: 20 steps: 9 full, 11 skipped" in str(patch.report())
        draw(tiny_pipe, steps=5)
        found = patch.report().last_run
        assert found.full + found.skipped == 5

    def test_stock_steps(self, tiny_pipe):
        patch = agentsd.apply(tiny_pipe, MIXED)
        draw(tiny_pipe, steps=10)
        assert patch.report().last_run == LastRun(full=10, skipped=0, stock=4, forced=())
        with patch.disabled():
            draw(tiny_pipe, steps=10)
        assert patch.report().last_run == LastRun(full=10, skipped=0, stock=10, forced=())

    @pytest.mark.filterwarnings("ignore:agentsd cannot")
    def test_steps_forced_full_say_why(self, tiny_pipe):
        patch = agentsd.apply(tiny_pipe, Schedule.constant(POOL, 2, skipping=COPY))
        sample, text = unet_inputs()
        sample.requires_grad_()
        for t in torch.tensor([900, 700, 500, 300]):
            tiny_pipe.unet(sample, t, text)
        found = patch.report().last_run
        assert (found.full, found.skipped) == (4, 0)
        assert [number for _, number in found.forced] == [2]
        assert "gradient" in found.forced[0][0]
        assert "2 forced full: " in str(found)

    def test_several_calls_of_a_step_are_one(self):
        record = RunRecord()
        for index in range(4):
            for _ in range(3):
                record.note(Position(index, 4, 1), share=1.0 - index % 2, stock=False)
        assert record.last_run == LastRun(full=2, skipped=2, stock=0, forced=())

    def test_a_record_does_not_grow_for_ever(self):
        record = RunRecord()
        for _ in range(10000):
            record.note(None, share=1.0, stock=True)
        assert record.last_run.full <= 4096

    def test_a_copy_has_a_record_of_its_own(self, tiny_unet):
        patch = agentsd.apply(tiny_unet, MIXED)
        tiny_unet(*unet_inputs()[:1], 900, unet_inputs()[1])
        twin = pickle.loads(pickle.dumps(tiny_unet))
        assert agentsd.report(twin).last_run is None
        assert patch.report().last_run is not None


class TestWarningsNameTheUsersLine:
    def test_of_a_call(self, tiny_pipe):
        tiny_pipe.scheduler = LCMScheduler.from_config(tiny_pipe.scheduler.config)
        agentsd.apply(tiny_pipe, Schedule.constant(None, 2))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            line = inspect.currentframe().f_lineno + 1
            tiny_pipe("a ring", num_inference_steps=4, output_type="latent")
        ours = [each for each in caught if "agentsd" in str(each.message)]
        assert ours
        assert {(each.filename, each.lineno) for each in ours} == {(__file__, line)}

    def test_of_a_plan(self, tiny_pipe, tmp_path, monkeypatch):
        monkeypatch.setenv("AGENTSD_CACHE", str(tmp_path / "file" / "folder"))
        (tmp_path / "file").write_text("")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            agentsd.plan(tiny_pipe, POOL)
        assert [each.filename for each in caught if "AGENTSD_CACHE" in str(each.message)] == [__file__]
