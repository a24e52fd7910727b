"""Random inputs for a UNet: what a step is timed with."""

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from diffusers import ControlNetModel, UNet2DConditionModel

# An IP-Adapter's projection in diffusers -> the layer that takes the picture's embedding, and how many rows it has.
_IMAGE_LAYERS: MappingProxyType[str, tuple[str, tuple[int, ...]]] = MappingProxyType(
    {
        "ImageProjection": ("image_embeds", ()),
        "IPAdapterFaceIDImageProjection": ("ff.net.0.proj", ()),
        "IPAdapterFullImageProjection": ("ff.net.0.proj", (257,)),
        "IPAdapterPlusImageProjection": ("proj_in", (257,)),
    }
)


def random_inputs(
    unet: "UNet2DConditionModel | ControlNetModel", height: int, width: int, batch: int, *, seed: int = 0
) -> dict[str, Any]:
    """Return random UNet inputs for latents of `height x width`: keywords of its `forward`.

    Args:
        unet: UNet or ControlNet to feed, also with IP-Adapters loaded.
        height: Latent height, for Stable Diffusion an eighth of the picture's.
        width: Latent width.
        batch: Samples per call; classifier-free guidance doubles the number of images.
        seed: Seed of the inputs.

    Returns:
        `sample`, `timestep`, `encoder_hidden_states` and, where the architecture wants them, `class_labels`,
        `controlnet_cond` and `added_cond_kwargs`.

    Raises:
        ValueError: If the UNet wants inputs that cannot be made up; the message names them.

    Example:
        >>> sorted(random_inputs(unet, 16, 16, 2))
        ['encoder_hidden_states', 'sample', 'timestep']
    """
    from diffusers import ControlNetModel, UNet2DConditionModel

    if not isinstance(unet, UNet2DConditionModel | ControlNetModel):
        raise _cannot_feed(unet, "the frames of a video or other inputs than UNet2DConditionModel's")
    config, device, dtype = unet.config, unet.device, unet.dtype
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    # With an IP-Adapter on top, the projection of the text moves to an attribute of its own (Kolors).
    projects_text = config.encoder_hid_dim_type == "text_proj" or getattr(unet, "text_encoder_hid_proj", None)
    text_width = config.encoder_hid_dim if projects_text else config.cross_attention_dim
    inputs: dict[str, Any] = {
        "sample": normal(batch, config.in_channels, height, width),
        "timestep": 500,
        "encoder_hidden_states": normal(batch, 77, text_width),
    }
    if unet.class_embedding is not None:
        labels = torch.zeros(batch, dtype=torch.int64, device=device)  # numbers of classes or of noise levels
        if config.class_embed_type in ("projection", "simple_projection"):
            labels = normal(batch, config.projection_class_embeddings_input_dim)
        elif config.class_embed_type == "identity":
            labels = normal(batch, unet.time_embedding.linear_2.out_features)
        inputs["class_labels"] = labels
    added: dict[str, Any] = {}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        sizes = torch.tensor([[8 * height, 8 * width, 0, 0, 8 * height, 8 * width]] * batch)
        added = {"text_embeds": normal(batch, pooled), "time_ids": sizes.to(device, dtype)}
    elif config.addition_embed_type not in (None, "text"):
        raise _cannot_feed(unet, f"image_embeds for addition_embed_type={config.addition_embed_type!r}")
    if config.encoder_hid_dim_type == "ip_image_proj":
        layers = unet.encoder_hid_proj.image_projection_layers
        added["image_embeds"] = [normal(batch, 1, *_image_shape(unet, layer)) for layer in layers]
    elif config.encoder_hid_dim_type not in (None, "text_proj"):
        raise _cannot_feed(unet, f"image_embeds for encoder_hid_dim_type={config.encoder_hid_dim_type!r}")
    if added:
        inputs["added_cond_kwargs"] = added
    if isinstance(unet, ControlNetModel):
        factor = 2 ** (len(config.conditioning_embedding_out_channels) - 1)
        inputs["controlnet_cond"] = normal(batch, config.conditioning_channels, factor * height, factor * width)
    return inputs


def _image_shape(unet: Any, layer: Any) -> tuple[int, ...]:
    """Return the shape of one picture's embedding for an IP-Adapter's projection layer."""
    name = type(layer).__name__
    if name not in _IMAGE_LAYERS:
        raise _cannot_feed(unet, f"image_embeds for an IP-Adapter with {name}")
    entry, tokens = _IMAGE_LAYERS[name]
    return (*tokens, layer.get_submodule(entry).in_features)


def _cannot_feed(unet: Any, missing: str) -> ValueError:
    return ValueError(
        f"{type(unet).__name__} takes {missing}, which agentsd cannot make up to time it; "
        "call agentsd.apply with a preset instead of a plan."
    )
