"""The page in a real browser: making, dividing, cancelling, wrong input, a phone, the keyboard alone.

Skipped where gradio, playwright or Chromium is missing; docs/app.md says how to install them.
"""

import os
import re
import shutil

import pytest
from tiny import make_tiny_pipe

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]
PATIENCE = 120_000  # milliseconds; a busy machine is no defect


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    from agentsd.app import launch
    from agentsd.app.studio import Studio

    patched = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("app")
    patched.chdir(folder)
    patched.setattr(Studio.__init__, "__defaults__", (lambda settings, device: make_tiny_pipe(), "float32"))
    page, url = launch(port=0, output=folder / "out")
    yield url
    page.close()
    patched.undo()
    assert [path.name for path in folder.iterdir()] == ["out"]  # nothing is written outside


@pytest.fixture(scope="module")
def chromium():
    sync_api.expect.set_options(timeout=PATIENCE)
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, address):
    """Open the page at a width; requests to elsewhere fail the test."""
    contexts, elsewhere = [], []

    def open_at(width=1280, height=900, scheme="light"):
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: None if request.url.startswith((address, "data:", "blob:")) else
                elsewhere.append(request.url))  # fmt: skip
        page.goto(address)
        page.locator("#make").wait_for()
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert elsewhere == []


def fill(page, steps="12"):
    page.get_by_label("Steps, up to 150").fill(steps)


def verdict(page):
    words = page.locator("#verdict")
    sync_api.expect(words).to_contain_text("stock")
    return words.inner_text()


def test_make_and_divide_and_download(opened, tmp_path):
    page = opened()
    fill(page)
    page.get_by_label("extreme", exact=True).check()
    page.locator("#make").click()
    assert re.match(r"extreme: .* \(\d+\.\d\d s; stock \d+\.\d\d s\)\. .*12 steps: .* skipped\.", verdict(page))
    assert "12 steps" in page.locator("#strip svg").get_attribute("aria-label")
    # One picture over the other, or the divider would compare different places.
    pictures = page.locator("#divided img[src]").evaluate_all(
        "all => all.map(one => [one.clientWidth, one.clientHeight])"
    )
    assert len(pictures) == 2
    assert pictures[0] == pictures[1]
    page.locator("#part input[type=range]").fill("20")
    with page.expect_download() as download:
        page.locator("#ours").click()
    path = tmp_path / "made.png"
    download.value.save_as(path)
    page.get_by_role("button", name="Open a picture's settings").click()
    page.get_by_label("Prompt", exact=True).fill("something else")
    with page.expect_file_chooser() as chooser:
        page.locator("#open").click()
    chooser.value.set_files(path)
    sync_api.expect(page.get_by_label("Prompt", exact=True)).to_have_value("a red ring on a white background")
    page.get_by_role("tab", name="Report").click()
    assert "UNet2DConditionModel" in page.get_by_label("What is patched, and what the last run did").input_value()


def test_cancel(opened):
    page = opened()
    fill(page, "150")
    page.locator("#make").click()
    sync_api.expect(page.get_by_role("progressbar")).to_be_visible()
    sync_api.expect(page.locator("#cancel")).to_be_enabled()
    page.locator("#cancel").click()
    sync_api.expect(page.locator("#status")).to_contain_text("Cancelled")
    sync_api.expect(page.locator("#make")).to_be_enabled()


def test_wrong_input_is_a_sentence(opened):
    page = opened()
    fill(page, "999")
    page.locator("#make").click()
    sync_api.expect(page.get_by_text("Steps is 999, and must lie between 1 and 150.")).to_be_visible()
    sync_api.expect(page.locator("#make")).to_be_enabled()


def test_several_settings_on_a_phone(opened):
    page = opened(width=390, height=844, scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    fill(page)
    page.get_by_role("tab", name="Several").click()
    page.locator("#compare").click()
    sync_api.expect(page.get_by_role("row")).to_have_count(5)  # the head, stock and three presets
    sync_api.expect(page.locator("#status")).to_contain_text("Done")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_keyboard_alone(opened):
    page = opened()
    fill(page)
    page.get_by_label("Prompt", exact=True).focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "make":
            break
    page.keyboard.press("Enter")
    verdict(page)
    page.locator("#part input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#part input[type=range]").input_value() == "51"
