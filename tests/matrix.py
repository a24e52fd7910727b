"""The pipelines whose attention can change, and those where it cannot: for the tests and docs/pipelines.md."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import diffusers
import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    ControlNetModel,
    EulerDiscreteScheduler,
    LCMScheduler,
    MotionAdapter,
    T2IAdapter,
    UNetSpatioTemporalConditionModel,
)
from tiny import (
    SAMPLE,
    WIDTH,
    components,
    ip_adapter_weights,
    make_controlnet,
    make_sdxl_pipe,
    make_tiny_pipe,
    make_tiny_unet,
)
from tiny_denoisers import table as skipping_table
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

GENERATOR = torch.Generator().manual_seed(9)
PICTURE = torch.rand(1, 3, 32, 32, generator=GENERATOR)
MASK = (torch.rand(1, 1, 32, 32, generator=GENERATOR) > 0.5).float()
DEPTH = torch.rand(1, 32, 32, generator=GENERATOR)

UPPER = ("down_blocks.0", "up_blocks.2")  # where SD 1.x and 2.x have their finest attention, in a tiny model
LOWER = ("down_blocks.1", "up_blocks.1")  # where SDXL has it


@dataclass(frozen=True)
class Kind:
    """A supported pipeline.

    Attributes:
        name: What it is called in the table.
        pipeline: Its class in diffusers.
        build: Makes a tiny one; returns it with the arguments of a call.
        finest: Stages that hold the finest patched layers.
        grid: Token grid of those layers, for latents of 16 x 16.
        skipping: Whether skipped steps can run the last layers (`depth=1`); whole steps can always be skipped.
        steps: Steps of a run.
        calls: UNet calls of a run; `None` stands for one a step.
        warns: The warning that a run gives, as a pattern.
        note: What a user should know.
    """

    name: str
    pipeline: str
    build: Callable[[], tuple]
    finest: tuple[str, ...] = UPPER
    grid: tuple[int, int] = (16, 16)
    skipping: bool = True
    steps: int = 5
    calls: int | None = None
    warns: str | None = None
    note: str = ""
    level: int = 0  # of those layers in the released models, where a tiny one differs

    @property
    def id(self) -> str:
        return self.build.__name__


@dataclass(frozen=True)
class Refused:
    """A pipeline or model whose attention cannot change, with the pattern of its error."""

    name: str
    build: Callable[[], object]
    message: str
    why: str


def run(pipe, *, steps: int = 5, seed: int = 0, **arguments) -> torch.Tensor:
    """Return the latents that a pipeline makes from a fixed seed: of a picture, or of a video's frames."""
    if "prompt" in inspect.signature(pipe.__call__).parameters:
        arguments = {"prompt": "a red circle", **arguments}
    arguments = {"output_type": "latent", **arguments}
    return pipe(num_inference_steps=steps, generator=torch.Generator().manual_seed(seed), **arguments)[0]


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


# Stable Diffusion 1.x and 2.x


def text_to_image():
    return make_tiny_pipe(), {}


def text_to_image_2():
    return make_tiny_pipe(use_linear_projection=True, attention_head_dim=(2, 4, 4)), {}


def image_to_image():
    return make_tiny_pipe(diffusers.StableDiffusionImg2ImgPipeline), dict(image=PICTURE, strength=0.5)


def inpaint():
    return make_tiny_pipe(diffusers.StableDiffusionInpaintPipeline), dict(image=PICTURE, mask_image=MASK)


def inpaint_nine_channels():
    pipe = make_tiny_pipe(diffusers.StableDiffusionInpaintPipeline, in_channels=9)
    return pipe, dict(image=PICTURE, mask_image=MASK, height=32, width=32)


def depth_to_image():
    parts = components(in_channels=5)
    del parts["safety_checker"]
    pipe = diffusers.StableDiffusionDepth2ImgPipeline(**parts, depth_estimator=None)
    return quiet(pipe), dict(image=PICTURE, depth_map=DEPTH, strength=1.0)


def instruct_pix2pix():
    return make_tiny_pipe(diffusers.StableDiffusionInstructPix2PixPipeline, in_channels=8), dict(image=PICTURE)


def controlnet():
    parts = components()
    pipe = diffusers.StableDiffusionControlNetPipeline(
        **parts, controlnet=make_controlnet(), requires_safety_checker=False
    )
    return quiet(pipe), dict(image=PICTURE)


def controlnet_guess_mode():
    pipe, arguments = controlnet()
    return pipe, dict(**arguments, guess_mode=True)


def t2i_adapter():
    torch.manual_seed(0)
    adapter = T2IAdapter(channels=[16, 32, 32], num_res_blocks=1, downscale_factor=2).eval()
    pipe = diffusers.StableDiffusionAdapterPipeline(**components(), adapter=adapter, requires_safety_checker=False)
    return quiet(pipe), dict(image=PICTURE)


def ip_adapter():
    pipe = make_tiny_pipe()
    pipe.load_ip_adapter(ip_adapter_weights(pipe.unet), None, None, image_encoder_folder=None)
    return pipe, dict(ip_adapter_image_embeds=[torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(3))])


def lora():
    import peft

    pipe = make_tiny_pipe()
    torch.manual_seed(1)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    pipe.unet.add_adapter(peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    return pipe, {}


def latent_consistency():
    pipe = make_tiny_pipe(diffusers.LatentConsistencyModelPipeline, time_cond_proj_dim=8)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    return pipe, {}


def turbo():
    pipe = make_tiny_pipe()
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    return pipe, dict(guidance_scale=0.0)


def perturbed_attention():
    return make_tiny_pipe(diffusers.StableDiffusionPAGPipeline), dict(pag_scale=3.0)


def upscale():
    # As the real one: the text is all that the finer levels attend to.
    parts = components(in_channels=7, num_class_embeds=1000, only_cross_attention=(True, False, True))
    parts["vae"].register_to_config(scaling_factor=0.08333)
    pipe = diffusers.StableDiffusionUpscalePipeline(**parts, low_res_scheduler=diffusers.DDPMScheduler())
    return quiet(pipe), dict(image=PICTURE[..., :16, :16])


# SDXL


def sdxl_parts(**unet_changes) -> dict:
    pipe = make_sdxl_pipe()
    if unet_changes:
        torch.manual_seed(0)
        pipe.unet = type(pipe.unet).from_config({**pipe.unet.config, **unet_changes}).eval()
    return {name: part for name, part in pipe.components.items() if name not in ("image_encoder", "feature_extractor")}


def sdxl():
    return make_sdxl_pipe(), {}


def sdxl_image_to_image():
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline(**sdxl_parts(), add_watermarker=False)
    return quiet(pipe), dict(image=PICTURE, strength=0.5)


def sdxl_inpaint():
    pipe = diffusers.StableDiffusionXLInpaintPipeline(**sdxl_parts(), add_watermarker=False)
    return quiet(pipe), dict(image=PICTURE, mask_image=MASK, strength=1.0, height=32, width=32)


def sdxl_refiner():
    # Only the second text encoder, a number for the beauty of the picture instead of its target size.
    parts = sdxl_parts(cross_attention_dim=WIDTH, projection_class_embeddings_input_dim=WIDTH + 5 * 8)
    parts.update(text_encoder=None, tokenizer=None)
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline(
        **parts, requires_aesthetics_score=True, add_watermarker=False, force_zeros_for_empty_prompt=False
    )
    return quiet(pipe), dict(image=PICTURE, strength=0.5)


def sdxl_instruct_pix2pix():
    pipe = diffusers.StableDiffusionXLInstructPix2PixPipeline(**sdxl_parts(in_channels=8), add_watermarker=False)
    return quiet(pipe), dict(image=PICTURE, height=32, width=32)


def sdxl_controlnet():
    parts = sdxl_parts()
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(parts["unet"], conditioning_channels=3, conditioning_embedding_out_channels=(8, 8))
    for name, parameter in net.named_parameters():
        if name.startswith("controlnet_"):
            torch.nn.init.normal_(parameter, std=0.5)
    pipe = diffusers.StableDiffusionXLControlNetPipeline(**parts, controlnet=net.eval(), add_watermarker=False)
    return quiet(pipe), dict(image=PICTURE)


def sdxl_turbo():
    pipe = make_sdxl_pipe()
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    return pipe, dict(guidance_scale=0.0)


def sdxl_perturbed_attention():
    return quiet(diffusers.StableDiffusionXLPAGPipeline(**sdxl_parts(), add_watermarker=False)), dict(pag_scale=3.0)


# Video


def animate_diff():
    torch.manual_seed(0)
    adapter = MotionAdapter(
        block_out_channels=(16, 32, 32),
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=8,
        motion_max_seq_length=8,
    )
    for name, parameter in adapter.named_parameters():
        if "proj_out" in name:  # zero in a fresh one: it would move nothing
            torch.nn.init.normal_(parameter, std=0.1)
    parts = components()
    for name in ("safety_checker", "feature_extractor"):
        del parts[name]
    pipe = diffusers.AnimateDiffPipeline(**parts, motion_adapter=adapter)
    pipe.unet.eval()
    return quiet(pipe), dict(num_frames=2, height=32, width=32)


def stable_video():
    torch.manual_seed(0)
    unet = UNetSpatioTemporalConditionModel(
        sample_size=SAMPLE,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(32, 32),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        num_attention_heads=(2, 2),
        num_frames=2,
    ).eval()
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=1
    ).eval()
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=8,
            intermediate_size=16,
            projection_dim=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
            patch_size=16,
        )
    ).eval()
    pipe = diffusers.StableVideoDiffusionPipeline(
        vae=vae,
        image_encoder=encoder,
        unet=unet,
        scheduler=EulerDiscreteScheduler(prediction_type="v_prediction", use_karras_sigmas=True),
        feature_extractor=CLIPImageProcessor(),
    )
    return quiet(pipe), dict(image=PICTURE, height=32, width=32, num_frames=2)


PAG_WARNING = "attention processors that agentsd installed have been replaced"

KINDS = (
    Kind("SD 1.x text to image", "StableDiffusionPipeline", text_to_image),
    Kind("SD 2.x text to image", "StableDiffusionPipeline", text_to_image_2, note="linear projections, wider heads"),
    Kind(
        "image to image",
        "StableDiffusionImg2ImgPipeline",
        image_to_image,
        steps=10,
        calls=5,
        note="phases count the steps that run, not those that `strength` leaves out",
    ),
    Kind("inpainting", "StableDiffusionInpaintPipeline", inpaint),
    Kind("inpainting, 9 channels", "StableDiffusionInpaintPipeline", inpaint_nine_channels),
    Kind("depth to image", "StableDiffusionDepth2ImgPipeline", depth_to_image),
    Kind("InstructPix2Pix", "StableDiffusionInstructPix2PixPipeline", instruct_pix2pix),
    Kind(
        "ControlNet",
        "StableDiffusionControlNetPipeline",
        controlnet,
        note="the ControlNet rests at skipped steps under a tolerance; `agentsd.apply(pipe.controlnet)` changes its "
        "attention too",
    ),
    Kind("ControlNet, guess mode", "StableDiffusionControlNetPipeline", controlnet_guess_mode),
    Kind("T2I-Adapter", "StableDiffusionAdapterPipeline", t2i_adapter),
    Kind("IP-Adapter", "any with `load_ip_adapter`", ip_adapter, note="load it before or after `apply`"),
    Kind("LoRA", "any with `load_lora_weights`", lora, note="load, switch and unload it before or after `apply`"),
    Kind(
        "LCM",
        "LatentConsistencyModelPipeline",
        latent_consistency,
        note="runs below 10 steps skip nothing; from 10 steps on a tolerance holds in spite of its fresh noise",
    ),
    Kind("SD-Turbo", "StableDiffusionPipeline", turbo, steps=4, note="nothing is skipped in runs below 10 steps"),
    Kind(
        "PAG",
        "StableDiffusionPAGPipeline",
        perturbed_attention,
        warns=PAG_WARNING,
        note="layers that PAG takes during the call run its attention; agentsd says so once",
    ),
    Kind(
        "x4 upscaler",
        "StableDiffusionUpscalePipeline",
        upscale,
        finest=LOWER,
        grid=(8, 8),
        note="its finer levels attend to the text only: skipped steps gain, cheaper attention does not",
        level=8,
    ),
    Kind("SDXL text to image", "StableDiffusionXLPipeline", sdxl, LOWER, (8, 8)),
    Kind(
        "SDXL image to image", "StableDiffusionXLImg2ImgPipeline", sdxl_image_to_image, LOWER, (8, 8), steps=10, calls=5
    ),
    Kind("SDXL inpainting", "StableDiffusionXLInpaintPipeline", sdxl_inpaint, LOWER, (8, 8)),
    Kind("SDXL refiner", "StableDiffusionXLImg2ImgPipeline", sdxl_refiner, LOWER, (8, 8), steps=10, calls=5),
    Kind("SDXL InstructPix2Pix", "StableDiffusionXLInstructPix2PixPipeline", sdxl_instruct_pix2pix, LOWER, (8, 8)),
    Kind("SDXL ControlNet", "StableDiffusionXLControlNetPipeline", sdxl_controlnet, LOWER, (8, 8)),
    Kind("SDXL-Turbo", "StableDiffusionXLPipeline", sdxl_turbo, LOWER, (8, 8), steps=4),
    Kind("SDXL PAG", "StableDiffusionXLPAGPipeline", sdxl_perturbed_attention, LOWER, (8, 8), warns=PAG_WARNING),
    Kind(
        "AnimateDiff",
        "AnimateDiffPipeline",
        animate_diff,
        skipping=False,
        note="attention within each frame; the motion modules stay stock",
    ),
    Kind(
        "Stable Video Diffusion",
        "StableVideoDiffusionPipeline",
        stable_video,
        finest=("down_blocks.0", "up_blocks.1"),
        skipping=False,
        note="attention within each frame; the temporal blocks stay stock",
    ),
)


# Refused


def kandinsky_like():
    return make_tiny_unet(
        down_block_types=("SimpleCrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("UpBlock2D", "UpBlock2D", "SimpleCrossAttnUpBlock2D"),
    )


def latent_upscaler():
    return make_tiny_unet(
        down_block_types=("KDownBlock2D", "KCrossAttnDownBlock2D"),
        mid_block_type=None,
        up_block_types=("KCrossAttnUpBlock2D", "KUpBlock2D"),
        block_out_channels=(32, 32),
        attention_head_dim=8,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        timestep_post_act="gelu",
        conv_in_kernel=1,
        conv_out_kernel=1,
    )


def unconditional():
    return diffusers.UNet2DModel(
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )


def already_tomesd():
    import tomesd

    return tomesd.apply_patch(make_tiny_pipe())


NOTHING = "has no self-attention layer that agentsd can patch. Found: "

REFUSED = (
    Refused(
        "Kandinsky 2, DeepFloyd IF, unCLIP",
        kandinsky_like,
        f"{NOTHING}.*layers: ",
        "one attention over text and image keys (`AttnAddedKVProcessor`)",
    ),
    Refused(
        "latent upscaler",
        latent_upscaler,
        f"{NOTHING}.*KAttentionBlock",
        "blocks of another kind (`KAttentionBlock`)",
    ),
    Refused(
        "unconditional models (DDPM)",
        unconditional,
        f"{NOTHING}.*normalises its queries, keys or input",
        "attention with a normalisation and a residual inside",
    ),
    Refused(
        "pipelines patched by tomesd",
        already_tomesd,
        f"{NOTHING}.*patched by tomesd; call tomesd.remove_patch first",
        "both merge the same tokens; `tomesd.remove_patch` first",
    ),
)


def table() -> str:
    """Return the tables of docs/pipelines.md."""
    lines = ["| pipeline | class in diffusers | finest patched grid | last layers | note |", "|---|---|--:|---|---|"]
    for kind in KINDS:
        pipeline = kind.pipeline if " " in kind.pipeline else f"`{kind.pipeline}`"
        level = kind.level or SAMPLE // kind.grid[0]
        skipping = "yes" if kind.skipping else "no"
        lines.append(f"| {kind.name} | {pipeline} | latent /{level} | {skipping} | {kind.note} |")
    lines += [
        "",
        skipping_table(),
        "| attention stays stock | why |",
        "|---|---|",
        *(f"| {refused.name} | {refused.why} |" for refused in REFUSED),
    ]
    return "\n".join(lines) + "\n"
