"""Tiny pipelines of further transformers, for pictures and videos."""

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny import make_vae
from tiny_parts import MASKS, PROMPTS, SIZE, assemble, embeddings, masked, texts

WITHOUT = ("vae", "text_encoder", "tokenizer")


def dit():
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        num_embeds_ada_norm=1000,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    pipe = assemble(diffusers.DiTPipeline, transformer, scheduler, without=(), vae=make_vae())
    return pipe, dict(class_labels=[3], output_type="pt")


def cog_view_4():
    torch.manual_seed(0)
    transformer = diffusers.CogView4Transformer2DModel(
        in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2, text_embed_dim=16,
        time_embed_dim=8, condition_dim=4, pos_embed_max_size=32, sample_size=8, rope_axes_dim=(16, 16),
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
    )
    pipe = assemble(diffusers.CogView4Pipeline, transformer, scheduler, without=WITHOUT)
    return pipe, dict(**embeddings(*PROMPTS), **SIZE, guidance_scale=4.0)


def chroma():
    torch.manual_seed(0)
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 4, 8), approximator_num_channels=8, approximator_hidden_dim=16,
        approximator_layers=1,
    )  # fmt: skip
    names = (*WITHOUT, "image_encoder", "feature_extractor")
    pipe = assemble(diffusers.ChromaPipeline, transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), without=names)
    given = {name: value.float() for name, value in masked(*MASKS).items()}
    return pipe, dict(**given, **SIZE, guidance_scale=4.0)


def qwen_image():
    torch.manual_seed(0)
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = assemble(diffusers.QwenImagePipeline, transformer, scheduler, without=WITHOUT)
    names = ("prompt_embeds_mask", "negative_prompt_embeds_mask")
    return pipe, dict(**masked(*names), **SIZE, true_cfg_scale=3.0)


def flux_2():
    torch.manual_seed(0)
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = assemble(diffusers.Flux2Pipeline, transformer, scheduler, without=WITHOUT)
    return pipe, dict(**embeddings("prompt_embeds"), **SIZE)


def z_image():
    torch.manual_seed(0)
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=16, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[2, 4, 2], axes_lens=[64, 16, 16],
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if name.endswith("pad_token"):  # memory that nobody wrote
                parameter.zero_()
            elif name.startswith("t_embedder"):  # a model without training is rough in time
                parameter.mul_(0.2)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = assemble(diffusers.ZImagePipeline, transformer, scheduler, without=WITHOUT)
    given = {name: [text] for name, text in zip(PROMPTS, texts((5, 16), (5, 16)), strict=True)}
    return pipe, dict(**given, **SIZE, guidance_scale=3.0)


def cog_video():
    torch.manual_seed(0)
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=8,
        text_embed_dim=16, num_layers=1, sample_width=8, sample_height=8, sample_frames=5, max_text_seq_length=5,
    )  # fmt: skip
    scheduler = diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False
    )
    pipe = assemble(diffusers.CogVideoXPipeline, transformer, scheduler, without=WITHOUT)
    given = dict(height=64, width=64, num_frames=5, guidance_scale=4.0, max_sequence_length=5)
    return pipe, dict(**embeddings(*PROMPTS), **given)


def cog_video_dpm():
    pipe, arguments = cog_video()
    pipe.scheduler = diffusers.CogVideoXDPMScheduler.from_config(pipe.scheduler.config)
    return pipe, arguments


def ltx():
    torch.manual_seed(0)
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=1, caption_channels=16,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    pipe = assemble(diffusers.LTXPipeline, transformer, scheduler, without=WITHOUT)
    return pipe, dict(**masked(*MASKS), height=64, width=64, num_frames=9, guidance_scale=4.0)


def hunyuan_video():
    torch.manual_seed(0)
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=1, text_embed_dim=16, pooled_projection_dim=16,
        rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    names = (*WITHOUT, "text_encoder_2", "tokenizer_2")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    pipe = assemble(diffusers.HunyuanVideoPipeline, transformer, scheduler, without=names)
    given = masked("prompt_attention_mask")
    del given["negative_prompt_embeds"]
    return pipe, dict(**given, pooled_prompt_embeds=texts((1, 16))[0], height=64, width=64, num_frames=5)


def mochi():
    torch.manual_seed(0)
    transformer = diffusers.MochiTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16, text_embed_dim=16,
        time_embed_dim=4, max_sequence_length=5,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    pipe = assemble(diffusers.MochiPipeline, transformer, scheduler, without=WITHOUT)
    given = {name: value.bool() if "mask" in name else value for name, value in masked(*MASKS).items()}
    return pipe, dict(**given, height=64, width=64, num_frames=7, guidance_scale=4.0)


def kandinsky_5():
    torch.manual_seed(0)
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4, in_text_dim=16, in_text_dim2=16, time_dim=16, out_visual_dim=4, model_dim=32, ff_dim=32,
        num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 6, 6),
    )  # fmt: skip
    names = (*WITHOUT, "text_encoder_2", "tokenizer_2")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    pipe = assemble(diffusers.Kandinsky5T2VPipeline, transformer, scheduler, without=names)
    given = {}
    for start in ("", "negative_"):
        given |= embeddings(f"{start}prompt_embeds_qwen", **{f"{start}prompt_embeds_clip": 16})
        given[f"{start}prompt_cu_seqlens"] = torch.tensor([0, 5], dtype=torch.int32)
    return pipe, dict(**given, height=64, width=64, num_frames=5)
