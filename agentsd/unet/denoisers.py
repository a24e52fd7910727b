"""How diffusers' denoisers are called: which argument is the sample, and what else differs between them.

Skipping whole steps needs no layer of a denoiser. It needs the sample, the timestep and the prediction. Their names
are read from the signature of `forward`; the table below holds what a signature does not say.
"""

import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

SECOND = "transformer_2"  # what pipelines with two denoisers call the second one
_SAMPLES = ("sample", "hidden_states")  # names of the sample in the denoisers of diffusers


@dataclass(frozen=True)
class Layout:
    """How a denoiser is called.

    Attributes:
        names: Arguments of its forward, in their order.
        sample: Name of the latent that is denoised.
        timestep: Name of the timestep.
        lists: Whether samples and predictions are lists with a tensor for each picture.
        conditional_first: Whether guidance puts the conditional half first: `c + g (c - u)` of the halves `c, u`.
        sign: -1 where pipelines negate the prediction before the scheduler sees it.
        scales_time: Whether pipelines may give it another number than the scheduler's timestep.
        residuals: Arguments that a ControlNet fills anew at every step.
        by_sample: What the paths of arguments with an entry for each sample begin with, names joined by dots. Empty
            where a call for some of the samples is not known to equal its part of the whole call.
        obstacle: Why its whole steps cannot be skipped; `None` if they can.
    """

    names: tuple[str, ...] = ()
    sample: str = "sample"
    timestep: str = "timestep"
    lists: bool = False
    conditional_first: bool = False
    sign: int = 1
    scales_time: bool = True
    residuals: tuple[str, ...] = ()
    by_sample: tuple[str, ...] = ()
    obstacle: str | None = None

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by name, wherever they stood; the timestep by the name `timestep`.

        Example:
            >>> Layout(("sample", "timestep")).bind((1,), {"timestep": 2})
            {'sample': 1, 'timestep': 2}
            >>> Layout(("x", "t"), sample="x", timestep="t").bind((1, 2), {})
            {'x': 1, 'timestep': 2}
        """
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        return {"timestep" if name == self.timestep else name: value for name, value in given.items()}

    def joined(self, value: Any) -> Any:
        """Return a sample or prediction as one tensor, [B, ...]; as it is where a list does not fit one.

        Example:
            >>> Layout(lists=True).joined([torch.zeros(4, 8, 8)] * 2).shape
            torch.Size([2, 4, 8, 8])
        """
        if not self.lists or not isinstance(value, list | tuple) or not value:
            return value
        alike = all(isinstance(one, Tensor) and one.shape == value[0].shape for one in value)
        return torch.stack(list(value)) if alike else value

    def parted(self, value: Tensor) -> Any:
        """Return a prediction as the denoiser returns it: a list where its samples are lists."""
        return list(value.unbind()) if self.lists else value


# In `cross_attention_kwargs` only GLIGEN's objects have one. Masks of IP-Adapters have one for each given picture.
UNET_BY_SAMPLE = (
    "sample",
    "timestep",  # also timestep_cond
    "encoder_hidden_states",
    "class_labels",
    "attention_mask",
    "encoder_attention_mask",
    "cross_attention_kwargs.gligen",
    "added_cond_kwargs.text_embeds",
    "added_cond_kwargs.time_ids",
    "added_cond_kwargs.image_embeds",
    "added_cond_kwargs.hint",
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)
_ENCODED = ("hidden_states", "timestep", "encoder_hidden_states")
_POOLED = (*_ENCODED, "pooled_projections")
_MASKED = (*_ENCODED, "attention_mask", "encoder_attention_mask")
_UNET = Layout(scales_time=False, residuals=("mid_block_additional_residual", "down_block_additional_residuals"))
_CONTROL = Layout(residuals=("controlnet_block_samples", "controlnet_single_block_samples"))
_SD3 = ("block_controlnet_hidden_states",)

# What the signature of a class does not say.
_TABLE = {
    "UNet2DConditionModel": replace(_UNET, by_sample=UNET_BY_SAMPLE),
    "UNetMotionModel": _UNET,
    "SD3Transformer2DModel": Layout(residuals=_SD3, by_sample=(*_POOLED, *_SD3)),
    # `guidance` is a tensor here; the ids of texts and pictures are the same for all samples.
    "FluxTransformer2DModel": replace(_CONTROL, by_sample=(*_POOLED, *_CONTROL.residuals, "guidance")),
    "Flux2Transformer2DModel": Layout(by_sample=(*_ENCODED, "guidance", "txt_ids", "img_ids")),
    "PixArtTransformer2DModel": Layout(by_sample=(*_MASKED, "added_cond_kwargs")),
    "AuraFlowTransformer2DModel": Layout(by_sample=_ENCODED),
    "CogView4Transformer2DModel": Layout(by_sample=(*_MASKED, "original_size", "target_size", "crop_coords")),
    "QwenImageTransformer2DModel": _CONTROL,
    "SanaTransformer2DModel": replace(_CONTROL, by_sample=(*_MASKED, *_CONTROL.residuals, "guidance")),
    "HunyuanDiT2DModel": Layout(
        residuals=("controlnet_block_samples",),
        by_sample=(*_ENCODED, "controlnet_block_samples", "text_embedding_mask", "image_meta_size", "style"),
    ),
    "Lumina2Transformer2DModel": Layout(sign=-1, by_sample=_MASKED),
    "LuminaNextDiT2DModel": Layout(sign=-1),
    "HiDreamImageTransformer2DModel": Layout(sign=-1),
    "ZImageTransformer2DModel": Layout(
        sample="x", timestep="t", lists=True, conditional_first=True, sign=-1, residuals=("controlnet_block_samples",)
    ),
}


def layout_of(denoiser: nn.Module) -> Layout:
    """Return how a denoiser is called: its own entry of the table, or what the signature of its forward says.

    Example:
        >>> layout_of(unet).names[:3]
        ('sample', 'timestep', 'encoder_hidden_states')
        >>> layout_of(torch.nn.Linear(2, 2)).obstacle
        "Linear.forward has no argument named 'timestep' and none named 'sample' or 'hidden_states'"
    """
    kind = type(denoiser)
    names = tuple(inspect.signature(kind.forward).parameters)[1:]
    known = next((_TABLE[one.__name__] for one in kind.__mro__ if one.__name__ in _TABLE), Layout())
    sample = next((name for name in (known.sample, *_SAMPLES) if name in names), None)
    if "ControlNet" in kind.__name__:
        useless = f"{kind.__name__} is a ControlNet, which predicts no noise"
        return replace(known, names=names, sample=sample or known.sample, obstacle=useless)
    if sample is None or known.timestep not in names:
        missing = f"{kind.__name__}.forward has no argument named 'timestep' and none named 'sample' or 'hidden_states'"
        return replace(known, names=names, obstacle=missing)
    problem = None if known.obstacle is None else f"{kind.__name__} is not supported: {known.obstacle}"
    return replace(known, names=names, sample=sample, obstacle=problem)


def denoiser_in(pipe: Any) -> Any:
    """Return what a pipeline denoises with: its UNet, else its transformer; `None` if it has neither.

    Example:
        >>> denoiser_in(pipe) is pipe.unet
        True
    """
    found = getattr(pipe, "unet", None)
    return getattr(pipe, "transformer", None) if found is None else found


def second_denoiser_in(pipe: Any) -> Any:
    """Return the denoiser of the later steps, in a pipeline that has one for high and one for low noise (Wan 2.2).

    Example:
        >>> second_denoiser_in(pipe) is None
        True
    """
    found = getattr(pipe, SECOND, None)
    return found if isinstance(found, nn.Module) else None


def latent_part(sample: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor, tuple[int, Tensor] | None]:
    """Return the latent in a sample, its prediction, and what else was predicted with the axis that it lies on.

    The two differ in one axis at most. A longer sample carries a condition behind the latent (masks, pictures). A
    longer prediction carries a variance behind its mean (PixArt, Kandinsky), which is the third value.

    Example:
        >>> latent, mean, rest = latent_part(torch.zeros(1, 4, 8, 8), torch.zeros(1, 8, 8, 8))
        >>> mean.shape[1], rest[0], rest[1].shape[1]
        (4, 1, 4)
    """
    rest = None
    for axis, (given, made) in enumerate(zip(sample.shape, prediction.shape, strict=True)):
        if made > given:
            rest = axis, prediction.narrow(axis, given, made - given)
            prediction = prediction.narrow(axis, 0, given)
        elif given > made:
            sample = sample.narrow(axis, 0, made)
    return sample, prediction, rest
