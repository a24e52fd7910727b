"""The example server: pictures as of a single thread, refusals, cancelling, metrics."""

import importlib.util
import sys
import threading
import time
from pathlib import Path

import pytest
from tiny import make_tiny_pipe

import agentsd

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def server():
    spec = importlib.util.spec_from_file_location("server", EXAMPLES / "server.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["server"] = module  # pydantic looks types up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["server"]


@pytest.fixture(scope="module")
def pipe():
    return make_tiny_pipe()


@pytest.fixture(scope="module")
def patch(pipe):
    with agentsd.apply(pipe) as patch:
        yield patch


@pytest.fixture
def client(server, pipe, patch):
    from fastapi.testclient import TestClient

    with TestClient(server.create_app(pipe, patch, server.Limits(steps=200, side=64, waiting=2))) as client:
        yield client


ORDER = {"prompt": "a ring", "steps": 12}


def test_pictures_follow_their_own_settings(server, client, pipe, patch):
    found = {}
    for more in ({"preset": "extreme"}, {"tolerance": 0.01}, {"stock": True}, {}):
        answer = client.post("/pictures", json=ORDER | more)
        assert answer.status_code == 200
        assert answer.content == server.make_picture(pipe, patch, server.Order(**ORDER, **more))
        found[str(more)] = answer.content
        skipped = int(answer.headers["x-steps-skipped"])
        assert (skipped > 0) == (more != {"stock": True})
    assert len(set(found.values())) == 4
    lines = client.get("/metrics").text.splitlines()
    assert 'agentsd_jobs_total{state="finished"} 4' in lines
    assert client.get("/health").json() == {"state": "ok", "waiting": 0}


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"steps": 201}, "steps=201 must be at most 200 on this server."),
        ({"width": 72}, "width=72 must be at most 64 on this server."),
        ({"preset": "fsat"}, "Did you mean 'fast'?"),
        ({"tolerance": 3}, "tolerance=3.0 must lie in (0, 1]"),
        ({"prompt": ""}, "at least 1 character"),
        ({"colour": "red"}, "not permitted"),
    ],
)
def test_orders_beyond_the_limits_are_refused(more, text, client):
    answer = client.post("/pictures", json=ORDER | more)
    assert answer.status_code == 422
    assert text in answer.text


def test_a_job_is_cancelled_between_steps(client):
    job = client.post("/jobs", json=ORDER | {"steps": 200}).json()
    assert client.get(f"/jobs/{job['id']}/picture").status_code == 409
    client.delete(f"/jobs/{job['id']}")
    deadline = time.monotonic() + 60
    while (state := client.get(f"/jobs/{job['id']}").json())["state"] in ("waiting", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert state["state"] == "cancelled"
    assert state["step"] < 200
    assert client.get(f"/jobs/{job['id']}/picture").status_code == 410
    assert client.post("/pictures", json=ORDER).status_code == 200  # the worker goes on
    assert client.get("/jobs/none").status_code == 404


def test_a_full_queue_refuses(client, pipe, monkeypatch):
    asked, decode = threading.Event(), pipe.vae.decode

    def wait_and_decode(*args, **kwargs):
        asked.wait(60)  # no order is done before all were asked for
        return decode(*args, **kwargs)

    monkeypatch.setattr(pipe.vae, "decode", wait_and_decode)
    answers = [client.post("/jobs", json=ORDER) for _ in range(4)]
    asked.set()
    assert answers[-1].status_code == 503
    assert answers[-1].headers["retry-after"] == "5"


def test_a_failed_picture_does_not_stop_the_worker(client, pipe, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(pipe.vae, "decode", lambda *args, **kwargs: 1 / 0)
        answer = client.post("/pictures", json=ORDER)
    assert answer.status_code == 500
    assert answer.json()["detail"] == "ZeroDivisionError: division by zero"
    assert client.post("/pictures", json=ORDER).status_code == 200
