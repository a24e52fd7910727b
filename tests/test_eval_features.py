"""Extractors and scores: the FID network piece by piece, resizing, the demo's features, CLIP."""

import logging
import shutil
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from packaging.requirements import Requirement
from safetensors.torch import load_file, save_file
from tiny import _tokenizer
from torch import nn

from agentsd.demo.attributes import load_classifier
from agentsd.evaluation import features, inception, inception_weights
from agentsd.evaluation.clip_score import load_clip
from agentsd.evaluation.features import Extractor, FeatureExtractor, demo_extractor, inception_extractor
from agentsd.evaluation.inception import SIDE, FidInception, resize
from agentsd.evaluation.inception_weights import WEIGHTS_SHA256, WEIGHTS_URL, load_inception


def pictures(n, height, width=None, *, seed=0):
    shape = (n, height, width or height, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def network():
    """The FID network with random weights that carry its input to the end, and norms that do something."""
    torch.manual_seed(0)
    result = FidInception()
    for module in result.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.8, 1.6)
            module.bias.normal_(0, 0.1)
    return result


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    """A file of the published layout with random weights."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    yield path
    path.unlink()  # 95 MB


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of torch's."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


# --- the FID network ---


def test_names_and_shapes_of_the_published_weights(network):
    state = network.state_dict()
    assert len(state) == 94 * 6 + 2  # 94 convolutions with five tensors of batch norm each, and the classifier
    # 0.1 MB of the file of 95,628,359 bytes are names and framing
    assert sum(value.numel() * value.element_size() for value in state.values()) == 95_542_320
    shapes = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_3b_1x1.bn.running_var": (80,),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_5d.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
        "Mixed_6c.branch7x7dbl_2.conv.weight": (160, 160, 7, 1),
        "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch1x1.bn.num_batches_tracked": (),
        "fc.weight": (1008, 2048),
        "fc.bias": (1008,),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_sizes_on_the_way_and_features_that_do_not_depend_on_the_batch(network):
    sizes = {}
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: sizes.__setitem__(name, tuple(output.shape[1:])))
        for name, module in network.named_children()
        if name != "fc"
    ]
    inputs = resize(pictures(2, SIDE), "clean")
    both = network(inputs)
    for handle in handles:
        handle.remove()
    expected = {"Conv2d_1a_3x3": (32, 149, 149), "Conv2d_2b_3x3": (64, 147, 147), "Conv2d_3b_1x1": (80, 73, 73)}
    expected |= {"Conv2d_4a_3x3": (192, 71, 71), "Mixed_5b": (256, 35, 35), "Mixed_5d": (288, 35, 35)}
    expected |= {
        "Mixed_6a": (768, 17, 17),
        "Mixed_6e": (768, 17, 17),
        "Mixed_7a": (1280, 8, 8),
        "Mixed_7c": (2048, 8, 8),
    }
    assert {name: sizes[name] for name in expected} == expected
    assert both.shape == (2, 2048)
    assert not both.requires_grad
    torch.testing.assert_close(network(inputs[1:]), both[1:], rtol=1e-3, atol=1e-4 * float(both.std()))


class Explicit:
    """Units of one block, written out."""

    def __init__(self, block):
        self.state = block.state_dict()

    def __call__(self, name, x, padding=0, stride=1):
        def get(part):
            return self.state[f"{name}.{part}"]

        x = F.conv2d(x, get("conv.weight"), stride=stride, padding=padding)
        mean, var = (get(f"bn.running_{part}")[:, None, None] for part in ("mean", "var"))
        x = (x - mean) / torch.sqrt(var + 0.001) * get("bn.weight")[:, None, None] + get("bn.bias")[:, None, None]
        return x.clamp(min=0)


def mean_of_neighbours(x):
    """3 x 3 average over the neighbours that exist."""
    return F.avg_pool2d(x, 3, 1, 1) * 9 / (F.avg_pool2d(torch.ones_like(x), 3, 1, 1) * 9)


def explicit_35(unit, x):
    five = unit("branch5x5_2", unit("branch5x5_1", x), 2)
    three = unit("branch3x3dbl_3", unit("branch3x3dbl_2", unit("branch3x3dbl_1", x), 1), 1)
    return unit("branch1x1", x), five, three, unit("branch_pool", mean_of_neighbours(x))


def explicit_to_17(unit, x):
    three = unit("branch3x3dbl_3", unit("branch3x3dbl_2", unit("branch3x3dbl_1", x), 1), 0, 2)
    return unit("branch3x3", x, 0, 2), three, F.max_pool2d(x, 3, 2)


def explicit_17(unit, x):
    row, column = (0, 3), (3, 0)
    seven = unit("branch7x7_3", unit("branch7x7_2", unit("branch7x7_1", x), row), column)
    double = unit("branch7x7dbl_1", x)
    for i, padding in enumerate((column, row, column, row), 2):
        double = unit(f"branch7x7dbl_{i}", double, padding)
    return unit("branch1x1", x), seven, double, unit("branch_pool", mean_of_neighbours(x))


def explicit_to_8(unit, x):
    three = unit("branch3x3_2", unit("branch3x3_1", x), 0, 2)
    seven = unit("branch7x7x3_3", unit("branch7x7x3_2", unit("branch7x7x3_1", x), (0, 3)), (3, 0))
    return three, unit("branch7x7x3_4", seven, 0, 2), F.max_pool2d(x, 3, 2)


def explicit_8(unit, x, pool):
    three, double = unit("branch3x3_1", x), unit("branch3x3dbl_2", unit("branch3x3dbl_1", x), 1)
    return (
        unit("branch1x1", x),
        unit("branch3x3_2a", three, (0, 1)),
        unit("branch3x3_2b", three, (1, 0)),
        unit("branch3x3dbl_3a", double, (0, 1)),
        unit("branch3x3dbl_3b", double, (1, 0)),
        unit("branch_pool", pool(x)),
    )


def explicit_7b(unit, x):
    return explicit_8(unit, x, mean_of_neighbours)


def explicit_7c(unit, x):
    return explicit_8(unit, x, lambda values: F.max_pool2d(values, 3, 1, 1))


BLOCKS = {
    "Mixed_5b": (192, explicit_35),
    "Mixed_5d": (288, explicit_35),
    "Mixed_6a": (288, explicit_to_17),
    "Mixed_6b": (768, explicit_17),
    "Mixed_6e": (768, explicit_17),
    "Mixed_7a": (768, explicit_to_8),
    "Mixed_7b": (1280, explicit_7b),
    "Mixed_7c": (2048, explicit_7c),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_each_kind_of_block_is_the_published_one(network, name):
    width, explicit = BLOCKS[name]
    block = network.get_submodule(name)
    x = torch.randn(1, width, 7, 9, generator=torch.Generator().manual_seed(1))  # max pooling sees negative values too
    torch.testing.assert_close(block(x), torch.cat(explicit(Explicit(block), x), 1), rtol=1e-4, atol=1e-4)


def test_the_whole_network_is_the_published_one(network):
    inputs = resize(pictures(2, SIDE), "clean")
    stem = Explicit(network)
    x = stem("Conv2d_2a_3x3", stem("Conv2d_1a_3x3", inputs / 128 - 1, 0, 2))
    x = F.max_pool2d(stem("Conv2d_2b_3x3", x, 1), 3, 2)
    x = F.max_pool2d(stem("Conv2d_4a_3x3", stem("Conv2d_3b_1x1", x)), 3, 2)
    kinds = dict.fromkeys(("Mixed_5b", "Mixed_5c", "Mixed_5d"), explicit_35) | {"Mixed_6a": explicit_to_17}
    kinds |= dict.fromkeys(("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"), explicit_17)
    kinds |= {"Mixed_7a": explicit_to_8, "Mixed_7b": explicit_7b, "Mixed_7c": explicit_7c}
    for name, explicit in kinds.items():
        x = torch.cat(explicit(Explicit(network.get_submodule(name)), x), 1)
    expected = x.mean((2, 3))
    rows = network(inputs)
    torch.testing.assert_close(rows, expected, rtol=1e-3, atol=1e-4 * float(expected.std()))
    assert float((rows[0] - rows[1]).std() / expected.std()) > 1e-2  # otherwise nothing was compared


def test_features_are_those_of_torchmetrics_where_torch_fidelity_is_installed(weights):
    pytest.importorskip("torch_fidelity")
    from torchmetrics.image.fid import NoTrainInceptionV3

    theirs = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights), antialias=False)
    batch = pictures(2, 64, 80)
    ours = load_inception(weights, sha256=None)(resize(batch, "legacy"))
    torch.testing.assert_close(ours, theirs(torch.from_numpy(batch).permute(0, 3, 1, 2)), rtol=1e-3, atol=1e-4)


def test_the_extra_never_replaces_the_users_torch():
    root = Path(__file__).parent.parent
    extra = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]["fid"]
    assert extra
    needed = {requirement.split(">=")[0]: Requirement(requirement) for requirement in extra}
    for name, requirement in needed.items():  # what is installed serves, and asks for no torch itself
        assert requirement.specifier.contains(version(name)), name
        wants = {Requirement(one).name for one in requires(name) or () if "extra ==" not in one}
        assert wants <= {"numpy", "colorama"}, name
    assert "pip install --no-deps torch-fidelity==" in (root / "docs" / "install.md").read_text()


# --- loading ---


def test_loading_checks_the_hash_of_the_whole_file(weights, network):
    actual = inception_weights.file_sha256(weights)
    loaded = load_inception(weights, sha256=actual)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in network.state_dict().items())
    assert not loaded.training
    with pytest.raises(ValueError, match=rf"weights.pth: SHA-256 is {actual}, not {WEIGHTS_SHA256}; fetch https://git"):
        load_inception(weights)


def test_weights_without_a_count_of_batches_load_too(network, tmp_path):
    """Files written before torch 0.4.1 lack it."""
    state = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "old.pth")
    loaded = load_inception(tmp_path / "old.pth", sha256=None)
    assert torch.equal(loaded.fc.weight, network.fc.weight)
    (tmp_path / "old.pth").unlink()


def test_files_that_are_no_weights(tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(ValueError, match=r"weights.pth: no such file; fetch .*6726825d.* as --inception-weights"):
        load_inception(path)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"weights.pth: SHA-256 is"):
        load_inception(path)
    with pytest.raises(ValueError, match=r"weights.pth: no state that torch.load can read; fetch"):
        load_inception(path, sha256=None)
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, path)
    with pytest.raises(ValueError, match=r"weights.pth: not the layout of the FID network \(Error\(s\) in loading"):
        load_inception(path, sha256=None)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"weights.pth: not the layout of the FID network"):
        load_inception(path, sha256=None)


def test_the_hash_is_the_one_in_the_name():
    assert WEIGHTS_URL.endswith(f"-{WEIGHTS_SHA256[:8]}.pth")
    assert len(WEIGHTS_SHA256) == 64


@pytest.mark.parametrize("name", ["weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth"])
def test_weights_are_found_in_the_cache(cache, name):
    (cache / name).write_bytes(b"x")
    assert inception_weights.find_weights() == cache / name
    with pytest.raises(ValueError, match="SHA-256 is"):  # what is found is checked like what is given
        inception_extractor()


def test_absent_weights_name_their_source(cache, monkeypatch):
    monkeypatch.setattr(features, "find_spec", lambda name: None)
    message = rf"inception weights=None: neither weights-\S+ nor pt_\S+ is in .*; fetch {WEIGHTS_URL} \(SHA-256 6726"
    with pytest.raises(ValueError, match=message):
        inception_extractor()


def test_torchmetrics_downloads_where_torch_fidelity_is_installed(cache, monkeypatch):
    monkeypatch.setattr(features, "find_spec", lambda name: object())
    target = cache / WEIGHTS_URL.rpartition("/")[2]

    def download(name, features_list):
        target.write_bytes(b"x")

    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", download)
    assert features._weights_of_torchmetrics() == target

    def offline(name, features_list):
        raise OSError("no network")

    target.unlink()
    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", offline)
    with pytest.raises(ValueError, match=r"torchmetrics could not download them \(no network\); fetch https"):
        features._weights_of_torchmetrics()


# --- resizing ---


@pytest.mark.parametrize(("height", "width"), [(8, 21), (400, 301)])
def test_legacy_reads_where_tensorflow_1_reads(height, width):
    batch = pictures(1, height, width)
    resized = resize(batch, "legacy")[0]
    for row, column in [(0, 0), (298, 298), (150, 3), (17, 200), (298, 0)]:
        y, x = row * height / SIDE, column * width / SIDE
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
        corners = batch[0].astype(float)
        above = corners[y0, x0] * (1 - (x - x0)) + corners[y0, x1] * (x - x0)
        below = corners[y1, x0] * (1 - (x - x0)) + corners[y1, x1] * (x - x0)
        assert resized[:, row, column].numpy() == pytest.approx(above * (1 - (y - y0)) + below * (y - y0), abs=0.02)


def test_legacy_doubles_as_tensorflow_1_does(monkeypatch):
    monkeypatch.setattr(inception, "SIDE", 8)
    ramp = np.arange(4, dtype=np.uint8)[None, None, :, None].repeat(4, 1).repeat(3, 3)
    assert resize(ramp, "legacy")[0, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]


def test_clean_averages_what_legacy_skips():
    stripes = np.zeros((1, 4 * SIDE, 4 * SIDE, 3), dtype=np.uint8)
    stripes[:, :, ::4] = 255  # one column in four: legacy reads just these
    assert resize(stripes, "legacy").unique().tolist() == [255]
    clean = resize(stripes, "clean")[..., 2:-2]
    assert clean.min() > 55
    assert clean.max() < 73


@pytest.mark.parametrize("mode", ["clean", "legacy"])
def test_resizing_keeps_channels_range_and_the_right_size(mode):
    batch = pictures(2, SIDE)
    assert torch.equal(resize(batch, mode), torch.from_numpy(batch).permute(0, 3, 1, 2).float())
    resized = resize(pictures(1, 16, 40), mode)
    assert resized.shape == (1, 3, SIDE, SIDE)
    assert resized.dtype == torch.float32
    assert (resized.min(), resized.max()) >= (0, 250)
    assert resized.max() <= 255
    flat = np.array([10, 20, 30], dtype=np.uint8) * np.ones((1, 7, 9, 3), dtype=np.uint8)
    torch.testing.assert_close(resize(flat, mode)[0].mean((1, 2)), torch.tensor([10.0, 20.0, 30.0]))


@pytest.mark.parametrize(
    "wrong", [np.zeros((8, 8, 3), np.uint8), np.zeros((1, 3, 8, 8), np.uint8), np.zeros((1, 8, 8, 3), np.float32)]
)
def test_what_is_no_pictures(wrong):
    for use in (lambda: resize(wrong, "clean"), lambda: demo_extractor()(wrong)):
        with pytest.raises(ValueError, match=r"pictures of shape .* and type .*; they must be \[n, h, w, 3\] uint8"):
            use()


def test_an_unknown_resize():
    with pytest.raises(ValueError, match="resize='bicubic' is unknown; choose one of clean, legacy"):
        resize(pictures(1, 8), "bicubic")


# --- extractors ---


def test_the_inception_extractor(weights, network, monkeypatch):
    monkeypatch.setattr(inception_weights, "load_inception", lambda path: load_inception(path, sha256=None))
    monkeypatch.setattr(features, "_BATCH", 2)
    batch = pictures(3, 40)
    extractor: FeatureExtractor = inception_extractor(weights, "legacy")
    assert (extractor.name, extractor.dimension, extractor.distance) == ("inception-2048", 2048, "fid")
    assert (extractor.resize, extractor.sha256) == ("legacy", inception_weights.file_sha256(weights))
    rows = extractor(batch)
    assert rows.dtype == np.float32
    expected = network(resize(batch, "legacy")).numpy()
    near = dict(rtol=1e-3, atol=1e-4 * float(expected.std()))
    np.testing.assert_allclose(rows, expected, **near)
    assert not np.allclose(inception_extractor(weights, "clean")(batch[:1]), expected[:1], **near)


def test_the_demo_extractor_is_the_classifier_before_its_head_and_never_fid():
    extractor: FeatureExtractor = demo_extractor()
    batch = pictures(3, 64)
    classifier = load_classifier()
    with torch.no_grad():
        scaled = torch.from_numpy(batch).permute(0, 3, 1, 2) / 127.5 - 1
        expected = classifier.trunk(scaled).mean((2, 3))
    rows = extractor(batch)
    assert (extractor.name, extractor.distance) == ("agentsd-demo", "fd_demo")
    assert rows.shape == (3, extractor.dimension) == (3, 128)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)
    assert len(extractor.sha256) == 64
    assert extractor(pictures(1, 128)).shape == (1, 128)
    with pytest.raises(ValueError, match="65 x 65 pixels; they must be square"):
        extractor(pictures(1, 65))


def test_features_that_are_not_finite_are_refused():
    broken = Extractor("broken", 2, "fd", "none", "", lambda batch: np.full((len(batch), 2), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"broken gave features of shape \(1, 2\) with 2 not finite; .* check its w"):
        broken(pictures(1, 8))
    short = Extractor("short", 3, "fd", "none", "", lambda batch: np.zeros((len(batch), 2), np.float32))
    with pytest.raises(ValueError, match=r"short gave features of shape \(1, 2\) with 0 not finite; \(1, 3\) finite"):
        short(pictures(1, 8))


# --- CLIP ---


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A tiny CLIP with random weights, saved as published ones are."""
    import transformers

    tokenizer, folder = _tokenizer(), tmp_path_factory.mktemp("clip")
    layers = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config=dict(vocab_size=len(tokenizer), max_position_embeddings=77, **layers, **special),
        vision_config=dict(image_size=32, patch_size=8, **layers),
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    processor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scorer(clip_folder):
    return load_clip(clip_folder)


def test_the_score_is_a_hundred_times_the_cosine_and_never_negative(scorer):
    batch = pictures(20, 32)
    texts = [f"picture number {i}" for i in range(20)]
    scores = scorer(batch, texts)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_DEVIATION))
    pixels = (torch.from_numpy(batch).permute(0, 3, 1, 2) / 255 - mean) / deviation
    model, expected = scorer.model, []
    with torch.no_grad():
        for i, text in enumerate(texts):
            picture = model.visual_projection(model.vision_model(pixel_values=pixels[i : i + 1]).pooler_output)
            tokens = torch.tensor([scorer.tokenizer(text)["input_ids"]])  # alone: no padding
            words = model.text_projection(model.text_model(input_ids=tokens).pooler_output)
            cosine = float((picture * words).sum() / picture.norm() / words.norm())
            expected.append(100 * max(cosine, 0))
    assert scores == pytest.approx(expected, abs=1e-3)
    assert scores.dtype == np.float64
    assert (scores >= 0).all()


CLIP_MEAN, CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def test_scores_do_not_depend_on_the_batch_and_take_any_size(scorer):
    batch = pictures(3, 48, 40)
    texts = ["a", "a much longer text", "b"]
    assert scorer(batch, texts) == pytest.approx(
        [float(scorer(batch[i : i + 1], [texts[i]])[0]) for i in range(3)], abs=1e-3
    )


def test_long_prompts_are_cut_and_said(scorer, caplog):
    long = "x" * 100  # a token a letter
    batch = pictures(2, 32)
    assert scorer.truncated(["short", long]) == [1]
    with caplog.at_level(logging.WARNING, logger="agentsd"):
        scores = scorer(batch, ["short", long])
    assert "1 of 2 prompts are longer than CLIP's context and are cut: [1]" in caplog.text
    assert scores[1] == pytest.approx(float(scorer(batch[1:], [long + "y"])[0]))
    caplog.clear()
    scorer(batch[:1], ["short"])
    assert not [record for record in caplog.records if record.name.startswith("agentsd")]


def test_pictures_and_texts_must_match(scorer):
    with pytest.raises(ValueError, match=r"texts has 1 entries for 2 pictures; give one for each picture"):
        scorer(pictures(2, 32), ["a"])
    with pytest.raises(ValueError, match=r"they must be \[n, h, w, 3\] uint8"):
        scorer(np.zeros((1, 3, 32, 32)), ["a"])


def test_a_folder_without_clip(tmp_path):
    with pytest.raises(ValueError, match=r"clip model '.*': cannot be loaded \(.*\); give a folder with a CLIPModel"):
        load_clip(tmp_path)


def test_a_clip_with_part_of_its_weights_is_refused(clip_folder, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "visual_projection" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"cannot be loaded \(it lacks the weights visual_projection.weight\); give"):
        load_clip(folder)
    (folder / "model.safetensors").write_bytes(b"cut o")
    with pytest.raises(ValueError, match=r"cannot be loaded \("):
        load_clip(folder)
