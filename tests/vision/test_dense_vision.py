"""Segmenters and detectors on these backbones train on a few generated scenes."""

import ctypes
import functools
import importlib.util
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scenes_dense import dense_scenes

from agentsd.vision import create_model, to_published
from agentsd.vision.detection import faster_rcnn, mask_rcnn, retinanet
from agentsd.vision.segmentation import upernet


def trained(model, loss_of, steps, rate=5e-4):
    """Losses of some steps on one batch."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    losses = []
    for _ in range(steps):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
class TestUperNet:
    @pytest.mark.parametrize("name", ["agent_swin_t", "agent_pvt_t", "agent_cswin_t"])
    def test_it_learns(self, name):
        torch.manual_seed(0)
        model = upernet(name, num_labels=6, hidden_size=32, auxiliary_channels=16)
        images, labels, _ = dense_scenes(2, 64)
        images, labels = images[:, :, :, :48], labels[:, :, :48]  # not square
        assert model(images).logits.shape == (2, 6, 64, 48)
        losses = trained(model, lambda: model(pixel_values=images, labels=labels).loss, 10, 5e-3)
        assert losses[-1] < 0.8 * losses[0]

    def test_it_is_saved_and_loaded(self, tmp_path):
        from transformers import UperNetForSemanticSegmentation

        model = upernet("agent_swin_t", num_labels=3, hidden_size=16, auxiliary_channels=8).eval()
        assert model.backbone._backbone.model.feature_norms is not None
        model.save_pretrained(tmp_path)
        loaded = UperNetForSemanticSegmentation.from_pretrained(tmp_path).eval()
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(model(x).logits, loaded(x).logits, rtol=0, atol=1e-6)

    def test_its_backbone_takes_a_classifier(self, tmp_path):
        from agentsd.vision import load_weights

        classifier = create_model("agent_swin_t")
        torch.save({"model": to_published(classifier)}, tmp_path / "a.pth")
        model = upernet("agent_swin_t", num_labels=3, hidden_size=16)
        load_weights(model.backbone._backbone.model, tmp_path / "a.pth")
        assert torch.equal(
            model.backbone._backbone.model.stages[3].blocks[1].mlp.fc1.weight,
            classifier.stages[3].blocks[1].mlp.fc1.weight,
        )


def test_one_resolution_is_refused():
    with pytest.raises(ValueError, match="has one resolution, and UperNet needs four"):
        upernet("agent_deit_t", num_labels=3)


@functools.cache
def _torchvision_loads():
    if importlib.util.find_spec("torchvision") is None:
        return False
    code = "import torch, torchvision; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


OPTIONS = {"num_classes": 6, "min_size": 96, "max_size": 128}


@pytest.mark.torchvision
class TestDetectors:
    @pytest.fixture(autouse=True)
    def _torchvision(self):
        if not _torchvision_loads():
            pytest.skip("torchvision is not installed, or its operators do not fit torch")

    def check(self, model):
        images, _, targets = dense_scenes(2, 96)
        images = [images[0], images[1, :, :80]]  # of two sizes
        targets[1]["masks"] = targets[1]["masks"][:, :80]
        targets[1]["boxes"][:, 3].clamp_(max=80)
        model.train()
        losses = trained(model, lambda: sum(model(images, targets).values()), 6, rate=2e-4)
        assert losses[-1] < losses[0]
        with torch.no_grad():
            found = model.eval()(images)
        assert [set(one) >= {"boxes", "labels", "scores"} for one in found] == [True, True]
        return found

    @pytest.mark.parametrize("name", ["agent_pvt_t", "agent_swin_t"])
    def test_retinanet(self, name):
        torch.manual_seed(0)
        self.check(retinanet(name, **OPTIONS))

    def test_faster_rcnn(self):
        torch.manual_seed(0)
        self.check(faster_rcnn("agent_pvt_t", **OPTIONS))

    def test_mask_rcnn(self):
        torch.manual_seed(0)
        found = self.check(mask_rcnn("agent_swin_t", **OPTIONS))
        assert all("masks" in one for one in found)

    def test_one_resolution_is_refused(self):
        with pytest.raises(ValueError, match="has one resolution; choose a model of PVT, Swin or CSwin"):
            retinanet("agent_deit_t", num_classes=2)


@pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("readelf")), reason="needs gcc and readelf")
def test_stand_ins_are_libraries_that_load(tmp_path):
    root = Path(__file__).resolve().parent.parent.parent
    script = runpy.run_path(str(root / "scripts" / "dev" / "torchvision_beside_cpu.py"))
    script["build"](tmp_path, "libcudart.so.99", [("NOTYPE", "cudaGetLastError"), ("OBJECT", "allocator")])
    library = tmp_path / "libcudart.so.99"
    assert ctypes.CDLL(str(library)).cudaGetLastError() == 0
    assert set(script["symbols"](str(library))) >= {
        ("FUNC", True, "cudaGetLastError", "libcudart.so.99"),
        ("OBJECT", True, "allocator", "libcudart.so.99"),
    }
