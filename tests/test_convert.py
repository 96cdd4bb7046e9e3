"""Weights that other programs wrapped, and scripts.convert."""

import argparse
import gzip
import zipfile

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import test as testing
from inference import Translator
from models.networks import DISCRIMINATORS, GENERATORS
from models.networks.resnet import ResnetGenerator
from models.weights import is_network, load_weights, read_weights
from scripts import convert, translate
from tests.helpers import training_model
from training.init_from import init_from
from training.resume import Position, save_run


def test_others_may_read_what_is_converted(tmp_path):
    torch.save(network().state_dict(), tmp_path / "in.pth")
    assert convert.main([str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors")]) == 0
    assert (tmp_path / "out.safetensors").stat().st_mode == (tmp_path / "in.pth").stat().st_mode


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
    with pytest.raises(ValueError, match="is a folder: name one of the files in it"):
        read_weights(tmp_path)


def test_the_state_of_a_run_is_not_taken_for_weights(tmp_path):
    model = training_model("--model", "cycle_gan")
    save_run(model, model.optimization, Position(1), {}, tmp_path, "latest", epoch_size=1, threads={})
    with pytest.raises(ValueError, match=r"latest_state.pth is the state of a run, and its weights lie beside it"):
        read_weights(tmp_path / "latest_state.pth")


# ---- files of strangers

WRAPPINGS = {
    "state_dict": lambda weights: {"epoch": 7, "state_dict": weights},
    "ema": lambda weights: {"ema": weights, "step": 3},
    "netG": lambda weights: {"netG": weights, "args": {"lr": 0.1}},
    "DataParallel": lambda weights: prefixed(weights, "module"),
    "compiled": lambda weights: prefixed(weights, "_orig_mod"),
    "Lightning": lambda weights: prefixed(weights, "generator"),
    "Lightning, nested": lambda weights: prefixed(weights, "model.netG"),
}
GENERATORS_MADE = {
    "resnet": lambda: ResnetGenerator(3, 3, ngf=4, n_blocks=6),
    "attention": lambda: ResnetGenerator(3, 3, ngf=8, n_blocks=6, attention=["block2"]),
    "CUT": lambda: ResnetGenerator(3, 3, ngf=4, n_blocks=6, resample="blur"),
    "unet": lambda: GENERATORS["unet_128"](3, 3, ngf=4),
}


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    made=st.sampled_from(sorted(GENERATORS_MADE)),
    wraps=st.lists(st.sampled_from(sorted(WRAPPINGS)), max_size=3),
    suffix=st.sampled_from([".pth", ".safetensors", ".legacy"]),
)
def test_any_wrapping_is_removed(made, wraps, suffix, tmp_path_factory):
    weights = content = GENERATORS_MADE[made]().state_dict()
    for wrap in wraps:
        if is_network(content) or wrap in ("state_dict", "ema", "netG"):
            content = WRAPPINGS[wrap](content)
    path = tmp_path_factory.mktemp("wrapped") / f"net{suffix}"
    if suffix == ".safetensors" and is_network(content):
        safetensors.torch.save_file({key: value.contiguous() for key, value in content.items()}, path)
    else:
        path = path.with_suffix(".pth")
        torch.save(content, path, _use_new_zipfile_serialization=suffix != ".legacy")
    read = read_weights(path)
    assert read.keys() == weights.keys() and all(torch.equal(read[key], weights[key]) for key in read)


class Trainer:
    """A class of the program that wrote a file."""


def test_python_objects_are_ignored_when_converting(tmp_path):
    net, trainer = network(), Trainer()
    trainer.name = "x"
    torch.save({"args": argparse.Namespace(lr=0.1), "trainer": trainer, "model": net}, source := tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt holds Python objects \(\S+\), which are not loaded.*convert IN"):
        read_weights(source)
    assert convert.main([str(source), str(target := tmp_path / "a.pth")]) == 0
    assert load_weights(other := network(seed=1), target)
    assert all(torch.equal(other.state_dict()[key], value) for key, value in net.state_dict().items())


class Attack:
    """Executes code when it is unpickled."""

    def __reduce__(self):
        return eval, ("__import__('pathlib').Path('executed').touch()",)


def test_converting_executes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": network().state_dict(), "x": Attack()}, tmp_path / "bad.pth")
    assert convert.main(["bad.pth", "good.pth"]) == 0
    assert load_weights(network(), tmp_path / "good.pth") and not (tmp_path / "executed").exists()


def zipped(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "x")


NO_WEIGHTS = {
    "is a web page": lambda path: path.write_text("\n<!DOCTYPE html><html><body>404</body></html>"),
    "is a Git LFS pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\nsize 12345\n"),
    "is empty": lambda path: path.touch(),
    "is an archive: extract": lambda path: path.write_bytes(gzip.compress(b"weights")),
    "is an archive without weights": lambda path: zipped(path, "images/a.png"),
    "is a TorchScript module": lambda path: torch.jit.save(torch.jit.script(torch.nn.Identity()), path),
    "is an HDF5 file": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"),
    "is no file of weights, but an image": lambda path: Image.new("L", (4, 4)).save(path, "PNG"),
}


@pytest.mark.parametrize("what", NO_WEIGHTS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_every_entrance_says_what_a_file_is_that_holds_no_weights(what, suffix, tiny_data, tmp_path):
    NO_WEIGHTS[what](path := tmp_path / f"x{suffix}")
    image = str(tiny_data / "testA" / "0.png")
    entrances = [
        lambda: Translator.load(path),
        lambda: translate.main([image, str(tmp_path / "out.png"), "--weights", str(path)]),
        lambda: testing.main(["--weights", str(path), "--dataroot", str(tiny_data / "testA")]),
        lambda: convert.main([str(path), str(tmp_path / "y.pth")]),
        lambda: init_from(training_model("--ngf", "4", "--ndf", "4"), path, "latest"),
    ]
    for entrance in entrances:
        with pytest.raises(ValueError, match=f"x{suffix} {what}"):
            entrance()


def test_networks_that_are_no_generators_are_named(tmp_path):
    joligen = {"encoder.model.0.weight": torch.zeros(4, 3, 7, 7), "decoder.model.0.weight": torch.zeros(8, 4, 3, 3)}
    cut = GENERATORS_MADE["CUT"]().state_dict()
    half = {key: cut[key] for key in cut if key != [name for name in cut if name.endswith(".filt")][-1]}
    others = {
        "of a discriminator: netD=basic, input_nc=3, ndf=8": DISCRIMINATORS["basic"](3, ndf=8).state_dict(),
        r"of joliGEN \(a ResNet of encoder and decoder\), which cannot be loaded here": joligen,
        "of CUT with other layers than its default": half,
        r"something unknown with 1 tensors: w \(2,\)": {"w": torch.zeros(2)},
    }
    torch.save(network().state_dict(), tmp_path / "latest_net_G_B.pth")
    for message, weights in others.items():
        torch.save(weights, tmp_path / "latest_net_G_A.pth")
        with pytest.raises(ValueError, match=f"{message}.* Generators beside it: latest_net_G_B.pth"):
            Translator.load(tmp_path / "latest_net_G_A.pth")


def test_a_part_of_an_attention_block_is_no_block(tmp_path):
    net = GENERATORS_MADE["attention"]()
    part = net.state_dict()
    missing = next(key for key in part if key.startswith("attention.") and key.endswith(".weight"))
    del part[missing]
    torch.save(part, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=f"First differences: {missing} is missing"):
        load_weights(net, tmp_path / "net.pth")
