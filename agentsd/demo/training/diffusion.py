"""The demo's UNet: construction, noise schedule, training stages on growing grids, and sampling."""

from __future__ import annotations

import copy
import logging
import pathlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from agentsd.demo.training.muon import Muon
from agentsd.demo.training.pool import Pool, draw_batch
from agentsd.demo.training.recipe import Stage
from agentsd.system.precision import cpu_autocast
from agentsd.system.writing import whole_file

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, UNet2DConditionModel

logger = logging.getLogger(__name__)

TextFunction = Callable[[list[str]], torch.Tensor]


INNER_CHANNELS = (48, 96, 160, 192)  # of the UNet trained on coarse grids, then grafted into the final one
FINEST_GRID = 64


def build_unet(
    channels: tuple[int, ...] = (48, 48, 96, 160, 192), groups: int = 16, text: int = 128
) -> UNet2DConditionModel:
    """Build an untrained UNet in the layout of Stable Diffusion 1.5: all levels but the innermost have attention.

    Args:
        channels: Width of each level, outermost first.
        groups: Groups of each group normalisation.
        text: Width of the text encoder's states.

    Returns:
        The model, in fp32, initialised from torch's global generator.
    """
    from diffusers import UNet2DConditionModel

    attending = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * attending + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attending,
        attention_head_dim=tuple(max(1, width // 32) for width in channels),
        cross_attention_dim=text,
        norm_num_groups=groups,
    )


def build_scheduler() -> DDIMScheduler:
    """The demo's scheduler: v-prediction, linear betas that end in almost pure noise, trailing timesteps."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.025,
        beta_schedule="linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # unused by trailing spacing; StableDiffusionPipeline warns at any other value
    )


def build_optimisers(unet: torch.nn.Module, stage: Stage) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the UNet, AdamW for the rest: norms, biases, first and last convolution."""
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in unet.named_parameters():
        inner = parameter.ndim >= 2 and not name.startswith(("conv_in", "conv_out"))
        (matrices if inner and stage.muon_lr > 0 else rest).append(parameter)
    adam = torch.optim.AdamW(rest, lr=stage.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    return [adam, Muon(matrices, lr=stage.muon_lr)] if matrices else [adam]


def v_loss(
    unet: torch.nn.Module, pool: Pool, stage: Stage, step: int, seed: int, encode_texts: TextFunction
) -> torch.Tensor:
    """Mean squared error of the predicted velocity on the batch of a step, with uniform weights over timesteps."""
    batch = draw_batch(pool, step, size=stage.batch, grid=stage.grid, seed=seed, focus=stage.focus, noise=stage.noise)
    signal = build_scheduler().alphas_cumprod[batch.timesteps][:, None, None, None]
    noisy = signal.sqrt() * batch.latents + (1 - signal).sqrt() * batch.noise
    velocity = signal.sqrt() * batch.noise - (1 - signal).sqrt() * batch.latents
    states = encode_texts(batch.texts)
    with cpu_autocast():
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        prediction = unet(noisy, batch.timesteps, encoder_hidden_states=states).sample
    return F.mse_loss(prediction.float(), velocity)


class Trainer:
    """Runs stages with averaged weights and exact resumption.

    Args:
        unet: The UNet, trained in place.
        pool: Training pool.
        encode_texts: Captions to hidden states (n, 77, width).
        checkpoint: File for the state, rewritten every ``save_seconds`` of compute; None saves nothing.
        seed: Seed of the batches.
        save_seconds: Compute time between checkpoints.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        pool: Pool,
        encode_texts: TextFunction,
        *,
        checkpoint: pathlib.Path | None = None,
        seed: int = 0,
        save_seconds: float = 120.0,
    ) -> None:
        self.unet = unet.to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.unet).eval().requires_grad_(False)
        self.pool = pool
        self.encode_texts = encode_texts
        self.checkpoint = checkpoint
        self.seed = seed
        self.save_seconds = save_seconds
        self.finished: list[str] = []
        self.progress: dict[str, Any] = {}

    def save(self) -> None:
        """Write the checkpoint whole: a crash leaves the old one or the new one, never a part."""
        if self.checkpoint is None:
            return
        state = {
            "unet": self.unet.state_dict(),
            "average": self.average.state_dict(),
            "finished": self.finished,
            "progress": self.progress,
        }
        with whole_file(self.checkpoint) as file:
            torch.save(state, file)

    def resume(self) -> None:
        """Load the checkpoint if there is one."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        self.unet.load_state_dict(state["unet"])
        self.average.load_state_dict(state["average"])
        self.finished, self.progress = state["finished"], state["progress"]

    def run(self, stage: Stage, *, stop_after: int | None = None) -> list[float]:
        """Train one stage to its end, from the checkpoint's step if it was under way.

        Args:
            stage: The stage; one already finished is skipped.
            stop_after: Leave, checkpoint written, after so many steps of this call (for tests and for pauses).

        Returns:
            The losses of the steps run.
        """
        if stage.name in self.finished:
            return []
        optimisers = build_optimisers(self.unet, stage)
        first, total, losses, timings = 0, stage.steps, [], []
        if self.progress.get("stage") == stage.name:
            for optimiser, state in zip(optimisers, self.progress["optimisers"], strict=True):
                optimiser.load_state_dict(state)
            first, total = self.progress["step"], self.progress["total"]
        else:  # a stage starts from the last one's averaged weights
            self.unet.load_state_dict(self.average.state_dict())
        self.unet.train()
        step, since_saved, since_logged = first, 0.0, []
        while total == 0 or step < total:
            began = time.monotonic()
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = optimiser.defaults["lr"] * stage.learning_rate(step, total or 10**9)
            loss = v_loss(self.unet, self.pool, stage, step, self.seed, self.encode_texts)
            self.unet.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
            for optimiser in optimisers:
                optimiser.step()
            decay = min(stage.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.parameters()), list(self.unet.parameters()), 1 - decay)
            step += 1
            losses.append(loss.item())
            timings.append(time.monotonic() - began)
            if total == 0 and step - first == 20:
                total = max(step + 1, round(stage.minutes * 60 / sorted(timings)[len(timings) // 2]))
            # Medians, not sums: a paused process must not look like a slow one.
            since_saved += min(timings[-1], 10.0)
            since_logged.append(losses[-1])
            if step % 50 == 0 or step == total:
                mean = sum(since_logged) / len(since_logged)
                logger.info("stage %s step %d/%d loss %.4f, %.2f s a step", stage.name, step, total, mean, timings[-1])
                since_logged = []
            stopping = stop_after is not None and step - first >= stop_after
            if since_saved > self.save_seconds or stopping or step == total:
                since_saved = 0.0
                states = [optimiser.state_dict() for optimiser in optimisers]
                self.progress = {"stage": stage.name, "step": step, "total": total, "optimisers": states}
                if step == total:
                    self.finished, self.progress = [*self.finished, stage.name], {}
                self.save()
            if stopping:
                break
        return losses


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel,
    encode_texts: TextFunction,
    prompts: list[str],
    *,
    grid: int,
    steps: int = 20,
    guidance: float = 4.0,
    seed: int = 0,
) -> torch.Tensor:
    """Draw latents for prompts with DDIM and classifier-free guidance, all in one batch.

    Args:
        unet: The UNet.
        encode_texts: Captions to hidden states.
        prompts: n prompts.
        grid: Side of the latents.
        steps: DDIM steps.
        guidance: Guidance scale; 1 is none.
        seed: Seed of the initial noise.

    Returns:
        Latents (n, 4, grid, grid), fp32.
    """
    scheduler = build_scheduler()
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn((len(prompts), 4, grid, grid), generator=generator)
    states = torch.cat([encode_texts([""] * len(prompts)), encode_texts(prompts)])
    for timestep in scheduler.timesteps:
        with cpu_autocast():
            inputs = torch.cat([latents, latents]).contiguous(memory_format=torch.channels_last)
            output = unet(inputs, timestep, encoder_hidden_states=states).sample.float()
        without, conditioned = output.chunk(2)
        velocity = without + guidance * (conditioned - without)
        latents = scheduler.step(velocity, timestep, latents).prev_sample
    return latents
