"""Write the tables of README.md from the committed result files, between `<!-- table:NAME -->` markers."""

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a table is out of date")
    args = parser.parse_args(argv)
    stale = []
    for path in (ROOT / "README.md",):
        old = path.read_text()
        new = fill(old)
        if new != old:
            stale.append(path.name)
            if not args.check:
                path.write_text(new)
    if stale and args.check:
        print(f"out of date: {', '.join(stale)}; run scripts/tables.py", file=sys.stderr)
        return 1
    return 0


def fill(text: str) -> str:
    """Return `text` with every marked table made anew."""
    for name, make in {"speed": speed_table, "demo": demo_table}.items():
        pattern = rf"(<!-- table:{name} -->\n).*?(<!-- /table:{name} -->)"
        text = re.sub(pattern, lambda match, make=make: match[1] + make() + match[2], text, flags=re.DOTALL)
    return text


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def speed_table() -> str:
    """Speed-ups of one UNet step against stock, by arm and picture size."""
    rows = rows_of(ROOT / "results" / "speed.jsonl")
    if not rows:
        return ""
    first = rows[0]
    same = ("architecture", "batch", "dtype", "device", "threads", "torch", "diffusers")
    if any(row[key] != first[key] for row in rows for key in same):
        raise ValueError("results/speed.jsonl mixes set-ups; keep one set-up a file.")
    sizes = sorted({row["size"] for row in rows})
    cells = {(row["arm"], row["size"]): row for row in rows}
    lines = [
        "| one UNet step | " + " | ".join(f"{size}x{size}" for size in sizes) + " | peak memory "
        + " | ".join(f"{size}x{size}" for size in sizes) + " |",
        "|---|" + "--:|" * (2 * len(sizes)),
    ]  # fmt: skip
    for arm in dict.fromkeys(row["arm"] for row in rows):
        found = [cells.get((arm, size)) for size in sizes]
        gains = [
            f"{row['speedup']:.2f}x [{row['speedup_95'][0]:.2f}, {row['speedup_95'][1]:.2f}]" if row else ""
            for row in found
        ]
        memory = [f"{row['peak_bytes'] / 2**30:.2f} GiB" if row and row["peak_bytes"] else "" for row in found]
        lines.append(f"| {arm} | " + " | ".join(gains + memory) + " |")
    note = (
        f"Speed-up over stock diffusers (fused SDPA), {first['architecture']} architecture with random weights, batch "
        f"{first['batch']}, {first['dtype']}, {first['threads']} threads of {first['device']}, torch {first['torch']}, "
        f"diffusers {first['diffusers']}; arms interleaved in one process, median of {first['rounds']} paired "
        "ratios with 95% interval, per step of a cycle; stock A/A shows the noise. "
        "`scripts/benchmark.py`, `results/speed.jsonl`."
    )
    return "\n".join([*lines, "", note, ""])


def demo_table() -> str:
    """Speed against quality on the bundled demo model."""
    rows = rows_of(ROOT / "results" / "demo" / "front.jsonl")
    if not rows:
        return ""
    first = rows[0]
    lines = [
        "| demo model | speed-up | PSNR | SSIM | latent L2 | one object right | both of two right |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        psnr = "equal" if row["psnr_db_median"] is None else f"{row['psnr_db_median']:.1f} dB"
        accuracy = row["attribute_accuracy"]
        shares = " | ".join(f"{accuracy[group]:.0%}" if group in accuracy else "" for group in ("singles", "pairs"))
        lines.append(
            f"| {row['arm']} | {row['speedup']:.2f}x | {psnr} | {row['ssim_median']:.3f} | "
            f"{row['latent_l2_median']:.3f} | {shares} |"
        )
    note = (
        f"Bundled demo model, {first['prompts']} held-out prompts, {first['steps']} DDIM steps, guidance "
        f"{first['guidance_scale']:g}, 256x256 pixels (64x64 tokens), {first['dtype']}, {first['threads']} threads of "
        f"{first['device']}, torch {first['torch']}; likeness to the stock picture of the same seed, medians. "
        "`scripts/demo_front.py`, `results/demo/front.jsonl`."
    )
    return "\n".join([*lines, "", note, ""])


if __name__ == "__main__":
    sys.exit(main())
