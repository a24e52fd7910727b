"""A picture server: one model, one worker, and settings of agentsd that each request chooses.

    pip install fastapi uvicorn
    python examples/server.py --port 8000
    curl -s localhost:8000/pictures -H 'content-type: application/json' \
        -d '{"prompt": "a red ring", "preset": "fast"}' -o ring.png

The model is patched once. Each request enters `patch.using(...)`, which installs nothing:
`docs/serving.md`.
"""

import argparse
import asyncio
import contextlib
import io
import logging
import os
import queue
import threading
import time
import uuid
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

import agentsd
from agentsd.pictures.loading import choose_device, load_pipeline
from agentsd.pictures.settings import Settings

LOG = logging.getLogger("server")
KEPT_JOBS = 64  # finished jobs whose pictures can still be fetched


@dataclass(frozen=True)
class Limits:
    """What a request may ask for, and how many may wait."""

    steps: int = 100
    side: int = 1024
    waiting: int = 64


class Order(BaseModel):
    """What a request asks for."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, max_length=1000)
    negative_prompt: str | None = Field(None, max_length=1000)
    steps: int = Field(25, ge=1)
    guidance_scale: float = Field(7.5, ge=0, le=30)
    seed: int = Field(0, ge=0, lt=2**63)
    width: int | None = Field(None, ge=16, multiple_of=8)
    height: int | None = Field(None, ge=16, multiple_of=8)
    preset: str | None = None  # None is what the server was started with
    tolerance: float | None = None
    stock: bool = False  # without agentsd


class CancelledError(Exception):
    """Nobody waits for the picture any more."""


@dataclass
class Job:
    """One order on its way."""

    order: Order
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    state: str = "waiting"  # then running, and at last finished, cancelled or failed
    step: int = 0
    picture: bytes | None = None
    error: str | None = None
    full: int = 0
    skipped: int = 0
    seconds: float = 0.0
    cancelled: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)

    def shown(self) -> dict[str, Any]:
        """Return the state as plain data."""
        names = ("id", "state", "step", "error", "full", "skipped", "seconds")
        return {name: getattr(self, name) for name in names} | {"steps": self.order.steps}


def settings_of(patch: agentsd.Patch, order: Order) -> contextlib.AbstractContextManager[Any]:
    """Return the block of agentsd that an order asks for; it is local to the thread that enters it."""
    if order.stock:
        return patch.disabled()
    return patch.using(order.preset, tolerance=order.tolerance)


def make_picture(pipe: Any, patch: agentsd.Patch, order: Order, job: Job | None = None) -> bytes:
    """Return the picture of an order as PNG; with a job, its figures go there."""

    def after_step(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if job is not None:
            job.step = step + 1
            if job.cancelled.is_set():
                raise CancelledError
        return values

    with settings_of(patch, order) as used:
        image = pipe(
            order.prompt,
            negative_prompt=order.negative_prompt,
            num_inference_steps=order.steps,
            guidance_scale=order.guidance_scale,
            width=order.width,
            height=order.height,
            generator=torch.Generator().manual_seed(order.seed),
            callback_on_step_end=after_step,
        ).images[0]
    if job is not None and used is not None and used.last_run is not None:
        job.full, job.skipped = used.last_run.full, used.last_run.skipped
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


class Studio:
    """The model, the queue and the one worker that empties it."""

    def __init__(self, pipe: Any, patch: agentsd.Patch, limits: Limits) -> None:
        self.pipe, self.patch, self.limits = pipe, patch, limits
        self.jobs: OrderedDict[str, Job] = OrderedDict()
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0
        self._queue: queue.Queue[Job | None] = queue.Queue()
        self._worker = threading.Thread(target=self._work, name="painter", daemon=True)

    def start(self) -> None:
        """Start the worker."""
        self._worker.start()

    def stop(self) -> None:
        """Cancel what waits or runs, and wait for the worker."""
        for job in self.jobs.values():
            job.cancelled.set()
        self._queue.put(None)
        self._worker.join()

    def check(self, order: Order) -> None:
        """Raise ValueError if an order is beyond the limits or the patch cannot follow it."""
        for name, most in (("steps", self.limits.steps), ("width", self.limits.side), ("height", self.limits.side)):
            value = getattr(order, name)
            if value is not None and value > most:
                raise ValueError(f"{name}={value} must be at most {most} on this server.")
        with settings_of(self.patch, order):  # free to enter, so wrong settings are refused before they wait
            pass

    def put(self, order: Order) -> Job:
        """Queue an order; raises `queue.Full` if too many wait."""
        if self._queue.qsize() >= self.limits.waiting:
            self.counts["refused"] += 1
            raise queue.Full
        job = Job(order)
        self.jobs[job.id] = job
        over = [one for one in self.jobs.values() if one.done.is_set()][:-KEPT_JOBS]
        for old in over:
            del self.jobs[old.id]
        self._queue.put(job)
        return job

    def waiting(self) -> int:
        """Return how many orders wait."""
        return self._queue.qsize()

    def alive(self) -> bool:
        """Return whether the worker works."""
        return self._worker.is_alive()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            start = time.perf_counter()
            try:
                if job.cancelled.is_set():
                    raise CancelledError
                job.state = "running"
                job.picture = make_picture(self.pipe, self.patch, job.order, job)
                job.state = "finished"
                self.counts["full"] += job.full
                self.counts["skipped"] += job.skipped
            except CancelledError:
                job.state = "cancelled"
            except Exception as error:  # a failed picture must not stop the server
                LOG.exception("job %s", job.id)
                job.state, job.error = "failed", f"{type(error).__name__}: {error}"
            job.seconds = time.perf_counter() - start
            self.seconds += job.seconds
            self.counts[job.state] += 1
            job.done.set()


def resident_bytes() -> int:
    """Return the memory that this process holds; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def metrics_text(studio: Studio) -> str:
    """Return the metrics as Prometheus text."""
    counts = studio.counts
    lines = ["# TYPE agentsd_jobs_total counter"]
    states = ("finished", "cancelled", "failed", "refused")
    lines += [f'agentsd_jobs_total{{state="{state}"}} {counts[state]}' for state in states]
    lines += ["# TYPE agentsd_steps_total counter"]
    lines += [f'agentsd_steps_total{{kind="{kind}"}} {counts[kind]}' for kind in ("full", "skipped")]
    lines += ["# TYPE agentsd_job_seconds summary", f"agentsd_job_seconds_sum {studio.seconds:.6f}"]
    lines += [f"agentsd_job_seconds_count {sum(counts[state] for state in states[:3])}"]
    lines += ["# TYPE agentsd_waiting gauge", f"agentsd_waiting {studio.waiting()}"]
    lines += ["# TYPE process_resident_memory_bytes gauge", f"process_resident_memory_bytes {resident_bytes()}"]
    return "\n".join(lines) + "\n"


def create_app(pipe: Any, patch: agentsd.Patch, limits: Limits = Limits()) -> FastAPI:
    """Return the server of a pipeline that is patched."""
    studio = Studio(pipe, patch, limits)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        studio.start()
        yield
        await asyncio.to_thread(studio.stop)

    app = FastAPI(title="agentsd", lifespan=lifespan)

    def accept(order: Order) -> Job:
        try:
            studio.check(order)
            return studio.put(order)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        except queue.Full:
            raise HTTPException(503, "too many orders wait; try again later", {"Retry-After": "5"}) from None

    def find(job_id: str) -> Job:
        if job_id not in studio.jobs:
            raise HTTPException(404, f"there is no job {job_id!r}, or it was forgotten")
        return studio.jobs[job_id]

    def picture_of(job: Job) -> Response:
        if job.picture is None:
            raise HTTPException({"failed": 500, "cancelled": 410}.get(job.state, 409), job.error or f"job {job.state}")
        figures = {"X-Steps-Full": str(job.full), "X-Steps-Skipped": str(job.skipped)}
        return Response(job.picture, media_type="image/png", headers=figures)

    @app.post("/pictures")
    async def make(order: Order, request: Request) -> Response:
        """Make a picture and wait for it. Whoever hangs up cancels it."""
        job = accept(order)
        while not job.done.is_set():
            await asyncio.sleep(0.02)
            if await request.is_disconnected():
                job.cancelled.set()
                return Response(status_code=499)
        return picture_of(job)

    @app.post("/jobs", status_code=202)
    async def start(order: Order) -> dict[str, Any]:
        """Queue a picture and do not wait."""
        return accept(order).shown()

    @app.get("/jobs/{job_id}")
    async def look(job_id: str) -> dict[str, Any]:
        """Say how far a job is."""
        return find(job_id).shown()

    @app.get("/jobs/{job_id}/picture")
    async def fetch(job_id: str) -> Response:
        """Return the picture of a finished job."""
        return picture_of(find(job_id))

    @app.delete("/jobs/{job_id}", status_code=202)
    async def cancel(job_id: str) -> dict[str, Any]:
        """Cancel a job; it stops after its current step."""
        job = find(job_id)
        job.cancelled.set()
        return job.shown()

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Say whether the worker works."""
        if not studio.alive():
            raise HTTPException(503, "the worker has stopped")
        return {"state": "ok", "waiting": studio.waiting()}

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return the metrics as Prometheus text."""
        return PlainTextResponse(metrics_text(studio), media_type="text/plain; version=0.0.4")

    return app


def main() -> None:
    """Load, patch once, and serve."""
    import uvicorn

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="demo, demo-sd15, a diffusers folder or a hub id")
    parser.add_argument("--preset", default="balanced", help="what requests get that ask for nothing")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    for name in ("steps", "side", "waiting"):
        parser.add_argument(f"--most-{name}", dest=name, type=int, default=getattr(Limits, name))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)  # the channel "agentsd" has one record for each finished run
    pipe = load_pipeline(Settings(prompt="", model=options.model), choose_device(options.device))
    pipe.set_progress_bar_config(disable=True)
    patch = agentsd.apply(pipe, options.preset)
    limits = Limits(options.steps, options.side, options.waiting)
    uvicorn.run(create_app(pipe, patch, limits), host=options.host, port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
