"""The page itself: fields, tabs and events, in gradio."""

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from agentsd.app.form import LARGEST_TOLERANCE, MODELS_OWN, OPENED, OWN, PRESETS, tolerance_of
from agentsd.app.handlers import FIELDS, Handlers, MessageError, arms_of, choice_of
from agentsd.app.results import rows, table_html, verdict
from agentsd.app.strip import strip_html
from agentsd.pictures.settings import DEMO, DEMO_SD15, SCHEDULERS

CSS = Path(__file__).with_name("page.css")
_HEAD = """<div id="head"><h1>agentsd</h1><p>Skips UNet calls where the forecast is within your tolerance. Every
picture is made twice: stock, and with agentsd.</p></div>"""
_EXAMPLE = "a red ring on a white background"
_OFF = "agentsd is off: both sides show the stock picture ({seconds:.2f} s)."
_WORK: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "work", "api_visibility": "private"}
_QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def theme() -> Any:
    """Return the theme; its fonts are the visitor's own, and nothing is fetched."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    return gr.themes.Default(
        primary_hue="blue", font=fonts, font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"]
    )


def build(handlers: Handlers, model: str) -> gr.Blocks:
    """Return the page.

    Args:
        handlers: What the buttons do.
        model: The model that is shown first.
    """
    with gr.Blocks(title="agentsd", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.HTML(_HEAD)
        kept = gr.State()  # the schedule of an opened file, as JSON
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                fields = _fields(handlers, model)
                with gr.Row():
                    make = gr.Button("Make", variant="primary", elem_id="make")
                    cancel = gr.Button("Cancel", interactive=False, elem_id="cancel")
                status = gr.HTML(elem_id="status")
                with gr.Accordion("Open a picture's settings", open=False):
                    upload = gr.UploadButton("Open PNG", file_types=[".png"], elem_id="open")
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                with gr.Tab("Picture"):
                    slider = gr.ImageSlider(
                        label="left: stock, right: agentsd", type="pil", format="png", max_height=460, elem_id="divided"
                    )
                    part = gr.Slider(0, 100, 50, step=1, label="Where the picture is divided (%)", elem_id="part")
                    words = gr.Markdown(elem_id="verdict")
                    strip = gr.HTML(elem_id="strip")
                    with gr.Row():
                        ours = gr.DownloadButton("Download PNG (agentsd)", interactive=False, elem_id="ours")
                        theirs = gr.DownloadButton("Download PNG (stock)", interactive=False, elem_id="theirs")
                with gr.Tab("Several"):
                    several = gr.CheckboxGroup(
                        list(PRESETS), value=["quality", "balanced", "fast"], label="Settings", elem_id="several"
                    )
                    compare = gr.Button("Compare", variant="primary", elem_id="compare")
                    table = gr.HTML(elem_id="table")
                    gallery = gr.Gallery(label="Pictures", columns=2, format="png", height="auto", interactive=False)
                with gr.Tab("Report"):
                    report = gr.Textbox(label="What is patched, and what the last run did", lines=12, max_lines=40)
        inputs = [fields[name] for name in FIELDS]
        buttons = [make, compare, cancel]
        works = _Events(handlers)
        results = [status, *buttons, slider, words, strip, ours, theirs, report]
        events = [
            trigger(works.picture, [*inputs, kept], results, show_progress_on=[status], **_WORK)
            for trigger in (make.click, fields["prompt"].submit)
        ]
        shown = [status, *buttons, table, gallery, report]
        events += [compare.click(works.table, [*inputs, kept, several], shown, show_progress_on=[status], **_WORK)]
        cancel.click(works.cancel, None, [status, *buttons], cancels=events, **_QUICK)
        page.unload(works.leave)
        part.input(lambda place: gr.ImageSlider(slider_position=place), part, slider, **_QUICK)
        choice, tolerance = fields["choice"], fields["tolerance"]
        choice.input(_slider_of, choice, tolerance, **_QUICK)
        tolerance.input(lambda value: gr.Radio(value=choice_of(value)), tolerance, choice, **_QUICK)
        upload.upload(works.restore, upload, [*inputs, kept, status], **_QUICK)
    return page


def _fields(handlers: Handlers, model: str) -> dict[str, Any]:
    limits = handlers.limits
    made: dict[str, Any] = {
        "prompt": gr.Textbox(_EXAMPLE, label="Prompt", lines=2, elem_id="prompt", max_lines=6),
        "choice": gr.Radio([*PRESETS, OWN], value="balanced", label="Preset", elem_id="choice"),
        "tolerance": gr.Slider(
            *(0, LARGEST_TOLERANCE),
            value=tolerance_of("balanced"),
            step=0.005,
            label="Tolerance: 0 is off, more is faster",
            elem_id="tolerance",
        ),
    }
    with gr.Row():
        made["steps"] = gr.Number(0, label=f"Steps, up to {limits.steps}", precision=0, min_width=90)
        made["guidance"] = gr.Number(0, label="Guidance", min_width=90)
        made["seed"] = gr.Number(0, label="Seed", precision=0, min_width=90)
    gr.Markdown("0 leaves steps, guidance, width and height to the model.", elem_classes="hint")
    with gr.Accordion("Model, scheduler, size, negative prompt", open=False):
        known = [DEMO, DEMO_SD15]
        made["model"] = gr.Dropdown(
            known if handlers.model is None else [handlers.model],
            value=model,
            label="Model: a name, a diffusers folder or a hub id",
            allow_custom_value=handlers.model is None,
            interactive=handlers.model is None,
        )
        made["scheduler"] = gr.Dropdown([MODELS_OWN, *SCHEDULERS], value=MODELS_OWN, label="Scheduler")
        with gr.Row():
            for name in ("width", "height"):
                label = f"{name.capitalize()}, up to {limits.side}"
                made[name] = gr.Number(0, label=label, precision=0, min_width=110)
        made["negative"] = gr.Textbox("", label="Negative prompt", lines=1)
    return made


def _slider_of(choice: str) -> Any:
    tolerance = tolerance_of(choice)
    value = {} if tolerance is None else {"value": tolerance}
    return gr.Slider(interactive=_has_slider(choice), **value)


def _has_slider(choice: str) -> bool:
    return choice == OWN or tolerance_of(choice) is not None


class _Events:
    """The events that reach the handlers, with gradio's values."""

    def __init__(self, handlers: Handlers) -> None:
        self.handlers = handlers

    def picture(self, request: gr.Request, *values: Any) -> Iterator[Any]:
        """Make stock beside agentsd."""
        *fields, kept = values
        rest = 6
        try:
            settings = self.handlers.settings(fields, kept)
            arms = [] if settings.schedule is None else [(settings.schedule, settings.label)]
            for event in self.handlers.make(_visitor(request), settings, arms):
                if isinstance(event, str):
                    yield _update(event, True, rest)
                elif event is None:
                    yield _update("Cancelled.", False, rest)
                else:
                    settled, stock, found = event
                    shown = found[0].made if found else stock
                    files = [self.handlers.files(settled, stock, None)]
                    files += [self.handlers.files(settled, shown, settings.schedule)] if found else files
                    text = verdict(stock, found[0]) if found else _OFF.format(seconds=stock.seconds)
                    download = [gr.DownloadButton(value=str(file), interactive=True) for file in reversed(files)]
                    pictures = (stock.picture, shown.picture)
                    last = [pictures, text, strip_html(shown.steps), *download, shown.report or text]
                    yield [*_update("Done.", False, 0), *last]
        except MessageError as error:
            yield _update("", False, rest)
            raise _told(error) from None

    def table(self, request: gr.Request, *values: Any) -> Iterator[Any]:
        """Compare several settings."""
        *fields, kept, labels = values
        rest = 3
        try:
            settings = self.handlers.settings(fields, kept)
            for event in self.handlers.make(_visitor(request), settings, arms_of(labels)):
                if isinstance(event, str):
                    yield _update(event, True, rest)
                elif event is None:
                    yield _update("Cancelled.", False, rest)
                else:
                    _, stock, found = event
                    lines = table_html(rows(stock, found))
                    pictures = [(stock.picture, "stock"), *((one.made.picture, one.made.label) for one in found)]
                    reports = "\n\n".join(f"{one.made.label}\n{one.made.report}" for one in found)
                    yield [*_update("Done.", False, 0), lines, pictures, reports]
        except MessageError as error:
            yield _update("", False, rest)
            raise _told(error) from None

    def cancel(self, request: gr.Request) -> list[Any]:
        """Cancel the visitor's work."""
        self.handlers.works.cancel(_visitor(request))
        return _update("Cancelled.", False, 0)

    def leave(self, request: gr.Request) -> None:
        """Cancel the work of a visitor who closes the page."""
        self.handlers.works.cancel(_visitor(request))

    def restore(self, path: str) -> list[Any]:
        """Put the settings of a PNG into the fields."""
        try:
            fields, kept, notes = self.handlers.restore(path)
        except MessageError as error:
            raise _told(error) from None
        choices = [*PRESETS, OWN, *([OPENED] if kept else [])]
        choice, tolerance = fields["choice"], fields["tolerance"]
        fields["choice"] = gr.Radio(choices, value=choice)
        fields["tolerance"] = gr.Slider(value=tolerance, interactive=_has_slider(choice))
        text = " ".join(["The settings of the file are in the fields.", *(f"Note: {note}." for note in notes)])
        return [*(fields[name] for name in FIELDS), kept, f'<p role="status">{html.escape(text)}</p>']


def _update(status: str, busy: bool, rest: int) -> list[Any]:
    text = status if status.startswith("<") else f'<p role="status">{status}</p>'
    buttons = [gr.Button(interactive=not busy), gr.Button(interactive=not busy), gr.Button(interactive=busy)]
    return [text, *buttons, *([gr.skip()] * rest)]


def _visitor(request: gr.Request) -> str:
    return str(request.session_hash)


def _told(error: MessageError) -> gr.Error:
    return gr.Error(str(error), title="That did not work", print_exception=False)
