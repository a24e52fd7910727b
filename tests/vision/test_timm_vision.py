"""Through timm, where it is installed: names, features, files, the evaluation transform."""

import numpy as np
import pytest
import torch
from PIL import Image

from agentsd.vision import CONFIGS, create_model, to_published
from agentsd.vision.configs import ALIASES
from agentsd.vision.preprocess import crop_fraction, evaluation_transform
from agentsd.vision.registry import pretrained_cfg


class TestTimm:
    @pytest.fixture(autouse=True)
    def _timm(self):
        self.timm = pytest.importorskip("timm", reason="timm is not installed")

    def test_all_names_are_registered(self):
        assert {*CONFIGS, *ALIASES} <= set(self.timm.list_models())
        assert not {*CONFIGS} & set(self.timm.list_models(pretrained=True))
        assert self.timm.is_model("agent_swin_t")

    def test_features_of_a_picture_that_is_not_square(self):
        model = self.timm.create_model("agent_swin_tiny", features_only=True).eval()
        assert model.feature_info.channels() == [96, 192, 384, 768]
        assert model.feature_info.reduction() == [4, 8, 16, 32]
        with torch.no_grad():
            maps = model(torch.randn(1, 3, 64, 96))
        assert [tuple(one.shape) for one in maps] == [(1, 96, 16, 24), (1, 192, 8, 12), (1, 384, 4, 6), (1, 768, 2, 3)]

    @pytest.mark.parametrize("name", ["agent_deit_tiny", "agent_pvt_tiny", "agent_cswin_tiny"])
    def test_features_of_the_other_families(self, name):
        model = self.timm.create_model(name, features_only=True, out_indices=(0, -1), img_size=64).eval()
        with torch.no_grad():
            maps = model(torch.randn(1, 3, 64, 32))
        assert [one.shape[1] for one in maps] == model.feature_info.channels()
        assert [(64 // one.shape[2], 32 // one.shape[3]) for one in maps] == [
            (step, step) for step in model.feature_info.reduction()
        ]

    def test_settings(self):
        model = self.timm.create_model("agent_pvt_t", num_classes=7, in_chans=1, img_size=64, drop_path_rate=0.2)
        assert model(torch.randn(2, 1, 64, 64)).shape == (2, 7)
        assert model.stages[-1].blocks[-1].drop_path.rate == 0.2

    def published(self, path, seed=0):
        with torch.device("meta"):
            shapes = to_published(create_model("agent_pvt_t"))
        generator = torch.Generator().manual_seed(seed)
        weights = {key: torch.randn(value.shape, generator=generator) for key, value in shapes.items()}
        torch.save({"model": weights, "epoch": 299}, path)
        return weights

    def test_a_file_of_the_authors(self, tmp_path):
        path = tmp_path / "a.pth"
        weights = self.published(path)
        overlay = {"file": str(path)}
        model = self.timm.create_model("agent_pvt_tiny", pretrained=True, pretrained_cfg_overlay=overlay)
        assert all(torch.equal(value, weights[key]) for key, value in to_published(model).items())
        features = self.timm.create_model(
            "agent_pvt_tiny", pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, out_indices=[1, 2]
        )
        assert torch.equal(features.model.stages[0].position, weights["pos_embed1"])
        other = self.timm.create_model(
            "agent_pvt_tiny", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3, in_chans=1, img_size=96
        )
        assert torch.equal(other.stages[3].blocks[1].mlp.fc2.bias, weights["block4.1.mlp.fc2.bias"])
        grey = weights["patch_embed1.proj.weight"].sum(1, keepdim=True)
        torch.testing.assert_close(other.stages[0].embed.proj.weight, grey)
        assert other(torch.randn(1, 1, 96, 96)).shape == (1, 3)

    def test_a_file_of_another_model(self, tmp_path):
        self.published(tmp_path / "a.pth")
        with pytest.raises(ValueError, match="does not fit the model"):
            self.timm.create_model(
                "agent_deit_tiny", pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "a.pth")}
            )

    def test_the_configuration_is_one_that_timm_takes(self):
        config = self.timm.create_model("agent_swin_base_384", features_only=True, out_indices=[0]).pretrained_cfg
        assert config["input_size"] == (3, 384, 384)
        assert config["crop_pct"] == 1.0
        assert config["crop_mode"] == "squash"

    def test_transform_is_timms(self):
        data = pytest.importorskip("timm.data")
        transform = data.create_transform(
            input_size=(3, 64, 64), interpolation="bicubic", crop_pct=0.875, crop_mode="squash"
        )
        picture = noise()
        torch.testing.assert_close(evaluation_transform(picture, 64), transform(picture), rtol=0, atol=1e-5)

    def test_groups_by_layer(self):
        from timm.models import group_parameters

        model = create_model("agent_swin_t")
        groups = group_parameters(model, model.group_matcher())
        assert sum(len(names) for names in groups.values()) == len(list(model.parameters()))
        assert len(groups) > 12


def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8))


def test_transform_squashes_and_crops():
    wide = Image.new("RGB", (80, 20))
    wide.paste((255, 0, 0), (40, 0, 80, 20))
    image = evaluation_transform(wide, (32, 16), crop=0.5)
    assert image.shape == (3, 32, 16)
    assert image[0, :, 4].max() < -2
    assert image[0, :, 12].min() > 2.2
    with pytest.raises(ValueError, match="crop=0 is not in"):
        evaluation_transform(wide, crop=0)


def test_two_models_are_evaluated_without_a_crop():
    assert {name for name in CONFIGS if crop_fraction(name) == 1} == {"agent_swin_small_288", "agent_swin_base_384"}
    assert pretrained_cfg("agent_deit_small_448")["input_size"] == (3, 448, 448)
