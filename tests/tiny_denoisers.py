"""Tiny pipelines whose steps can be skipped, and nothing else: for the tests and docs/pipelines.md."""

import diffusers
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from tiny import make_tiny_unet, make_vae
from tiny_parts import MASKS, POOLED, PROMPTS, SIZE, Skips, assemble, embeddings, masked, texts
from tiny_transformers import (
    chroma,
    cog_video,
    cog_video_dpm,
    cog_view_4,
    dit,
    flux_2,
    hunyuan_video,
    kandinsky_5,
    ltx,
    mochi,
    qwen_image,
    z_image,
)


def stable_diffusion_3():
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, num_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16,
        caption_projection_dim=16, pooled_projection_dim=16, out_channels=4, in_channels=4, patch_size=1,
    )  # fmt: skip
    names = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = assemble(diffusers.StableDiffusion3Pipeline, transformer, scheduler, without=names)
    return pipe, dict(**embeddings(*PROMPTS, **POOLED), **SIZE, guidance_scale=4.0)


def stable_diffusion_3_unguided():
    pipe, arguments = stable_diffusion_3()
    return pipe, {**arguments, "guidance_scale": 1.0}


def flux():
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    names = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    pipe = assemble(diffusers.FluxPipeline, transformer, scheduler, without=names)
    return pipe, dict(**embeddings(*PROMPTS, **POOLED), **SIZE)


def flux_true_guidance():
    pipe, arguments = flux()
    return pipe, dict(**arguments, true_cfg_scale=3.0)


def pixart():
    torch.manual_seed(0)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=1, attention_head_dim=8, num_attention_heads=2, in_channels=4, out_channels=8,
        patch_size=2, cross_attention_dim=16, caption_channels=16, norm_num_groups=1,
    )  # fmt: skip
    names = ("text_encoder", "tokenizer")
    scheduler = DPMSolverMultistepScheduler()
    pipe = assemble(diffusers.PixArtSigmaPipeline, transformer, scheduler, without=names, vae=make_vae())
    masks = dict(prompt_attention_mask=torch.ones(1, 5), negative_prompt_attention_mask=torch.ones(1, 5))
    size = dict(height=16, width=16, use_resolution_binning=False)
    return pipe, dict(**embeddings(*PROMPTS), **masks, **size, negative_prompt=None)


def sana():
    torch.manual_seed(0)
    transformer = diffusers.SanaTransformer2DModel(
        sample_size=4, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=8,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16,
    )  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipe = assemble(diffusers.SanaPipeline, transformer, scheduler, without=("vae", "text_encoder", "tokenizer"))
    return pipe, dict(**masked(*MASKS), **SIZE, use_resolution_binning=False, negative_prompt=None)


def aura_flow():
    torch.manual_seed(0)
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pos_embed_max_size=64,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.73)
    pipe = assemble(diffusers.AuraFlowPipeline, transformer, scheduler, without=("vae", "text_encoder", "tokenizer"))
    return pipe, dict(**masked(*MASKS), **SIZE)


def lumina_2():
    torch.manual_seed(0)
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1, num_attention_heads=2,
        num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 4, 4), axes_lens=(40, 40, 40), cap_feat_dim=16,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    pipe = assemble(diffusers.Lumina2Pipeline, transformer, scheduler, without=("vae", "text_encoder", "tokenizer"))
    return pipe, dict(**masked(*MASKS), **SIZE)


def hunyuan_dit():
    torch.manual_seed(0)
    # Four layers: below, none has a skip connection, which is what a ControlNet adds to.
    transformer = diffusers.HunyuanDiT2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, patch_size=2, sample_size=8, hidden_size=16,
        num_layers=4, cross_attention_dim=16, cross_attention_dim_t5=16, pooled_projection_dim=8, text_len=5,
        text_len_t5=5, use_style_cond_and_image_meta_size=False,
    )  # fmt: skip
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "safety_checker", "feature_extractor")
    pipe = assemble(
        diffusers.HunyuanDiTPipeline, transformer, DPMSolverMultistepScheduler(), without=names, vae=make_vae(),
        requires_safety_checker=False,
    )  # fmt: skip
    given = {**masked(*MASKS), **{f"{name}_2": value for name, value in masked(*MASKS).items()}}
    return pipe, dict(**given, height=16, width=16, use_resolution_binning=False)


def wan():
    torch.manual_seed(0)
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=16,
        ffn_dim=16, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = assemble(diffusers.WanPipeline, transformer, scheduler, without=("vae", "text_encoder", "tokenizer"))
    return pipe, dict(**embeddings(*PROMPTS), height=64, width=64, num_frames=5)


def kandinsky():
    unet = make_tiny_unet(
        out_channels=8,
        down_block_types=("SimpleCrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("UpBlock2D", "UpBlock2D", "SimpleCrossAttnUpBlock2D"),
        addition_embed_type="image",
        encoder_hid_dim=16,
        encoder_hid_dim_type="image_proj",
    )
    movq = diffusers.VQModel(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4,
    )  # fmt: skip
    pipe = diffusers.KandinskyV22Pipeline(unet=unet, scheduler=diffusers.DDIMScheduler(clip_sample=False), movq=movq)
    pipe.set_progress_bar_config(disable=True)
    image, negative = texts((1, 16), (1, 16))
    return pipe, dict(image_embeds=image, negative_image_embeds=negative, height=64, width=64)


PICTURE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def vae_with_shift():
    vae = make_vae()
    vae.register_to_config(shift_factor=0.0)
    return vae


def randomised(net):
    """A ControlNet whose output counts: fresh ones end in zeros."""
    torch.manual_seed(1)
    for name, parameter in net.named_parameters():
        if name.startswith("controlnet_"):
            torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


def sd3_controlnet():
    pipe, arguments = stable_diffusion_3()
    net = diffusers.SD3ControlNetModel.from_transformer(pipe.transformer, 1, 0, load_weights_from_transformer=False)
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    made = assemble(
        diffusers.StableDiffusion3ControlNetPipeline, pipe.transformer, pipe.scheduler, without=names,
        vae=vae_with_shift(), controlnet=randomised(net),
    )  # fmt: skip
    return made, {**arguments, "control_image": PICTURE, "height": 16, "width": 16}


def flux_controlnet():
    pipe, arguments = flux()
    net = diffusers.FluxControlNetModel.from_transformer(
        pipe.transformer, 1, 1, 16, 2, load_weights_from_transformer=False
    )
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    made = assemble(
        diffusers.FluxControlNetPipeline, pipe.transformer, pipe.scheduler, without=names, vae=vae_with_shift(),
        controlnet=randomised(net),
    )  # fmt: skip
    return made, {**arguments, "control_image": PICTURE, "height": 16, "width": 16}


def flux_controlnet_true_guidance():
    pipe, arguments = flux_controlnet()
    return pipe, dict(**arguments, true_cfg_scale=3.0)


def hunyuan_controlnet():
    pipe, arguments = hunyuan_dit()
    net = diffusers.HunyuanDiT2DControlNetModel.from_transformer(
        pipe.transformer, transformer_num_layers=4, load_weights_from_transformer=False
    )
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "safety_checker", "feature_extractor")
    made = assemble(
        diffusers.HunyuanDiTControlNetPipeline, pipe.transformer, pipe.scheduler, without=names, vae=pipe.vae,
        controlnet=randomised(net), requires_safety_checker=False,
    )  # fmt: skip
    return made, {**arguments, "control_image": PICTURE}


SKIPPING = (
    Skips("SD 3, SD 3.5", "StableDiffusion3Pipeline", stable_diffusion_3, "flow matching, guidance in one call"),
    Skips("SD 3 without guidance", "StableDiffusion3Pipeline", stable_diffusion_3_unguided, "flow matching"),
    Skips("FLUX", "FluxPipeline", flux, "flow matching, guidance as an input, scaled timesteps"),
    Skips("FLUX.2", "Flux2Pipeline", flux_2, "flow matching, guidance as an input, scaled timesteps"),
    Skips("FLUX, true guidance", "FluxPipeline", flux_true_guidance, "flow matching, guidance in two calls", calls=2),
    Skips("PixArt", "PixArtSigmaPipeline", pixart, "predicts a variance too"),
    Skips("Sana", "SanaPipeline", sana, "flow matching under DPM++"),
    Skips("AuraFlow", "AuraFlowPipeline", aura_flow, "flow matching, scaled timesteps"),
    Skips("Lumina 2", "Lumina2Pipeline", lumina_2, "flow matching, negated, guidance in two calls", calls=2),
    Skips("HunyuanDiT", "HunyuanDiTPipeline", hunyuan_dit, "copied timesteps, predicts a variance too"),
    Skips("DiT", "DiTPipeline", dit, "class labels, predicts a variance too"),
    Skips("CogView 4", "CogView4Pipeline", cog_view_4, "flow matching, guidance in two calls", calls=2),
    Skips("Chroma", "ChromaPipeline", chroma, "flow matching, guidance in two calls", calls=2),
    Skips("Qwen-Image", "QwenImagePipeline", qwen_image, "flow matching, guidance in two calls", calls=2),
    Skips("Z-Image", "ZImagePipeline", z_image, "flow matching, negated, lists of pictures, conditional half first"),
    Skips("CogVideoX", "CogVideoXPipeline", cog_video, "predicts v, zero terminal SNR"),
    Skips("CogVideoX, DPM", "CogVideoXPipeline", cog_video_dpm, "its solver adds noise", noisy=True),
    Skips("LTX-Video", "LTXPipeline", ltx, "flow matching, guidance in one call"),
    Skips("HunyuanVideo", "HunyuanVideoPipeline", hunyuan_video, "flow matching, guidance as an input"),
    Skips("Mochi (video)", "MochiPipeline", mochi, "flow matching with noise levels turned round"),
    Skips("Wan (video)", "WanPipeline", wan, "flow matching under UniPC, guidance in two calls", calls=2),
    Skips("Kandinsky 5 (video)", "Kandinsky5T2VPipeline", kandinsky_5, "flow matching, guidance in two calls", calls=2),
    Skips("SD 3, ControlNet", "StableDiffusion3ControlNetPipeline", sd3_controlnet, "as SD 3"),
    Skips("FLUX, ControlNet", "FluxControlNetPipeline", flux_controlnet, "as FLUX"),
    Skips("HunyuanDiT, ControlNet", "HunyuanDiTControlNetPipeline", hunyuan_controlnet, "as HunyuanDiT"),
    Skips("Kandinsky 2.2", "KandinskyV22Pipeline", kandinsky, "a UNet whose layers are of another kind"),
)


def table() -> str:
    """Return the table of docs/pipelines.md."""
    lines = ["| pipeline | class in diffusers | how its denoiser is called |", "|---|---|---|"]
    lines += [f"| {kind.name} | `{kind.pipeline}` | {kind.layout} |" for kind in SKIPPING]
    return "\n".join(lines) + "\n"
