"""What everything is compared with: stock, older attention, ceilings, and what anyone can do to a UNet."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from agentsd.bench.arm import Arm, restored
from agentsd.patch import apply
from agentsd.schedule import Schedule, Skipping
from agentsd.unet.processor import SITE, Site

COPIED_LAYER = Skipping(depth=1, forecast=0.0, last_full=False)  # as DeepCache: the last layer, without a forecast


def stock(pipe: Any) -> AbstractContextManager[Any]:
    """Return the pipeline as users have it: fused scaled-dot-product attention."""
    return nullcontext(pipe)


def unfused_arm() -> Arm:
    """Return attention as diffusers computed it before torch had a fused one: what older papers call the baseline."""

    @contextmanager
    def arm(pipe: Any) -> Iterator[None]:
        from diffusers.models.attention_processor import AttnProcessor

        with restored(pipe.unet):
            pipe.unet.set_attn_processor(AttnProcessor())
            yield

    return Arm(arm)


def no_self_attention_arm(every: int = 1) -> Arm:
    """Return the arm without any self-attention: the ceiling of every attention method, not a picture anyone wants."""
    schedule = Schedule.constant(None, every, skipping=COPIED_LAYER)

    @contextmanager
    def enter(pipe: Any) -> Iterator[None]:
        with apply(pipe, schedule):
            carried = [module.__dict__.get(SITE) for module in pipe.unet.modules()]
            sites = [site for site in carried if isinstance(site, Site)]
            before = [site.original for site in sites]
            for site in sites:
                site.original = _Identity()
            try:
                yield
            finally:
                for site, original in zip(sites, before, strict=True):
                    site.original = original

    return Arm(enter, every, schedule.to_json() if every > 1 else "")


def compiled(arm: Arm, backend: Any = "inductor", mode: str | None = None) -> Arm:
    """Return the arm with the UNet under `torch.compile`; graphs are kept from entry to entry.

    Args:
        arm: The arm.
        backend: What compiles.
        mode: Mode of the compiler: `None` is its default, "reduce-overhead" records CUDA graphs.
    """

    @contextmanager
    def enter(pipe: Any) -> Iterator[None]:
        with arm.enter(pipe), restored(pipe.unet):
            pipe.unet.compile(backend=backend, **({} if mode is None else {"mode": mode}))
            yield

    return Arm(enter, arm.cycle, " ".join(filter(None, ("torch.compile", mode, arm.settings))))


def channels_last(arm: Arm) -> Arm:
    """Return the arm with the UNet's weights in the memory format of `torch.channels_last`; their values stay."""

    @contextmanager
    def enter(pipe: Any) -> Iterator[None]:
        pipe.unet.to(memory_format=torch.channels_last)
        try:
            with arm.enter(pipe):
                yield
        finally:
            pipe.unet.to(memory_format=torch.contiguous_format)
            for weight in pipe.unet.parameters():
                # A 1x1 kernel keeps its strides, being contiguous either way; a compiled arm would compile anew.
                weight.data = weight.data.reshape(-1).view(weight.shape)

    return Arm(enter, arm.cycle, f"channels_last {arm.settings}".strip())


class _Identity:
    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states
