"""The tables of the demo model: speed against likeness, by arm."""

from pathlib import Path

from agentsd.bench.rows import Row
from agentsd.bench.speed_tables import current_rows, speed_cell, spread


def demo_table(results: Path, name: str = "arms") -> str:
    """Return speed against likeness of all arms of a result file.

    Args:
        results: The folder of result files.
        name: The file's name in the folder `demo`, without its ending.

    Returns:
        The table; empty without rows.

    Example:
        >>> demo_table(Path("missing"))
        ''
    """
    rows = current_rows(results, f"demo/{name}")
    if not rows:
        return ""
    first = rows[0]
    lines = [
        "| demo model | speed-up | PSNR | SSIM | latent error | objects right: one | both of two |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        accuracy = row["attribute_accuracy"]
        shares = " | ".join(f"{accuracy[group]:.0%}" if group in accuracy else "" for group in ("singles", "pairs"))
        lines.append(f"| {row['arm']} | {speed_cell(row)} | {likeness_cells(row)} | {shares} |")
    note = (
        f"Bundled demo model, {first['prompts']} held-out prompts, {first['steps']} DDIM steps, guidance "
        f"{first['guidance_scale']:g}, {first['size']}x{first['size']} pixels (64x64 tokens), {first['dtype']}, "
        f"{how_timed(first)}; likeness to "
        f"the stock picture of the same seed, medians. Measured on 26 November 2026, `results/demo/{name}.jsonl`; "
        "`scripts/fid_eval.py --reference demo` measures the same."
    )
    return "\n".join([*lines, "", note, ""])


def likeness_cells(row: Row) -> str:
    """Return PSNR, SSIM and latent error as cells.

    Example:
        >>> likeness_cells({"psnr_db_median": 40.0, "ssim_median": 0.99, "latent_l2_median": 0.01})
        '40.0 dB | 0.990 | 0.010'
    """
    psnr = "equal" if row["psnr_db_median"] is None else f"{row['psnr_db_median']:.1f} dB"
    return f"{psnr} | {row['ssim_median']:.3f} | {row['latent_l2_median']:.3f}"


def how_timed(row: Row) -> str:
    """Say where a row was timed, and what.

    Example:
        >>> how_timed({"threads": 2, "device": "a CPU", "torch": "2", "rounds": 8}).partition(";")[0]
        '2 threads of a CPU, torch 2'
    """
    return (
        f"{row['threads']} threads of {row['device']}, torch {row['torch']}; speed-up of the pipeline call without VAE "
        f"decoding, median of {row['rounds']} paired ratios with {spread(row['rounds'])}"
    )
