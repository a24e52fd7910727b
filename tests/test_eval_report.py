"""Verdicts, tables, plot, grid and page: what may be said, nothing loaded from elsewhere, the worst ones shown."""

import csv
import html
import io
import math
import sys
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest
from evaluation_runs import cheap_extractor, make_place, whole_run
from PIL import Image

from agentsd.bench.intervals import Interval
from agentsd.bench.store import read_json
from agentsd.cli.main import main
from agentsd.evaluation import progress, report
from agentsd.evaluation.arms import EvaluationArm
from agentsd.evaluation.captions import Prompt
from agentsd.evaluation.differences import Delta
from agentsd.evaluation.frechet import FrechetDistances, frechet_distance
from agentsd.evaluation.kernel import KernelDistances, kernel_distance
from agentsd.evaluation.real import Real
from agentsd.evaluation.reference import Moments
from agentsd.evaluation.results import Rows, arm_results, verdict_of, worst_by_psnr
from agentsd.evaluation.run import Outcome
from agentsd.evaluation.stamps import stamps
from agentsd.evaluation.store import Store
from agentsd.evaluation.tables import core_table, figures, markdown, note, per_image, table, title
from agentsd.evaluation.verdicts import sentences

STOCK = EvaluationArm(name="stock", role="stock", steps=20)
OURS = EvaluationArm(name="ours", role="candidate", steps=20)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder of a run that nothing disturbed."""
    return whole_run(make_place(tmp_path_factory.mktemp("place")), tmp_path_factory.mktemp("whole") / "run")


# --- what may be said ---


@pytest.mark.parametrize(
    ("delta", "agreeing", "said"),
    [
        (Delta(-1, -2, 0.5), {}, "no difference from stock shown"),
        (Delta(1, 0.5, 2), {}, "worse than stock"),
        (Delta(1, 0.5, 2), {"clip_score": Interval(1, 0.5, 2)}, "worse than stock"),
        (Delta(-1, -2, -0.5), {}, "different from stock: lower distance, no other metric agrees"),
        (
            Delta(-1, -2, -0.5),
            {"clip_score": Interval(1, -0.5, 2)},
            "different from stock: lower distance, no other metric agrees",
        ),
        (
            Delta(-1, -2, -0.5),
            {"clip_score": Interval(1, 0.5, 2)},
            "better than stock: lower distance, and clip_score agrees",
        ),
    ],
)
def test_a_lower_distance_alone_is_not_better(delta, agreeing, said):
    assert verdict_of(delta, agreeing) == said


def drawn_rows(seed=0, number=60, shift=0.5):
    draw = np.random.default_rng(seed)
    real, stock = draw.normal(size=(2, number, 12)).astype(np.float32)
    rows = {
        "stock": Rows(features=stock, clip_score=draw.normal(30, 1, number)),
        "ours": Rows(
            features=stock + np.float32(shift),
            clip_score=draw.normal(31, 1, number),
            psnr_db=np.array([math.inf, *draw.normal(25, 1, number - 1)]),
            ssim=draw.uniform(0.8, 1, number),
            latent_l2=draw.uniform(0, 0.1, number),
        ),
    }
    return real, rows


def test_figures_are_those_of_the_statistics():
    real, rows = drawn_rows()
    result = arm_results(OURS, rows, Real(real, paired=True), cheap_extractor(), resamples=50)
    metrics = result["metrics"]
    ours, stock = (rows[name].features.astype(np.float64) for name in ("ours", "stock"))
    real = real.astype(np.float64)
    paired_kernel_distance = partial(kernel_distance, paired=True)
    for name, statistic in (("fd_quarters", frechet_distance), ("kd_quarters", paired_kernel_distance)):
        assert metrics[name]["value"] == statistic(real, ours)
        expected = statistic(real, ours) - statistic(real, stock)
        assert metrics[f"delta_{name}"]["value"] == pytest.approx(expected, rel=1e-12)
        assert metrics[f"delta_{name}"]["low"] > 0
    assert result["verdict"] == "worse than stock"
    assert metrics["psnr_db"]["equal_pictures"] == 1
    assert metrics["delta_clip_score"]["value"] == pytest.approx(
        np.mean(rows["ours"].clip_score - rows["stock"].clip_score)
    )
    assert "verdict" not in arm_results(STOCK, rows, Real(real, paired=True), cheap_extractor(), resamples=50)


def test_features_of_one_precision_give_equal_figures_however_they_came():
    real, rows = drawn_rows()
    once, again = (
        arm_results(OURS, rows, Real(real.astype(kind), paired=True), cheap_extractor(), resamples=50)
        for kind in (np.float32, np.float64)
    )
    assert once == again


def test_an_unpaired_reference_gives_an_interval_around_the_difference():
    real, rows = drawn_rows(shift=0.2)
    for paired in (True, False):
        result = arm_results(
            OURS, rows, Real(real[:50] if not paired else real, paired=paired), cheap_extractor(), resamples=200
        )
        for name in ("delta_fd_quarters", "delta_kd_quarters"):
            entry = result["metrics"][name]
            assert entry["low"] < entry["value"] < entry["high"], (paired, name)


def test_the_method_names_the_variant():
    real, rows = drawn_rows(number=20)
    for paired, said in ((True, "without pairs of one prompt"), (False, "all pairs")):
        metrics = arm_results(OURS, rows, Real(real, paired=paired), cheap_extractor(), resamples=5)["metrics"]
        assert said in metrics["kd_quarters"]["method"]
        assert said in metrics["delta_kd_quarters"]["method"]
        assert ("pairs of one prompt included" in metrics["delta_fd_quarters"]["method"]) == paired
        assert metrics["delta_fd_quarters"]["method"].endswith(", 95% interval")
    moments = Real(moments=Moments(real.mean(axis=0), np.cov(real, rowvar=False)))
    assert "kd_quarters" not in arm_results(OURS, rows, moments, cheap_extractor(), resamples=5)["metrics"]


def test_an_arm_is_not_called_worse_for_following_the_prompts_less():
    real, noise, fast = np.random.default_rng(0).normal(size=(3, 60, 12))
    rows = {"stock": Rows(features=0.9 * real + math.sqrt(0.19) * noise), "ours": Rows(features=fast)}
    result = arm_results(OURS, rows, Real(real, paired=True), cheap_extractor(), resamples=100)
    assert result["metrics"]["delta_fd_quarters"]["low"] > 0
    assert result["verdict"] == "no difference from stock shown"


@pytest.mark.parametrize("paired", [True, False])
def test_stock_and_equal_features_are_resampled_once(paired, monkeypatch):
    real, rows = drawn_rows(number=20)
    rows["again"] = rows["stock"]
    calls = []
    for kind in (FrechetDistances, KernelDistances):

        def counted(self, arm, *rest, original=kind.draws):
            calls.append(type(self).__name__)
            return original(self, arm, *rest)

        monkeypatch.setattr(kind, "draws", counted)
    reference = Real(real, paired=paired)
    again = EvaluationArm(name="again", role="control", steps=20)
    found = [arm_results(arm, rows, reference, cheap_extractor(), resamples=5) for arm in (STOCK, again, OURS)]
    assert sorted(calls) == ["FrechetDistances"] * 2 + ["KernelDistances"] * 2  # stock and ours
    delta = found[1]["metrics"]["delta_fd_quarters"]
    assert (delta["value"], delta["low"], delta["high"]) == (0, 0, 0)


def test_resampled_distances_are_kept_for_the_next_start(tmp_path, monkeypatch):
    real, rows = drawn_rows(number=20)
    first, again = (
        partial(arm_results, OURS, rows, Real(given, folder=tmp_path), cheap_extractor(), resamples=5)
        for given in (real, real + 1)
    )
    found = first()
    assert len(list(tmp_path.glob("*.npz"))) == 4  # two distances of two arms
    next(tmp_path.glob("*.npz")).write_bytes(b"cut off")
    assert first() == found
    assert arm_results(OURS, rows, Real(real, folder=tmp_path), cheap_extractor(), resamples=5) == found
    assert again() != found  # another reference
    assert arm_results(OURS, rows, Real(real, folder=tmp_path), cheap_extractor(), resamples=5, seed=1) != found
    monkeypatch.setattr(FrechetDistances, "draws", None)
    monkeypatch.setattr(KernelDistances, "draws", None)
    assert arm_results(OURS, rows, Real(real, folder=tmp_path), cheap_extractor(), resamples=5) == found


def test_long_computations_say_how_far_they_are(monkeypatch, caplog):
    monkeypatch.setattr(progress, "_LOG_EVERY", 0)
    real, rows = drawn_rows(number=20)
    with caplog.at_level("INFO"):
        arm_results(OURS, rows, Real(real, paired=True), cheap_extractor(), resamples=5)
    assert "interval of ours, fd_quarters: 5 of 5, about 0 s left" in caplog.text


def test_absolute_scores_have_intervals():
    _, rows = drawn_rows()
    rows["ours"] = Rows(clip_score=rows["ours"].clip_score, right=np.array([1.0, 0.0] * 30))
    metrics = arm_results(OURS, rows, None, None, resamples=100)["metrics"]
    for name in ("clip_score", "attribute_accuracy"):
        entry = metrics[name]
        assert entry["low"] < entry["value"] < entry["high"]
        assert (entry["n"], entry["method"]) == (60, "mean over pictures, bootstrap, 95% interval")


@pytest.mark.parametrize(("generated", "real"), [(5, 9), (9, 5)])
def test_the_smaller_side_is_what_makes_a_sample_small(generated, real):
    rows = {"stock": Rows(features=np.random.default_rng(0).normal(size=(generated, 12)))}
    features = np.random.default_rng(1).normal(size=(real, 12))
    metrics = arm_results(STOCK, rows, Real(features), cheap_extractor(), resamples=5)["metrics"]
    assert metrics["fd_quarters"]["stamp"] == "n=5 < 2048: biased high; comparative only"
    assert metrics["kd_quarters"]["stamp"] == "n=5 < 2048: few samples, noisy but not biased; comparative only"
    said = stamps(generated, cheap_extractor(), {"kind": "folder", "number": real}, {})
    assert said[0] == "Small sample, n=5 < 2048: FD is biased high, KD is noisy; comparative only."
    said = stamps(9, cheap_extractor(), {"kind": "moments"}, {})  # which give no kernel distance
    assert said[0] == "Small sample, n=9 < 2048: FD is biased high; comparative only."
    said = stamps(9, replace(cheap_extractor(), distance="fid"), {"kind": "folder", "number": 9}, {})
    assert said[0] == "Small sample, n=9 < 2048: FID is biased high, KID is noisy; comparative only."


def speed(median, low, high, **more):
    return {"speed": {"speedup": {"median": median, "low": low, "high": high, "n": 8}} | more}


def test_a_control_that_is_not_as_fast_as_stock_is_stamped():
    def said(*gain):
        return stamps(9, None, None, {}, {"stock A/A": {"role": "control"} | speed(*gain)})

    assert said(1.04, 1.02, 1.06) == ["A/A 1.04x [1.02, 1.06]: the clock drifts, speed-ups are off by as much."]
    assert said(0.97, 0.95, 0.99)[0].startswith("A/A 0.97x")
    assert said(1.01, 0.98, 1.03) == []
    assert stamps(9, None, None, {}, {"ours": {"role": "candidate"} | speed(1.4, 1.3, 1.5)}) == []
    assert stamps(9, None, None, {}, {"stock A/A": {"role": "control"}}) == []  # not timed


@pytest.mark.parametrize(("ratio", "stamped"), [(1.06, True), (0.94, True), (1.04, False), (0.96, False)])
def test_times_that_are_not_equal_are_stamped(ratio, stamped):
    arm = {"role": "equal time"} | speed(1.5, 1.4, 1.6, time_ratio={"ours": {"median": ratio}})
    said = stamps(9, None, None, {}, {"stock, 9 steps": arm})
    expected = f"stock, 9 steps takes {ratio:.2f}x the time of ours: their times are not equal."
    assert said == ([expected] if stamped else [])


def test_an_arm_that_saves_no_step_is_stamped():
    said = stamps(9, None, None, {}, no_faster=["ours"])
    assert said == ["ours takes the time of all of stock's steps or more: it has no stock arm of equal time."]
    assert said[0].isascii()  # as the grids' font is


def test_few_values_are_shown_as_their_range():
    gain = {"median": 4.56, "low": 4.42, "high": 4.69, "n": 2}
    entry = {"value": 0.1, "low": -0.1, "high": 0.2, "n": 5}
    shown = {"speedup": gain, "unet_speedup": gain | {"n": 6}, "seconds_median": 1.0}
    ratio = {"ours": {"median": 1.02}}
    arm = {"steps": 20, "metrics": {"delta_clip_score": entry}, "speed": shown | {"time_ratio": ratio}}
    heading, (row,) = table({"arms": {"ours": arm}})
    cells = dict(zip(heading, row, strict=True))
    assert cells["speed-up"] == "4.56x [4.42, 4.69] range of 2"
    assert cells["UNet alone"] == "4.56x [4.42, 4.69]"
    assert cells["ΔCLIP score"] == "+0.100 [-0.100, +0.200] range of 5"
    assert cells["time over that of"] == "1.02x ours"


def test_stamps_say_what_a_figure_is_not():
    reference = {"kind": "folder", "paired": False}
    said = stamps(100, cheap_extractor(), reference, {"unet_parameters": 10**9, "paired": False})
    assert [stamp.split(",")[0].split(" ")[0] for stamp in said] == ["Small", "Distances", "The"]
    assert stamps(5000, None, None, {"unet_parameters": 10**9}) == []
    said = stamps(5000, cheap_extractor(), reference, {"unet_parameters": 10**9, "paired": True})
    assert all(stamp.isascii() for stamp in said)  # the grids' font has no more
    assert said[-1].startswith("The reference is paired with the prompts: differences of FD or FID also hold how")
    assert "Robustness only" in stamps(9, None, None, {"unet_parameters": 10**7, "demo_model": True})[0]


def test_the_worst_are_the_least_alike():
    assert worst_by_psnr([30.0, math.inf, 10.0, 20.0], 3) == [2, 3, 0]


# --- files ---


def test_the_table_has_a_row_an_arm_and_no_empty_column(whole):
    found = read_json(whole / "results.json")
    heading, rows = table(found)
    assert [row[0] for row in rows] == ["stock", "stock A/A", "ours", "stock, 1 steps"]
    assert "speed-up" not in heading
    assert "FD(quarters)" in heading
    assert "ΔKD(quarters)" in heading
    assert all(any(row[i] for row in rows) for i in range(len(heading)))
    control = next(row for row in rows if row[0] == "stock A/A")
    assert "equal" in control
    text = (whole / "table.md").read_text(encoding="utf-8")
    assert text == markdown(found)
    assert "Δ is arm minus stock with its range of 5" in text
    assert "**Plumbing test" in text
    assert "FID |" not in text


@pytest.mark.parametrize(("batch", "said"), [(1, "Times: 8 prompts, each"), (4, "Times: 8 batches of 4, each")])
def test_the_note_tells_batches_from_prompts(whole, batch, said):
    timing = {"prompts": 8, "batch": batch, "environment": {"device": "this one", "threads": 1}}
    assert said in note(read_json(whole / "results.json") | {"timing": timing})
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "each batch of prompts is generated twice by every arm" in page


def test_every_figure_of_the_results_has_a_row(whole):
    found = timed(read_json(whole / "results.json"))
    ratio = {"median": 1.02, "low": 1.0, "high": 1.04, "n": 8, "log_iqr": 0.0125, "method": "median of paired ratios"}
    found["arms"]["stock, 1 steps"]["speed"] = found["arms"]["ours"]["speed"] | {"time_ratio": {"ours": ratio}}
    heading, rows = figures(found)
    shown = {tuple(row[:2]): dict(zip(heading, row, strict=True)) for row in rows}
    for name, arm in found["arms"].items():
        for metric, entry in arm["metrics"].items():
            row = shown[name, metric]
            assert (row["n"], row["method"]) == (str(entry["n"]), entry["method"])
            assert (row["low"] != "") == ("low" in entry)
            assert entry.get("stamp", "") in row["remarks"]
        assert {figure for other, figure in shown if other == name} >= arm["speed"].keys() - {"time_ratio"}
    assert shown["stock A/A", "psnr_db"]["value"] == "none"  # infinite
    assert "equal_pictures: 5" in shown["stock A/A", "psnr_db"]["remarks"]
    assert shown["ours", "patching_seconds"]["value"] == "0.25"
    assert shown["ours", "peak_reserved_bytes"]["value"] == str(2**31)
    assert shown["ours", "attention"]["value"] == "One, Two"
    assert shown["ours", "speedup"]["log_iqr"] == "0.03125"
    row = shown["stock, 1 steps", "time over that of ours"]
    assert [row[key] for key in ("value", "low", "high", "log_iqr")] == ["1.02", "1", "1.04", "0.0125"]


def test_titles():
    assert [title(name) for name in ("fid", "kid", "fd_demo", "kd_demo")] == ["FID", "KID", "FD(demo)", "KD(demo)"]


def test_single_pictures_survive_any_prompt():
    prompts = [Prompt(0, 5, 'a "cat",\nand; a dog'), Prompt(1, "x,y", "plain")]
    timing = {"batch": 1, "arms": {"stock": {"seconds": [1.0, 3.0]}}}
    text = per_image(prompts, [("stock", lambda i: i + 10)], {}, timing)
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["prompt"] for row in rows] == [prompt.text for prompt in prompts]
    assert [(row["image_id"], row["seed"], row["seconds"]) for row in rows] == [
        ("5", "10", "2.0000"),
        ("x,y", "11", ""),
    ]


def test_the_page_says_first_what_was_found(whole):
    found = timed(read_json(whole / "results.json"))
    shown = report.page(found, {}, {}, "")
    first = shown.index("ours: 1.4x faster (95% interval: 1.3 to 1.5); likeness ")
    assert (
        shown.index("<h1>") < first < shown.index("For comparison, stock, 1 steps: 1.4x faster") < shown.index("<table")
    )
    for stamp in found["stamps"]:
        assert shown.count(html.escape(stamp)) == 1
    assert "name='viewport'" in shown
    assert "prefers-color-scheme:dark" in shown
    assert shown.index("<table class='core'>") < shown.index("<details>")
    heading, rows = core_table(found)
    assert len(heading) == 6
    assert [row[0] for row in rows] == list(found["arms"])


def gained(median, low, high, number):
    return {"speedup": {"median": median, "low": low, "high": high, "n": number}}


@pytest.mark.parametrize(
    ("changes", "number", "said"),
    [
        ({}, 32, "ours: 3.6x faster (95% interval: 3.5 to 3.7); likeness 51.1 dB, worst 5% 48.0 dB; quality not "),
        ({"verdict": "worse than stock"}, 32, "worst 5% 48.0 dB; quality worse than stock."),
        ({"verdict": verdict_of(Delta(-1, -2, 0.5), {})}, 5000, "48.0 dB; no quality difference found."),
        ({"verdict": verdict_of(Delta(-1, -2, 0.5), {})}, 5, "found; 5 pictures are too few to find a small one."),
        ({"speed": gained(0.5, 0.4, 0.6, 4)}, 5, "ours: 2.0x slower (range of 4: 1.7 to 2.5); likeness"),
        ({"speed": gained(2.0, 2.0, 2.0, 1)}, 5, "ours: 2.0x faster; likeness"),
        ({"speed": gained(1.01, 0.9, 1.1, 8)}, 5, "ours: as fast as stock; likeness"),
        ({"metrics": {"psnr_db": {"value": None, "p5": None, "equal_pictures": 5, "n": 5}}}, 5,
         "5 of 5 pictures equal stock; quality not measured."),
    ],
)  # fmt: skip
def test_verdicts_in_words(changes, number, said):
    near = {"psnr_db": {"value": 51.1, "p5": 48.0, "equal_pictures": 0, "n": number}}
    arm = {"role": "candidate", "metrics": near, "speed": gained(3.6, 3.5, 3.7, 8)} | changes
    arms = {"stock": {"role": "stock"}, "ours": arm}
    assert said in sentences({"number": number, "reference": None, "arms": arms})[0]


def test_the_command_ends_with_the_verdict(whole, monkeypatch, capsys):
    found = timed(read_json(whole / "results.json"))
    monkeypatch.setattr("agentsd.evaluation.run.evaluate", lambda options: Outcome(whole, found))
    assert main(["evaluate"]) == 0
    table, _, words = capsys.readouterr().out.rpartition("\n\n")
    assert table.startswith("| arm | steps |")
    assert words.splitlines() == [*sentences(found), f"{whole / 'report.html'}: the page"]


@pytest.mark.parametrize(("paired", "said"), [(True, "KD(demo) +0.001"), (False, "FD(demo) -0.02")])
def test_a_verdict_names_the_distance_that_decided(paired, said):
    ends = {"low": -0.03, "high": 0.03, "n": 32}
    distances = {"delta_fd_demo": {"value": -0.02, **ends}, "delta_kd_demo": {"value": 0.001, **ends}}
    arm = {"role": "candidate", "metrics": distances, "verdict": verdict_of(Delta(0.001, -0.03, 0.03), {})}
    found = sentences({"number": 32, "reference": {"paired": paired}, "arms": {"ours": arm}})[0]
    said = f"ours: not timed; no quality difference found, {said} against stock (95% interval: -0.03 to "
    assert found.startswith(said)


def test_one_value_has_no_brackets():
    gain = {"median": 2.03, "low": 2.03, "high": 2.03, "n": 1}
    _, (row,) = core_table({"arms": {"ours": {"steps": 20, "metrics": {}, "speed": {"speedup": gain}}}})
    assert row[2] == "2.03x"


def test_the_page_stands_alone_and_escapes(whole):
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "src='data:image/jpeg;base64," in page
    assert not {"http://", "https://", "<script", "<link"} & {
        word for word in ("http://", "https://", "<script", "<link") if word in page
    }
    assert "Plumbing test" in page
    found = read_json(whole / "results.json")
    found["arms"]["<b>"] = found["arms"].pop("ours")
    found["about"]["captions"] = "<script>"
    found["arms"]["<b>"]["metrics"]["ssim"]["method"] = "<script>"
    pictures = per_image([Prompt(0, "<b>", "<script>")], [("<b>", int)], {}, {})
    page = report.page(found, {}, {}, pictures)
    assert "<b>" not in page
    assert "<script>" not in page


class Tables(HTMLParser):
    """The tables of a page by the summary that they are folded under, and how deep what is open is at the end."""

    def __init__(self, page):
        super().__init__()
        self.found, self.open, self.inside = {}, [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.open += [] if tag in ("meta", "img") else [tag]
        if tag == "tr" and "details" in self.open:
            self.found[self.inside].append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "summary" in self.open:
            self.inside = data
            self.found[data] = []
        elif "details" in self.open and self.open[-1] in ("td", "th"):
            self.found[self.inside][-1].append(data)


def test_the_page_holds_every_figure_and_every_picture(whole):
    page = (whole / "report.html").read_text(encoding="utf-8")
    tables = Tables(page)
    assert tables.open == []
    assert "<details open" not in page
    names = ["stock", "stock A/A", "ours", "stock, 1 steps"]
    every = "Every figure with its interval, number and method"
    assert list(tables.found) == [
        "All columns",
        "What the columns mean",
        every,
        *(f"Single pictures of {name}" for name in names),
        "Configuration",
    ]
    heading, rows = figures(read_json(whole / "results.json"))
    assert tables.found[every] == [heading, *([text for text in row if text] for row in rows)]  # no data, no call
    with open(whole / "per_image.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    for name in names:
        heading, *rows = tables.found[f"Single pictures of {name}"]
        wanted = [line for line in lines if line["arm"] == name]
        assert heading == [key for key in wanted[0] if key != "arm" and wanted[0][key]]
        for row, line in zip(rows, wanted, strict=True):
            assert (row[0], row[1], row[-1]) == (line["index"], line["image_id"], line["prompt"])
            for key, text in zip(heading, row, strict=True):
                assert text == line[key] or float(text) == pytest.approx(float(line[key]), rel=1e-4)


def test_two_hundred_pictures_of_four_arms_keep_the_page_small(whole):
    draw = np.random.default_rng(0)
    prompts = [Prompt(i, 100_000 + i, "a man rides a brown horse along a beach at sunset") for i in range(200)]
    rows = Rows(psnr_db=draw.uniform(size=200), ssim=draw.uniform(size=200), latent_l2=draw.uniform(size=200))
    arms = [(f"arm {i}", partial(int.__add__, 2**62)) for i in range(4)]
    pictures = per_image(prompts, arms, {name: rows for name, _ in arms}, {})
    found = read_json(whole / "results.json")
    more = len(report.page(found, {}, {}, pictures)) - len(report.page(found, {}, {}, ""))
    assert 4 * 200 * 100 < more < 250_000


def timed(found):
    gain = {"median": 1.4, "low": 1.3, "high": 1.5, "n": 8, "log_iqr": 0.03125, "method": "median of paired ratios"}
    speed = {
        "seconds_median": 2.0, "speedup": gain, "unet_speedup": gain, "peak_bytes": 2**30,
        "peak_reserved_bytes": 2**31, "patching_seconds": 0.25, "attention": ["One", "Two"], "compiled": False,
    }  # fmt: skip
    return found | {"arms": {name: arm | {"speed": speed} for name, arm in found["arms"].items()}}


def test_the_plot_shows_speed_against_quality(whole):
    found = read_json(whole / "results.json")
    assert report.pareto(found) == {}  # no times
    plot = report.pareto(timed(found))
    assert plot["png"].startswith(b"\x89PNG")
    assert b"speed-up over stock" in plot["svg"] or b"<svg" in plot["svg"]
    panels = report.panels(timed(found))
    assert list(panels) == [
        "speed-up against likeness to stock",
        "speed-up against distance to the reference, FD(quarters)",
    ]
    assert all(b"<svg" in panel for panel in panels.values())
    heading, rows = table(timed(found))
    assert rows[0][heading.index("speed-up")] == "1.40x [1.30, 1.50]"
    assert rows[0][heading.index("peak memory")] == "1.00 GiB"


def test_without_matplotlib_there_is_no_plot_but_a_hint(whole, monkeypatch, caplog):
    for name in [name for name in sys.modules if name.startswith("matplotlib")] + ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert report.pareto(timed(read_json(whole / "results.json"))) == {}
    assert "pip install matplotlib" in caplog.text


def test_the_grid_shows_fixed_places_then_the_worst(whole, monkeypatch):
    prompts = [Prompt(i, i, f"prompt {i}") for i in range(5)]
    written = []
    monkeypatch.setattr(report, "_write", lambda draw, place, text, *rest: written.append(text))
    rows = Rows(psnr_db=np.array([30.0, 20.0, math.inf, 10.0, 25.0]))
    picture = report.grid(Store(whole), "ours", "stock, 1 steps", prompts, rows)
    labels = [text for text in written if ": prompt" in text]
    assert [label.split(":")[0] for label in labels] == [
        "prompt 0, 30.0 dB", "prompt 1, 20.0 dB", "prompt 2, equal",
        "least alike 3, 10.0 dB", "least alike 1, 20.0 dB", "least alike 4, 25.0 dB", "least alike 0, 30.0 dB",
        "least alike 2, equal",
    ]  # fmt: skip
    assert written[:4] == ["stock", "ours", "stock, 1 steps", "4 x |stock - ours|"]
    assert picture.width == 4 * 256
    # Stock minus itself is black.
    same = report.grid(Store(whole), "stock A/A", None, prompts, rows)
    column = np.asarray(same.crop((2 * 256, 22, 3 * 256, 22 + 256)))
    assert column.max() == 0


def test_the_grid_is_written_for_each_candidate(whole):
    with Image.open(whole / "grid-ours.png") as picture:
        assert picture.size[0] == 4 * 256
    assert not (whole / "grid-stock.png").exists()
