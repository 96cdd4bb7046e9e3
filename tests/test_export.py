"""Generators as files for other programs, with the results of PyTorch."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

import test as testing
import train as training
from inference import Translator
from inference.export import SUFFIXES, export, load_exported, random_images, read_notes
from inference.portable import make_portable
from inference.trained import find_trained
from models.networks import GENERATORS, NOISE_GENERATORS
from models.networks.attention import SelfAttention2d
from models.networks.layers import spectral_normalize
from models.weights import read_weights, write_safetensors
from scripts import export as script
from tests.conftest import draw_shapes
from tests.test_tiles import generator, resnet, unet

NOTES = {"network": {}, "input_nc": 3, "output_nc": 3, "domains": ["A", "B"]}
NOTES |= dict.fromkeys(("value_range", "output_range", "output_format"))


@pytest.fixture
def file(tmp_path):
    """The weights of a generator."""
    net = generator(GENERATORS["resnet_6blocks"], input_nc=3, output_nc=3, ngf=8, attention=["block3"])
    torch.save(net.net.state_dict(), tmp_path / "net.pth")
    return tmp_path / "net.pth"


@pytest.mark.parametrize(
    ("make", "resample", "norm"),
    [
        (resnet, "deconv", "instance"), (resnet, "nearest", "batch"), (resnet, "blur", "none"),
        (unet, "deconv", "batch"), (unet, "blur", "instance"),
    ],
)  # fmt: skip
def test_onnx_gives_the_results_of_pytorch(make, resample, norm, tmp_path):
    """With spectral norm and attention, for batches and sizes that the exporter did not see."""
    net = generator(make, resample=resample, norm=norm, spectral=True)
    images = [*random_images(3, stride=net.net.stride), torch.rand(1, 3, 5, 9)]
    expected = [net(image) for image in images]
    export(make_portable(net), tmp_path / "net.onnx", "onnx", NOTES)
    run = load_exported(tmp_path / "net.onnx", "onnx")
    for image, truth in zip(images, expected, strict=True):
        torch.testing.assert_close(run(image), truth, atol=1e-3, rtol=0)
    assert len({image.shape for image in images}) > 2
    assert not any("original" in weight.name for weight in onnx.load(tmp_path / "net.onnx").graph.initializer)


@pytest.mark.parametrize(("format", "suffix"), [("torch_export", ".pt2"), ("torchscript", ".ts")])
def test_other_formats_give_the_results_of_pytorch(format, suffix, tmp_path):
    net = generator(resample="blur", spectral=True)
    images = [*random_images(3, stride=4, count=2), torch.rand(1, 3, 5, 9)]
    expected = [net(image) for image in images]
    path = tmp_path / f"net{suffix}"
    export(make_portable(net), path, format, NOTES)
    run = load_exported(path, format)
    for image, truth in zip(images, expected, strict=True):
        torch.testing.assert_close(run(image), truth, atol=1e-3, rtol=0)
    assert read_notes(path) == NOTES


def test_translator_runs_onnx_files(file, tmp_path, capsys):
    path = tmp_path / "net.onnx"
    assert script.main(["--weights", str(file), "--out", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "onnx fp32" in shown and "difference from PyTorch" in shown and "images/s at 256x256: PyTorch" in shown
    translator, photo = Translator.load(path), draw_shapes("photo", (51, 38))
    made, expected = translator(photo), Translator.load(file, device="cpu")(photo)
    assert (made.mode, made.size) == ("RGB", photo.size)
    assert np.abs(np.asarray(made, int) - np.asarray(expected, int)).max() <= 2
    assert translator(np.asarray(photo)).shape == (38, 51, 3)
    with pytest.raises(ValueError, match="takes 3 channels, but the image has 1"):
        translator(torch.zeros(1, 8, 8))
    notes = read_notes(path)
    assert (notes["input_nc"], notes["stride"], notes["image_range"]) == (3, 4, [-1, 1])
    assert (notes["domains"], notes["output_format"], translator.domains) == (["A", "B"], None, ("A", "B"))
    assert json.loads({prop.key: prop.value for prop in onnx.load(path).metadata_props}["notes"]) == notes


def test_smaller_files_say_their_error(file, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for name in ("1", "2"):
        draw_shapes(name, (40, 44)).save(tmp_path / "photos" / f"{name}.png")
    sizes = {}
    for dtype in ("fp32", "fp16", "int8"):
        argv = ["--weights", str(file), "--out", str(tmp_path / f"{dtype}.onnx"), "--dtype", dtype]
        assert script.main([*argv, *(["--calibrate", str(tmp_path / "photos")] if dtype == "int8" else [])]) == 0
        sizes[dtype] = (tmp_path / f"{dtype}.onnx").stat().st_size
        shown = capsys.readouterr().out
        assert f"onnx {dtype}" in shown
        error = float(shown.split("in [-1, 1]: ")[1].split(" at most, ")[1].split()[0])
        assert error < {"fp32": 1e-3, "fp16": 0.02, "int8": 0.3}[dtype]
        assert (error > 1e-4) == (dtype != "fp32")
        assert Translator.load(tmp_path / f"{dtype}.onnx").input_nc == 3
    assert sizes["fp16"] < 0.7 * sizes["fp32"] and sizes["int8"] < 0.7 * sizes["fp32"]


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_an_exported_file_that_makes_no_numbers_is_refused(dtype, tmp_path, capsys):
    images = [torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)]
    args = script.parse(["--name", "mine", "--dtype", dtype])
    subject = script.Subject(None, {}, images, images, images[0], 1.0, None)
    (tmp_path / "x.onnx").touch()
    with pytest.raises(ValueError, match="differs from PyTorch by nan"):
        script.compare(lambda x: x / x.max(), subject, tmp_path / "x.onnx", args)  # 0 / 0 in the first
    subject = script.Subject(None, {}, images[::-1], images[::-1], images[0], 1.0, None)
    with pytest.raises(ValueError, match="differs from PyTorch by nan"):
        script.compare(lambda x: x / x.max(), subject, tmp_path / "x.onnx", args)


def test_safetensors_are_plain_weights(tmp_path):
    net = generator(GENERATORS["resnet_6blocks"], input_nc=3, output_nc=3, ngf=8, spectral=True)
    image = random_images(3, stride=4)[0]
    expected = net(image)
    export(make_portable(net), tmp_path / "net.safetensors", "safetensors", NOTES)
    torch.testing.assert_close(Translator.load(tmp_path / "net.safetensors")(image), expected, atol=1e-3, rtol=0)
    with safe_open(tmp_path / "net.safetensors", "pt") as weights:
        assert not any("parametrizations" in name for name in weights.keys())  # noqa: SIM118
    assert read_notes(tmp_path / "net.safetensors") == NOTES
    (tmp_path / "any").touch()
    assert (tmp_path / "net.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode, "others may read it"


@pytest.mark.parametrize("notes", ['the "output_format" is PNG', '["network"]', '{"output_format": "png"}'])
def test_notes_of_other_programs_say_nothing(notes, file, tmp_path):
    path = tmp_path / "other.safetensors"
    write_safetensors(read_weights(file), path, notes=notes)
    assert Translator.load(path, device="cpu").output_format is None
    with pytest.raises(ValueError, match="says nothing about itself"):
        read_notes(path)


def test_a_network_with_dropout_is_compared_without_it(tmp_path):
    net = GENERATORS["resnet_6blocks"](3, 3, ngf=8, dropout=True)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    argv = ["--weights", str(tmp_path / "net.pth"), "--format", "safetensors", "--out", str(tmp_path / "x.safetensors")]
    assert script.main(argv) == 0


@pytest.fixture
def run_of_sagan(tmp_path, monkeypatch):
    """A run with spectral norm, averaged weights, classes, and attention at a place that shapes do not show."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for name in ("cat-1", "cat-2", "dog-1"):
        gray = np.asarray(draw_shapes(name, (32, 32)).convert("L")).astype(np.uint16) * 16
        Image.fromarray(gray).save(tmp_path / "images" / f"{name}.png")
    data = ["--dataroot", "images", "--input_nc", "1", "--value_range", "0,4095", "--class_of", "^(cat|dog)"]
    nets = ["--crop_size", "32", "--ngf", "8", "--ndf", "8", "--z_dim", "6", "--attn_G", "l1"]
    length = ["--n_epochs", "1", "--n_epochs_decay", "0", "--batch_size", "3", "--display_id", "0", "--device", "cpu"]
    assert training.main(["--name", "run", "--model", "sagan", *data, *nets, *length]) == 0
    return tmp_path / "checkpoints/run"


def test_a_generator_of_sagan_is_a_file_for_test_py(run_of_sagan, tmp_path, capsys):
    few = ["--seeds", "3,5", "--device", "cpu"]
    assert testing.main(["--name", "run", *few]) == 0
    expected = pages("run")
    assert {"seed0003_cat_sample.tif", "seed0005_dog_sample.png"} <= expected.keys()
    assert script.main(["--name", "run", "--format", "safetensors", "--out", "one.safetensors"]) == 0
    assert "difference from PyTorch in [-1, 1]" in capsys.readouterr().out
    with safe_open("one.safetensors", "pt") as weights:
        assert not any("parametrizations" in name for name in weights.keys())  # noqa: SIM118
    for file, name in (("one.safetensors", "one"), (run_of_sagan / "latest_net_G_ema.pth", "latest_net_G_ema")):
        assert testing.main(["--weights", str(file), *few]) == 0
        made = pages(name)
        assert made.keys() == expected.keys()
        for image, truth in zip(made.values(), expected.values(), strict=True):
            assert (image.mode, image.size) == (truth.mode, truth.size)
            difference = np.abs(np.asarray(image, float) - np.asarray(truth, float)).max()
            assert difference <= (1 if image.mode in ("L", "RGB") else 2), "weights without spectral norm are rounded"


def pages(name):
    """The images of a page: name -> image."""
    paths = sorted(Path("results", name, "test_latest/images").iterdir())
    return {path.name: Image.open(path) for path in paths if path.suffix in (".png", ".tif")}


@pytest.mark.parametrize("name", NOISE_GENERATORS)
def test_images_from_noise_are_those_of_pytorch(name, tmp_path):
    """With spectral norm, classes, their statistics and attention, for batches that the exporter did not see."""
    torch.manual_seed(0)
    net = NOISE_GENERATORS[name](3, image_size=32, z_dim=13, ngf=8, attention=["default"], n_classes=3)
    spectral_normalize(net).eval()
    for module in net.modules():
        if isinstance(module, SelfAttention2d):
            nn.init.constant_(module.gamma, 0.7)
        elif isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            if module.weight is not None:  # of each class
                nn.init.uniform_(module.weight, 0.5, 1.5)
    noise = [torch.randn(batch, net.z_dim + net.n_classes) for batch in (1, 5)]
    with torch.no_grad():
        expected = [net(z) for z in noise]
        assert all(images.std() > 0.05 for images in expected), "the test compares something"
        portable = make_portable(net)
        for format in ("torch_export", "torchscript", "onnx"):
            path = tmp_path / f"net{SUFFIXES[format]}"
            export(portable, path, format, NOTES)
            run = load_exported(path, format)
            for z, truth in zip(noise, expected, strict=True):
                torch.testing.assert_close(run(z), truth, atol=1e-3, rtol=0)
    model = onnx.load(path)
    assert not any("original" in weight.name for weight in model.graph.initializer)
    assert ([value.name for value in model.graph.input], model.graph.output[0].name) == (["noise"], "images")


def test_a_generator_of_sagan_is_a_file_for_other_programs(run_of_sagan, tmp_path, capsys):
    weights = torch.load(run_of_sagan / "latest_net_G.pth", weights_only=True)
    weights["last.0.weight"] *= 50  # so that they differ from the averaged ones
    torch.save(weights, run_of_sagan / "latest_net_G.pth")
    for flags in (["--format", "onnx", "--dtype", "fp16"], ["--format", "torchscript"]):
        assert script.main(["--name", "run", *flags]) == 0
    shown = capsys.readouterr().out
    assert "onnx fp16" in shown and "images/s at 32x32: PyTorch" in shown
    noise = torch.randn(3, 8)
    averaged, plain = (built(["--weights", str(run_of_sagan / f"latest_net_{net}.pth")]) for net in ("G_ema", "G"))
    made = load_exported(Path("run.ts"), "torchscript")(noise)
    torch.testing.assert_close(made, averaged(noise), atol=1e-3, rtol=0)
    torch.testing.assert_close(load_exported(Path("run.onnx"), "onnx")(noise), made, atol=0.02, rtol=0)
    assert (made - plain(noise)).abs().max() > 0.1, "the test tells averaged weights from others"
    assert script.main(["--name", "run", "--no_ema", "--format", "safetensors", "--out", "plain.safetensors"]) == 0
    assert script.main(["--weights", "plain.safetensors", "--format", "torchscript", "--out", "plain.ts"]) == 0
    made = load_exported(Path("plain.ts"), "torchscript")(noise)
    torch.testing.assert_close(made, plain(noise), atol=1e-3, rtol=0)
    for notes in (read_notes(Path("run.onnx")), read_notes(Path("plain.ts"))):
        assert (notes["z_dim"], notes["classes"], notes["image_size"], notes["output_nc"]) == (6, ["cat", "dog"], 32, 1)
        assert notes["output_format"]["dtype"] == "uint16"
    with pytest.raises(ValueError, match=r"run\.onnx: .* makes them from noise, by onnxruntime"):
        Translator.load("run.onnx")
    with pytest.raises(ValueError, match=r"run\.onnx is an ONNX file, for other programs: .* --format safetensors"):
        testing.main(["--weights", "run.onnx"])


def built(argv):
    """The generator of sagan that test.py builds."""
    model, _ = find_trained(argv).build(torch.device("cpu"))
    return model.netG


def test_a_generator_of_sagan_does_not_translate(run_of_sagan):
    assert script.main(["--name", "run", "--format", "safetensors", "--dtype", "fp16"]) == 0
    for file in ("run.safetensors", run_of_sagan):
        with pytest.raises(ValueError, match=r"run.*: a generator of sagan .* makes them from noise, by test\.py"):
            Translator.load(file)
    with pytest.raises(ValueError, match=r"makes them from noise, by test\.py: omit --model test"):
        testing.main(["--weights", "run.safetensors", "--model", "test"])
    for flags in (["--direction", "AtoB"], ["--dtype", "int8", "--calibrate", "images"]):
        with pytest.raises(ValueError, match=rf"{flags[-2]} {flags[-1]}: a generator of sagan takes no images"):
            script.main(["--name", "run", *flags])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format", "torchscript", "--dtype", "fp16"], "does not suit --format torchscript: choose from fp32"),
        (["--dtype", "int8"], "needs --calibrate FOLDER"),
        (["--calibrate", "photos"], "nothing else does"),
    ],
)
def test_flags_that_exclude_each_other(flags, message, capsys):
    with pytest.raises(SystemExit):
        script.main(["--name", "run", *flags])
    assert message in capsys.readouterr().err


def test_errors_of_files(file, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"bad.onnx"):
        Translator.load(tmp_path / "bad.onnx")
    with pytest.raises(ValueError, match="would replace the file that it is made from"):
        script.main(["--weights", str(file), "--format", "safetensors", "--dtype", "fp16", "--out", str(file)])
    assert script.main(["--weights", str(file), "--out", str(tmp_path / "net.onnx")]) == 0
    with pytest.raises(ValueError, match="is one exported generator, which runs whole"):
        Translator.load(tmp_path / "net.onnx", direction="BtoA")
