"""Arms: each changes the picture (but for stock), leaves the pipeline as it was, and baselines do what they say."""

import functools

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor2_0
from tiny import ONE_LEVEL, draw, make_tiny_pipe
from torch._dynamo.testing import CompileCounterWithBackend

from agentsd.bench.arm import Arm
from agentsd.bench.arms import RUN_ARMS, STEP_ARMS, is_current, with_twins
from agentsd.bench.baselines import channels_last, compiled, no_self_attention_arm, stock
from agentsd.bench.rivals import attention_broadcast_arm, kv_downsampling_arm, tgate_arm, tiled_attention_arm
from agentsd.unet.controller import RULES

SAME = {"stock", "stock A/A"}


def attributes(module):
    return {path: dict(part.__dict__) for path, part in module.named_modules()}


@pytest.fixture(scope="module")
def pipe():
    """One pipeline for all arms: each test shows that its arm leaves it as it was."""
    return make_tiny_pipe()


@pytest.fixture(scope="module")
def stock_picture(pipe):
    """Pictures of stock, each generated once."""
    return functools.cache(lambda **settings: draw(pipe, **settings))


def assert_unchanged(before, parts, pipe):
    assert set(pipe.__dict__) == parts
    after = attributes(pipe.unet)
    assert after.keys() == before.keys()
    for path, part in before.items():
        assert part.keys() == after[path].keys()
        assert all(part[key] is after[path][key] for key in part), path


@pytest.mark.parametrize("name", STEP_ARMS)
def test_every_arm_changes_the_picture_and_is_undone(name, pipe, stock_picture):
    # 32 x 32 latents: a grid of stride 8 has whole cells on two levels; twice that where a tile has 32 x 32.
    side = 128 if name.startswith("tiles") else 64
    settings = {"steps": 2, "height": side, "width": side}
    stock = stock_picture(**settings)
    one_step = stock_picture(steps=1)
    before, parts = attributes(pipe.unet), set(pipe.__dict__)
    with STEP_ARMS[name].enter(pipe):
        inside = draw(pipe, **settings)
    assert torch.equal(inside, stock) == (name in SAME)
    assert_unchanged(before, parts, pipe)
    assert torch.equal(draw(pipe, steps=1), one_step)


@pytest.mark.parametrize("name", [name for name in RUN_ARMS if name not in STEP_ARMS])
def test_every_run_arm_runs_as_it_says_and_is_undone(name, pipe, stock_picture):
    steps = 12 if name.startswith("preset ") else 6  # shorter runs skip no steps under a tolerance
    arm, stock, one_step = RUN_ARMS[name], stock_picture(steps=steps), stock_picture(steps=1)
    before, parts = attributes(pipe.unet), set(pipe.__dict__)
    with arm.enter(pipe):
        assert not torch.equal(drawn(pipe, arm, steps), stock)
    assert_unchanged(before, parts, pipe)
    assert torch.equal(draw(pipe, steps=1), one_step)


def drawn(pipe, arm, steps=6):
    generator = torch.Generator().manual_seed(0)
    settings = dict(height=32, width=32, generator=generator, output_type="latent")
    return arm.run(pipe, "a red circle", num_inference_steps=steps, **settings).images


def test_tgate_drops_guidance_at_its_gate_and_is_undone_after_an_error():
    pipe = make_tiny_pipe()
    before, batches = attributes(pipe.unet), []
    arm = tgate_arm(0.5)

    def watch(module, args, kwargs):
        batches.append(args[0].shape[0])
        if len(batches) > 8:
            raise RuntimeError("stop")

    with arm.enter(pipe):
        handle = pipe.unet.register_forward_pre_hook(watch, with_kwargs=True)
        drawn(pipe, arm)
        assert batches == [2, 2, 2, 1, 1, 1]
        with pytest.raises(RuntimeError, match="stop"):
            drawn(pipe, arm)
    handle.remove()
    assert not hasattr(pipe, "tgate")
    after = attributes(pipe.unet)
    assert all(part.keys() == after[path].keys() for path, part in before.items())


@pytest.mark.parametrize("name", ["stock", "pooled agents, stride 4"])
def test_compiled_arms_compile_once_for_all_entries_and_are_undone(name):
    torch.compiler.reset()
    pipe, counter = make_tiny_pipe(**ONE_LEVEL), CompileCounterWithBackend("eager")
    eager = STEP_ARMS[name]
    with eager.enter(pipe):
        expected = drawn(pipe, RUN_ARMS["stock"], steps=2)
    arm, graphs = compiled(eager, counter), []
    for _ in range(2):
        with arm.enter(pipe):
            torch.testing.assert_close(drawn(pipe, RUN_ARMS["stock"], steps=2), expected, rtol=1e-4, atol=1e-5)
        graphs.append(counter.frame_count)
        assert pipe.unet._compiled_call_impl is None
        drawn(pipe, RUN_ARMS["stock"], steps=2)  # eager again: counts no graph
    assert graphs[0] > 0
    assert set(graphs) == {graphs[0]}
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["stock", "full step every 3, last layer + key/value sampling"])
def test_channels_last_arms_change_the_format_alone_and_change_it_back(name):
    pipe, arm = make_tiny_pipe(), STEP_ARMS[name]
    before = {key: (value.clone(), value.stride()) for key, value in pipe.unet.state_dict().items()}
    with arm.enter(pipe):
        expected = drawn(pipe, RUN_ARMS["stock"], steps=3)
    with channels_last(arm).enter(pipe):
        assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(drawn(pipe, RUN_ARMS["stock"], steps=3), expected, rtol=1e-2, atol=1e-3)
    with pytest.raises(RuntimeError, match="stop"), channels_last(Arm(failing)).enter(pipe):
        pass
    after = pipe.unet.state_dict()
    for key, (value, stride) in before.items():
        assert torch.equal(value, after[key])
        assert stride == after[key].stride()
    assert not hasattr(pipe.unet, "_agentsd")


def failing(pipe):
    raise RuntimeError("stop")


def test_twins_are_named_and_know_what_they_are():
    arms = with_twins({"stock": Arm(stock), "other": Arm(stock)}, ["stock"], ", compiled")
    assert list(arms) == ["stock", "other", "stock, compiled"]
    assert arms["stock, compiled"].settings == "torch.compile"
    assert with_twins(RUN_ARMS, ["T-GATE"], ", compiled")["T-GATE, compiled"].call is RUN_ARMS["T-GATE"].call
    assert with_twins(arms, ["other"], ", channels last")["other, channels last"].settings == "channels_last"


def test_settings_tell_arms_of_one_name_apart():
    assert '"stride": 4' in STEP_ARMS["pooled agents, stride 4"].settings
    assert STEP_ARMS["tomesd 0.5"].settings == "tomesd 0.1.3"


def test_cycles_follow_the_interval():
    assert {name: arm.cycle for name, arm in STEP_ARMS.items() if arm.cycle > 1} == {
        "DeepCache 3": 3,
        "DeepCache 5": 5,
        "full step every 3, last layer": 3,
        "full step every 3, last layer, no self-attention (ceiling)": 3,
        "full step every 5, last layer, no self-attention (ceiling)": 5,
        "full step every 3, last layer + key/value sampling": 3,
        "full step every 5, last layer + key/value sampling": 5,
        "full step every 3 + key/value sampling": 3,
        "full step every 5 + key/value sampling": 5,
        "full step every 3, last layer + key/value sampling, two levels": 3,
        "full step every 5, last layer + key/value sampling, two levels": 5,
    }


def test_run_arms_have_controls_of_equal_time_and_of_no_change():
    assert {"stock", "stock A/A", "stock, steps / 2", "preset paper", "DeepCache 3", "tomesd 0.5"} <= RUN_ARMS.keys()
    assert RUN_ARMS["stock, steps / 2"].fewer_steps == 2


def test_downsampled_keys_and_values_are_every_second_token():
    pipe = make_tiny_pipe()
    attn = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    tokens = torch.randn(1, 256, 16)
    with torch.no_grad(), kv_downsampling_arm(2).enter(pipe):
        ours = attn(tokens)
    few = tokens.view(1, 16, 16, 16)[:, ::2, ::2].reshape(1, 64, 16)
    heads = lambda x: x.view(1, -1, attn.heads, 16 // attn.heads).transpose(1, 2)  # noqa: E731
    with torch.no_grad():
        attended = F.scaled_dot_product_attention(*map(heads, (attn.to_q(tokens), attn.to_k(few), attn.to_v(few))))
        expected = attn.to_out[0](attended.transpose(1, 2).flatten(2))
    torch.testing.assert_close(ours, expected)
    with (
        kv_downsampling_arm(2).enter(pipe),
        pytest.raises(ValueError, match="384 tokens are no square grid"),
    ):
        draw(pipe, height=48, width=32, steps=1)


def test_tiles_attend_within_themselves():
    pipe = make_tiny_pipe()
    attn = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    tokens = torch.randn(2, 256, 16)
    with torch.no_grad():
        with tiled_attention_arm(8).enter(pipe):
            ours = attn(tokens).view(2, 16, 16, 16)
        corner = attn(tokens.view(2, 16, 16, 16)[:, :8, 8:].reshape(2, 64, 16)).view(2, 8, 8, 16)
        torch.testing.assert_close(ours[:, :8, 8:], corner)
        with tiled_attention_arm(32).enter(pipe):  # more than the grid has: one tile
            assert torch.equal(attn(tokens), AttnProcessor2_0()(attn, tokens))
    with tiled_attention_arm(7).enter(pipe), pytest.raises(ValueError, match="a grid of side 16 is not divided by"):
        attn(tokens)


def test_attention_broadcast_computes_every_second_step_between_its_timesteps():
    pipe = make_tiny_pipe()
    attn, computed = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1, []
    sample, context = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 32)
    with torch.no_grad(), attention_broadcast_arm(2).enter(pipe):
        attn.to_q.register_forward_hook(lambda *_: computed.append(current))
        for current in (900, 850, 700, 600, 500, 400, 90, 50):
            pipe.unet(sample, current, encoder_hidden_states=context)
    assert computed == [900, 850, 700, 500, 90, 50]


def test_ceiling_leaves_self_attention_out_and_cross_attention_in():
    pipe = make_tiny_pipe()
    block = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0]
    tokens = torch.randn(1, 256, 16)
    with torch.no_grad(), no_self_attention_arm().enter(pipe):
        assert torch.equal(block.attn1(tokens), tokens)
        assert not torch.equal(block.attn2(tokens, encoder_hidden_states=torch.randn(1, 77, 32)), tokens)


def test_arms_with_a_tolerance_name_the_rules_of_the_controller():
    named = {arm for arm, one in RUN_ARMS.items() if one.settings.startswith(f"rules {RULES} ")}
    assert {f"preset {name}" for name in ("quality", "balanced", "fast", "extreme")} <= named
    assert not named & {"stock", "preset paper", "preset gentle", "full every 2 steps"}
    settings = RUN_ARMS["preset fast"].settings
    assert is_current("preset fast", settings)
    assert not is_current("preset fast", settings.replace(f"rules {RULES}", f"rules {RULES - 1}"))
    assert not is_current("preset fast", settings.removeprefix(f"rules {RULES} "))
