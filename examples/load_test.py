"""Load test of `server.py` on loopback: mixed requests from several clients, cancelled ones among them.

    pip install fastapi uvicorn httpx
    python examples/load_test.py

It starts a server with a tiny model of random weights and sends every request with settings of its own. Each finished
picture must equal the one that a single thread makes from the same order. Memory must stay flat.
"""

import argparse
import asyncio
import hashlib
import io
import os
import platform
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "tests")]

from server import Order, make_picture  # noqa: E402
from tiny import make_tiny_pipe  # noqa: E402

import agentsd  # noqa: E402
from agentsd.pictures.loading import choose_device, load_pipeline  # noqa: E402
from agentsd.pictures.settings import Settings  # noqa: E402

CHOICES = [
    *({"preset": name} for name in ("quality", "balanced", "fast", "extreme", "gentle", "paper")),
    {"tolerance": 0.01},
    {"tolerance": 0.2},
    {"stock": True},
    {},
]
ONE_LEVEL = dict(
    block_out_channels=(16,),
    down_block_types=("CrossAttnDownBlock2D",),
    mid_block_type=None,
    up_block_types=("CrossAttnUpBlock2D",),
    attention_head_dim=2,
)
HANG_UP, DELETE = 0.1, 0.1  # shares of the requests


def orders(number: int, seed: int = 0) -> list[Order]:
    """Return mixed orders; some are alike."""
    chance = random.Random(seed)
    return [
        Order(
            prompt="a red ring",
            steps=chance.choice([10, 12]),
            seed=chance.randrange(2),
            width=chance.choice([32, 48]),
            height=32,
            **chance.choice(CHOICES),
        )
        for _ in range(number)
    ]


def digest(png: bytes) -> str:
    """Return a hash of the pixels."""
    return hashlib.sha256(Image.open(io.BytesIO(png)).convert("RGB").tobytes()).hexdigest()


class Load:
    """Sends orders and keeps what came of them."""

    def __init__(self, client: httpx.AsyncClient, twins: dict[str, str]) -> None:
        self.client, self.twins = client, twins
        self.seconds: list[float] = []
        self.memory: dict[int, int] = {}
        self.finished = self.cancelled = self.sent = 0
        self.wrong: list[str] = []
        self.chance = random.Random(1)

    async def clients(self, waiting: list[Order], number: int) -> None:
        """Let clients empty the list."""

        async def one() -> None:
            while waiting:
                await self.send(waiting.pop())
                self.sent += 1
                sent = self.sent
                if sent in (50, 200):
                    self.memory[sent] = await self.metric("process_resident_memory_bytes")

        await asyncio.gather(*(one() for _ in range(number)))

    async def send(self, order: Order) -> None:
        """Send one order; hang up or delete it by chance."""
        fate, patience = self.chance.random(), self.chance.uniform(0.02, 0.5)
        data = order.model_dump(exclude_none=True)
        if fate < DELETE:
            job = (await self.client.post("/jobs", json=data)).raise_for_status().json()
            await asyncio.sleep(patience)
            await self.client.delete(f"/jobs/{job['id']}")
            while (state := (await self.client.get(f"/jobs/{job['id']}")).json()["state"]) in ("waiting", "running"):
                await asyncio.sleep(0.05)
            if state == "finished":
                self.check(order, (await self.client.get(f"/jobs/{job['id']}/picture")).raise_for_status().content)
            else:
                self.cancelled += 1
            return
        start = time.perf_counter()
        try:
            timeout = patience if fate < DELETE + HANG_UP else 300
            answer = await self.client.post("/pictures", json=data, timeout=timeout)
        except httpx.TimeoutException:
            self.cancelled += 1
            return
        self.seconds.append(time.perf_counter() - start)
        self.check(order, answer.raise_for_status().content)

    def check(self, order: Order, png: bytes) -> None:
        """Compare a picture with its single-thread twin."""
        self.finished += 1
        if digest(png) != self.twins[order.model_dump_json()]:
            self.wrong.append(order.model_dump_json(exclude_defaults=True))

    async def metric(self, name: str) -> int:
        """Return a metric of the server."""
        text = (await self.client.get("/metrics")).text
        return int(float(next(line.split()[-1] for line in text.splitlines() if line.startswith(name))))


def percentile(values: list[float], share: float) -> float:
    """Return a percentile by the nearest rank."""
    return sorted(values)[min(len(values) - 1, round(share * (len(values) - 1)))]


async def drive(port: int, wanted: list[Order], twins: dict[str, str], clients: int) -> Load:
    """Wait for the server, then send everything."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        for _ in range(600):
            try:
                (await client.get("/health")).raise_for_status()
                break
            except httpx.TransportError:
                await asyncio.sleep(0.2)
        load = Load(client, twins)
        await load.clients(list(wanted), clients)
        return load


def main() -> int:
    """Make the twins, start the server, send the orders, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--model", help="a diffusers folder; default: a tiny model of random weights")
    options = parser.parse_args()
    wanted = orders(options.requests)
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        if options.model is None:
            make_tiny_pipe(**ONE_LEVEL).save_pretrained(folder)
        pipe = load_pipeline(Settings(prompt="", model=options.model or folder), choose_device("cpu"))
        pipe.set_progress_bar_config(disable=True)
        patch = agentsd.apply(pipe, "balanced")
        distinct = {order.model_dump_json(): order for order in wanted}
        twins = {text: digest(make_picture(pipe, patch, order)) for text, order in distinct.items()}
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        command = [sys.executable, str(ROOT / "examples" / "server.py"), "--model", options.model or folder]
        command += ["--port", str(port), "--device", "cpu"]
        with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}) as server:
            try:
                start = time.perf_counter()
                load = asyncio.run(drive(port, wanted, twins, options.clients))
                seconds = time.perf_counter() - start
            finally:
                server.terminate()
    alike = len(set(twins.values()))
    print(f"{options.requests} requests from {options.clients} clients in {seconds:.1f} s, {len(twins)} kinds of order")
    print(f"{load.finished} finished, {load.cancelled} cancelled, {len(load.wrong)} pictures differ from their twin")
    print(f"{alike} different pictures among the twins")
    print(f"latency p50 {percentile(load.seconds, 0.5):.2f} s, p95 {percentile(load.seconds, 0.95):.2f} s")
    for sent, held in sorted(load.memory.items()):
        print(f"memory of the server after {sent} requests: {held / 2**20:.1f} MiB")
    machine = f"{platform.machine()}, {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads"
    print(f"{machine}, torch {torch.__version__}")
    for text in load.wrong:
        print("wrong:", text)
    return 1 if load.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
