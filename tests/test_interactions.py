"""Side by side with everything else that people do to a pipeline."""

import copy
import functools
import hashlib
import pickle
import threading
import warnings

import diffusers
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
    SlicedAttnProcessor,
)
from probe import AGENTS, COPY, MERGE, MIXED, POOL, SAMPLE, assert_same, expected, snapshot, unet_inputs, watch
from tiny import draw, ip_adapter_weights, make_tiny_pipe, make_tiny_unet

import agentsd
from agentsd import MergedTokens, Phase, Schedule
from agentsd.unet.processor import AgentAttnProcessor

SKIPPING = Schedule.constant(POOL, every=3, skipping=COPY)
CONFIGS = pytest.mark.parametrize("config", [AGENTS, POOL, SAMPLE, MERGE], ids=["agents", "pool", "sample", "merge"])


def forward(unet, timestep=900, *, height=16, width=16, dtype=torch.float32, seed=0):
    sample, text = unet_inputs(2, height, width, seed=seed)
    with torch.no_grad():
        return unet(sample.to(dtype), timestep, text.to(dtype)).sample


def ours(unet):
    """Count the layers that run our processor."""
    return sum(type(processor) is AgentAttnProcessor for processor in unet.attn_processors.values())


def agentsd_warnings(caught):
    return [str(w.message) for w in caught if "agentsd" in str(w.message)]


# LoRA


@pytest.fixture
def lora_files(tmp_path):
    """Two LoRAs for the tiny UNet, written as the files that pipelines load."""
    peft = pytest.importorskip("peft")
    folders = []
    for seed in range(2):
        unet = make_tiny_unet()
        torch.manual_seed(seed)
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        unet.add_adapter(peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
        folders.append(tmp_path / f"lora{seed}")
        diffusers.StableDiffusionPipeline.save_lora_weights(
            folders[-1], unet_lora_layers=peft.get_peft_model_state_dict(unet)
        )
    return folders


class TestLora:
    def test_before_or_after_apply_is_the_same(self, lora_files):
        before, after = make_tiny_pipe(), make_tiny_pipe()
        plain = make_tiny_pipe()
        agentsd.apply(plain, MIXED)
        before.load_lora_weights(lora_files[0])
        agentsd.apply(before, MIXED)
        agentsd.apply(after, MIXED)
        after.load_lora_weights(lora_files[0])
        assert ours(after.unet) == 7
        assert torch.equal(draw(before), draw(after))
        assert not torch.allclose(draw(after), draw(plain), rtol=1e-3)

    def test_switching_and_unloading(self, lora_files, tiny_pipe):
        agentsd.apply(tiny_pipe, MIXED)
        plain = draw(tiny_pipe)
        for name, folder in zip(("one", "two"), lora_files, strict=True):
            tiny_pipe.load_lora_weights(folder, adapter_name=name)
        images = []
        for adapter in ("one", "two", "one"):
            tiny_pipe.set_adapters(adapter)
            images.append(draw(tiny_pipe))
        assert torch.equal(images[0], images[2])
        assert not torch.equal(images[0], images[1])
        tiny_pipe.disable_lora()
        torch.testing.assert_close(draw(tiny_pipe), plain)
        tiny_pipe.enable_lora()
        assert torch.equal(draw(tiny_pipe), images[0])
        tiny_pipe.unload_lora_weights()
        assert torch.equal(draw(tiny_pipe), plain)
        assert ours(tiny_pipe.unet) == 7

    def test_stays_when_the_patch_goes(self, lora_files, tiny_pipe):
        tiny_pipe.load_lora_weights(lora_files[0])
        stock = draw(tiny_pipe)
        before = snapshot(tiny_pipe.unet)
        patch = agentsd.apply(tiny_pipe, MIXED)
        draw(tiny_pipe)
        patch.remove()
        assert_same(before, snapshot(tiny_pipe.unet))
        assert torch.equal(draw(tiny_pipe), stock)

    def test_loaded_while_patched_then_removed(self, lora_files, tiny_pipe):
        other = make_tiny_pipe()
        other.load_lora_weights(lora_files[0])
        patch = agentsd.apply(tiny_pipe, MIXED)
        tiny_pipe.load_lora_weights(lora_files[0])
        patch.remove()
        assert torch.equal(draw(tiny_pipe), draw(other))

    def test_fused(self, lora_files, tiny_pipe):
        tiny_pipe.load_lora_weights(lora_files[0])
        agentsd.apply(tiny_pipe, POOL)
        loaded = draw(tiny_pipe, steps=2)
        tiny_pipe.fuse_lora()
        torch.testing.assert_close(draw(tiny_pipe, steps=2), loaded, rtol=1e-2, atol=1e-2)
        assert ours(tiny_pipe.unet) == 7


# IP-Adapter


class TestIPAdapter:
    embeds = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(3))

    def load(self, pipe):
        pipe.load_ip_adapter(ip_adapter_weights(pipe.unet), None, None, image_encoder_folder=None)

    def draw(self, pipe):
        return draw(pipe, ip_adapter_image_embeds=[self.embeds])

    def test_before_or_after_apply_is_the_same(self):
        before, after, stock = make_tiny_pipe(), make_tiny_pipe(), make_tiny_pipe()
        self.load(stock)
        self.load(before)
        agentsd.apply(before, MIXED)
        agentsd.apply(after, MIXED)
        self.load(after)
        assert ours(before.unet) == ours(after.unet) == 7
        assert sum(isinstance(p, IPAdapterAttnProcessor2_0) for p in after.unet.attn_processors.values()) == 7
        with watch(after.unet) as calls:
            image = self.draw(after)
        assert [call.config for call in calls] == expected(MIXED, calls)
        assert torch.equal(image, self.draw(before))
        assert not torch.allclose(image, self.draw(stock), rtol=1e-3)

    def test_unloading_keeps_the_patch(self, tiny_pipe):
        agentsd.apply(tiny_pipe, MIXED)
        patched = draw(tiny_pipe)
        self.load(tiny_pipe)
        assert not torch.equal(self.draw(tiny_pipe), patched)
        tiny_pipe.unload_ip_adapter()
        assert ours(tiny_pipe.unet) == 7
        assert torch.equal(draw(tiny_pipe), patched)

    def test_removing_the_patch_keeps_the_adapter(self, tiny_pipe):
        other = make_tiny_pipe()
        self.load(other)
        originals = dict(tiny_pipe.unet.attn_processors)
        patch = agentsd.apply(tiny_pipe)
        self.load(tiny_pipe)
        patch.remove()
        assert ours(tiny_pipe.unet) == 0
        for name, processor in tiny_pipe.unet.attn_processors.items():
            assert (processor is originals[name]) == name.endswith("attn1.processor")
        assert torch.equal(self.draw(tiny_pipe), self.draw(other))
        tiny_pipe.unload_ip_adapter()
        assert torch.equal(draw(tiny_pipe), draw(make_tiny_pipe()))


# Other code that exchanges processors


class TestReplacedProcessors:
    @pytest.mark.parametrize(
        "replace",
        [
            lambda pipe: pipe.enable_attention_slicing(),
            lambda pipe: pipe.unet.set_attn_processor(AttnProcessor2_0()),
            lambda pipe: pipe.unet.set_attn_processor(AttnProcessor()),
            lambda pipe: pipe.fuse_qkv_projections(vae=False),
        ],
        ids=["slicing", "set_attn_processor", "classic", "fuse_qkv"],
    )
    def test_one_warning_and_stock_attention_from_then_on(self, replace, tiny_pipe):
        other = make_tiny_pipe()
        replace(other)
        patch = agentsd.apply(tiny_pipe, AGENTS)
        draw(tiny_pipe, steps=1)
        replace(tiny_pipe)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            images = [draw(tiny_pipe, steps=3) for _ in range(2)]
        assert len(agentsd_warnings(caught)) == 1
        assert (
            "7 of the 7 attention processors that agentsd installed have been replaced" in agentsd_warnings(caught)[0]
        )
        assert torch.equal(images[0], draw(other, steps=3))
        assert all("replaced by other code" in layer.problem for layer in patch.report().layers)
        theirs = dict(tiny_pipe.unet.attn_processors)
        patch.remove()
        assert tiny_pipe.unet.attn_processors == theirs  # theirs to keep
        assert torch.equal(draw(tiny_pipe, steps=3), images[0])

    def test_slicing_on_and_off_warns_once(self, tiny_pipe):
        agentsd.apply(tiny_pipe, AGENTS)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tiny_pipe.enable_attention_slicing()
            draw(tiny_pipe, steps=2)
            tiny_pipe.disable_attention_slicing()
            draw(tiny_pipe, steps=2)
        assert len(agentsd_warnings(caught)) == 1

    def test_applying_again_takes_the_layers_back(self, tiny_pipe):
        agentsd.apply(tiny_pipe, AGENTS)
        wanted = draw(tiny_pipe, steps=2)
        tiny_pipe.enable_attention_slicing()
        tiny_pipe.disable_attention_slicing()
        agentsd.apply(tiny_pipe, AGENTS)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            assert torch.equal(draw(tiny_pipe, steps=2), wanted)

    @CONFIGS
    def test_apply_on_sliced_or_classic_processors(self, config):
        wanted = make_tiny_pipe()
        agentsd.apply(wanted, config)
        for processor in (AttnProcessor(), SlicedAttnProcessor(1)):
            pipe = make_tiny_pipe()
            pipe.unet.set_attn_processor(processor)
            before = snapshot(pipe.unet)
            patch = agentsd.apply(pipe, config)
            torch.testing.assert_close(draw(pipe, steps=2), draw(wanted, steps=2), rtol=1e-3, atol=1e-3)
            patch.remove()
            assert_same(before, snapshot(pipe.unet))

    def test_one_of_seven_is_counted(self, tiny_unet):
        agentsd.apply(tiny_unet, AGENTS)
        tiny_unet.mid_block.attentions[0].transformer_blocks[0].attn1.set_processor(AttnProcessor2_0())
        with pytest.warns(UserWarning, match="1 of the 7 attention processors"):
            forward(tiny_unet)


class TestFusedProjections:
    def test_fused_before_apply(self, tiny_pipe):
        wanted = make_tiny_pipe()
        agentsd.apply(wanted, MIXED)
        tiny_pipe.fuse_qkv_projections(vae=False)
        fused = draw(tiny_pipe)
        before = snapshot(tiny_pipe.unet)
        patch = agentsd.apply(tiny_pipe, MIXED)
        torch.testing.assert_close(draw(tiny_pipe), draw(wanted), rtol=1e-3, atol=1e-3)
        patch.remove()
        assert_same(before, snapshot(tiny_pipe.unet))
        assert torch.equal(draw(tiny_pipe), fused)

    def test_fused_while_patched_then_unfused(self, tiny_pipe):
        agentsd.apply(tiny_pipe, MIXED)
        patched = draw(tiny_pipe)
        tiny_pipe.fuse_qkv_projections(vae=False)
        assert ours(tiny_pipe.unet) == 0
        tiny_pipe.unfuse_qkv_projections(vae=False)
        assert ours(tiny_pipe.unet) == 7
        assert torch.equal(draw(tiny_pipe), patched)

    def test_a_patch_removed_while_fused_can_be_applied_again_after_unfusing(self, tiny_pipe):
        # Unfusing puts back the processors that it found: ours, on layers that are patched no more.
        stock = draw(tiny_pipe)
        patch = agentsd.apply(tiny_pipe, MIXED)
        patched = draw(tiny_pipe)
        tiny_pipe.fuse_qkv_projections(vae=False)
        patch.remove()
        tiny_pipe.unfuse_qkv_projections(vae=False)
        assert torch.equal(draw(tiny_pipe), stock)
        patch = agentsd.apply(tiny_pipe, MIXED)
        assert torch.equal(draw(tiny_pipe), patched)
        patch.remove()
        assert torch.equal(draw(tiny_pipe), stock)


# Offloading


class TestOffload:
    @pytest.mark.parametrize("patch_first", [True, False])
    @pytest.mark.parametrize("schedule", [MIXED, SKIPPING], ids=["mixed", "skipping"])
    @pytest.mark.parametrize("method", ["cpu_offload", "cpu_offload_with_hook"])  # the first: of sequential offload
    def test_accelerate(self, method, schedule, patch_first, tiny_pipe):
        import accelerate

        other = make_tiny_pipe()
        agentsd.apply(other, schedule)
        wanted = draw(other)
        if patch_first:
            agentsd.apply(tiny_pipe, schedule)
        if method == "cpu_offload":
            accelerate.cpu_offload(tiny_pipe.unet, execution_device="cpu")
        else:
            accelerate.cpu_offload_with_hook(tiny_pipe.unet, execution_device="cpu")
        if not patch_first:
            before = snapshot(tiny_pipe.unet)
            patch = agentsd.apply(tiny_pipe, schedule)
        assert torch.equal(draw(tiny_pipe), wanted)
        assert agentsd.report(tiny_pipe).skipping_problem is None
        if not patch_first:
            patch.remove()
            after = snapshot(tiny_pipe.unet)
            assert {name: list(part[1]) for name, part in before.items()} == {
                name: list(part[1]) for name, part in after.items()
            }
        else:
            agentsd.remove(tiny_pipe)
        assert torch.equal(draw(tiny_pipe), draw(make_tiny_pipe()))

    @pytest.mark.parametrize("patch_first", [True, False])
    def test_model_cpu_offload_keeps_skipping_from_call_to_call(self, patch_first, tiny_pipe):
        # After every call diffusers takes accelerate's hooks off and puts them on anew.
        other = make_tiny_pipe()
        agentsd.apply(other, SKIPPING)
        wanted = draw(other)
        if patch_first:
            patch = agentsd.apply(tiny_pipe, SKIPPING)
        tiny_pipe.enable_model_cpu_offload(device="cpu")
        if not patch_first:
            patch = agentsd.apply(tiny_pipe, SKIPPING)
        for _ in range(3):
            assert torch.equal(draw(tiny_pipe), wanted)
        assert patch.report().skipping_problem is None
        patch.remove()
        for _ in range(2):
            assert torch.equal(draw(tiny_pipe), draw(make_tiny_pipe()))

    def test_group_offload_of_blocks_runs_whole_steps_and_says_so(self, tiny_pipe):
        whole = make_tiny_pipe()
        agentsd.apply(whole, POOL)
        wanted = draw(whole)
        cpu = torch.device("cpu")
        tiny_pipe.unet.enable_group_offload(cpu, cpu, offload_type="block_level", num_blocks_per_group=1)
        patch = agentsd.apply(tiny_pipe, SKIPPING)
        with pytest.warns(UserWarning, match="group offloading loads the weights of a block"):
            assert torch.equal(draw(tiny_pipe), wanted)
        assert "group offloading" in patch.report().skipping_problem

    def test_a_replaced_forward_is_reported(self, tiny_pipe):
        patch = agentsd.apply(tiny_pipe, SKIPPING)
        inner = tiny_pipe.unet.forward
        tiny_pipe.unet.forward = functools.wraps(inner)(lambda *args, **kwargs: inner(*args, **kwargs))
        draw(tiny_pipe)  # wrapped: still ours
        assert patch.report().skipping_problem is None
        del tiny_pipe.unet.forward
        with pytest.warns(UserWarning, match="other code has replaced the denoiser's forward since agentsd.apply"):
            draw(tiny_pipe)
        assert "call it again" in patch.report().skipping_problem

    def test_layerwise_casting(self, tiny_unet):
        agentsd.apply(tiny_unet, POOL)
        wanted = forward(tiny_unet)
        tiny_unet.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
        output = forward(tiny_unet)
        assert torch.isfinite(output).all()
        torch.testing.assert_close(output, wanted, rtol=0.1, atol=0.05)


# Numbers


class TestNumbers:
    @CONFIGS
    def test_channels_last(self, config, tiny_unet):
        # In float64: on some processors float32 rounds differently here, and near-equal tokens change their rank.
        tiny_unet.double()
        agentsd.apply(tiny_unet, config)
        wanted = forward(tiny_unet, dtype=torch.float64)
        tiny_unet.to(memory_format=torch.channels_last)
        torch.testing.assert_close(forward(tiny_unet, dtype=torch.float64), wanted)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("size", [(16, 16), (17, 23)])
    @CONFIGS
    def test_half_precision(self, config, size, dtype):
        exact, half = make_tiny_unet(), make_tiny_unet().to(dtype)
        for unet in (exact, half):
            agentsd.apply(unet, config)
        wanted = forward(exact, height=size[0], width=size[1])
        output = forward(half, height=size[0], width=size[1], dtype=dtype)
        assert output.dtype == dtype
        assert output.shape == wanted.shape
        assert torch.isfinite(output).all()
        # On average only: half precision may rank near-equal tokens differently.
        assert (output.float() - wanted).abs().mean() < 0.03 * wanted.abs().mean()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize(
        "config", [AGENTS, MergedTokens(merge_ratio=0.9, agent_ratio=None)], ids=["agents", "merge"]
    )
    def test_a_flat_picture_in_half_precision(self, config, dtype):
        # Every token finds the same destination: the sum over thousands of tokens must not overflow.
        unet = make_tiny_unet().to(dtype)
        with torch.no_grad():
            for name, part in unet.named_modules():
                if name.endswith("norm1") and "transformer_blocks" in name:
                    part.bias += 40
        sample = torch.ones(1, 4, 48, 48, dtype=dtype)
        text = unet_inputs()[1][:1].to(dtype)
        with torch.no_grad():
            stock = unet(sample, 900, text).sample
            agentsd.apply(unet, config)
            patched = unet(sample, 900, text).sample
        assert torch.isfinite(stock).all()
        assert torch.isfinite(patched).all()

    @CONFIGS
    def test_autocast(self, config, tiny_unet):
        agentsd.apply(tiny_unet, config)
        wanted = forward(tiny_unet)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = forward(tiny_unet)
        assert torch.isfinite(output).all()
        assert (output.float() - wanted).abs().mean() < 0.03 * wanted.abs().mean()

    def test_inference_mode(self, tiny_unet):
        agentsd.apply(tiny_unet, "paper")
        wanted = forward(tiny_unet)
        with torch.inference_mode():
            assert torch.equal(forward(tiny_unet), wanted)
        assert torch.equal(forward(tiny_unet), wanted)  # nothing cached is an inference tensor

    def test_patterns_made_in_inference_mode_serve_training(self, tiny_unet):
        agentsd.apply(tiny_unet, AGENTS)
        sample, text = unet_inputs()
        with torch.inference_mode():
            tiny_unet(sample, 900, text)
        tiny_unet(sample, 900, text).sample.sum().backward()
        assert torch.isfinite(tiny_unet.conv_in.weight.grad).all()


# Copies and files


def through_pickle(module):
    return pickle.loads(pickle.dumps(module))


def through_torch_save(module):
    import io

    memory = io.BytesIO()
    torch.save(module, memory)
    memory.seek(0)
    return torch.load(memory, weights_only=False)


class TestCopies:
    @pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle, through_torch_save])
    def test_a_copy_is_patched_and_separate(self, duplicate, tiny_unet):
        stock = forward(tiny_unet)
        agentsd.apply(tiny_unet, AGENTS, seed=5)
        patched = forward(tiny_unet)
        twin = duplicate(tiny_unet)
        assert ours(twin) == 7
        assert torch.equal(forward(twin), patched)
        assert agentsd.report(twin) == agentsd.report(tiny_unet)
        agentsd.remove(twin)
        assert torch.equal(forward(twin), stock)
        assert torch.equal(forward(tiny_unet), patched)
        twin = duplicate(tiny_unet)
        agentsd.remove(tiny_unet)
        assert torch.equal(forward(twin), patched)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        assert forward(twin).abs().max() == 0  # runs its own weights, not the original's

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle, through_torch_save])
    def test_a_restored_copy_is_as_a_copy_of_stock(self, duplicate, tiny_unet):
        plain = duplicate(tiny_unet)
        agentsd.apply(tiny_unet)
        forward(tiny_unet)
        twin = duplicate(tiny_unet)
        agentsd.remove(twin)
        assert {name: list(part.__dict__) for name, part in twin.named_modules()} == {
            name: list(part.__dict__) for name, part in plain.named_modules()
        }
        for name, part in twin.named_modules():
            assert not part._forward_pre_hooks, name
            assert not part._forward_hooks, name

    def test_a_copied_pipeline(self, tiny_pipe):
        stock = draw(tiny_pipe)
        agentsd.apply(tiny_pipe, MIXED)
        patched = draw(tiny_pipe)
        twin = copy.deepcopy(tiny_pipe)
        agentsd.remove(tiny_pipe)
        assert torch.equal(draw(twin), patched)
        agentsd.remove(twin)
        assert torch.equal(draw(twin), stock)

    def test_a_copied_handle_removes_the_copy(self, tiny_unet):
        patch = agentsd.apply(tiny_unet)
        twin, handle = copy.deepcopy((tiny_unet, patch))
        handle.remove()
        assert (ours(twin), ours(tiny_unet)) == (0, 7)

    def test_the_middle_of_a_run_is_not_copied(self, tiny_unet):
        agentsd.apply(tiny_unet, MIXED)
        timesteps = torch.arange(900, 100, -100)
        for t in timesteps[:5]:
            forward(tiny_unet, t)
        twin = copy.deepcopy(tiny_unet)
        with watch(twin) as calls:
            for t in timesteps.clone():
                forward(twin, t)
        assert [call.config for call in calls] == expected(MIXED, calls)


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class TestFiles:
    def test_saved_pipelines_are_byte_equal(self, tmp_path, tiny_pipe):
        tiny_pipe.save_pretrained(tmp_path / "stock")
        agentsd.apply(tiny_pipe)
        draw(tiny_pipe, steps=2)
        tiny_pipe.save_pretrained(tmp_path / "patched")
        stock = hashes(tmp_path / "stock")
        assert len(stock) >= 8
        assert hashes(tmp_path / "patched") == stock

    def test_a_saved_unet_loads_as_stock(self, tmp_path, tiny_unet):
        stock = forward(tiny_unet)
        agentsd.apply(tiny_unet)
        tiny_unet.save_pretrained(tmp_path)
        loaded = UNet2DConditionModel.from_pretrained(tmp_path)
        assert ours(loaded) == 0
        assert torch.equal(forward(loaded), stock)

    def test_controlnet_from_a_patched_unet_is_stock(self, tiny_unet):
        agentsd.apply(tiny_unet)
        net = diffusers.ControlNetModel.from_unet(tiny_unet, conditioning_channels=3)
        assert ours(net) == 0
        assert not any("_agentsd" in part.__dict__ or part._forward_pre_hooks for part in net.modules())


# Threads and training


class TestThreads:
    @pytest.mark.parametrize("schedule", [MIXED, Schedule.constant(POOL, every=3)], ids=["mixed", "forecast"])
    def test_two_sizes_at_once(self, schedule, tiny_unet):
        patch = agentsd.apply(tiny_unet, schedule)
        sizes = [(16, 16), (24, 12)]
        timesteps = torch.arange(900, 100, -100)

        def run(size):
            return [forward(tiny_unet, t, height=size[0], width=size[1]) for t in timesteps.clone()]

        wanted = {size: run(size) for size in sizes}
        results, errors = {size: [] for size in sizes}, []

        def work(size):
            try:
                for _ in range(4):
                    results[size].append(run(size))
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(size,)) for size in sizes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert patch.report().skipping_problem is None
        for size in sizes:
            for outputs in results[size]:
                assert all(torch.equal(a, b) for a, b in zip(outputs, wanted[size], strict=True))

    def test_disabled_is_for_its_own_thread(self, tiny_unet):
        patch = agentsd.apply(tiny_unet, AGENTS)
        patched = forward(tiny_unet)
        found = []
        with patch.disabled():
            thread = threading.Thread(target=lambda: found.append(forward(tiny_unet)))
            thread.start()
            thread.join()
            assert not torch.equal(forward(tiny_unet), patched)
        assert torch.equal(found[0], patched)


def gradients(unet, timesteps):
    sample, text = unet_inputs()
    unet.zero_grad()
    sum(unet(sample, t, text).sample.square().mean() for t in timesteps).backward()
    return {name: parameter.grad.clone() for name, parameter in unet.named_parameters() if parameter.grad is not None}


class TestTraining:
    @pytest.mark.parametrize("timesteps", [(900,), (900, 600)], ids=["one step", "two steps"])
    @pytest.mark.parametrize("schedule", [agentsd.Schedule.constant(AGENTS), MIXED], ids=["agents", "mixed"])
    def test_gradient_checkpointing_changes_no_gradient(self, schedule, timesteps, tiny_unet):
        agentsd.apply(tiny_unet, schedule)
        tiny_unet.train()
        plain = gradients(tiny_unet, timesteps)
        tiny_unet.enable_gradient_checkpointing()
        checkpointed = gradients(tiny_unet, timesteps)
        assert plain.keys() == checkpointed.keys()
        for name in plain:
            torch.testing.assert_close(checkpointed[name], plain[name], rtol=1e-5, atol=1e-7, msg=name)

    @CONFIGS
    def test_gradients_reach_every_projection(self, config, tiny_unet):
        agentsd.apply(tiny_unet, config)
        found = gradients(tiny_unet, (900,))
        for name, parameter in tiny_unet.named_parameters():
            assert torch.isfinite(found[name]).all(), name
            if ".attn1." in name and parameter.ndim == 2:
                assert found[name].abs().max() > 0, name


# What transformer blocks do besides attention


def transformer_blocks(unet):
    return [module for module in unet.modules() if isinstance(module, BasicTransformerBlock)]


@CONFIGS
def test_feed_forward_in_chunks(config, tiny_unet):
    tiny_unet.double()  # else near-equal tokens may change their rank
    blocks = transformer_blocks(tiny_unet)
    for block in blocks:
        block.set_chunk_feed_forward(4, dim=1)
    stock = [forward(tiny_unet, timestep, dtype=torch.float64) for timestep in (900, 100)]
    agentsd.apply(tiny_unet, Schedule((Phase(0.5, config), Phase(1.0, None))))
    chunked = forward(tiny_unet, 900, dtype=torch.float64)
    assert not torch.allclose(chunked, stock[0])
    assert torch.equal(forward(tiny_unet, 100, dtype=torch.float64), stock[1])
    for block in blocks:
        block.set_chunk_feed_forward(None)
    torch.testing.assert_close(forward(tiny_unet, 900, dtype=torch.float64), chunked)


def test_gligen():
    unet = make_tiny_unet(attention_type="gated")
    for block in transformer_blocks(unet):  # shut at first: a fresh GLIGEN would change nothing
        torch.nn.init.ones_(block.fuser.alpha_attn)
        torch.nn.init.ones_(block.fuser.alpha_dense)
    sample, text = unet_inputs()
    objects = dict(boxes=torch.rand(2, 3, 4), positive_embeddings=torch.randn(2, 3, 32), masks=torch.ones(2, 3))
    timesteps = torch.tensor([900, 700, 300, 100])

    def run(**given):
        with torch.no_grad():
            return torch.stack([unet(sample, t, text, cross_attention_kwargs=given).sample for t in timesteps.clone()])

    stock = run(gligen=objects)
    assert not torch.allclose(run(), stock)
    with agentsd.apply(unet, Schedule((Phase(0.5, POOL), Phase(1.0, None)))):
        patched = run(gligen=objects)
    assert not torch.allclose(patched[:2], stock[:2], rtol=1e-3)
    assert torch.equal(patched[2:], stock[2:])
    with agentsd.apply(unet, Schedule((Phase(0.5, POOL, 4), Phase(1.0, None, 4)), skipping=COPY)) as patch:
        skipped = run()
        assert patch.report().skipping_problem is None
        with pytest.warns(UserWarning, match="does not skip steps: GLIGEN objects were given"):
            assert torch.equal(run(gligen=objects), patched)
    assert not torch.allclose(skipped[3], run()[3])


# The field's other accelerators


class TestOtherAccelerators:
    def test_deepcache(self, tiny_pipe):
        helper_module = pytest.importorskip("DeepCache")
        wanted_stock = draw(tiny_pipe, steps=6)
        agentsd.apply(tiny_pipe, MIXED)
        patched = draw(tiny_pipe, steps=6)
        helper = helper_module.DeepCacheSDHelper(pipe=tiny_pipe)
        helper.set_params(cache_interval=3, cache_branch_id=0)
        helper.enable()
        cached = draw(tiny_pipe, steps=6)
        helper.disable()
        assert torch.isfinite(cached).all()
        assert not torch.equal(cached, patched)
        assert torch.equal(draw(tiny_pipe, steps=6), patched)
        agentsd.remove(tiny_pipe)
        assert torch.equal(draw(tiny_pipe, steps=6), wanted_stock)

    def test_tomesd(self, tiny_pipe):
        tomesd = pytest.importorskip("tomesd")
        agentsd.apply(tiny_pipe, MIXED)
        patched = draw(tiny_pipe)
        tomesd.apply_patch(tiny_pipe, ratio=0.5)
        both = draw(tiny_pipe)
        tomesd.remove_patch(tiny_pipe)
        assert torch.isfinite(both).all()
        assert torch.equal(draw(tiny_pipe), patched)

    def test_freeu(self, tiny_pipe):
        agentsd.apply(tiny_pipe, MIXED)
        patched = draw(tiny_pipe)
        tiny_pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
        with watch(tiny_pipe.unet) as calls:
            draw(tiny_pipe)
        assert [call.config for call in calls] == expected(MIXED, calls)
        tiny_pipe.disable_freeu()
        assert torch.equal(draw(tiny_pipe), patched)
