"""Arms: each changes the picture (but for stock), leaves the pipeline as it was, and baselines do what they say."""

import pytest
import torch
import torch.nn.functional as F
from tiny import draw, make_tiny_pipe

from agentsd.arms import RUN_ARMS, STEP_ARMS, kv_downsampling_arm, no_self_attention

SAME = {"stock", "stock A/A"}


@pytest.mark.parametrize("name", STEP_ARMS)
def test_every_arm_changes_the_picture_and_is_undone(name):
    # 32 x 32 latents, so that a grid of stride 8 has whole cells on two levels.
    pipe = make_tiny_pipe()
    settings = {"steps": 4, "height": 64, "width": 64}
    stock = draw(pipe, **settings)
    keys = {path: set(module.__dict__) for path, module in pipe.unet.named_modules()}
    with STEP_ARMS[name].enter(pipe):
        inside = draw(pipe, **settings)
    assert torch.equal(inside, stock) == (name in SAME)
    assert torch.equal(draw(pipe, **settings), stock)
    # The rivals' own packages leave attributes behind, without effect on the picture.
    if not name.startswith(("DeepCache", "tomesd")):
        assert {path: set(module.__dict__) for path, module in pipe.unet.named_modules()} == keys


def test_cycles_follow_the_interval():
    assert {name: arm.cycle for name, arm in STEP_ARMS.items() if arm.cycle > 1} == {
        "DeepCache 3": 3,
        "DeepCache 5": 5,
        "reuse 3": 3,
        "reuse 3 + pooled agents": 3,
        "reuse 5 + pooled agents": 5,
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


def test_ceiling_leaves_self_attention_out_and_cross_attention_in():
    pipe = make_tiny_pipe()
    block = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0]
    tokens = torch.randn(1, 256, 16)
    with torch.no_grad(), no_self_attention(pipe):
        assert torch.equal(block.attn1(tokens), tokens)
        assert not torch.equal(block.attn2(tokens, encoder_hidden_states=torch.randn(1, 77, 32)), tokens)
