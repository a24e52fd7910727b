"""Stock beside agentsd from one seed: pictures, times in the order ABBA, and how far the two are apart."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from agentsd.bench.metrics import psnr, ssim
from agentsd.patch import apply
from agentsd.pictures.generate import generate
from agentsd.pictures.settings import Settings
from agentsd.schedule import Schedule
from agentsd.system.timing import interleave
from agentsd.unet.report import Report

_WARMUP_STEPS = 4
_WARMUP_RUNS = 2


@dataclass(frozen=True)
class Comparison:
    """The stock picture beside agentsd's, from the same seed, with their times in the order ABBA.

    Attributes:
        stock: Picture of the stock pipeline.
        agents: Picture of the patched pipeline.
        stock_seconds: Times of the first and the last run.
        agents_seconds: Times of the two runs between.
        psnr_db: PSNR of the patched picture against the stock one; infinite if they are equal.
        ssim: SSIM of the two.
        all_full: Why no step was skipped, if the schedule would skip some; `None` if steps were skipped.
    """

    stock: Image.Image
    agents: Image.Image
    stock_seconds: tuple[float, float]
    agents_seconds: tuple[float, float]
    psnr_db: float
    ssim: float
    all_full: str | None = None

    @property
    def speed_ratio(self) -> float:
        """Stock time over patched time: the geometric mean of the two pairs."""
        pairs = zip(self.stock_seconds, self.agents_seconds, strict=True)
        return math.exp(statistics.fmean(math.log(stock / agents) for stock, agents in pairs))

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain data for JSON, where an infinite PSNR is `None`."""
        return {
            "stock_seconds": [round(seconds, 4) for seconds in self.stock_seconds],
            "agentsd_seconds": [round(seconds, 4) for seconds in self.agents_seconds],
            "speed_ratio": round(self.speed_ratio, 4),
            "psnr_db": round(self.psnr_db, 3) if math.isfinite(self.psnr_db) else None,
            "ssim": round(self.ssim, 5),
        }


def _schedule(settings: Settings) -> Schedule:
    if settings.schedule is None:
        raise ValueError("schedule=None has nothing to compare with the stock pipeline; give a preset.")
    return settings.schedule


def warm_up(pipe: Any, settings: Settings) -> None:
    """Run both arms of a comparison a few steps at its shape: no time may hold the cost of a first call."""
    schedule = _schedule(settings)
    short = dataclasses.replace(settings, steps=min(_WARMUP_STEPS, settings.steps or _WARMUP_STEPS))
    for _ in range(_WARMUP_RUNS):
        generate(pipe, [short])
        with apply(pipe, schedule, seed=settings.agents_seed):
            generate(pipe, [short])


def compare(pipe: Any, settings: Settings, on_run: Callable[[], object] | None = None) -> Comparison:
    """Make a picture stock and patched, timing whole pipeline calls in the order stock, agentsd, agentsd, stock.

    Args:
        pipe: The pipeline, not patched, warmed up.
        settings: The picture; its schedule is the patched arm's.
        on_run: Called after each of the four runs, outside the times (a progress bar).

    Returns:
        Both pictures, their times, and how far they differ.

    Raises:
        ValueError: If the settings hold no schedule.
    """
    return compare_arms(pipe, settings, {settings.label: _schedule(settings)}, on_run)[settings.label]


def compare_arms(
    pipe: Any, settings: Settings, arms: Mapping[str, Schedule], on_run: Callable[[], object] | None = None
) -> dict[str, Comparison]:
    """Make a picture stock and by several schedules, in the order stock, A, B, B, A, stock.

    Args:
        pipe: The pipeline, not patched, warmed up.
        settings: The picture.
        arms: Schedules by label.
        on_run: Called after each run, outside the times (a progress bar).

    Returns:
        One comparison with stock for each label.

    Example:
        >>> settings = Settings(prompt="a red circle", steps=2)
        >>> arms = {name: agentsd.preset(name) for name in ("gentle", "fast")}
        >>> list(compare_arms(pipe, settings, arms))
        ['gentle', 'fast']
    """
    pictures: dict[str | None, Image.Image] = {}
    reasons: dict[str, str | None] = {}
    names: dict[str, str | None] = {"stock": None} | {f"agentsd {label}": label for label in arms}

    def draw(name: str) -> None:
        pictures[names[name]] = generate(pipe, [settings])[0]

    @contextmanager
    def arm(label: str | None) -> Iterator[None]:
        with nullcontext() if label is None else apply(pipe, arms[label], seed=settings.agents_seed) as patch:
            yield
            if label is not None and patch is not None:
                reasons[label] = why_all_full(patch.report())
        if on_run is not None:
            on_run()

    seconds = interleave(
        draw,
        {name: partial(arm, label) for name, label in names.items()},
        rounds=2,
        warmup=0,
        device=torch.device(pipe.device),
    )
    stock = picture_tensor(pictures[None])
    found = {}
    for name, label in names.items():
        if label is not None:
            own = picture_tensor(pictures[label])
            found[label] = Comparison(
                stock=pictures[None],
                agents=pictures[label],
                stock_seconds=(seconds["stock"][0], seconds["stock"][1]),
                agents_seconds=(seconds[name][0], seconds[name][1]),
                psnr_db=float(psnr(own, stock)),
                ssim=float(ssim(own, stock)),
                all_full=reasons[label],
            )
    return found


def why_all_full(report: Report) -> str | None:
    """Return why no step of the last run was skipped although the schedule skips steps; `None` if one was.

    Example:
        >>> with agentsd.apply(pipe) as patch:
        ...     _ = pipe("a red circle", num_inference_steps=4)
        >>> why_all_full(patch.report())
        'the run has 4 steps, and agentsd skips none below 10'
    """
    run = report.last_run
    return None if run is None or run.calls < run.steps else report.skipping_problem


def speed_in_words(ratio: float) -> str:
    """Return a ratio of times, stock over agentsd, in words.

    Example:
        >>> speed_in_words(3.79), speed_in_words(0.5), speed_in_words(1.01)
        ('3.8x faster', '2.0x slower', 'as fast as stock')
    """
    if 0.98 < ratio < 1.02:  # what two equal runs differ by
        return "as fast as stock"
    digits = 1 if ratio >= 1.1 or ratio <= 0.9 else 2
    return f"{ratio:.{digits}f}x faster" if ratio > 1 else f"{1 / ratio:.{digits}f}x slower"


def likeness_in_words(psnr_db: float | None, ssim: float) -> str:
    """Return how alike two pictures are, in words; `None` stands for the infinite PSNR of equal pictures.

    Example:
        >>> likeness_in_words(54.71, 0.99912)
        '54.7 dB PSNR, SSIM 0.999'
    """
    return "equal pictures" if psnr_db is None else f"{psnr_db:.1f} dB PSNR, SSIM {ssim:.3f}"


def side_by_side(comparison: Comparison, label: str, about: str = "") -> Image.Image:
    """Return one picture: stock left, agentsd right, with their times above and the result below.

    Args:
        comparison: What to show.
        label: Name of the patched arm.
        about: A last line: model, size, steps, prompt.
    """
    return strip({label: comparison}, about)


def strip(comparisons: Mapping[str, Comparison], about: str = "") -> Image.Image:
    """Return one picture: stock and every arm in a row, with times above and the results below.

    Args:
        comparisons: What to show, by the label of the arm.
        about: A last line: model, size, steps, prompt.

    Raises:
        ValueError: If there is no comparison.
    """
    if not comparisons:
        raise ValueError("comparisons is empty; give one or more.")
    first = next(iter(comparisons.values()))
    panels = [(f"stock: {statistics.fmean(first.stock_seconds):.2f} s", first.stock, "")]
    for label, one in comparisons.items():
        likeness = likeness_in_words(one.psnr_db if math.isfinite(one.psnr_db) else None, one.ssim)
        result = f"{speed_in_words(one.speed_ratio)}, {likeness}"
        panels.append((f"agentsd {label}: {statistics.fmean(one.agents_seconds):.2f} s", one.agents, result))
    width, height = first.stock.size
    panel, line, margin = max(width, 320), 28, 8
    whole = len(panels) * (panel + margin) + margin
    canvas = Image.new("RGB", (whole, height + (3 if about else 2) * line), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (title, picture, result) in enumerate(panels):
        left = margin + i * (panel + margin)
        _write(draw, (left + panel // 2, line // 2), title, panel)
        canvas.paste(picture, (left + (panel - width) // 2, line))
        _write(draw, (left + panel // 2, height + line + line // 2), result, panel)
    _write(draw, (whole // 2, height + 2 * line + line // 2), about, whole - 2 * margin)
    return canvas


def picture_tensor(picture: Image.Image) -> Tensor:
    """Return a picture as a tensor in [0, 1], [1, 3, H, W].

    Example:
        >>> picture_tensor(Image.new("RGB", (3, 2), "white")).shape
        torch.Size([1, 3, 2, 3])
    """
    data = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    return data.view(1, picture.height, picture.width, 3).permute(0, 3, 1, 2).float() / 255


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int) -> None:
    size = 15
    while size > 8 and ImageFont.load_default(size).getlength(text) > width:
        size -= 1
    font = ImageFont.load_default(size)
    while len(text) > 1 and font.getlength(text) > width:
        text = text.removesuffix("...")[:-1] + "..."
    draw.text(place, text, fill="black", font=font, anchor="mm")
