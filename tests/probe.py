"""What the contract tests share: schedules, a recorder of UNet calls, and an exact comparison of modules."""

import functools
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from diffusers import DDIMScheduler
from torch import nn

import agentsd.unet.processor
from agentsd import MergedTokens, Phase, PooledAgents, SampledKeys, Schedule, Skipping

AGENTS = MergedTokens(stride=4)
POOL = PooledAgents(stride=4)
SAMPLE = SampledKeys(stride=4)
COPY = Skipping(depth=1, forecast=0.0, last_full=False)  # the last layer on a cached feature as it is: DeepCache
MERGE = MergedTokens(merge_ratio=0.5, agent_ratio=None, stride=2)
OFF = Schedule((Phase(1.0, None),))
MIXED = Schedule((Phase(0.25, AGENTS), Phase(0.6, MERGE), Phase(1.0, None)))


def calm(*timesteps) -> DDIMScheduler:
    """Return a scheduler with these timesteps, whose steps add no noise; who iterates over them must hold it."""
    scheduler = DDIMScheduler()
    scheduler.timesteps = torch.tensor(timesteps)
    return scheduler


def may_miss_steps(hook):
    """Return a hook that steps may be skipped in spite of: it only counts which layers run."""
    hook = functools.partial(hook)
    hook.agentsd_optional = True
    return hook


@dataclass
class Call:
    """One call of a denoiser: what went in, what came out, and the settings its layers really attended with."""

    args: tuple
    kwargs: dict
    output: torch.Tensor | None = None
    configs: set = field(default_factory=set)

    @property
    def config(self):
        assert len(self.configs) <= 1, "layers of one call disagree"
        return next(iter(self.configs), None)

    def replay(self, denoiser: nn.Module) -> torch.Tensor:
        """Give `denoiser` the same input again."""
        with torch.no_grad():
            return _first(denoiser(*self.args, **self.kwargs))


@contextmanager
def watch(denoiser: nn.Module):
    """Yield a list that receives one `Call` per call of `denoiser`; leaves the module as it was."""
    calls: list[Call] = []
    attend = agentsd.unet.processor.attend
    parts = set(denoiser.modules())

    def spy(attn, tokens, metric, plan):
        if attn in parts:
            calls[-1].configs.add(plan.settings)
        return attend(attn, tokens, metric, plan)

    def before(module, args, kwargs):
        calls.append(Call(tuple(map(_copy, args)), {name: _copy(value) for name, value in kwargs.items()}))

    def after(module, args, kwargs, output):
        first = _first(output)
        calls[-1].output = first.clone() if isinstance(first, torch.Tensor) else None

    hooks = (
        denoiser.register_forward_pre_hook(before, with_kwargs=True),
        denoiser.register_forward_hook(after, with_kwargs=True),
    )
    agentsd.unet.processor.attend = spy
    try:
        yield calls
    finally:
        agentsd.unet.processor.attend = attend
        for hook in hooks:
            hook.remove()


def expected(schedule: Schedule, calls: list) -> list:
    """Return the settings that `schedule` asks for if `calls` are one whole run."""
    return [schedule.at(index, len(calls)) for index in range(len(calls))]


def unet_inputs(batch: int = 2, height: int = 16, width: int = 16, *, channels: int = 4, seed: int = 0) -> tuple:
    """Return (sample, text embeddings) for a direct call of a tiny UNet."""
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(batch, channels, height, width, generator=generator)
    return sample, torch.randn(batch, 7, 32, generator=generator)


def snapshot(module: nn.Module) -> dict:
    """Return everything that hangs on the module and its submodules: attributes, hooks, processors."""
    return {
        name: (type(part), {key: _shallow(value) for key, value in part.__dict__.items()})
        for name, part in module.named_modules()
    }


def assert_same(before: dict, after: dict) -> None:
    """Assert that two snapshots hold the same objects in the same order (not merely equal ones)."""
    assert before.keys() == after.keys()
    for name, (kind, attributes) in before.items():
        kind_after, attributes_after = after[name]
        assert kind is kind_after, name
        assert list(attributes) == list(attributes_after), name
        for key, value in attributes.items():
            value_after = attributes_after[key]
            if isinstance(value, dict):
                assert list(value) == list(value_after), f"{name}.{key}"
                assert all(value[inner] is value_after[inner] for inner in value), f"{name}.{key}"
            else:
                assert value is value_after, f"{name}.{key}"


def _shallow(value):
    return dict(value) if isinstance(value, dict) else value


def _copy(value):
    if isinstance(value, list):  # the UNet empties the adapter's list
        return list(value)
    return value.clone() if isinstance(value, torch.Tensor) and value.ndim else value


def _first(output):
    return output[0] if isinstance(output, tuple) else output[next(iter(output))]
