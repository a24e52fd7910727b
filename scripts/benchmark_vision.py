"""Speed of agent attention against softmax attention, and the table of the eighteen models.

    python scripts/benchmark_vision.py modules            # one layer, whole maps
    python scripts/benchmark_vision.py models             # published pairs, pairs of one size
    python scripts/benchmark_vision.py models --compile --dtype bfloat16
    python scripts/benchmark_vision.py sizes              # parameters, FLOPs and parity of all models
    python scripts/benchmark_vision.py tables             # write tables and curves of docs/vision.md

Two models are timed in one process in the order A B B A: a drifting load falls on both. With one thread on a CPU the
clock is the processor time of that thread, which other processes hardly change. Freed memory stays in the process: else
the system gives and clears fresh pages within some runs and not in others. A ratio above 1 says that agent attention is
faster. Every baseline uses torch's fused attention. One row a pair is appended.
"""

import argparse
import ctypes
import json
import platform
import re
import statistics
import sys
import time
from pathlib import Path

import torch

from agentsd.vision import AgentAttention, count_flops, create_model, load_published
from agentsd.vision.configs import CONFIGS, find_config, published_name
from agentsd.vision.softmax import SoftmaxAttention

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "vision"

# tokens a side, channels, heads, agents
MODULES = ((14, 320, 5, 49), (28, 384, 6, 49), (56, 64, 1, 9), (56, 96, 3, 9), (112, 64, 1, 9))
# agent model, baseline: a model of this package with softmax in every block, or one of timm
PUBLISHED = (("agent_pvt_small", "softmax agent_pvt_large"), ("agent_swin_small", "softmax agent_swin_base"))
SAME_SIZE = tuple(
    (name, f"softmax {name}")
    for name in ("agent_deit_small", "agent_deit_small_448", "agent_pvt_small", "agent_swin_tiny", "agent_swin_small")
)
TIMM = (
    ("agent_swin_small", "swin_base_patch4_window7_224"),
    ("agent_swin_small", "swin_small_patch4_window7_224"),
    ("agent_deit_small", "deit_small_patch16_224"),
    ("agent_pvt_small", "pvt_v2_b2"),
)


def model(name):
    """One side of a pair, and the image size it takes."""
    if name.startswith("softmax "):
        config = find_config(name.partition(" ")[2])[1]
        blocks = ["S" * depth for depth in config.depths]
        return create_model(name.partition(" ")[2], blocks=blocks), config.image_size[0]
    if name in CONFIGS:
        return create_model(name), CONFIGS[name].image_size[0]
    import timm
    from timm.layers import set_fused_attn

    set_fused_attn(True, experimental=True)  # by default timm's Swin does not use it
    return timm.create_model(name), 224


def synchronise(device):
    if device == "cuda":
        torch.cuda.synchronize()


def clock(device):
    """Processor time of the one thread that computes, else wall time."""
    return time.thread_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def keep_freed_memory():
    """Tell glibc not to hand freed memory back to the system, for all arms alike."""
    if platform.libc_ver()[0] == "glibc":
        library, size = ctypes.CDLL(None), 1 << 30
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            library.mallopt(parameter, size)


def timed(call, device):
    now = clock(device)
    synchronise(device)
    started = now()
    call()
    synchronise(device)
    return 1e3 * (now() - started)


def pair(first, second, rounds, device):
    """Milliseconds of both, in the order A B B A."""
    times = ([], [])
    for call in (first, second):
        call(), call()
    for _ in range(rounds):
        for index in (0, 1, 1, 0):
            times[index].append(timed((first, second)[index], device))
    return times


def row(kind, names, calls, options, **facts):
    ours, theirs = pair(*calls, options.rounds, options.device)
    by_round = [sum(theirs[i : i + 2]) / sum(ours[i : i + 2]) for i in range(0, len(ours), 2)]
    where = torch.cuda.get_device_name() if options.device == "cuda" else processor()
    return facts | {
        "kind": kind,
        "agent": names[0],
        "baseline": names[1],
        "agent_ms": round(statistics.median(ours), 3),
        "baseline_ms": round(statistics.median(theirs), 3),
        "agent_min_ms": round(min(ours), 3),
        "baseline_min_ms": round(min(theirs), 3),
        "ratio": round(statistics.median(by_round), 3),
        "ratio_of_minima": round(min(theirs) / min(ours), 3),
        "ratio_low": round(min(by_round), 3),
        "ratio_high": round(max(by_round), 3),
        "rounds": options.rounds,
        "batch": options.batch,
        "dtype": options.dtype,
        "compiled": options.compile,
        "device": where,
        "clock": clock(options.device).__name__,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def processor():
    """The processor's name, as the system gives it, and the instructions that torch uses."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        name = re.search(r"model name\s*: (.*)", text)[1].strip()
    except (OSError, TypeError):
        name = platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def ready(module, inputs, options):
    """A call that runs a module on its inputs, after its caches are filled."""
    module = module.to(options.device, getattr(torch, options.dtype)).eval()
    with torch.inference_mode():
        module(*inputs)
    if options.compile:
        module = torch.compile(module, fullgraph=True)

    def call():
        with torch.inference_mode():
            module(*inputs)

    return call


def modules(options):
    for side, width, heads, agents in MODULES:
        if options.only and options.only not in f"{side * side}":
            continue
        torch.manual_seed(0)
        x = torch.randn(options.batch, side * side, width, device=options.device, dtype=getattr(torch, options.dtype))
        ours = AgentAttention(width, heads, grid=(side, side), agents=agents)
        calls = [ready(one, (x, (side, side)), options) for one in (ours, SoftmaxAttention(width, heads))]
        names = (f"{agents} agents", "softmax, fused")
        yield row("module", names, calls, options, tokens=side * side, width=width, heads=heads)


def models(options):
    groups = {"published pair": PUBLISHED, "same size": SAME_SIZE, "timm": TIMM}
    for kind, pairs in groups.items():
        for names in pairs:
            if options.only and options.only not in f"{kind} {' '.join(names)}":
                continue
            calls = []
            for name in names:
                torch.manual_seed(0)
                built, size = model(name)
                x = torch.randn(
                    options.batch, 3, size, size, device=options.device, dtype=getattr(torch, options.dtype)
                )
                calls.append(ready(built, (x,), options))
            yield row(kind, names, calls, options, size=size)


def sizes(options):
    """Parameters and FLOPs beside the published ones; parity with golden data and with the formula written out."""
    sys.path.insert(0, str(ROOT / "tests" / "vision"))
    import formula_vision
    import golden

    for name in CONFIGS:
        published = published_name(name)
        facts = golden.manifest(published)
        built = create_model(name).eval()
        done = {
            "kind": "model",
            "name": name,
            "published_name": published,
            "size": facts["img_size"],
            "parameters": sum(parameter.numel() for parameter in built.parameters()),
            "published_parameters": facts["params"],
            "flops": count_flops(built, facts["img_size"]),
            "published_flops": facts["flops_fvcore"],
        }
        weights = golden.published_weights(published)
        load_published(built, weights)
        with torch.no_grad():
            x = golden.image(1, facts["img_size"])
            done["formula_difference"] = float((built(x) - formula_vision.logits(facts, weights, x)).abs().max())
            if (golden.DATA / "models" / f"{published}.npz").is_file():
                config, arrays = golden.load(f"models/{published}.npz")
                logits = built(golden.image(config["batch"], config["img_size"]))
                done["logits_difference"] = float((logits - torch.from_numpy(arrays["logits"])).abs().max())
        yield done


def read(name):
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def table(head, rows):
    """Lines of a table; `head` names the columns."""
    return [f"| {' | '.join(head)} |", "| --- " * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def tables():
    """The tables of docs/vision.md, by the name of their marks."""
    ratio = "ratio (lowest to highest round)"
    head = ("model", "published as", "size", "parameters (published)", "GFLOPs (published)")
    head = (*head, "logits minus the formula's", "minus the authors'")
    yield "sizes", table(head, map(size_row, read("models")))
    head = ("tokens", "channels", "heads", "agents", "agents, ms", "softmax, ms", ratio, "how")
    yield "modules", table(head, (module_row(one) for one in read("speed") if one["kind"] == "module"))
    head = ("pair", "agents", "baseline", "agents, ms", "baseline, ms", ratio, "how")
    yield "pairs", table(head, (pair_row(one) for one in read("speed") if one["kind"] != "module"))
    head = ("blocks", "parameters", "MFLOPs", "all five right, mean of seeds (each)", "labels right")
    yield "training", table(head, training_rows())
    yield "paired", table(("blocks", "minus softmax, points", "minus agent, points"), paired_rows())
    yield "test-agents", table(("agents a stage at test time", "all five right, mean of seeds (each)"), agent_rows())


def size_row(one):
    same = one["parameters"] == one["published_parameters"]
    return (
        f"`{one['name']}`",
        f"`{one['published_name']}`",
        str(one["size"]),
        f"{one['parameters']:,} ({'the same' if same else one['published_parameters']})",
        f"{one['flops'] / 1e9:.3f} ({one['published_flops'] / 1e9:.3f})",
        f"{one['formula_difference']:.0e}",
        f"{one['logits_difference']:.0e}" if "logits_difference" in one else "not here",
    )


def speedup(one, digits):
    return f"**{one['ratio']:.{digits}f}** ({one['ratio_low']:.{digits}f} to {one['ratio_high']:.{digits}f})"


def module_row(one):
    numbers = (one["tokens"], one["width"], one["heads"], one["agent"].split()[0])
    times = (f"{one['agent_ms']:.2f}", f"{one['baseline_ms']:.1f}", speedup(one, 1))
    return (*map(str, numbers), *times, how(one))


def pair_row(one):
    names = (one["kind"], f"`{one['agent']}`", f"`{one['baseline']}`")
    return (*names, f"{one['agent_ms']:.0f}", f"{one['baseline_ms']:.0f}", speedup(one, 2), how(one))


def how(one):
    words = [f"batch {one['batch']}"] if one["batch"] > 1 else []
    words += [one["dtype"]] if one["dtype"] != "float32" else []
    return ", ".join([*words, "compiled" if one["compiled"] else "eager"])


def percent(rows, key):
    shares = [100 * one[key] for one in sorted(rows, key=lambda one: one["seed"])]
    return f"**{statistics.mean(shares):.1f} %** ({', '.join(f'{share:.1f}' for share in shares)})"


def training_rows():
    last = [one for one in read("training") if one["kind"] == "curve" and one["step"] == one["steps"]]
    for arm in dict.fromkeys(one["arm"] for one in last):
        rows = [one for one in last if one["arm"] == arm]
        labels = f"{100 * statistics.mean(one['mean'] for one in rows):.1f} %"
        size = (f"{rows[0]['parameters']:,}", f"{rows[0]['flops'] / 1e6:.1f}")
        yield (arm, *size, percent(rows, "exact"), labels)


def paired_rows():
    """Differences of an arm to two others, seed by seed: mean, 95 % t interval, how often it is ahead."""
    shares = {}
    for one in read("training"):
        if one["kind"] == "curve" and one["step"] == one["steps"]:
            shares.setdefault(one["arm"], {})[one["seed"]] = 100 * one["exact"]
    for arm in shares:
        others = ("softmax", "agent")
        yield (arm, *("-" if arm == other else difference(shares[arm], shares[other]) for other in others))


def difference(ours, theirs):
    from scipy import stats

    pairs = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if len(pairs) < 3:
        return "*too few seeds*"
    mean, error = statistics.mean(pairs), statistics.stdev(pairs) / len(pairs) ** 0.5
    half = error * stats.t.ppf(0.975, len(pairs) - 1)
    ahead = sum(one > 0 for one in pairs)
    return f"**{mean:+.1f}** [{mean - half:+.1f}, {mean + half:+.1f}], higher in {ahead} of {len(pairs)} seeds"


def agent_rows():
    tested = [one for one in read("training") if one["kind"] == "agents at test time"]
    for number in dict.fromkeys(one["agents"] for one in tested):
        trained = " (trained with)" if number == 9 else ""
        yield f"{number}{trained}", percent([one for one in tested if one["agents"] == number], "exact")


def write_tables(page):
    text = page.read_text(encoding="utf-8")
    for name, lines in tables():
        mark = f"<!-- {name} -->\n"
        before, found, rest = text.partition(mark)
        if found:
            kept = rest.splitlines(keepends=True)
            while kept and kept[0].startswith("|"):
                del kept[0]
            text = before + mark + "".join(f"{line}\n" for line in lines) + "".join(kept)
    page.write_text(text, encoding="utf-8")


PANELS = {
    "agents and softmax": ("agent", "softmax"),
    "ablation": ("agent", "agent, no bias", "agent, no convolution", "agent, neither"),
    "where, and hierarchies": ("agent", "agents early", "agents late", "agents 36, 16, 9", "agents through agents"),
}


def draw_training(path):
    """The curves of all arms, a few to a panel: mean of the seeds, shaded from the lowest to the highest."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from agentsd.vision.visual import draw_curves

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(1, len(PANELS), figsize=(12, 3.8), sharey=True)
    for axis, (title, arms) in zip(axes, PANELS.items(), strict=True):
        draw_curves([one for arm in arms for one in read("training") if one["arm"] == arm], axis)
        axis.set_title(title, fontsize=10)
        axis.label_outer()
    figure.tight_layout()
    figure.savefig(path, dpi=100, metadata={"Software": None})


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("modules", "models", "sizes", "tables"))
    parser.add_argument("--only", default="", help="only pairs with this text in them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", help="rows are appended; results/vision/speed.jsonl or models.jsonl by default")
    parser.add_argument("--page", default=str(ROOT / "docs" / "vision.md"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    if options.what == "tables":
        write_tables(Path(options.page))
        if read("training"):
            draw_training(Path(options.page).parent / "img" / "vision_training.png")
        return 0
    output = Path(options.output or RESULTS / ("models.jsonl" if options.what == "sizes" else "speed.jsonl"))
    output.parent.mkdir(parents=True, exist_ok=True)
    makers = {"modules": modules, "models": models, "sizes": sizes}
    for done in makers[options.what](options):
        with output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(done) + "\n")
        print(json.dumps(done))
    return 0


if __name__ == "__main__":
    sys.exit(main())
