"""Which arithmetic is fast where, and what is said when it is not."""

import warnings

import pytest
import torch

from agentsd.cli.info import collect
from agentsd.pictures.loading import load_pipeline
from agentsd.pictures.settings import Settings
from agentsd.system.precision import cpu_autocast, dtype_name, fast_dtype, is_fast, slow_dtype_warning

UNITS = ("_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported")


@pytest.fixture(params=[True, False], ids=["with units", "without units"])
def has_units(request, monkeypatch):
    for unit in UNITS:
        monkeypatch.setattr(torch.ops.mkldnn, unit, lambda: request.param)
    return request.param


@pytest.mark.parametrize("unit", UNITS)
def test_torch_still_answers(unit):
    assert getattr(torch.ops.mkldnn, unit)() in (True, False)


def test_half_precision_is_chosen_where_the_cpu_has_units(has_units):
    assert is_fast(torch.bfloat16) is has_units
    assert fast_dtype("cpu") == (torch.bfloat16 if has_units else torch.float32)
    assert dtype_name("auto", "cpu") == ("bfloat16" if has_units else "float32")
    assert dtype_name("bfloat16", "cpu") == "bfloat16"
    with cpu_autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == fast_dtype("cpu")


def test_a_torch_without_the_question_is_taken_to_emulate(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert not is_fast(torch.bfloat16)
    assert is_fast(torch.float32)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_an_emulated_dtype_is_told_before_it_is_run(has_units, name):
    settings = Settings(prompt="", dtype=name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_pipeline(settings, torch.device("cpu"))
    told = [str(warning.message) for warning in caught if "emulated" in str(warning.message)]
    expected = (
        f"dtype={name!r} is emulated on this CPU, which has no units for it: expect it to be tens to hundreds of times "
        "slower than 'float32'. Use float32 here."
    )
    assert told == ([] if has_units else [expected])
    assert (slow_dtype_warning(getattr(torch, name), "cpu") is None) is has_units
    assert slow_dtype_warning(getattr(torch, name), "cuda") is None


def test_info_tells_what_is_emulated(has_units):
    assert ("emulates bfloat16 and float16" in collect()["devices"][0]) is not has_units
