"""Training: the same from the same seed, resumable; labels that pictures show; tables from rows."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_models_vision import tiny

from agentsd.vision.data import batches, folder_pictures, scene_pictures
from agentsd.vision.training import Recipe, evaluate, loss_of, make_optimizer, train

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))

    def load(name):
        sys.modules.pop(name, None)
        return importlib.import_module(name)

    return load


def pictures(number=24):
    return scene_pictures(number, 32, seed=0)


def fresh(drop_path=0.2):
    return tiny("pvt", 32, num_classes=24, drop_path=drop_path)


RECIPE = Recipe(steps=6, batch=8, every=2, warmup=2, rate=3e-3)


class TestScenes:
    def test_labels_are_of_the_left_or_upper_object(self):
        from agentsd.demo.scenes import COLOURS, SHAPES, sample_scenes

        labels = scene_pictures(40, 16, seed=3).labels
        for scene, row in zip(sample_scenes(40, 3, count=2), labels.tolist(), strict=True):
            upright = scene.relation in ("above", "below")
            ordered = sorted(scene.objects, key=lambda item: item.y if upright else item.x)
            assert row == [
                SHAPES.index(ordered[0].shape),
                COLOURS.index(ordered[0].colour),
                SHAPES.index(ordered[1].shape),
                COLOURS.index(ordered[1].colour),
                int(upright),
            ]

    def test_held_out_scenes_are_others(self):
        ours, held = scene_pictures(10, 16, seed=0), scene_pictures(10, 16, seed=0, held_out=True)
        assert not torch.equal(ours.images, held.images)

    def test_steps_draw_different_pictures(self):
        drawn = pictures()
        assert not torch.equal(batches(drawn, 8, seed=0, step=0), batches(drawn, 8, seed=0, step=1))
        assert not torch.equal(batches(drawn, 8, seed=0, step=0), batches(drawn, 8, seed=1, step=0))


class TestFolder:
    def make(self, folder, classes=2, number=10):
        for label in range(classes):
            (folder / f"class{label}").mkdir()
            for index in range(number):
                Image.new("RGB", (20, 12), (40 * index, 0, 255 * label)).save(folder / f"class{label}/{index}.png")

    def test_parts(self, tmp_path):
        self.make(tmp_path)
        ours, kept = (folder_pictures(tmp_path, 16, part=part) for part in ("train", "evaluation"))
        assert (len(ours.images), len(kept.images)) == (18, 2)
        assert kept.labels.flatten().tolist() == [0, 1]
        assert ours.groups == (("class", 2),)
        assert ours.images[0].shape == (3, 16, 16)

    def test_errors(self, tmp_path):
        with pytest.raises(ValueError, match="has 0 folders of pictures; give one a class"):
            folder_pictures(tmp_path, 16, part="train")
        self.make(tmp_path, number=3)
        with pytest.raises(ValueError, match="has no picture for part='evaluation'; give at least 10"):
            folder_pictures(tmp_path, 16, part="evaluation")


class TestTraining:
    def test_it_learns_and_is_repeatable(self):
        data = pictures()
        recipe = Recipe(steps=30, batch=16, every=30, warmup=5, rate=3e-3)
        first, second = (train(fresh(), data, data, recipe) for _ in range(2))
        assert first == second
        assert first[-1]["loss"] < 0.9 * evaluate(fresh(), data)["loss"]

    def test_a_stopped_run_goes_on(self, tmp_path):
        data = pictures()
        whole = train(fresh(), data, data, RECIPE)

        class Stopped(Exception):
            pass

        def stop(row):
            if row["step"] == 4:
                raise Stopped

        with pytest.raises(Stopped):
            train(fresh(), data, data, RECIPE, state_file=tmp_path / "a.pt", report=stop)
        done = []
        resumed = train(fresh(), data, data, RECIPE, state_file=tmp_path / "a.pt", advance=done.append)
        assert done[0] == 2  # the state of step 4 was not saved yet
        assert resumed == whole
        again = train(fresh(), data, data, RECIPE, state_file=tmp_path / "a.pt", advance=done.append)
        assert again == whole
        assert done[-1] == 6

    def test_a_state_of_another_recipe_is_refused(self, tmp_path):
        data = pictures()
        train(fresh(), data, data, RECIPE, state_file=tmp_path / "a.pt")
        with pytest.raises(ValueError, match="was saved with another rate, seed; use the same settings"):
            train(fresh(), data, data, Recipe(**{**vars(RECIPE), "rate": 1.0, "seed": 1}), state_file=tmp_path / "a.pt")

    def test_decay_spares_biases_positions_and_norms(self):
        model = fresh()
        optimizer, source = make_optimizer(model, RECIPE)
        bare = {id(one) for group in optimizer.param_groups if not group["weight_decay"] for one in group["params"]}
        assert source in ("torch", "timm")
        for name, parameter in model.named_parameters():
            spared = parameter.ndim <= 1 or name.endswith(("_bias", "position"))
            assert (id(parameter) in bare) == spared, name

    def test_other_optimisers_need_timm(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "timm", None)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ValueError, match=r"optimizer='lamb' is one of timm's.*use adamw"):
            make_optimizer(fresh(), Recipe(optimizer="lamb"))

    def test_rates(self):
        recipe = Recipe(steps=100, warmup=10, rate=1.0)
        rates = [recipe.rate_at(step) for step in range(100)]
        assert rates[0] == 0.1
        assert max(rates) == 1.0
        assert rates[99] < 0.001
        with pytest.raises(ValueError, match="steps=0 is not positive"):
            Recipe(steps=0)
        with pytest.raises(ValueError, match="rate=0 is not positive"):
            Recipe(rate=0)

    def test_measures(self):
        data = pictures(3)
        logits = torch.cat(
            [torch.nn.functional.one_hot(data.labels[:, i], n) for i, (_, n) in enumerate(data.groups)], 1
        )
        logits = 20.0 * logits
        logits[0, -2:] = logits[0, -2:].flip(0)  # one wrong label of fifteen

        class Known(torch.nn.Module):
            def forward(self, x):
                return logits

        measured = evaluate(Known(), data)
        assert measured["exact"] == pytest.approx(2 / 3)
        assert measured["mean"] == pytest.approx(14 / 15)
        assert measured["relation"] == pytest.approx(2 / 3)
        assert measured["loss"] == pytest.approx(20 / 15, abs=1e-3)
        assert float(loss_of(data, logits, data.labels)) == pytest.approx(measured["loss"])


class TestScripts:
    def test_arms_have_like_parameters(self, script):
        module = script("train_vision")
        numbers = {
            arm: sum(parameter.numel() for parameter in module.build(arm, 48, 24, 0).parameters())
            for arm in module.ARMS
        }
        assert all(abs(number / numbers["agent"] - 1) < 0.035 for number in numbers.values())
        assert abs(numbers["softmax"] / numbers["agent"] - 1) < 0.005

    def test_agents_through_agents(self, script):
        module = script("train_vision")
        model, plain = (module.build(arm, 48, 24, 3) for arm in (module.TWO_LEVELS, "agent"))
        layer = model.stages[0].blocks[0].attn.eval()  # one head, 12 x 12 tokens, 9 agents
        assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())
        x = torch.randn(2, 144, 32)
        query, key, value = layer.qkv(x).chunk(3, dim=-1)
        image = query.reshape(2, 12, 12, 32)
        few = torch.stack([image[:, r : r + 4, c : c + 4].mean((1, 2)) for r in (0, 4, 8) for c in (0, 4, 8)], 1)
        many = image.reshape(2, 6, 2, 6, 2, 32).mean((2, 4)).flatten(1, 2)
        spread = layer.biases((12, 12))[1][:, 0]
        layer.agents = 36
        gather = layer.biases((12, 12))[0][:, 0]
        layer.agents = 9
        gathered = (many @ key.mT / 32**0.5 + gather).softmax(-1) @ value
        gathered = (few @ many.mT / 32**0.5).softmax(-1) @ gathered
        out = (query @ few.mT / 32**0.5 + spread).softmax(-1) @ gathered
        local = layer.dwc(value.mT.reshape(2, 32, 12, 12)).flatten(2).mT
        with torch.no_grad():
            torch.testing.assert_close(layer(x, (12, 12)), layer.proj(out + local), rtol=0, atol=1e-5)

    def test_paired_differences(self, script):
        difference = script("benchmark_vision").difference
        assert difference({0: 3.0, 1: 5.0, 2: 4.0, 3: 9.0}, {0: 1.0, 1: 2.0, 2: 3.0}) == (
            "**+2.0** [-0.5, +4.5], higher in 3 of 3 seeds"
        )
        assert difference({0: 3.0}, {0: 1.0, 1: 2.0}) == "*too few seeds*"

    def test_training_writes_rows(self, script, tmp_path, capsys):
        options = ["--arms", "agent; softmax", "--size", "24", "--pictures", "16", "--held-out", "8", "--steps", "2"]
        options += ["--batch", "4", "--every", "1", "--state", str(tmp_path), "--output", str(tmp_path / "a.jsonl")]
        assert script("train_vision").main(options) == 0
        rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
        kinds = [row["kind"] for row in rows]
        assert kinds == ["curve"] * 2 + ["agents at test time"] * 6 + ["run"] + ["curve"] * 2 + ["run"]
        assert {row["arm"] for row in rows} == {"agent", "softmax"}
        with pytest.raises(SystemExit, match="'agnet' is unknown"):
            script("train_vision").main([*options[:1], "agnet", *options[2:]])

    def test_timing_and_tables(self, script, tmp_path, monkeypatch, capsys):
        module = script("benchmark_vision")
        monkeypatch.setattr(module, "MODULES", ((8, 16, 2, 4),))
        monkeypatch.setattr(module, "RESULTS", tmp_path)
        assert module.main(["modules", "--rounds", "2"]) == 0
        (row,) = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert (row["tokens"], row["agent"]) == (64, "4 agents")
        page = tmp_path / "page.md"
        for table in ("", "| old |\n| old |\n"):
            page.write_text(f"before\n\n<!-- modules -->\n{table}\nafter\n\nlast\n")
            assert module.main(["tables", "--page", str(page)]) == 0
            lines = page.read_text().splitlines()
            assert lines[:3] == ["before", "", "<!-- modules -->"]
            assert lines[5].startswith("| 64 | 16 | 2 | 4 | ")
            assert lines[6:] == ["", "after", "", "last"]

    def test_the_order_is_abba(self, script):
        called = []
        script("benchmark_vision").pair(lambda: called.append("A"), lambda: called.append("B"), 2, "cpu")
        assert "".join(called) == "AABB" + "ABBA" * 2

    def test_committed_tables_are_those_of_the_rows(self, script, tmp_path):
        module = script("benchmark_vision")
        page = ROOT / "docs" / "vision.md"
        copy = tmp_path / "vision.md"
        copy.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
        module.write_tables(copy)
        assert copy.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
        assert all(f"<!-- {name} -->" in page.read_text(encoding="utf-8") for name, _ in module.tables())


def test_pictures_are_of_the_demo_renderer():
    from agentsd.demo.render import render
    from agentsd.demo.scenes import sample_scenes
    from agentsd.vision.preprocess import MEAN, STD

    ours = scene_pictures(1, 32, seed=5).images[0]
    pixels = (ours.permute(1, 2, 0) * torch.tensor(STD) + torch.tensor(MEAN)) * 255
    np.testing.assert_allclose(pixels, render(sample_scenes(1, 5, count=2)[0], 32), atol=1e-3)
