"""Weights that other programs wrapped, and scripts.convert."""

import pytest
import torch
from PIL import Image

from inference import Translator
from models.networks.resnet import ResnetGenerator
from models.weights import load_weights, read_weights
from scripts import convert


def network(seed: int = 0) -> ResnetGenerator:
    torch.manual_seed(seed)
    return ResnetGenerator(3, 3, ngf=8, n_blocks=6)


def prefixed(weights: dict, prefix: str) -> dict:
    return {f"{prefix}.{key}": value for key, value in weights.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"epoch": 7, "state_dict": weights},
        lambda weights: {"model": {"generator": prefixed(weights, "module")}, "args": {"lr": 0.1}},
        lambda weights: {"ema": weights, "optimizer": {"state": {0: {"step": 3}}}},
        lambda weights: prefixed(weights, "_orig_mod"),
    ],
    ids=["state_dict", "nested", "optimizer", "compiled"],
)
def test_a_dict_around_the_weights_is_removed(wrap, tmp_path):
    net = network()
    torch.save(wrap(net.state_dict()), tmp_path / "net.pth")
    assert load_weights(other := network(seed=1), tmp_path / "net.pth")
    assert all(torch.equal(other.state_dict()[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("lightning", [False, True])
def test_one_of_several_networks_is_extracted(lightning, tmp_path, capsys):
    A, B = network().state_dict(), network(seed=1).state_dict()
    content = {"state_dict": prefixed(A, "netG_A") | prefixed(B, "netG_B")} if lightning else {"netG_A": A, "netG_B": B}
    torch.save(content, source := tmp_path / "both.ckpt")
    if not lightning:
        with pytest.raises(ValueError, match=r"both.ckpt has several networks: netG_A, netG_B. Extract one: python -m"):
            read_weights(source)
    target = tmp_path / "B.safetensors"
    assert convert.main([str(source), str(target), "--network", "netG_B", "--dtype", "fp16"]) == 0
    assert "netG=resnet_6blocks, input_nc=3, output_nc=3, ngf=8, norm=instance" in capsys.readouterr().out
    weights = read_weights(target)
    assert weights.keys() == B.keys()
    assert all(torch.equal(weights[key], value.half()) for key, value in B.items())
    image = Image.new("RGB", (32, 32), (10, 120, 200))
    assert Translator.load(target, device="cpu")(image).size == image.size


def test_what_is_no_network_is_refused(tmp_path):
    torch.save({"epoch": 7, "loss": [1.0]}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x.pth is not a network of names and tensors: it holds 'epoch': int, 'loss'"):
        read_weights(tmp_path / "x.pth")
    (tmp_path / "x.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"x.safetensors is not a readable checkpoint"):
        read_weights(tmp_path / "x.safetensors")
    with pytest.raises(SystemExit):
        convert.main([str(tmp_path / "x.pth"), str(tmp_path / "x.onnx")])
