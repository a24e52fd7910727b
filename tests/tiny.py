"""Tiny random-weight models of the Stable Diffusion architecture (see the sizes in each builder)."""

from functools import cache

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WIDTH = 32  # of the text encoder
SAMPLE = 16  # latent side: grids 16, 8, 4 (finest two with attention)


def make_tiny_unet(*, seed: int = 0, in_channels: int = 4, **changes) -> UNet2DConditionModel:
    """Three levels, attention on the finest two (and the middle): self-attention layers 1 + 1 + 1 + 2 + 2."""
    settings = dict(
        sample_size=SAMPLE,
        in_channels=in_channels,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(2, 4, 4),
        cross_attention_dim=WIDTH,
        norm_num_groups=8,
    )
    torch.manual_seed(seed)
    return UNet2DConditionModel(**{**settings, **changes}).eval()


@cache
def _tokenizer() -> CLIPTokenizer:
    alphabet = sorted(ByteLevel.alphabet())
    names = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=77)


def make_text_encoder(seed: int = 0, cls=CLIPTextModel, **changes):
    """One layer of a CLIP text encoder over a byte alphabet."""
    tokenizer = _tokenizer()
    torch.manual_seed(seed)
    return cls(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **changes,
        )
    ).eval()


def make_vae(seed: int = 0) -> AutoencoderKL:
    """Factor 2."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=2 * SAMPLE,
    ).eval()


def components(seed: int = 0, **unet_changes) -> dict:
    """Components of a tiny Stable Diffusion pipeline."""
    return dict(
        vae=make_vae(seed),
        text_encoder=make_text_encoder(seed),
        tokenizer=_tokenizer(),
        unet=make_tiny_unet(seed=seed, **unet_changes),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
    )


def make_tiny_pipe(cls=StableDiffusionPipeline, *, seed: int = 0, **unet_changes):
    """A tiny Stable Diffusion pipeline of class `cls`, 32 x 32 pixels, 16 x 16 latents."""
    pipe = cls(**components(seed, **unet_changes), requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, prompt="a red circle", *, seed: int = 0, steps: int = 5, **kwargs) -> torch.Tensor:
    """Return a picture (or latents) of `pipe` as a tensor, from a fixed seed."""
    kwargs.setdefault("output_type", "latent")
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, num_inference_steps=steps, generator=generator, **kwargs).images


ONE_LEVEL = dict(
    block_out_channels=(16,),
    down_block_types=("CrossAttnDownBlock2D",),
    mid_block_type=None,
    up_block_types=("CrossAttnUpBlock2D",),
    attention_head_dim=2,
)


def make_one_level_unet(*, seed: int = 0, **changes) -> UNet2DConditionModel:
    """One level, three self-attention layers, all on the 16 x 16 grid: quick to compile."""
    return make_tiny_unet(seed=seed, **ONE_LEVEL, **changes)


def make_controlnet(seed: int = 0) -> ControlNetModel:
    """The ControlNet that fits `make_tiny_unet`: self-attention layers 1 + 1 + 1."""
    torch.manual_seed(seed)
    net = ControlNetModel(
        layers_per_block=1,
        block_out_channels=(16, 32, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        attention_head_dim=(2, 4, 4),
        cross_attention_dim=WIDTH,
        norm_num_groups=8,
        conditioning_embedding_out_channels=(8, 8),
    ).eval()
    for name, parameter in net.named_parameters():
        if name.startswith("controlnet_"):  # zero convolutions: a fresh ControlNet would change nothing
            torch.nn.init.normal_(parameter, std=0.5)
    return net


def make_sdxl_pipe(seed: int = 0) -> StableDiffusionXLPipeline:
    """SDXL: no attention on the finest level; self-attention layers 1 + 2 + 2 + 4 + 2, level 1 the finest with any."""
    parts = components(
        seed,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH + 6 * 8,
    )
    for name in ("safety_checker", "feature_extractor"):
        del parts[name]
    pipe = StableDiffusionXLPipeline(
        **parts,
        text_encoder_2=make_text_encoder(seed + 1, CLIPTextModelWithProjection, projection_dim=WIDTH),
        tokenizer_2=parts["tokenizer"],
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ip_adapter_weights(unet: UNet2DConditionModel, *, width: int = 8, seed: int = 0) -> dict:
    """The state dict of an IP-Adapter for `unet` and image embeddings of `width` numbers."""
    generator = torch.Generator().manual_seed(seed)

    def draw_weight(*shape):
        return torch.randn(*shape, generator=generator)

    layers = {}
    for place, name in enumerate(name for name in unet.attn_processors if name.endswith("attn2.processor")):
        attn = unet.get_submodule(name.removesuffix(".processor"))
        for kind in ("to_k_ip", "to_v_ip"):
            layers[f"{2 * place + 1}.{kind}.weight"] = draw_weight(attn.inner_dim, WIDTH)
    projection = {
        "proj.weight": draw_weight(4 * WIDTH, width),
        "proj.bias": draw_weight(4 * WIDTH),
        "norm.weight": draw_weight(WIDTH),
        "norm.bias": draw_weight(WIDTH),
    }
    return {"image_proj": projection, "ip_adapter": layers}
