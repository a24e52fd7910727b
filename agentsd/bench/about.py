"""One line about each arm, for lists."""

import re

from agentsd.presets import PRESETS

_ABOUT = (
    (r"stock", "diffusers as it is, with fused attention"),
    (r"stock A/A", "stock once more: how far two equal runs differ by chance"),
    (r"stock, steps / (.+)", r"stock with \1 times fewer steps"),
    (r"unfused attention", "stock with the attention of diffusers before torch had a fused one"),
    (r"no self-attention \(ceiling\)", "no self-attention at all: no attention method is faster"),
    (r"tomesd .*", "token merging by the package tomesd"),
    (r"K/V downsampling .*", "keys and values of every second token in both directions (ToDo)"),
    (r"tiles of .*", "attention within tiles (HyperTile)"),
    (r"attention broadcast .*", "self-attention at every second step (PAB)"),
    (r"T-GATE", "cross-attention kept and guidance left out after 40% of the steps, by the package tgate"),
    (r"DeepCache (\d+)", r"the deep layers every \1 steps, by the package DeepCache"),
    (r"paper, agent phase", "the published method, first 40% of the steps: agents on merged tokens"),
    (r"paper, merge phase", "the published method, last 60% of the steps: merged tokens"),
    (r"paper, .*", "the published method with another ranking of tokens"),
    (r"pooled agents, .*", "agents that are means of cells"),
    (r"key/value sampling, .*", "self-attention with keys and values of sampled tokens"),
    (
        r"full step every (\d+), last layer, no self.*",
        r"a full step every \1 steps; no self-attention: the ceiling",
    ),
    (
        r"full step every (\d+), last layer \+ .*",
        r"a full step every \1 steps, else the last layer; sampled keys",
    ),
    (r"full step every (\d+), last layer", r"a full step every \1 steps, else the last layer"),
    (r"full step every (\d+) \+ .*", r"a full step every \1 steps, else no layer; sampled keys"),
    (r"full every (\d+) steps", r"a full step every \1 steps, else no layer"),
    (r"preset (\w+), guidance (.*)", r"the preset \1, with guidance \2 of the run only"),
)
_TWINS = {", compiled": ", under torch.compile", ", channels last": ", with channels-last weights"}
_PRESETS = {
    "paper": "the published method (Han et al., ECCV 2024): tokens merged and agents, no step skipped",
    "gentle": "skips no step; keys and values of self-attention are sampled",
    "quality": "skips steps within a relative error of 0.015",
    "balanced": "skips steps within a relative error of 0.03",
    "fast": "skips steps within a relative error of 0.06",
    "extreme": "skips steps within a relative error of 0.12",
}


def about_preset(name: str) -> str:
    """Return what a preset does, in one line.

    Example:
        >>> about_preset("fast")
        'skips steps within a relative error of 0.06'
    """
    return _PRESETS[name]


def about_arm(name: str) -> str:
    """Return what an arm is, in one line.

    Args:
        name: Name in `agentsd.bench.arms`, perhaps that of a twin.

    Example:
        >>> about_arm("DeepCache 3, channels last")
        'the deep layers every 3 steps, by the package DeepCache, with channels-last weights'
    """
    for words, said in _TWINS.items():
        if name.endswith(words):
            return about_arm(name.removesuffix(words)) + said
    plain = name.removeprefix("preset ")
    if plain != name and plain in PRESETS:
        return f"the preset {plain}: {about_preset(plain)}"
    for pattern, text in _ABOUT:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(text)
    raise ValueError(f"arm={name!r} has no line in agentsd/bench/about.py; add one.")
