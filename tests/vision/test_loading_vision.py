"""The authors' files: read safely, checked, resized, converted."""

import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from test_models_vision import tiny

from agentsd.vision import create_model, load_published, load_weights, read_checkpoint, to_published
from agentsd.vision.__main__ import main
from agentsd.vision.files import convert
from agentsd.vision.layers import Block
from agentsd.vision.resize import resize_agents, resize_positions, resize_table


@pytest.fixture
def yacs(monkeypatch):
    """A stand-in for the class that the authors' files name."""
    module = types.ModuleType("yacs.config")

    class CfgNode(dict):
        def __init__(self, *args):
            super().__init__(*args)
            self.__dict__["__immutable__"] = False

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    return CfgNode


def random_weights(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(value.shape, generator=generator) for key, value in to_published(model).items()}


class TestReading:
    def test_a_checkpoint_with_a_configuration(self, yacs, tmp_path, monkeypatch):
        weights = random_weights(tiny("swin"))
        config = yacs({"MODEL": yacs({"TYPE": "agent_swin"})})
        torch.save({"model": weights, "optimizer": {}, "epoch": 299, "config": config}, tmp_path / "a.pth")
        monkeypatch.delitem(sys.modules, "yacs.config")  # as where yacs is not installed
        monkeypatch.delitem(sys.modules, "yacs")
        read = read_checkpoint(tmp_path / "a.pth")
        assert all(torch.equal(read[key], weights[key]) for key in weights)

    def test_averaged_weights_come_first(self, tmp_path):
        plain, averaged = {"head.bias": torch.zeros(2)}, {"head.bias": torch.ones(2)}
        torch.save({"model": plain, "state_dict_ema": averaged}, tmp_path / "a.pth")
        assert read_checkpoint(tmp_path / "a.pth")["head.bias"].tolist() == [1, 1]
        assert read_checkpoint(tmp_path / "a.pth", ema=False)["head.bias"].tolist() == [0, 0]

    def test_code_is_refused(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return Path.touch, (tmp_path / "ran",)

        torch.save({"model": {"head.bias": torch.zeros(2)}, "config": Evil()}, tmp_path / "a.pth")
        with pytest.raises(ValueError, match="cannot be read as weights alone"):
            read_checkpoint(tmp_path / "a.pth")
        assert not (tmp_path / "ran").exists()

    def test_what_holds_no_weights(self, tmp_path):
        torch.save({"epoch": 3}, tmp_path / "a.pth")
        with pytest.raises(ValueError, match="holds no weights: there is no state dict"):
            read_checkpoint(tmp_path / "a.pth")
        with pytest.raises(FileNotFoundError, match=r"b\.pth' is not a file"):
            read_checkpoint(tmp_path / "b.pth")


class TestLoading:
    @pytest.mark.parametrize("family", ["deit", "pvt", "swin", "cswin"])
    def test_there_and_back(self, family):
        model, other = tiny(family), tiny(family)
        weights = random_weights(model)
        report = load_published(model, weights)
        assert report.resized == report.left_out == report.fresh == ()
        assert all(torch.equal(value, weights[key]) for key, value in to_published(model).items())
        assert not torch.equal(model(torch.ones(1, 3, 64, 64)), other(torch.ones(1, 3, 64, 64)))

    def test_buffers_are_left_out(self):
        model = tiny("swin")
        name = "layers.1.blocks.1.attn_mask"
        report = load_published(model, random_weights(model) | {name: torch.zeros(4, 49, 49)})
        assert report.left_out == (name,)

    def test_a_wrong_file_is_told_by_its_keys(self):
        swin, pvt = tiny("swin"), tiny("pvt")
        with pytest.raises(
            ValueError, match=r"missing, first 'pos_embed1' and \d+ unexpected, first 'patch_embed\.proj"
        ):
            load_published(pvt, random_weights(swin))
        weights = random_weights(pvt)
        del weights["block1.0.attn.kv.bias"]
        with pytest.raises(ValueError, match=r"keys 1 missing, first 'block1\.0\.attn\.kv\.bias';"):
            load_published(pvt, weights)
        with pytest.raises(ValueError, match=r"keys 1 unexpected, first 'extra'"):
            load_published(pvt, random_weights(pvt) | {"extra": torch.zeros(1)})

    def test_a_wrong_shape_is_named(self):
        model = tiny("pvt")
        weights = random_weights(model)
        weights["block2.0.mlp.fc1.weight"] = torch.zeros(7, 16)
        with pytest.raises(ValueError, match=r"stages\.1\.blocks\.0\.mlp\.fc1\.weight has shape \(7, 16\) in the file"):
            load_published(model, weights)

    def test_nothing_is_loaded_from_a_wrong_file(self):
        model = tiny("pvt")
        before = {name: value.clone() for name, value in model.state_dict().items()}
        weights = random_weights(model)
        del weights["head.bias"]
        with pytest.raises(ValueError, match=r"first 'head\.bias'"):
            load_published(model, weights)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_other_classes_get_a_head_of_zeros(self):
        model = tiny("pvt", num_classes=3)
        report = load_published(model, random_weights(tiny("pvt")))
        assert report.fresh == ("head.weight", "head.bias")
        assert not model.head.weight.any()

    @pytest.mark.parametrize("family", ["deit", "pvt", "swin", "cswin"])
    def test_resized_weights_compute_what_the_smaller_model_computes_there(self, family):
        small, large = tiny(family, window=2), tiny(family, 128, window=2)
        weights = random_weights(small)
        load_published(small, weights)
        report = load_published(large, weights)
        x = torch.randn(1, 3, 128, 128)
        with torch.no_grad():
            torch.testing.assert_close(large(x), small(x), rtol=1e-3, atol=1e-3)
        assert report.resized

    def test_another_agent_grid(self):
        model = tiny("deit", agents=(16,))
        weights = random_weights(tiny("deit"))
        report = load_published(model, weights)
        assert {name.rpartition(".")[2] for name in report.resized} == {
            f"{pair}_bias" for pair in ("an", "na", "ah", "aw", "ha", "wa", "ac", "ca")
        }
        other = tiny("deit")
        load_published(other, weights)
        other.set_agents([16])
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(model(x), other(x), rtol=1e-3, atol=1e-3)

    def test_another_window(self):
        model = tiny("swin", window=5)
        report = load_published(model, random_weights(tiny("swin", window=7)))
        assert len(report.resized) == 4
        assert all(name.endswith("relative_position_bias_table") for name in report.resized)

    def test_a_detector_takes_a_classifier(self):
        model = tiny("swin", dense=True)
        report = load_published(model, random_weights(tiny("swin")))
        assert set(report.left_out) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
        assert report.fresh[0] == "feature_norms.0.weight"
        weights = random_weights(model)
        assert "norm2.bias" in weights
        assert load_published(model, weights).fresh == ()

    def test_a_block_alone(self):
        block = Block(16, tiny("pvt").stages[1].blocks[0].attn, mlp_ratio=4)
        weights = {name: torch.randn_like(value) for name, value in block.state_dict().items()}
        qkv = weights.pop("attn.qkv.weight")
        weights |= {"attn.q.weight": qkv[:16], "attn.kv.weight": qkv[16:]}
        load_published(block, weights)
        assert torch.equal(block.attn.qkv.weight, qkv)


class TestConverting:
    def test_a_checkpoint(self, yacs, tmp_path, capsys, monkeypatch):
        with torch.device("meta"):
            published = to_published(create_model("agent_deit_t"))
        weights = {key: torch.randn(value.shape) * 0.1 for key, value in published.items()}
        torch.save({"model": weights, "config": yacs({"a": 1})}, tmp_path / "a.pth")
        target = tmp_path / "a.safetensors"
        assert main(["convert", str(tmp_path / "a.pth"), str(target), "--model", "agent_deit_t"]) == 0
        assert "weights of agent_deit_tiny, 0 of them resized" in capsys.readouterr().out
        model, other = create_model("agent_deit_t"), create_model("agent_deit_t")
        load_weights(model, target)
        load_weights(other, tmp_path / "a.pth")
        for (name, value), reference in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(value, reference), name
        assert torch.equal(model.stages[0].class_token, weights["cls_token"])

    def test_a_file_of_another_model(self, tmp_path, capsys):
        torch.save(random_weights(tiny("swin")), tmp_path / "a.pth")
        assert (
            main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "b.safetensors"), "--model", "agent_pvt_t"]) == 1
        )
        assert "unexpected, first 'patch_embed.proj.weight'" in capsys.readouterr().err
        assert not (tmp_path / "b.safetensors").exists()

    def test_names_of_targets(self, tmp_path):
        with pytest.raises(ValueError, match=r"target='a\.pth' does not end in \.safetensors"):
            convert(tmp_path / "a.pth", "a.pth", tiny("swin"), name="x")

    def test_models_are_listed(self, capsys):
        assert main(["models"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 18
        assert lines[0].split() == ["agent_deit_tiny", "agent_deit_t", "6,015,640"]

    def test_converted_weights_of_another_model_are_refused(self, tmp_path):
        torch.save(tiny("pvt").state_dict(), tmp_path / "a.pth")
        load_weights(tiny("pvt"), tmp_path / "a.pth")
        with pytest.raises(ValueError, match=r"keys \d+ missing, first 'stages\.1\.embed\.reduction"):
            load_weights(tiny("swin"), tmp_path / "a.pth")


def test_errors_of_resizing():
    with pytest.raises(ValueError, match=r"source=\(3, 3\) holds 9 agents, but axis 0 .* has 8"):
        resize_agents(torch.zeros(8), 0, (3, 3), (2, 2))
    with pytest.raises(ValueError, match=r"source=\(3, 3\) holds 9 positions, but the embedding has 12"):
        resize_positions(torch.zeros(1, 12, 4), (3, 3), (2, 2))
    with pytest.raises(ValueError, match="table has 168 rows"):
        resize_table(torch.zeros(168, 2), 5)


def test_neither_half_needs_what_it_should_not():
    code = (
        "import sys\n"
        "for name in ('timm', 'torchvision'): sys.modules[name] = None\n"
        "import agentsd\n"
        "print([name for name in sys.modules if name.startswith('agentsd.vision')])\n"
        "import agentsd.vision\n"
        "agentsd.vision.create_model('agent_deit_t')\n"
        "print([name for name in ('diffusers', 'transformers', 'torchmetrics', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]
