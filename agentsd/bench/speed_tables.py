"""The tables of speed: UNet steps, whole calls, plans, and the cost of self-attention."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentsd.bench.arms import is_current
from agentsd.bench.intervals import FEWEST_FOR_INTERVAL
from agentsd.bench.rows import Row, key_of, newest, read_rows

# What rows of one table have in common; the arm and the size are its rows and columns.
SETUP = ("benchmark", "architecture", "batch", "dtype", "steps", "device", "threads", "torch", "diffusers")
MAIN = {"benchmark": "unet step", "architecture": "sd15", "dtype": "bfloat16", "device_type": "cpu"}
MAIN_SIZES = (512, 768)


def current_rows(results: Path, name: str) -> list[Row]:
    """Return the rows of a result file, without those of presets whose settings have changed since.

    Args:
        results: The folder of result files.
        name: The file's name without its ending.

    Returns:
        The rows, oldest first.

    Example:
        >>> current_rows(Path("missing"), "speed")
        []
    """
    return [row for row in read_rows(results / f"{name}.jsonl") if is_current(row["arm"], row["settings"])]


def speed_rows(results: Path) -> list[Row]:
    """Return the newest row of every set-up, arm and size.

    Example:
        >>> speed_rows(Path("missing"))
        []
    """
    return newest(current_rows(results, "speed"), (*SETUP, "arm", "size"))


def main_setup(rows: Sequence[Row]) -> tuple[Any, ...] | None:
    """Return the set-up measured last of those that are SD 1.5 steps in bfloat16 on a CPU.

    Example:
        >>> main_setup([]) is None
        True
    """
    found = [row for row in rows if all(row.get(key) == value for key, value in MAIN.items())]
    found = [row for row in found if row["size"] in MAIN_SIZES]
    return key_of(found[-1], SETUP) if found else None


def main_table(results: Path, arms: Sequence[str] | None = None) -> str:
    """Return the table of SD 1.5 steps, of some arms or of all.

    Example:
        >>> main_table(Path("missing"))
        ''
    """
    rows = speed_rows(results)
    chosen = main_setup(rows)
    rows = [row for row in rows if key_of(row, SETUP) == chosen and row["size"] in MAIN_SIZES]
    return speed_table(only(rows, arms))


def only(rows: Sequence[Row], arms: Sequence[str] | None) -> Sequence[Row]:
    """Return the rows of some arms, in the order of those; without arms all rows as they are.

    Example:
        >>> only([{"arm": "a"}, {"arm": "b"}], ["b"])
        [{'arm': 'b'}]
    """
    if arms is None:
        return rows
    return sorted((row for row in rows if row["arm"] in arms), key=lambda row: arms.index(row["arm"]))


def h200_table(results: Path, arms: Sequence[str]) -> str:
    """Return the table of UNet steps on a GPU: some arms by architecture and picture size.

    Raises:
        ValueError: If the rows are of several set-ups, or a speed-up stands without its baseline.

    Example:
        >>> h200_table(Path("missing"), ["stock"])
        ''
    """
    rows = [row for row in current_rows(results, "speed-h200") if row["benchmark"] == "unet step"]
    rows = list(only(newest(rows, (*SETUP, "arm", "size")), arms))
    if not rows:
        return ""
    shared = ("batch", "dtype", "device", "torch", "diffusers")
    if len({key_of(row, shared) for row in rows}) > 1:
        raise ValueError("the rows of speed-h200.jsonl mix set-ups; make one table for each.")
    columns = sorted({(row["architecture"], row["size"]) for row in rows})
    cells = {(row["arm"], row["architecture"], row["size"]): row for row in rows}
    bare = [column for column in columns if ("stock", *column) not in cells]
    if bare:
        raise ValueError(f"columns {bare} of speed-h200.jsonl have no row for stock; measure it as well.")
    heads = [f"{architecture} {size}x{size}" for architecture, size in columns]
    lines = ["| one UNet step | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        found = [cells.get((arm, *column)) for column in columns]
        lines.append(f"| {arm} | " + " | ".join(speed_cell(row) if row else "" for row in found) + " |")
    first, pairs = rows[0], sorted({row["rounds"] for row in rows})
    note = (
        f"Speed-up over stock diffusers, random weights, eager mode, batch {first['batch']}, {first['dtype']}, "
        f"{first['device']}, torch {first['torch']}, diffusers {first['diffusers']}; median of {pairs[0]} to "
        f"{pairs[-1]} paired ratios with {spread(pairs[0])}, per step of a cycle. `scripts/benchmark.py`, "
        "`results/speed-h200.jsonl`."
    )
    return "\n".join([*lines, "", note, ""])


def other_tables(results: Path) -> str:
    """Return a table for every set-up that the main table does not show.

    Example:
        >>> other_tables(Path("missing"))
        ''
    """
    rows = speed_rows(results)
    chosen = main_setup(rows)
    setups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if key_of(row, SETUP) != chosen or row["size"] not in MAIN_SIZES:
            setups.setdefault(key_of(row, SETUP), []).append(row)
    tables = []
    for found in setups.values():
        first = found[0]
        steps = f", {first['steps']} steps" if "steps" in first else ""
        title = f"{first['benchmark'].replace('unet', 'UNet')}, {first['architecture']}, {first['dtype']}{steps}"
        tables.append(f"### {title}, {first['device']}\n\n{speed_table(found)}")
    return "\n".join(tables)


def speed_table(rows: Sequence[Row]) -> str:
    """Return speed-ups against stock, by arm and picture size, of rows of one set-up.

    Raises:
        ValueError: If the rows are of several set-ups, or a speed-up stands without its baseline.

    Example:
        >>> speed_table([])
        ''
    """
    if not rows:
        return ""
    first = rows[0]
    if len({key_of(row, SETUP) for row in rows}) > 1:
        raise ValueError("the rows mix set-ups; make one table for each.")
    sizes = sorted({row["size"] for row in rows})
    cells = {(row["arm"], row["size"]): row for row in rows}
    bare = [size for size in sizes if ("stock", size) not in cells]
    if bare:
        raise ValueError(f"sizes {bare} of {first['architecture']} have no row for stock; measure it as well.")
    what = "UNet step" if first["benchmark"] == "unet step" else f"`pipe(...)`, {first.get('steps')} steps"
    heads = [f"{size}x{size}" for size in sizes]
    seconds = [min(cells["stock", size]["seconds"]) for size in sizes]
    lines = [
        f"| one {what} | " + " | ".join([*heads, *(f"memory {head}" for head in heads)]) + " |",
        "|---|" + "--:|" * (2 * len(sizes)),
    ]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        found = [cells.get((arm, size)) for size in sizes]
        gains = [f"{speed_cell(row)}{_calls(row)}" if row else "" for row in found]
        memory = [f"{row['peak_bytes'] / 2**30:.2f} GiB" if row and row["peak_bytes"] else "" for row in found]
        lines.append(f"| {arm} | " + " | ".join(gains + memory) + " |")
    pairs = sorted({row["rounds"] for row in rows})
    number = f"{pairs[0]} to {pairs[-1]}" if len(pairs) > 1 else f"{pairs[0]}"
    times = ", ".join(f"{second:.3g} s at {head}" for second, head in zip(seconds, heads, strict=True))
    control = "; stock A/A shows the noise" if any(row["arm"] == "stock A/A" for row in rows) else ""
    whole = "per step of a cycle" if first["benchmark"] == "unet step" else "text encoder and VAE included"
    note = (
        f"Speed-up over stock diffusers (fused SDPA; {times}), {first['architecture']} architecture with random "
        f"weights, batch {first['batch']}, {first['dtype']}, {first['threads']} threads of {first['device']}, torch "
        f"{first['torch']}, diffusers {first['diffusers']}; arms interleaved in one process, median of {number} paired "
        f"ratios with {spread(pairs[0])}, {whole}{control}. `scripts/benchmark.py`, `results/speed.jsonl`."
    )
    return "\n".join([*lines, "", note, ""])


def _calls(row: Row) -> str:
    """Return how many UNet calls ran in full, where a row of whole calls says so."""
    return f", {row['full_calls']} calls" if row["benchmark"] == "pipeline call" and "full_calls" in row else ""


def spread(pairs: int) -> str:
    """Say what stands in brackets: a bootstrap of few values ends at the least and the greatest of them.

    Example:
        >>> spread(8)
        '95% interval'
    """
    return (
        "95% interval"
        if pairs >= FEWEST_FOR_INTERVAL
        else f"95% interval (of fewer than {FEWEST_FOR_INTERVAL}: their range)"
    )


def speed_cell(row: Row) -> str:
    """Return a speed-up with its interval; stock has none.

    Example:
        >>> speed_cell({"arm": "ours", "speedup": 2.0, "speedup_95": [1.9, 2.1]})
        '2.00x [1.90, 2.10]'
    """
    low, high = row["speedup_95"]
    return f"{row['speedup']:.2f}x" if row["arm"] == "stock" else f"{row['speedup']:.2f}x [{low:.2f}, {high:.2f}]"
