"""All arms by name: our schedules, rivals and baselines.

What is missing and why (HiDiffusion, Faster-Diffusion, the official AgentSD): `results/README.md`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from agentsd.attention.settings import Attention, PooledAgents, SampledKeys
from agentsd.bench.arm import Arm, RunArm, as_run
from agentsd.bench.baselines import COPIED_LAYER, channels_last, compiled, no_self_attention_arm, stock, unfused_arm
from agentsd.bench.ours import agent_arm, ranking_arm, run_arm
from agentsd.bench.rankings import Ranker, SharedRanking, rank_in_windows, ranking_free
from agentsd.bench.rivals import (
    attention_broadcast_arm,
    deepcache_arm,
    kv_downsampling_arm,
    tgate_arm,
    tiled_attention_arm,
    tomesd_arm,
)
from agentsd.presets import PRESETS
from agentsd.schedule import Schedule, Skipping

COPIED_PREDICTION = Skipping(depth=0, forecast=0.0, last_full=False)  # the cached prediction as it is
SAMPLED_4, SAMPLED_8 = (SampledKeys(stride=stride, min_keys=64, max_keys=256) for stride in (4, 8))
_TWO_LEVELS = replace(SAMPLED_8, max_downsample=2)
_PAPER_EARLY, _PAPER_LATE = PRESETS["paper"].attentions

# For the cost of a single denoising step, or a cycle of them; "stock A/A" must come out at 1.00.
STEP_ARMS = MappingProxyType(
    {
        "stock": Arm(stock),
        "stock A/A": Arm(stock),
        "no self-attention (ceiling)": no_self_attention_arm(),
        "tomesd 0.5": tomesd_arm(0.5),
        "K/V downsampling 2 (ToDo)": kv_downsampling_arm(2),
        "tiles of 32x32 (HyperTile)": tiled_attention_arm(32),
        "paper, agent phase": agent_arm(Schedule.constant(_PAPER_EARLY)),
        "paper, merge phase": agent_arm(Schedule.constant(_PAPER_LATE)),
        "paper, agent phase, no ranking (ceiling)": ranking_arm(Schedule.constant(_PAPER_EARLY), lambda: ranking_free),
        "pooled agents, stride 4": agent_arm(Schedule.constant(PooledAgents())),
        "key/value sampling, stride 4": agent_arm(Schedule.constant(SAMPLED_4)),
        "key/value sampling, stride 8": agent_arm(Schedule.constant(SAMPLED_8)),
        "DeepCache 3": deepcache_arm(3),
        "DeepCache 5": deepcache_arm(5),
        "full step every 3, last layer": agent_arm(Schedule.constant(None, 3, skipping=COPIED_LAYER)),
        "full step every 3, last layer, no self-attention (ceiling)": no_self_attention_arm(every=3),
        "full step every 5, last layer, no self-attention (ceiling)": no_self_attention_arm(every=5),
    }
    | {
        f"full step every {every}{layer} + key/value sampling{levels}": agent_arm(
            Schedule.constant(attention, every, skipping=skipping)
        )
        for layer, levels, attention, skipping in (
            (", last layer", "", SAMPLED_8, COPIED_LAYER),
            ("", "", SAMPLED_8, COPIED_PREDICTION),
            (", last layer", ", two levels", _TWO_LEVELS, COPIED_LAYER),
        )
        for every in (3, 5)
    }
)


def _run_arms() -> dict[str, RunArm]:
    arms = {"stock": RunArm(stock), "stock A/A": RunArm(stock)}
    arms |= {f"stock, steps / {share:g}": RunArm(stock, fewer_steps=share) for share in (1.5, 2.0, 3.0, 4.0)}
    arms |= {f"preset {name}": run_arm(schedule) for name, schedule in PRESETS.items()}
    rivals = ("tomesd 0.5", "K/V downsampling 2 (ToDo)", "tiles of 32x32 (HyperTile)", "DeepCache 3", "DeepCache 5")
    arms |= {name: as_run(STEP_ARMS[name]) for name in rivals}
    arms["unfused attention"] = as_run(unfused_arm())
    arms["attention broadcast 2 (PAB)"] = as_run(attention_broadcast_arm(2))
    arms["T-GATE"] = tgate_arm()
    rankers: dict[str, Callable[[], Ranker]] = {
        "one ranking a grid": lambda: SharedRanking(calls=1),
        "one ranking a grid for 5 steps": lambda: SharedRanking(calls=5),
        "ranking in windows": lambda: rank_in_windows,
    }
    arms |= {f"paper, {name}": as_run(ranking_arm(PRESETS["paper"], ranker)) for name, ranker in rankers.items()}
    settings: dict[str, Attention]
    settings = {f"pooled agents, stride {stride}": PooledAgents(stride=stride) for stride in (4, 8)}
    settings["key/value sampling, stride 2"] = SampledKeys(stride=2)
    settings["key/value sampling, stride 4"] = SAMPLED_4
    settings["key/value sampling, stride 8"] = SAMPLED_8
    settings["key/value sampling, stride 4, always the same"] = replace(SAMPLED_4, randomize=False)
    settings["key/value sampling, stride 4, two levels"] = replace(SAMPLED_4, max_downsample=2)
    arms |= {name: run_arm(Schedule.constant(setting)) for name, setting in settings.items()}
    for every in (2, 3):
        arms[f"full every {every} steps"] = run_arm(Schedule.constant(None, every))
    for every in (2, 3, 5):
        schedule = Schedule.constant(None, every, skipping=COPIED_LAYER)
        arms[f"full step every {every}, last layer"] = run_arm(schedule)
    for every in (3, 5):
        for forecast, end in {0.0: "", 0.2: ", forecast 0.2"}.items():
            for depth, layers in {1: ", last layer", 0: ""}.items():
                skipping = Skipping(depth=depth, forecast=forecast, last_full=False)
                schedule = Schedule.constant(SAMPLED_8, every, skipping=skipping)
                arms[f"full step every {every}{layers} + key/value sampling{end}"] = run_arm(schedule)
    for words, interval in {"from 20%": (0.2, 1.0), "until 40%": (0.0, 0.4)}.items():
        for name in ("quality", "balanced"):
            arms[f"preset {name}, guidance {words}"] = run_arm(replace(PRESETS[name], guidance_interval=interval))
    return arms


# For the time and the quality of a whole run.
RUN_ARMS = MappingProxyType(_run_arms())


def is_current(arm: str, settings: str) -> bool:
    """Return whether results of an arm were measured with the settings that it has now; only presets are looked up.

    Args:
        arm: Name of the arm in a result file, perhaps that of a twin.
        settings: What the result file says it was measured with.

    Example:
        >>> is_current("preset fast", RUN_ARMS["preset fast"].settings), is_current("preset fast", "others")
        (True, False)
    """
    words = next((words for words in TWINS if arm.endswith(words)), "")
    plain = RUN_ARMS.get(arm.removesuffix(words))
    if plain is None or not arm.startswith("preset "):
        return True
    return settings == (TWINS[words](plain) if words else plain).settings


# What anyone can do to a UNet, with or without agentsd, by the suffix of an arm's name.
TWINS: dict[str, Callable[[Arm], Arm]] = {", compiled": compiled, ", channels last": channels_last}


def with_twins(arms: Mapping[str, Arm], names: Iterable[str], words: str) -> dict[str, Arm]:
    """Return the arms with a twin of each named one, run arms as run arms.

    Example:
        >>> list(with_twins({"stock": Arm(stock)}, ["stock"], ", compiled"))
        ['stock', 'stock, compiled']
    """
    result = dict(arms)
    for name in names:
        twin = TWINS[words](arms[name])
        result[name + words] = replace(arms[name], enter=twin.enter, settings=twin.settings)
    return result
