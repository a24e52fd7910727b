"""LPIPS: the equations of torchmetrics' network, and messages for weights that are absent or damaged."""

import pytest
import torch

from agentsd.bench.lpips import WEIGHTS_URL, Lpips, find_weights, load_lpips, lpips

PLACES = (0, 3, 6, 8, 10)


def test_the_network_follows_the_formula():
    torch.manual_seed(0)
    network = Lpips()
    one, other = torch.rand(2, 2, 3, 64, 64)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    hidden = [(2 * x - 1 - shift[:, None, None]) / scale[:, None, None] for x in (one, other)]
    expected = torch.zeros(2)
    for number, layer in enumerate(network.layers):
        torch.nn.init.uniform_(network.weights[number])
        if number in (1, 2):
            hidden = [torch.nn.functional.max_pool2d(x, kernel_size=3, stride=2) for x in hidden]
        hidden = [torch.relu(layer(x)) for x in hidden]
        first, second = (x / (1e-8 + x.square().sum(1, keepdim=True)).sqrt() for x in hidden)
        expected += torch.einsum("bchw,c->b", (first - second) ** 2, network.weights[number]) / first[0, 0].numel()
    torch.testing.assert_close(network(one, other), expected)
    assert (expected > 0.01).all()


def test_it_agrees_with_torchmetrics():
    pytest.importorskip("torchvision")
    from torchmetrics.functional.image.lpips import _LPIPS

    theirs, ours = _LPIPS(pnet_rand=True), Lpips()
    features = theirs.net.state_dict()
    for number, place in enumerate(PLACES):
        slice_ = f"slice{number + 1}.{place}"
        ours.layers[number].load_state_dict({name: features[f"{slice_}.{name}"] for name in ("weight", "bias")})
        ours.weights[number].copy_(theirs.lins[number].model[1].weight.flatten())
    one, other = torch.rand(2, 2, 3, 64, 64)
    torch.testing.assert_close(ours(one, other), theirs(one, other, normalize=True).flatten())


def test_missing_and_damaged_weights_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=f"no such file; fetch {WEIGHTS_URL}"):
        find_weights()
    path = tmp_path / "checkpoints" / WEIGHTS_URL.rpartition("/")[2]
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"SHA-256 is .*, not 7be5be79"):
        load_lpips(find_weights())
    with pytest.raises(ValueError, match="at least 31x31 pixels"):
        lpips(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16))
    with pytest.raises(ValueError, match="must have one shape"):
        lpips(torch.rand(1, 3, 64, 64), torch.rand(2, 3, 64, 64))


def test_the_weights_that_torchmetrics_holds_are_those_of_lpips():
    from agentsd.bench.lpips import CALIBRATED_SHA256, _calibrated_file, _checked

    state = _checked(_calibrated_file(), CALIBRATED_SHA256)
    assert [state[f"lin{number}.model.1.weight"].numel() for number in range(5)] == [64, 192, 384, 256, 256]
