"""Faults that were silent once: each test failed before its fault was mended."""

import copy
import importlib.util
import pkgutil
import threading
import types
import warnings
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
)
from probe import MERGE, calm, may_miss_steps, unet_inputs
from tiny import draw, make_tiny_pipe, make_tiny_unet
from torch.nn.attention import SDPBackend, sdpa_kernel

import agentsd
import agentsd.unet.choices
import agentsd.unet.runs
from agentsd import Phase, SampledKeys, Schedule, Skipping
from agentsd.attention.tokens import cell_pattern, rank_tokens
from agentsd.unet.callers import calling_eta
from agentsd.unet.foreign import ForeignCode
from agentsd.unet.guidance import conditional_half
from agentsd.unet.noise import _CALM, _NOISY, noise_source


def skipping(every=3, depth=0, **more):
    return Schedule((Phase(1.0, None, every),), skipping=Skipping(depth=depth, forecast=0.2, last_full=False), **more)


def loop(unet, timesteps, sample, text, **more):
    return [unet(sample, t, text, **more).sample for t in timesteps]


@pytest.fixture
def unet():
    return make_tiny_unet().requires_grad_(False)


@pytest.fixture
def frozen_pipe(unet):
    pipe = make_tiny_pipe()
    pipe.unet.requires_grad_(False)
    return pipe


class TestGradients:
    @pytest.mark.parametrize("depth", [0, 1])
    def test_one_trainable_weight_makes_every_step_full(self, depth, unet):
        scheduler, (sample, text) = calm(900, 700, 500, 300), unet_inputs()
        unet.conv_out.bias.requires_grad_()
        with agentsd.apply(unet, skipping(depth=depth)) as patch:
            with pytest.warns(UserWarning, match="gradients are taken through the UNet"):
                outputs = loop(unet, scheduler.timesteps, sample, text)
            assert all(output.requires_grad for output in outputs)
            assert "gradients are taken through the UNet" in str(patch.report())
            with torch.no_grad():
                loop(unet, calm(900, 700, 500).timesteps, sample, text)

    def test_a_frozen_unet_skips_with_gradients_enabled(self, unet):
        scheduler, (sample, text) = calm(900, 700, 500, 300), unet_inputs()
        agentsd.apply(unet, skipping())
        loop(unet, scheduler.timesteps, sample, text)
        assert agentsd.report(unet).last_run.skipped == 2

    def test_tensors_nested_in_added_conditions_count(self):
        unet = make_tiny_unet(
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=32,
        ).requires_grad_(False)
        scheduler, (sample, text) = calm(900, 700, 500, 300), unet_inputs()
        pooled = torch.randn(2, 8, requires_grad=True)
        added = {"text_embeds": pooled, "time_ids": torch.ones(2, 6)}
        agentsd.apply(unet, skipping())
        outputs = loop(unet, scheduler.timesteps, sample, text, added_cond_kwargs=added)
        assert all(output.requires_grad for output in outputs)


class TestMemory:
    @pytest.mark.parametrize("fresh_context", [False, True])
    def test_calls_on_one_timestep_are_bounded(self, fresh_context, unet, monkeypatch):
        scheduler, (sample, text) = calm(900, 700, 500), unet_inputs()
        feature = 4 * sample.numel()
        monkeypatch.setattr(agentsd.unet.runs, "MOST_BYTES", 10 * feature)
        monkeypatch.setattr(agentsd.unet.runs, "MOST_CALLS", 16)
        agentsd.apply(unet, skipping())
        with torch.no_grad():
            for _ in range(20):
                unet(sample, scheduler.timesteps[0], text.clone() if fresh_context else text)
        assert unet._agentsd.runs.nbytes <= (10 * feature if fresh_context else feature)

    def test_walking_the_timesteps_backwards_keeps_one(self, unet):
        scheduler, (sample, text) = calm(*range(900, 100, -40)), unet_inputs()
        agentsd.apply(unet, skipping())
        with torch.no_grad():
            loop(unet, [scheduler.timesteps[19 - i] for i in range(20)], sample, text)
        assert 0 < unet._agentsd.runs.nbytes <= 4 * sample.numel()

    def test_an_interrupted_run_of_another_thread_is_dropped(self, unet, monkeypatch):
        monkeypatch.setattr(agentsd.unet.runs, "IDLE_SECONDS", 0.0)
        scheduler, (sample, text) = calm(900, 700, 500, 300), unet_inputs()
        agentsd.apply(unet, skipping())
        done, end = threading.Event(), threading.Event()

        def work():
            with torch.no_grad():
                unet(sample, scheduler.timesteps[0], text)
            done.set()
            end.wait()

        thread = threading.Thread(target=work)
        thread.start()
        done.wait()
        assert unet._agentsd.runs.nbytes == 4 * sample.numel()
        other = calm(900, 500)
        with torch.no_grad():
            loop(unet, other.timesteps, sample, text)
        assert unet._agentsd.runs.nbytes == 0
        end.set()
        thread.join()

    def test_choices_of_a_long_run_are_found_again_and_go_with_the_patch(self, unet, monkeypatch):
        monkeypatch.setattr(agentsd.unet.choices, "_LEAST", 8)
        sample, text = unet_inputs()
        patch = agentsd.apply(unet, SampledKeys(stride=4))
        choices = unet._agentsd.choices
        made = []
        generator = choices._generator
        choices._generator = lambda *words: made.append(words) or generator(*words)
        for _ in range(2):
            scheduler = calm(*range(999, 979, -1))
            with torch.no_grad():
                loop(unet, scheduler.timesteps, sample[:1], text[:1])
            if not _:
                first = len(made)
        assert len(made) == first
        patch.remove()
        assert not choices._cache


class Ancestral(EulerAncestralDiscreteScheduler):
    """A subclass of a noisy scheduler."""


class Own(EulerDiscreteScheduler):
    """A step of its own."""

    def step(self, *args, **kwargs):
        return super().step(*args, **kwargs)


class Renamed(EulerDiscreteScheduler):
    """Nothing of its own."""


class TestNoise:
    def test_the_lists_name_schedulers_of_diffusers(self):
        files = [path.read_text(encoding="utf-8") for path in Path(diffusers.schedulers.__path__[0]).glob("*.py")]
        for name in _CALM | _NOISY:
            (source,) = [text for text in files if f"class {name}(" in text]
            assert name in _CALM or "randn" in source or "noise_sampler" in source, name

    @pytest.mark.parametrize(("kind", "noisy"), [(Ancestral, True), (Own, True), (Renamed, False)])
    def test_subclasses(self, kind, noisy):
        assert (noise_source(kind()) is not None) == noisy
        assert noise_source(object()) is not None
        assert noise_source(None) is not None

    def test_another_pipeline_on_the_same_unet_is_not_taken_for_the_first(self, frozen_pipe):
        other = StableDiffusionPipeline(
            **{**frozen_pipe.components, "scheduler": EulerAncestralDiscreteScheduler()}, requires_safety_checker=False
        )
        other.set_progress_bar_config(disable=True)
        patch = agentsd.apply(frozen_pipe, skipping())
        with pytest.warns(UserWarning, match="EulerAncestralDiscreteScheduler adds fresh noise"):
            draw(other, steps=6)
        assert "EulerAncestral" in patch.report().noise_problem

    def test_eta_is_seen(self, frozen_pipe):
        patch = agentsd.apply(frozen_pipe, skipping())
        draw(frozen_pipe, steps=6)
        assert patch.report().noise_problem is None
        with pytest.warns(UserWarning, match=r"DDIMScheduler adds fresh noise at every step \(eta=1\)"):
            draw(frozen_pipe, steps=6, eta=1.0)
        assert "eta=1" in patch.report().noise_problem

    def test_eta_of_ones_own_loop(self):
        scheduler, eta = calm(900, 500), 0.5
        assert calling_eta(scheduler.timesteps[0], scheduler) == eta

    def test_timesteps_of_no_scheduler_count_as_noisy(self, unet):
        sample, text = unet_inputs()
        agentsd.apply(unet, skipping())
        with torch.no_grad(), pytest.warns(UserWarning, match="no scheduler is known for these timesteps"):
            loop(unet, torch.tensor([900, 600, 300]), sample, text)


class TestTimesteps:
    def test_values_in_no_order_are_read_by_value(self, unet):
        sample, text = unet_inputs()
        schedule = Schedule((Phase(0.5, SampledKeys(stride=4)), Phase(1.0, MERGE)))
        agentsd.apply(unet, schedule)
        seen = []
        for t in torch.tensor([10, 990, 500, 20]):
            with torch.no_grad():
                unet(sample, t, text)
            seen.append(type(unet._agentsd.slot.latest.levels[0].settings).__name__)
        assert seen == ["MergedTokens", "SampledKeys", "SampledKeys", "MergedTokens"]

    def test_a_slice_of_a_longer_tensor_is_read_by_value(self, unet):
        sample, text = unet_inputs()
        agentsd.apply(unet, Schedule((Phase(0.5, SampledKeys(stride=4)), Phase(1.0, MERGE))))
        with torch.no_grad():
            unet(sample, torch.arange(990, -1, -10)[80], text)
        assert type(unet._agentsd.slot.latest.levels[0].settings).__name__ == "MergedTokens"


@pytest.mark.parametrize("preset", ["gentle", "balanced", "paper"])
def test_torch_func_works_on_a_patched_unet(preset, unet):
    scheduler, (sample, text) = calm(900, 700, 500, 300), unet_inputs(1)
    t = scheduler.timesteps[1]
    # The CPU's fused kernel has no forward derivative, in stock neither.
    with agentsd.apply(unet, preset), sdpa_kernel(SDPBackend.MATH):
        unet(sample, scheduler.timesteps[0], text)
        value, tangent = torch.func.jvp(lambda x: unet(x, t, text).sample, (sample,), (sample,))
        assert tangent.abs().sum() > 0
        per_sample = torch.func.vmap(lambda x: unet(x[None], t, text).sample[0])(torch.cat([sample, sample]))
        torch.testing.assert_close(per_sample[0], value[0], atol=1e-4, rtol=1e-4)
        plain = unet(sample, calm(900, 700, 500, 300).timesteps[0], text).sample  # nothing cached is a dead wrapper
        assert torch.isfinite(plain).all()


def test_counts_do_not_follow_the_default_dtype():
    tokens = torch.ones(1, 1024, 4)
    ranking = rank_tokens(torch.randn(1, 1024, 4), cell_pattern(32, 32, 4))
    torch.set_default_dtype(torch.bfloat16)
    try:
        merged = ranking.cut(900).merge(tokens)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(merged, torch.ones_like(merged), rtol=0, atol=1e-6)


def test_no_module_shares_the_name_of_a_public_function():
    for name, value in vars(agentsd).items():
        if isinstance(value, types.FunctionType | type):
            assert importlib.util.find_spec(f"agentsd.{name}") is None, name
    assert len(list(pkgutil.iter_modules(agentsd.__path__))) > 5


@pytest.mark.parametrize("schedule", ["balanced", "gentle"])
def test_a_shallow_copy_runs_its_own_modules(schedule, unet):
    scheduler, (sample, text) = calm(900, 700, 500), unet_inputs()
    agentsd.apply(unet, schedule)
    twin = copy.copy(unet)
    twin._modules = dict(unet._modules)
    twin.conv_out = torch.nn.Conv2d(16, 4, 3, padding=1).requires_grad_(False)
    torch.nn.init.zeros_(twin.conv_out.weight)
    torch.nn.init.zeros_(twin.conv_out.bias)
    assert all(not output.any() for output in loop(twin, scheduler.timesteps, sample, text))


def test_guidance_cuts_what_is_per_sample_alone():
    masks, boxes = torch.zeros(2, 3), torch.zeros(2, 5)
    half = conditional_half(
        {
            "sample": torch.zeros(2, 4, 8, 8),
            "cross_attention_kwargs": {"ip_adapter_masks": masks, "gligen": {"b": boxes}},
        }
    )
    assert half["cross_attention_kwargs"]["ip_adapter_masks"].shape == (2, 3)
    assert half["cross_attention_kwargs"]["gligen"]["b"].shape == (1, 5)


class TestConditions:
    def run(self, unet, arguments):
        """Return the outputs of a run, patched and stock, whose call `i` gets `arguments(i)`."""
        sample = unet_inputs()[0]
        found = []
        for schedule in (skipping(2), None):
            scheduler = calm(900, 800, 700, 600, 500, 400)
            if schedule is not None:
                agentsd.apply(unet, schedule)
            with torch.no_grad():
                outputs = [unet(sample, t, **arguments(i)).sample for i, t in enumerate(scheduler.timesteps)]
            found.append(torch.stack(outputs))
            agentsd.remove(unet)
        return found

    def test_another_prompt_at_every_step(self, unet):
        prompts = [unet_inputs(seed=seed)[1] for seed in (1, 2)]
        with pytest.warns(UserWarning, match="encoder_hidden_states changed within the run"):
            patched, stock = self.run(unet, lambda i: {"encoder_hidden_states": prompts[i % 2]})
        assert torch.equal(patched, stock)

    def test_equal_prompts_in_new_memory_are_no_change(self, unet):
        text = unet_inputs()[1]
        patched, stock = self.run(unet, lambda i: {"encoder_hidden_states": text.clone()})
        assert torch.equal(patched[0], stock[0])
        assert not torch.equal(patched[1], stock[1])

    def test_a_prompt_changed_in_place(self, unet):
        text = unet_inputs()[1].clone()

        def arguments(i):
            if i == 3:
                text.mul_(-1)
            return {"encoder_hidden_states": text}

        with pytest.warns(UserWarning, match="encoder_hidden_states changed"):
            patched, _ = self.run(unet, arguments)
        text = unet_inputs()[1].clone()
        plain = unet(unet_inputs()[0], 600, -text).sample
        assert torch.equal(patched[3], plain)

    @pytest.mark.parametrize("changes", [False, True])
    def test_arrays(self, unet, changes):
        text, array = unet_inputs()[1], np.arange(3.0)

        def arguments(i):
            if changes:
                array[0] = i  # in place
            return {"encoder_hidden_states": text, "cross_attention_kwargs": {"note": array}}

        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always", UserWarning)
            patched, stock = self.run(unet, arguments)
        assert torch.equal(patched, stock) == changes
        assert any("cross_attention_kwargs.note changed within the run" in str(one.message) for one in seen) == changes

    def test_lora_scale(self, unet):
        peft = pytest.importorskip("peft")
        unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
        unet.requires_grad_(False)
        text = unet_inputs()[1]
        with pytest.warns(UserWarning, match=r"cross_attention_kwargs\.scale changed"):
            patched, stock = self.run(
                unet, lambda i: {"encoder_hidden_states": text, "cross_attention_kwargs": {"scale": float(i % 2)}}
            )
        assert torch.equal(patched, stock)

    def test_adapter_weights_set_by_a_callback(self, unet):
        peft = pytest.importorskip("peft")
        unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "one")
        unet.requires_grad_(False)
        text = unet_inputs()[1]

        def arguments(i):
            unet.set_adapters("one", weights=float(i % 2))
            return {"encoder_hidden_states": text}

        with pytest.warns(UserWarning, match="adapter scales changed"):
            patched, stock = self.run(unet, arguments)
        assert torch.equal(patched, stock)

    @pytest.mark.parametrize("ends", ["absent", "zero"])
    def test_controlnet_residuals_that_end(self, ends, unet):
        text = unet_inputs()[1]
        shapes = [(16, 16, 16)] * 2 + [(16, 8, 8)] + [(32, 8, 8)] + [(32, 4, 4)] * 2
        down = [torch.randn(2, *shape) for shape in shapes]
        middle = torch.randn(2, 32, 4, 4)

        def arguments(i):
            scale = 1.0 if i < 3 else 0.0
            if not scale and ends == "absent":
                return {"encoder_hidden_states": text}
            return {
                "encoder_hidden_states": text,
                "down_block_additional_residuals": [one * scale for one in down],
                "mid_block_additional_residual": middle * scale * (1 + i / 10),
            }

        with pytest.warns(UserWarning, match="mid_block_additional_residual changed"):
            patched, stock = self.run(unet, arguments)
        assert not torch.equal(patched[1], stock[1])  # a ControlNet that goes on is no change
        assert torch.equal(patched[3], stock[3])


class TestForeignCode:
    """Hooks and forwards that other code puts on inner modules read the layers at every step."""

    @staticmethod
    def put(unet, how, reader):
        block = unet.up_blocks[0]
        if how == "hook":
            block.register_forward_hook(reader)
        elif how == "pre-hook":
            block.register_forward_pre_hook(reader)
        else:
            forward = block.forward
            block.forward = lambda *args, **kwargs: reader() or forward(*args, **kwargs)

    @pytest.mark.parametrize("how", ["hook", "pre-hook", "forward"])
    @pytest.mark.parametrize("depth", [0, 1])
    def test_every_step_is_full(self, how, depth, unet):
        seen, (sample, text), scheduler = [], unet_inputs(), calm(900, 700, 500, 300)
        self.put(unet, how, lambda *_: seen.append(1))
        agentsd.apply(unet, skipping(2, depth=depth))
        with pytest.warns(UserWarning, match=r"of other code at up_blocks\.0 may need its layers at every step"):
            loop(unet, scheduler.timesteps, sample, text)
        assert len(seen) == 4
        assert "TestForeignCode" in str(agentsd.report(unet).last_run)

    def test_under_a_tolerance(self, frozen_pipe):
        seen = []
        agentsd.apply(frozen_pipe, tolerance=1.0)
        draw(frozen_pipe, steps=12)
        assert agentsd.report(frozen_pipe).last_run.skipped
        self.put(frozen_pipe.unet, "hook", lambda *_: seen.append(1))
        with pytest.warns(UserWarning, match="may need its layers at every step"):
            draw(frozen_pipe, steps=12)
        assert len(seen) == 12

    def test_a_hook_that_comes_and_goes_within_a_run(self, unet):
        (sample, text), seen = unet_inputs(), []
        scheduler = calm(900, 800, 700, 600, 500, 400)
        agentsd.apply(unet, skipping(2))
        for index, t in enumerate(scheduler.timesteps):
            if index == 3:
                handle = unet.mid_block.register_forward_hook(lambda *_: seen.append(1))
            if index == 5:
                handle.remove()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                unet(sample, t, text)
        assert (len(seen), agentsd.report(unet).last_run.skipped) == (2, 2)

    def test_a_hook_may_say_that_it_can_miss_steps(self, unet):
        seen, (sample, text), scheduler = [], unet_inputs(), calm(900, 700, 500, 300)
        unet.mid_block.register_forward_hook(may_miss_steps(lambda *_: seen.append(1)))
        agentsd.apply(unet, skipping(2))
        loop(unet, scheduler.timesteps, sample, text)
        assert len(seen) == 2

    def test_guidance_is_computed_at_every_step(self, frozen_pipe):
        seen = []
        frozen_pipe.unet.mid_block.register_forward_hook(lambda *call: seen.append(call[-1].shape[0]))
        agentsd.apply(frozen_pipe, Schedule((Phase(1.0, None),), guidance_interval=(0.0, 0.5)))
        with pytest.warns(UserWarning, match="does not leave out guidance"):
            draw(frozen_pipe, steps=4, guidance_scale=5.0)
        assert seen == [2, 2, 2, 2]

    def test_libraries_that_move_weights_or_compile_do_not_count(self, unet):
        import accelerate

        accelerate.cpu_offload(unet, execution_device="cpu")  # replaces the forward of every layer
        unet.mid_block.compile()
        unet.up_blocks[0] = torch.compile(unet.up_blocks[0], backend="eager")
        agentsd.apply(unet, skipping(2))
        assert unet._agentsd.schedule.skips_steps
        assert ForeignCode(unet).find() is None


class TestWrapped:
    """The UNet stands inside a module of other code."""

    class Wrapper(torch.nn.Module):
        def __init__(self, unet):
            super().__init__()
            self.inner = unet
            self.config, self.dtype, self.device = unet.config, unet.dtype, unet.device

        def forward(self, *args, **kwargs):
            return self.inner(*args, **kwargs)

    @pytest.mark.parametrize("first", ["apply", "wrap"])
    @pytest.mark.parametrize("schedule", ["gentle", "balanced"])
    def test_the_pictures_are_those_without_it(self, schedule, first, frozen_pipe):
        with agentsd.apply(frozen_pipe, schedule):
            expected = draw(frozen_pipe, steps=12, guidance_scale=5.0)
        unet = frozen_pipe.unet
        if first == "apply":
            patch = agentsd.apply(frozen_pipe, schedule)
        frozen_pipe.unet = self.Wrapper(unet)
        if first == "wrap":
            patch = agentsd.apply(frozen_pipe, schedule)
        assert torch.equal(draw(frozen_pipe, steps=12, guidance_scale=5.0), expected)
        assert patch.active
        assert agentsd.report(frozen_pipe).last_run == patch.report().last_run
        agentsd.remove(frozen_pipe)
        assert "_agentsd" not in unet.__dict__

    def test_data_parallel(self, unet):
        (sample, text), scheduler = unet_inputs(), calm(900, 700, 500, 300)
        agentsd.apply(torch.nn.DataParallel(unet), skipping(2))
        loop(torch.nn.DataParallel(unet), scheduler.timesteps, sample, text)
        assert agentsd.report(unet).last_run.skipped == 2

    def test_two_unets_in_one_module_are_refused(self, unet):
        both = torch.nn.ModuleList([unet, make_tiny_unet()])
        with pytest.raises(
            ValueError, match=r"target=ModuleList holds several denoisers \(0, 1\).*give the one to patch"
        ):
            agentsd.apply(both, "gentle")


class TestOutsideACall:
    @pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
    @pytest.mark.parametrize("schedule", ["gentle", "paper"])
    def test_after_an_interrupted_call_all_is_stock(self, schedule, error, unet):
        sample, text = unet_inputs()
        block = unet.down_blocks[0].attentions[0]
        hidden = torch.randn(2, 16, 16, 16)
        stock = block(hidden, encoder_hidden_states=text).sample

        def stop(*_):
            raise error

        agentsd.apply(unet, schedule)
        handle = unet.conv_out.register_forward_pre_hook(stop)
        scheduler = calm(900, 700)
        with pytest.raises(error):
            unet(sample, scheduler.timesteps[0], text)
        handle.remove()
        assert torch.equal(block(hidden, encoder_hidden_states=text).sample, stock)

    def test_a_disabled_shallow_copy_runs_its_own_modules(self, unet):
        sample, text = unet_inputs()
        patch = agentsd.apply(unet, skipping())
        other = copy.copy(unet)
        other._modules = dict(unet._modules)
        other.conv_out = torch.nn.Conv2d(16, 4, 3, padding=1)
        with patch.disabled():
            found = other(sample, 900, text).sample
        assert not torch.equal(found, unet(sample, 900, text).sample)

    def test_forward_called_directly_is_stock(self, unet):
        scheduler, (sample, text) = calm(900, 700, 500), unet_inputs()
        stock = unet(sample, 500, text).sample
        agentsd.apply(unet, SampledKeys(stride=4))
        loop(unet, scheduler.timesteps, sample, text)
        assert torch.equal(unet.forward(sample, 500, text).sample, stock)

    def test_forward_after_a_guidance_interval_is_stock(self, frozen_pipe):
        sample, text = unet_inputs()
        stock = frozen_pipe.unet(sample, 500, text).sample
        agentsd.apply(frozen_pipe, Schedule((Phase(1.0, None),), guidance_interval=(0.0, 0.5)))
        draw(frozen_pipe, steps=4, guidance_scale=5.0)
        assert torch.equal(frozen_pipe.unet.forward(sample, 500, text).sample, stock)


class TestTracing:
    def test_jit_trace_says_what_to_do(self, unet):
        sample, text = unet_inputs()
        agentsd.apply(unet, "gentle")
        with pytest.raises(RuntimeError, match=r"patched by agentsd.* Call agentsd.remove\(target\) first"):
            torch.jit.trace(unet, (sample, torch.tensor(500), text), strict=False)

    @pytest.mark.parametrize("strict", [False, True])
    def test_export_says_what_to_do(self, strict, unet):
        sample, text = unet_inputs()
        agentsd.apply(unet, "gentle")
        with pytest.raises(Exception, match=r"Call agentsd.remove\(target\) first"):
            torch.export.export(unet, (sample, torch.tensor(500), text), strict=strict)


def test_default_processors_can_be_set_while_patched(unet):
    scheduler, (sample, text) = calm(900, 700), unet_inputs()
    stock = loop(unet, scheduler.timesteps, sample, text)
    patch = agentsd.apply(unet, SampledKeys(stride=4))
    unet.set_default_attn_processor()
    with pytest.warns(UserWarning, match="7 of the 7 attention processors"):
        outputs = loop(unet, calm(900, 700).timesteps, sample, text)
    torch.testing.assert_close(outputs, stock)
    patch.remove()
    assert "set_default_attn_processor" not in unet.__dict__


def test_the_report_says_why_a_step_was_full(unet):
    scheduler, (sample, text) = calm(900, 700, 500, 300), unet_inputs()
    unet.conv_out.bias.requires_grad_()
    agentsd.apply(unet, skipping(2))
    loop(unet, scheduler.timesteps, sample, text)
    found = agentsd.report(unet).last_run
    assert (found.full, found.skipped, found.forced[0][1]) == (4, 0, 2)
    assert "gradients are taken" in found.forced[0][0]


def test_a_custom_processor_of_other_code_makes_steps_full(unet):
    class Store:
        """Counts the steps that it sees."""

        def __init__(self):
            self.calls = 0

        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **kwargs):
            self.calls += 1
            from diffusers.models.attention_processor import AttnProcessor2_0

            return AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask)

    store = Store()
    unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.set_processor(store)
    scheduler, (sample, text) = calm(900, 700, 500, 300), unet_inputs()
    agentsd.apply(unet, skipping(2))
    with pytest.warns(UserWarning, match="attention processor Store of other code"):
        loop(unet, scheduler.timesteps, sample, text)
    assert store.calls == 4
