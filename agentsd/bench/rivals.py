"""Other people's accelerators, from their packages or rebuilt from their papers."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from agentsd.bench.arm import Arm, RunArm, restored, version_of


def tomesd_arm(ratio: float) -> Arm:
    """Return token merging by the package tomesd (https://github.com/dbolya/tomesd)."""

    @contextmanager
    def arm(pipe: Any) -> Iterator[None]:
        import tomesd

        with restored(pipe.unet):
            tomesd.apply_patch(pipe.unet, ratio=ratio)
            try:
                yield
            finally:
                tomesd.remove_patch(pipe.unet)

    return Arm(arm, settings=f"tomesd {version_of('tomesd')}")


def deepcache_arm(interval: int) -> Arm:
    """Return feature caching by the package DeepCache (https://github.com/horseee/DeepCache), branch 0."""

    @contextmanager
    def arm(pipe: Any) -> Iterator[None]:
        from DeepCache import DeepCacheSDHelper

        helper = DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=interval, cache_branch_id=0)
        with restored(pipe.unet):
            helper.enable()
            try:
                yield
            finally:
                helper.disable()

    return Arm(arm, interval, f"DeepCache {version_of('DeepCache')}")


def kv_downsampling_arm(factor: int) -> Arm:
    """Return nearest-neighbour downsampling of keys and values at the finest level (ToDo, arXiv 2402.13573)."""
    return _finest_level_arm(_Downsampled(factor))


def tiled_attention_arm(side: int) -> Arm:
    """Return attention within tiles of `side x side` tokens at the finest level, as HyperTile has it by default."""
    return _finest_level_arm(_Tiled(side))


def _finest_level_arm(processor: Any) -> Arm:
    @contextmanager
    def arm(pipe: Any) -> Iterator[None]:
        from agentsd.unet.sites import find_sites

        sites, _ = find_sites(pipe.unet)
        finest = min(site.level for site in sites)
        with restored(pipe.unet):
            for site in sites:
                if site.level == finest:
                    site.attn.processor = processor
            yield

    return Arm(arm)


def attention_broadcast_arm(every: int) -> Arm:
    """Return self-attention computed at every so many steps between timesteps 800 and 100, by the hook in diffusers.

    Pyramid Attention Broadcast (arXiv 2408.12588) with the package's defaults. It is documented for transformers, whose
    pipelines state the timestep; on a UNet a hook of ours does.
    """

    @contextmanager
    def arm(pipe: Any) -> Iterator[None]:
        from diffusers import PyramidAttentionBroadcastConfig
        from diffusers.hooks import apply_pyramid_attention_broadcast

        current = [0]

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            current[0] = int(args[1] if len(args) > 1 else kwargs["timestep"])

        config = PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=every, current_timestep_callback=lambda: current[0]
        )
        with restored(pipe.unet):
            handle = pipe.unet.register_forward_pre_hook(note, with_kwargs=True)
            try:
                apply_pyramid_attention_broadcast(pipe.unet, config)
                yield
            finally:
                handle.remove()

    return Arm(arm, every, f"diffusers {version_of('diffusers')}")


def tgate_arm(gate: float = 0.4) -> RunArm:
    """Return T-GATE 1.0.0 (https://github.com/HaozheLiu-ST/T-GATE), which has a call of its own and no undo.

    Until the gate it keeps self-attention for five steps at a time; from the gate on it keeps cross-attention fixed
    and leaves classifier-free guidance out, which halves the batch. Its other settings are its defaults.

    Args:
        gate: Share of the run at which the gate is: its authors put it at step 10 of 25.

    Returns:
        The arm, for `StableDiffusionPipeline` alone.
    """

    @contextmanager
    def enter(pipe: Any) -> Iterator[None]:
        from tgate import TgateSDLoader

        with restored(pipe.unet):
            TgateSDLoader(pipe)
            try:
                yield
            finally:
                del pipe.tgate

    def call(pipe: Any, *args: Any, num_inference_steps: int, **kwargs: Any) -> Any:
        step = max(1, round(gate * num_inference_steps))
        return pipe.tgate(*args, num_inference_steps=num_inference_steps, gate_step=step, **kwargs)

    return RunArm(enter, settings=f"tgate {version_of('tgate')}, gate {gate:g}", call=call)


class _Downsampled:
    """Attention of all queries to every `factor`-th key and value in both directions of a square grid."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        batch, number, channels = hidden_states.shape
        side = _side(number)
        grid = hidden_states.view(batch, side, side, channels)[:, :: self.factor, :: self.factor]
        few = grid.reshape(batch, -1, channels)
        query, key, value = (
            project(tokens).view(batch, tokens.shape[1], attn.heads, -1).transpose(1, 2)
            for project, tokens in ((attn.to_q, hidden_states), (attn.to_k, few), (attn.to_v, few))
        )
        attended = F.scaled_dot_product_attention(query, key, value, scale=attn.scale).transpose(1, 2)
        output: Tensor = attn.to_out[1](attn.to_out[0](attended.flatten(2)))
        return output


class _Tiled:
    """Attention of each token to those of its own tile of `side x side` tokens; a smaller grid is one tile."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        from diffusers.models.attention_processor import AttnProcessor2_0

        batch, number, channels = hidden_states.shape
        whole = _side(number)
        side = min(self.side, whole)
        tiles, left = divmod(whole, side)
        if left:
            raise ValueError(f"a grid of side {whole} is not divided by tiles of side {side}.")
        # [B, rows of tiles, rows of a tile, columns of tiles, columns of a tile, C], and the tiles to the front
        grid = hidden_states.view(batch, tiles, side, tiles, side, channels).transpose(2, 3)
        output: Tensor = AttnProcessor2_0()(attn, grid.reshape(-1, side * side, channels))
        grid = output.view(batch, tiles, tiles, side, side, channels).transpose(2, 3)
        return grid.reshape(batch, number, channels)


def _side(number: int) -> int:
    side = math.isqrt(number)
    if side * side != number:
        raise ValueError(f"{number} tokens are no square grid; this baseline takes square pictures only.")
    return side
