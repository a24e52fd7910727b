"""scripts/dev/strip.py writes a row each call, goes on where it stopped, and joins the pictures."""

import runpy
from pathlib import Path

from PIL import Image
from tiny import make_tiny_pipe

from agentsd.bench.currency import facts_of
from agentsd.bench.rows import read_rows
from agentsd.bench.strip_tables import FEWER, FEWER_ARMS, SCHEDULES, SHOWN

strip = runpy.run_path(str(Path(__file__).resolve().parent.parent / "scripts" / "dev" / "strip.py"))


def test_every_call_is_a_row_and_its_picture_is_in_the_strip(tmp_path, monkeypatch):
    loaded = []
    namespace = strip["measure"].__globals__
    monkeypatch.setitem(namespace, "demo_pipeline", lambda name: loaded.append(name) or make_tiny_pipe())
    kept = {name: arm for name, arm in strip["ARMS"].items() if name in ("stock", *SHOWN, FEWER_ARMS[0])}
    monkeypatch.setitem(namespace, "ARMS", kept)
    places = {name: tmp_path / name for name in ("results", "pictures", "output")}
    places["output"] = tmp_path / "strip.png"
    words = ["--prompts", "0", "1"] + [word for name, path in places.items() for word in (f"--{name}", str(path))]
    assert strip["main"]([*words, "--limit-seconds", "-1"]) == 1
    assert strip["main"](words) == 0
    assert strip["main"](words) == 0
    assert loaded == ["sd15"]  # nothing was missing the second time
    rows = read_rows(places["results"])
    assert sorted((row["number"], row["arm"]) for row in rows) == sorted((n, arm) for n in (0, 1) for arm in kept)
    for row in rows:
        schedule = SCHEDULES.get(row["arm"])
        assert facts_of(schedule).items() <= row.items()
        assert row["calls"] <= row["steps"]
        assert (row["psnr_db"] is None) == (row["arm"] == "stock")
    assert next(row for row in rows if row["arm"] == FEWER_ARMS[0])["calls"] == FEWER
    with Image.open(places["output"]) as picture:
        assert picture.width > 6 * 256
        assert picture.getpixel((12 + 128, 44 + 128)) != (255, 255, 255)
