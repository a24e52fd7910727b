"""The page's own logic, without gradio: fields, works, pictures, strips, files."""

import threading
from functools import partial

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tiny import make_tiny_pipe

import agentsd
from agentsd import Schedule, Skipping
from agentsd.app import launch
from agentsd.app.form import MODELS_OWN, OPENED, OWN, Limits, fields_of, settings_of
from agentsd.app.handlers import FIELDS, LOADING, Handlers, MessageError, _progress, arms_of
from agentsd.app.options import is_loopback
from agentsd.app.results import opened, rows, save
from agentsd.app.strip import in_words, strip_html
from agentsd.app.studio import CancelledError, Made, Studio
from agentsd.app.work import Done, Progress, Works
from agentsd.pictures.settings import Settings

FORM = dict(
    model="demo",
    prompt=" a ring ",
    negative="",
    steps=0,
    guidance=0,
    width=None,
    height=0,
    scheduler=MODELS_OWN,
    seed=0,
    choice="fast",
    tolerance=0.06,
)


class TestForm:
    def test_empty_fields_are_the_models_own(self):
        made = settings_of(FORM, Limits())
        assert made == Settings(
            prompt="a ring", steps=50, guidance_scale=4.0, schedule=agentsd.preset("fast"), label="fast"
        )
        assert settings_of(FORM | {"model": "some/model"}, Limits()).steps is None

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"prompt": "  "}, "The prompt is empty. Write what the picture shall show."),
            ({"prompt": "x" * 2001}, "The prompt text is longer than 2000 characters. Shorten it."),
            ({"steps": 151}, "Steps is 151, and must lie between 1 and 150."),
            ({"steps": 2.5}, "Steps is 2.5, and must be a whole number."),
            ({"steps": -1}, "Steps is -1, and must lie between 1 and 150."),
            ({"width": 70}, "Width is 70, and must be a multiple of 8. Try 64."),
            ({"height": 2048}, "Height is 2048, and must lie between 16 and 1024."),
            ({"guidance": 31}, "Guidance is 31, and must lie between 0 and 30; 1 switches it off."),
            ({"scheduler": "x"}, "The scheduler 'x' is unknown. Choose one of the list."),
            ({"steps": float("inf")}, "Steps is inf, and must be a whole number."),
            ({"steps": float("nan")}, "Steps is nan, and must be a whole number."),
            ({"seed": -1}, "Seed is -1, and must lie between 0 and 4294967295."),
            ({"choice": "slow"}, "preset 'slow' is unknown."),
            ({"choice": OPENED}, "No file is open. Open a PNG, or choose a preset."),
            ({"choice": OWN, "tolerance": 1.5}, r"tolerance=1.5 must lie in \(0, 1\]"),
        ],
    )
    def test_wrong_fields_are_named(self, change, message):
        with pytest.raises(ValueError, match=message):
            settings_of(FORM | change, Limits())

    @pytest.mark.parametrize(
        ("schedule", "choice"),
        [
            (None, OWN),
            (agentsd.preset("gentle"), "gentle"),
            (agentsd.preset("balanced").with_tolerance(0.05), OWN),
            (Schedule.constant(None, 3, skipping=Skipping(depth=1)), OPENED),
            (agentsd.preset("balanced").with_tolerance(0.5), OPENED),  # the slider ends below
        ],
    )
    def test_fields_bring_settings_back(self, schedule, choice):
        first = Settings(
            prompt="a", negative_prompt="b", steps=9, guidance_scale=2.0, schedule=schedule, width=64, seed=5
        )
        fields = fields_of(first)
        assert fields["choice"] == choice
        again = settings_of(fields, Limits(), schedule if choice == OPENED else None)
        assert again.to_dict() | {"label": ""} == first.to_dict() | {"label": ""}

    def test_no_guidance_stays_none(self):
        fields = fields_of(Settings(prompt="a", steps=9, guidance_scale=0))
        assert settings_of(fields, Limits()).guidance_scale == 1  # 0 in the field is the model's own


@pytest.fixture(scope="module")
def handlers(tmp_path_factory):
    pipe = make_tiny_pipe()
    studio = Studio(torch.device("cpu"), load=lambda settings, device: pipe)
    return Handlers(studio, Limits(), tmp_path_factory.mktemp("app"))


def values(**change):
    return [(FORM | {"steps": 12, "width": 32, "height": 32} | change)[name] for name in FIELDS]


class TestMaking:
    def test_stock_beside_agentsd(self, handlers):
        settings = handlers.settings(values(choice="extreme"), None)
        *progress, last = handlers.make("me", settings, [(settings.schedule, settings.label)])
        settled, stock, (against,) = last
        assert LOADING in progress[0]
        # Which steps the page sees depends on how fast they follow each other.
        assert all("of 12 (picture " in one for one in progress[1:])
        assert "extreme: step 12 of 12 (picture 2 of 2)" in _progress(Progress("extreme", 12, 12), ["stock", "extreme"])
        assert (settled.width, settled.guidance_scale) == (32, 4.0)
        assert len(against.made.steps) == 12
        assert "skipped" in against.made.steps
        assert against.psnr_db is not None
        assert "UNet2DConditionModel" in against.made.report
        plain = make_tiny_pipe()("a ring", num_inference_steps=12, guidance_scale=4.0, width=32, height=32,
                                 generator=torch.Generator().manual_seed(0)).images[0]  # fmt: skip
        assert stock.picture.tobytes() == plain.tobytes()
        table = rows(stock, [against])
        assert [row[0] for row in table] == ["stock", "extreme"]
        assert int(table[1][3]) + int(table[1][4]) == 12

        path = handlers.files(settled, against.made, settings.schedule)
        assert path.parent == handlers.folder
        assert opened(path)[0].schedule == settings.schedule
        fields, kept, notes = handlers.restore(str(path))
        assert (fields["choice"], fields["prompt"], fields["steps"], kept) == ("extreme", "a ring", 12, None)
        assert notes == []

    def test_off_makes_stock_alone(self, handlers):
        settings = handlers.settings(values(choice=OWN, tolerance=0), None)
        assert settings.schedule is None
        *_, (_, stock, found) = handlers.make("me", settings, [])
        assert (stock.label, found) == ("stock", [])

    def test_a_scheduler_holds_for_one_picture(self, handlers):
        own = handlers.studio._scheduler
        list(handlers.make("me", handlers.settings(values(scheduler="euler"), None), []))
        assert type(handlers.studio._pipe.scheduler).__name__ == "EulerDiscreteScheduler"
        list(handlers.make("me", handlers.settings(values(), None), []))
        assert handlers.studio._pipe.scheduler is own

    def test_cancelling_ends_at_the_next_step(self, handlers):
        settings = handlers.settings(values(steps=100), None)
        seen = []
        for event in handlers.make("me", settings, arms_of(["fast"])):
            seen.append(event)
            handlers.works.cancel("me")
        assert seen[-1] is None
        assert len(seen) < 20
        assert not handlers.works.cancel("me")

    def test_messages_instead_of_tracebacks(self, handlers, monkeypatch):
        with pytest.raises(MessageError, match="The prompt is empty"):
            handlers.settings(values(prompt=""), None)
        with pytest.raises(MessageError, match="No setting is chosen"):
            arms_of([])
        settings = handlers.settings(values(), None)
        with monkeypatch.context() as broken:
            broken.setattr(handlers.studio._pipe.vae, "decode", lambda *args, **kwargs: 1 / 0)
            with pytest.raises(MessageError, match=r"The picture failed: ZeroDivisionError\. The terminal"):
                list(handlers.make("me", settings, []))
            for words in ("CUDA out of memory", "not enough memory: you tried to allocate", "invalid buffer size"):
                error = RuntimeError(words)
                broken.setattr(handlers.studio._pipe.vae, "decode", partial(raising, error))
                with pytest.raises(MessageError, match="Memory does not suffice for this picture"):
                    list(handlers.make("me", settings, []))
            broken.setattr(handlers.studio._pipe.vae, "decode", lambda *a, **k: torch.empty(2**60))
            with pytest.raises(MessageError, match="Memory does not suffice for this picture"):
                list(handlers.make("me", settings, []))
        with pytest.raises(MessageError, match="no PNG with settings"):
            handlers.restore(__file__)

    def test_a_picture_that_cannot_be_written_is_a_message(self, handlers, tmp_path):
        (tmp_path / "file").touch()
        nowhere = Handlers(handlers.studio, Limits(), tmp_path / "file" / "app")
        with pytest.raises(MessageError, match="The picture cannot be written"):
            nowhere.files(Settings(prompt="a"), Made("stock", Image.new("RGB", (8, 8)), 1.0), None)

    def test_what_no_field_can_hold_is_said(self, handlers, tmp_path):
        settings = Settings(prompt="a", model="mine", dtype="bfloat16", agents_seed=3)
        path = save(tmp_path, settings, Image.new("RGB", (8, 8)))
        fixed = Handlers(handlers.studio, Limits(), tmp_path, model="demo")
        fields, _, notes = fixed.restore(str(path))
        assert fields["model"] == "demo"
        assert notes == [
            "model is mine in the file and demo on this page",
            "dtype is bfloat16 in the file and float32 on this page",
            "agents_seed is 3 in the file and 0 on this page",
        ]
        info = PngInfo()
        info.add_text("parameters", "a ring\nSteps: 20, Seed: 5")
        Image.new("RGB", (8, 8)).save(tmp_path / "theirs.png", pnginfo=info)
        half = Handlers(Studio(torch.device("cpu"), dtype="float16"), Limits(), tmp_path, model="mine")
        assert len(half.restore(str(tmp_path / "theirs.png"))[2]) == 1  # A1111 says nothing of model and dtype

    def test_the_slider_follows_an_opened_file(self, handlers, tmp_path):
        pytest.importorskip("gradio")
        from agentsd.app.page import _Events

        settings = Settings(prompt="a", schedule=agentsd.preset("fast"), label="fast")
        path = save(tmp_path, settings, Image.new("RGB", (8, 8)))
        slider = _Events(handlers).restore(str(path))[FIELDS.index("tolerance")]
        assert (slider.value, slider.interactive) == (0.06, True)  # a preset without a tolerance had switched it off

    def test_a_model_that_is_not_there(self, tmp_path):
        handlers = Handlers(Studio(torch.device("cpu")), Limits(), tmp_path)
        settings = handlers.settings(values(model="./nowhere"), None)
        with pytest.raises(MessageError, match="does not exist as a folder"):
            list(handlers.make("me", settings, []))

    def test_an_open_page_has_one_model(self, handlers, tmp_path):
        fixed = Handlers(handlers.studio, Limits(), tmp_path, model="demo")
        assert fixed.settings(values(model="/etc"), None).model == "demo"


def raising(error, *args, **kwargs):
    raise error


class TestWorks:
    def test_a_visitor_cancels_their_own_work_only(self):
        works, started = Works(), threading.Event()

        def work(on_step, cancelled):
            started.set()
            on_step("stock", 1, 2)
            if not cancelled.wait(30):
                return "not cancelled"
            raise CancelledError

        events = works.run("me", work)
        assert next(events) == Progress("stock", 1, 2)
        assert not works.cancel("you")
        assert works.cancel("me")
        assert next(events) == Done(cancelled=True)

    def test_a_visitor_who_leaves_ends_the_work(self):
        works, ended = Works(), threading.Event()

        def work(on_step, cancelled):
            on_step("stock", 1, 2)
            cancelled.wait(30)
            ended.set()

        events = works.run("me", work)
        next(events)
        events.close()
        assert ended.wait(30)


def test_the_strip_says_what_it_shows():
    steps = ["full", "full", "forced", "skipped", "skipped", "full", "skipped"]
    assert in_words(steps) == "7 steps: 3 full, 1 forced full, 3 skipped. Skipped: 4 to 5, 7."
    drawn = strip_html(steps)
    assert f'aria-label="{in_words(steps)}"' in drawn
    assert [drawn.count(f'class="step-{kind}" x=') for kind in ("full", "forced", "skipped")] == [3, 1, 3]
    assert strip_html([]) == ""


def test_pictures_of_one_second_keep_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda form: "20260101-000000")
    for milliseconds in (1, 2):  # some clocks tick no faster
        monkeypatch.setattr("time.time_ns", lambda now=milliseconds: now * 10**6)
        save(tmp_path, Settings(prompt="a"), Image.new("RGB", (8, 8)))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("host", ["a" * 70 + ".org", "..", "not a host"])
def test_a_host_that_is_none_is_named(host):
    with pytest.raises(ValueError, match=r"host='.*' is no address; give 127\.0\.0\.1"):
        launch(host=host)


def test_only_loopback_is_closed():
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost")] == [True] * 3
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.168.0.2", "example.org")] == [False] * 4
