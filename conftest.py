"""Fixtures: tiny random-weight pipelines of the real architectures, built offline."""

import importlib.util
import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["AGENTSD_CACHE"] = tempfile.mkdtemp(prefix="agentsd-test-")  # never the user's own

import pytest
import torch
from hypothesis import settings
from tiny import make_tiny_pipe, make_tiny_unet

# The page needs gradio (the extra `app`), which a test run does without.
collect_ignore = [] if importlib.util.find_spec("gradio") else ["agentsd/app/page.py"]
torch.set_num_threads(1)  # two threads on a busy two-core machine are up to 70 times slower
settings.register_profile("default", deadline=None)  # a busy machine is no defect


@pytest.fixture
def tiny_unet():
    """Return a tiny UNet."""
    return make_tiny_unet()


@pytest.fixture
def tiny_pipe():
    """Return a tiny Stable Diffusion pipeline."""
    return make_tiny_pipe()


@pytest.fixture(autouse=True)
def _doctest_names(request, doctest_namespace):
    """Give the doctests what every user has at hand: torch, agentsd, a pipeline and its UNet."""
    if type(request.node).__name__ == "DoctestItem":
        import agentsd

        doctest_namespace.update(torch=torch, agentsd=agentsd, pipe=make_tiny_pipe(), unet=make_tiny_unet())
