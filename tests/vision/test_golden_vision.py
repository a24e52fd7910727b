"""Modules and models agree with the authors' code on golden data."""

import numpy as np
import pytest
import torch
from formula_vision import logits as formula
from golden import DATA, MANIFESTS, image, load, manifest, published_weights, sampled, weight

from agentsd.vision import AgentAttention, create_model, load_published
from agentsd.vision.layers import Block
from agentsd.vision.softmax import SoftmaxAttention

MODULES = sorted(path.name for path in (DATA / "modules").glob("*.npz"))


def built(config):
    """Our counterpart of a golden module, and the grid it is called with."""
    settings = config["constructor"]
    dim, heads = settings["dim"], settings["num_heads"]
    forward = config["forward"]
    grid = (forward["H"], forward["W"]) if forward else (8, 8)
    if config["class"] == "Attention":
        return SoftmaxAttention(dim, heads, reduction=settings["sr_ratio"]), grid
    attention = AgentAttention(
        dim,
        heads,
        grid=(8, 8),
        agents=settings["agent_num"],
        reduction=settings.get("sr_ratio", 1),
        class_token=config["variant"].startswith("deit"),
        qkv_bias=settings["qkv_bias"],
    )
    if "downstream_agent_shape" in settings:
        attention.agents = tuple(settings["downstream_agent_shape"])
    if config["class"] == "AgentBlock":
        return Block(dim, attention, mlp_ratio=settings["mlp_ratio"], eps=1e-5), grid
    return attention, grid


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    config, arrays = load(f"modules/{name}")
    module, grid = built(config)
    load_published(module, {key[2:]: torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith("w/")})
    x, expected = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    torch.testing.assert_close(module(x, grid), expected, rtol=0, atol=1e-5)  # training mode, no cache
    module.eval()
    with torch.no_grad():
        for _ in range(2):  # the second time from the cache
            torch.testing.assert_close(module(x, grid), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["agent_deit_t", "agent_pvt_t"])
def test_models(name):
    config, arrays = load(f"models/{name}.npz")
    model = create_model(name).eval()
    load_published(model, published_weights(name))
    seen = {}

    def keep(point):
        def hook(module, inputs, output):
            seen[point] = output[0] if isinstance(output, tuple) else output

        return hook

    def ours(point):
        if name == "agent_deit_t":
            return {"patch_embed": "stages.0.embed"}.get(point, point.replace("blocks", "stages.0.blocks"))
        kind, _, block = point.partition(".")
        stage = int(kind[-1]) - 1
        last = len(model.stages[stage].blocks) - 1
        return f"stages.{stage}." + (
            "embed" if kind.startswith("patch") else f"blocks.{block.replace('last', str(last))}"
        )

    for point in config["points"]:
        model.get_submodule(ours(point)).register_forward_hook(keep(point))
    with torch.no_grad():
        logits = model(image(config["batch"], config["img_size"]))
    np.testing.assert_allclose(logits.numpy(), arrays["logits"], rtol=0, atol=1e-4)
    for index, point in enumerate(config["points"]):
        assert list(seen[point].shape) == config["shapes"][point]
        np.testing.assert_allclose(sampled(seen[point]).numpy(), arrays["samples"][index], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["agent_deit_t_to_384", "agent_pvt_t_to_256"])
def test_loading_at_another_resolution(name):
    config, arrays = load(f"resize/{name}.npz")
    model = create_model(config["from"], image_size=config["img_size"]).eval()
    report = load_published(model, published_weights(config["from"]))
    assert len(report.resized) == config["resized_keys"]
    with torch.no_grad():
        logits = model(image(config["batch"], config["img_size"]))
    np.testing.assert_allclose(logits.numpy(), arrays["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["agent_deit_t_to_384", "agent_pvt_t_to_256"])
def test_a_model_at_another_resolution_is_the_resized_model(name):
    config, arrays = load(f"resize/{name}.npz")
    model = create_model(config["from"]).eval()
    load_published(model, published_weights(config["from"]))
    with torch.no_grad():
        logits = model(image(config["batch"], config["img_size"]))
    np.testing.assert_allclose(logits.numpy(), arrays["logits"], rtol=0, atol=1e-4)


def test_pyramid_of_a_detector():
    config, arrays = load("dense/agent_pvt_t_192x256.npz")
    model = create_model("agent_pvt_t", dense=True).eval()
    load_published(model, {key: weight(key, tuple(shape)) for key, shape in config["state_dict"]})
    with torch.no_grad():
        maps = model.pyramid(image(2, 256)[:, :, :192, :256])
    for index, feature in enumerate(maps):
        assert list(feature.shape) == config["shapes"][index]
        np.testing.assert_allclose(sampled(feature).numpy(), arrays["samples"][index], rtol=0, atol=1e-4)
        assert abs(float(feature.mean()) - arrays["mean"][index]) < 1e-4


@pytest.mark.parametrize("name", ["agent_deit_t", "agent_pvt_t"])
def test_the_formula_gives_the_golden_logits(name):
    config, arrays = load(f"models/{name}.npz")
    with torch.no_grad():
        logits = formula(manifest(name), published_weights(name), image(config["batch"], config["img_size"]))
    np.testing.assert_allclose(logits.numpy(), arrays["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name.endswith("_t") else pytest.mark.slow) for name in MANIFESTS]
)
def test_all_models_compute_the_formula(name):
    weights, x = published_weights(name), image(1, manifest(name)["img_size"])
    model = create_model(name).eval()
    load_published(model, weights)
    with torch.no_grad():
        torch.testing.assert_close(model(x), formula(manifest(name), weights, x), rtol=0, atol=1e-4)
