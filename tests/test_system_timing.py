"""Timing: the order of arms, paired ratios and their intervals, memory, and what is recorded beside a time."""

from contextlib import contextmanager, nullcontext

import pytest
import torch

from agentsd.bench.ratios import speedup
from agentsd.system import timing
from agentsd.system.timing import environment, interleave, peak_memory


def test_order_turns_every_round_and_warmup_is_not_timed():
    ran = []
    seconds = interleave(ran.append, {"a": nullcontext, "b": nullcontext}, rounds=3, warmup=1)
    assert ran == list("ba" + "ab" + "ba" + "ab")
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_entering_and_leaving_is_not_timed(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    @contextmanager
    def slow_to_enter():
        clock[0] += 100
        yield
        clock[0] += 100

    def run(name):
        clock[0] += 2.5

    assert interleave(run, {"a": slow_to_enter}, rounds=1)["a"] == [2.5]


def test_abba_cancels_drift_that_fools_a_plain_order(monkeypatch):
    """A machine that slows by 1% a run: true ratio 2."""
    clock, runs = [0.0], [0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def run(name):
        runs[0] += 1
        clock[0] += (2.0 if name == "stock" else 1.0) * 1.01 ** runs[0]

    seconds = interleave(run, {"stock": nullcontext, "fast": nullcontext}, rounds=40, warmup=0)
    assert speedup(seconds["stock"], seconds["fast"]).median == pytest.approx(2.0, rel=1e-3)


def test_speedup_is_the_median_of_paired_ratios():
    found = speedup([2.0, 4.0, 6.0, 8.0, 10.0], [1.0, 2.0, 3.0, 4.0, 1.0])
    assert found.median == pytest.approx(2.0)
    assert found.pairs == 5
    assert found.low <= found.median <= found.high
    assert found.high > 2.0


def test_interval_covers_one_for_equal_arms():
    generator = torch.Generator().manual_seed(0)
    noise = (1 + 0.05 * torch.randn(2, 30, generator=generator)).tolist()
    found = speedup(*noise)
    assert found.low < 1 < found.high
    assert found == speedup(*noise)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: speedup([1.0], []), r"baseline has 1 times and arm 0"),
        (lambda: interleave(print, {}, rounds=1), r"give at least one of each"),
        (lambda: interleave(print, {"a": nullcontext}, rounds=0), r"rounds=0"),
    ],
)
def test_errors(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.skipif(not timing.Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_sees_a_passing_allocation_and_forgets_it():
    size = 256 * 2**20
    quiet = peak_memory(lambda: None)
    loud = peak_memory(lambda: torch.ones(size, dtype=torch.uint8).sum())
    again = peak_memory(lambda: None)
    assert loud - quiet > 0.8 * size
    assert again < loud - 0.8 * size


def test_environment_names_hardware_threads_and_versions():
    found = environment()
    assert found["threads"] == torch.get_num_threads()
    assert found["device_type"] == "cpu"
    assert found["device"]
    assert {"torch", "diffusers", "python", "cores"} <= found.keys()
