"""Trained models on images of any size: Translator and test.py."""

import json
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import test as testing
from display.attention_maps import AttentionRecorder
from inference import Translator
from models.base_model import AttentionView
from models.networks import GENERATORS
from models.networks.any_size import AnySize, fitting_size, reflect, visible_cells
from models.networks.layers import init_weights
from options.parser import Parser
from options.train_options import TrainOptions
from scripts import translate as translating
from tests.conftest import draw_shapes
from tests.test_cli import ROOT, train
from util.images import PixelFormat

SIZES = [(1, 1), (3, 2), (7, 9), (37, 41), (64, 20)]


def generator(name: str = "resnet_6blocks", *channels: int, **keywords) -> torch.nn.Module:
    torch.manual_seed(3)
    net = GENERATORS[name](*(channels or (3, 3)), **{"ngf": 8, **keywords})
    return init_weights(net, "xavier", 1.0)


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory):
    """A run of cycle_gan_attn with averaged weights, trained from B to A."""
    folder = tmp_path_factory.mktemp("runs")
    flags = ["--model", "cycle_gan_attn", "--ema_decay", "0.5", "--direction", "BtoA", "--lr", "0.01"]
    return train(folder, "--dataroot", tiny_data, *flags)


@pytest.fixture
def file(tmp_path):
    """A file of weights without options."""
    torch.save(generator().state_dict(), tmp_path / "horse2zebra.pth")
    return tmp_path / "horse2zebra.pth"


def test_import_is_cheap():
    code = "import sys, models; sys.exit('options.base_options' in sys.modules or 'torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["resnet_6blocks", "unet_128"])
def test_any_size_is_kept(name, size):
    net = AnySize(generator(name, 3, 2).eval())
    made = net(torch.rand(2, 3, *size) * 2 - 1)
    assert made.shape == (2, 2, *size) and made.isfinite().all()


def test_fitting_sizes_are_not_padded():
    net = generator()
    x = torch.rand(1, 3, 16, 20)
    expected = net(x)
    assert fitting_size(net, x.shape[2:]) == (16, 20)
    assert torch.equal(AnySize(net)(x), expected)
    odd = AnySize(net)(x[..., :14, :17])
    assert not torch.equal(odd, expected[..., :14, :17]), "the network does not see pixels that were cropped"
    assert fitting_size(generator("unet_256"), (256, 257)) == (256, 512)


def test_small_images_are_reflected_repeatedly():
    x = torch.arange(3.0).view(1, 1, 1, 3)
    assert reflect(x, (2, 8)).tolist() == [[[[0, 1, 2, 1, 0, 1, 2, 1]] * 2]]
    assert reflect(x, (1, 3)) is x


def test_all_types_of_images_give_the_same_result(file):
    translator = Translator.load(file, device="cpu")
    image = draw_shapes("image", (37, 42))
    made = translator(image)
    assert (made.mode, made.size) == ("RGB", image.size)
    assert np.array_equal(translator(np.asarray(image)), np.asarray(made))
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 * 2 - 1
    fake = translator(x)
    assert fake.shape == x.shape and fake.abs().max() <= 1
    assert np.array_equal(((fake + 1) * 127.5).round().byte().permute(1, 2, 0).numpy(), np.asarray(made))
    torch.testing.assert_close(translator(torch.stack([x, x.flip(2)]))[0], fake)
    several = translator([image, draw_shapes("other", (19, 15))])
    assert several[0].tobytes() == made.tobytes() and several[1].size == (19, 15)


def test_transparent_pixels_become_white(file):
    translator = Translator.load(file, device="cpu")
    clear = Image.new("RGBA", (12, 8), (200, 0, 0, 0))
    assert translator(clear).tobytes() == translator(Image.new("RGB", (12, 8), "white")).tobytes()


def test_other_channels_than_rgb(tmp_path):
    torch.save(generator("unet_128", 1, 1).state_dict(), tmp_path / "gray.pth")
    gray = Translator.load(tmp_path / "gray.pth")
    image = draw_shapes("image")
    assert gray(image).mode == "L"
    assert gray(np.zeros((5, 6), np.uint8)).shape == (5, 6)
    assert gray(np.zeros((5, 6, 1), np.uint8)).shape == (5, 6, 1)
    torch.save(generator("unet_128", 5, 2).state_dict(), tmp_path / "five.pth")
    five = Translator.load(tmp_path / "five.pth")
    assert five(torch.zeros(5, 6, 7)).shape == (2, 6, 7)
    assert five(np.zeros((6, 7, 5), np.uint8)).shape == (6, 7, 2)
    with pytest.raises(ValueError, match="does not convert to 5 channels of 8 bits"):
        five(image)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("in.jpg", "not str"),
        (np.full((4, 4, 3), -1.0), "the array holds float64 values from -1 to -1, and value_range is not set"),
        (np.zeros((4, 4, 3), bool), r"an array has to be .* not \(4, 4, 3\) of bool"),
        (np.zeros((4, 4), np.uint8), "takes 3 channels, but the image has 1"),
        (torch.zeros(1, 4, 4), "takes 3 channels, but the image has 1"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "floating-point"),
        (torch.full((3, 4, 4), 255.0), r"in \[-1, 1\]"),
        (torch.full((3, 4, 4), torch.nan), r"in \[-1, 1\]"),
        (torch.zeros(4, 4), r"\(C, H, W\)"),
        (Image.new("I;16", (4, 4)), "takes 3 channels, but the image has 1"),
    ],
)
def test_other_inputs_are_refused(file, image, message):
    with pytest.raises(ValueError, match=message):
        Translator.load(file)(image)


def test_attention_maps_show_no_padding():
    net = AnySize(generator("resnet_6blocks", attention=["block3"]))
    with AttentionRecorder({"G": AttentionView.on(net, "real")}) as watch:
        net(torch.rand(1, 3, 17, 5))
    maps = watch.maps()
    assert maps[0].weights.shape == (1, 10, 5, 2), "all 5 x 2 cells of the image, which is padded to 20 x 8 pixels"
    net = generator("unet_128")
    assert visible_cells(net, (30, 128), (32, 32)) == (8, 32)


@pytest.mark.parametrize("flags", [{}, {"direction": "AtoB"}, {"ema": False}, {"evaluate": True}])
def test_results_equal_those_of_test_py(run, tiny_data, tmp_path, flags):
    argv = ["--checkpoints_dir", str(run.parent), "--name", "run", "--results_dir", str(tmp_path), "--model", "test"]
    argv += ["--direction", flags["direction"]] if "direction" in flags else []
    argv += (["--no_ema"] if "ema" in flags else []) + (["--eval"] if "evaluate" in flags else [])
    assert testing.main([*argv, "--preprocess", "none", "--num_test", "1", "--device", "cpu"]) == 0
    (path,) = tmp_path.rglob("*_fake.png")
    path_A = tiny_data / ("testA" if "direction" in flags else "testB") / "0.png"
    with Image.open(path_A) as image, Image.open(path) as fake:
        assert Translator.load(run, device="cpu", **flags)(image).tobytes() == fake.tobytes()


def test_directions_and_averages_are_different_networks(run):
    image = draw_shapes("image")
    made = [Translator.load(run, **flags)(image).tobytes() for flags in ({}, {"direction": "AtoB"}, {"ema": False})]
    assert len(set(made)) == 3
    assert Translator.load(run, direction="BtoA")(image).tobytes() == made[0], "the direction of training"


def test_errors_in_loading(run, tmp_path):
    with pytest.raises(ValueError, match="direction 'BtoC': choose AtoB or BtoA"):
        Translator.load(run, direction="BtoC")
    with pytest.raises(ValueError, match="no run 'nothing'"):
        Translator.load(run.parent / "nothing")
    with pytest.raises(ValueError, match=r"7_net_G_A_ema.pth .* is not in"):
        Translator.load(run, epoch=7)
    for epoch in ("", "../latest"):
        with pytest.raises(ValueError, match=f"epoch '{epoch}' is not a plain name"):
            Translator.load(run, epoch=epoch)
    with pytest.raises(ValueError, match="source '' is not a plain name"):
        Translator.load("/")
    assert Translator.load(run / ".." / run.name).input_nc == 3
    generator = run / "latest_net_G_B.pth"
    assert Translator.load(generator, direction="AtoB").domains == ("A", "B")
    with pytest.raises(ValueError, match=r"direction BtoA: .*G_B.pth is one generator, of AtoB"):
        Translator.load(generator, direction="BtoA")
    for choice in ({"epoch": 7}, {"ema": False}):
        with pytest.raises(ValueError, match=r"choose among the weights of a run, but .*G_B.pth is one file"):
            Translator.load(generator, **choice)
    with pytest.raises(ValueError, match=r"D_A.pth: these are not the weights of a generator"):
        Translator.load(run / "latest_net_D_A.pth")


def test_loading_reads_no_command_line(run, monkeypatch):
    expected = Translator.load(run, direction="AtoB")(draw_shapes("image"))

    def fail(*_):
        raise AssertionError("parsed a command line")

    monkeypatch.setattr(Parser, "parse_known_args", fail)
    monkeypatch.setattr(sys, "argv", ["host", "--epoch", "9"])
    assert Translator.load(run, direction="AtoB")(draw_shapes("image")).tobytes() == expected.tobytes()


def test_options_that_were_not_saved_are_inferred(tmp_path):
    """Earlier versions had fewer flags."""
    flags = ["--name", "run", "--model", "cycle_gan", "--dataroot", str(tmp_path), "--ngf", "8"]
    TrainOptions().parse([*flags, "--netG", "resnet_6blocks"]).save(tmp_path)
    saved = json.loads((tmp_path / "train_opt.json").read_text())
    left = {flag: value for flag, value in saved.items() if flag not in ("resample", "attn_G", "spectral_norm_G")}
    (tmp_path / "train_opt.json").write_text(json.dumps(left))
    net = generator("resnet_6blocks", resample="nearest", attention=["block2"])
    torch.save(net.state_dict(), tmp_path / "latest_net_G_A.pth")
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(Translator.load(tmp_path, device="cpu")(x), net(x))


@pytest.mark.parametrize("name", ["resnet_6blocks", "unet_128"])
def test_threads_share_a_translator(name, tmp_path):
    torch.save(generator(name, norm="instance").state_dict(), tmp_path / "net.pth")
    translator = Translator.load(tmp_path / "net.pth", device="cpu")
    draw = random.Random(0)
    sizes = [(draw.randint(1, 40), draw.randint(1, 40)) for _ in range(90)]
    images = [draw_shapes(str(size), (size[0] + 9, size[1] + 9)) for size in sizes]
    expected = translator(images)
    with ThreadPoolExecutor(3) as threads:
        made = list(threads.map(translator, images))
    assert [image.size for image in made] == [image.size for image in images]
    assert [image.tobytes() for image in made] == [image.tobytes() for image in expected]


def test_runs_that_do_not_translate_images_are_refused(tmp_path):
    TrainOptions().parse(["--name", "run", "--model", "sagan", "--dataroot", str(tmp_path)]).save(tmp_path)
    with pytest.raises(ValueError, match="a generator of sagan does not translate images"):
        Translator.load(tmp_path)


def test_a_run_of_colorization_colorizes(tiny_data, tmp_path):
    root = tmp_path / "run"
    root.mkdir()
    flags = ["--model", "colorization", "--dataroot", str(tiny_data), "--netG", "unet_128", "--ngf", "4"]
    TrainOptions().parse(["--name", "run", *flags]).save(root)
    torch.save(generator("unet_128", 1, 2, ngf=4, norm="batch").state_dict(), root / "latest_net_G.pth")
    source, out = tiny_data / "testA" / "0.png", tmp_path / "out.png"
    translate = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--device", "cpu", "--eval"]
    assert translating.main([str(source), str(out), *translate]) == 0
    results = ["--results_dir", str(tmp_path / "results"), "--preprocess", "none", "--dataroot", str(source.parent)]
    assert testing.main([*translate, *results, "--num_test", "1"]) == 0
    translator = Translator.load(root, device="cpu", evaluate=True)
    (path,) = tmp_path.rglob("0_fake_B_rgb.png")
    with Image.open(source) as image, Image.open(out) as made, Image.open(path) as tested:
        assert translator(image).tobytes() == made.tobytes() == tested.tobytes()
        assert translator(image.convert("L")).mode == "RGB"


def test_opacity_and_depth_go_in_and_out(tmp_path):
    torch.save(generator("resnet_6blocks", 4, 4).state_dict(), tmp_path / "four.pth")
    four = Translator.load(tmp_path / "four.pth", device="cpu")
    image = draw_shapes("image").convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    made = four(image)
    assert made.mode == "RGBA" and np.array_equal(np.asarray(made), four(np.asarray(image)))
    torch.save(generator("resnet_6blocks", 1, 1).state_dict(), tmp_path / "gray.pth")
    gray = Translator.load(tmp_path / "gray.pth", device="cpu")
    deep = np.arange(400, dtype=np.uint16).reshape(20, 20) * 100
    assert gray(Image.fromarray(deep)).mode == "I;16" and gray(deep).dtype == np.uint16
    assert np.array_equal(np.asarray(gray(Image.fromarray(deep))), gray(deep))
    rgb = Translator(four.net, input_nc=4, output_format=PixelFormat("int16", (-1000, 1000)))
    with pytest.raises(ValueError, match="makes 4 channels of int16, which no PIL image holds: pass an array"):
        rgb(image)
    assert rgb(np.asarray(image)).dtype == np.int16


def test_a_run_with_one_generator_has_one_direction(run, tmp_path):
    (tmp_path / "lone").mkdir()
    shutil.copy(run / "train_opt.json", tmp_path / "lone")
    shutil.copy(run / "latest_net_G_A.pth", tmp_path / "lone" / "latest_net_G.pth")
    Translator.load(tmp_path / "lone")
    with pytest.raises(ValueError, match=r"latest_net_G_B_ema.pth or latest_net_G_B.pth is not in"):
        Translator.load(tmp_path / "lone", direction="AtoB")


def test_a_file_without_options_translates_a_folder(tiny_data, tmp_path, file, capsys):
    argv = ["--weights", str(file), "--dataroot", str(tiny_data / "testB")]
    assert testing.main([*argv, "--results_dir", str(tmp_path / "results"), "--preprocess", "none"]) == 0
    shown = capsys.readouterr().out
    assert "netG=resnet_6blocks, input_nc=3, output_nc=3, ngf=8, norm=instance, no_dropout=True" in shown
    results = tmp_path / "results" / "horse2zebra" / "test_latest"
    with Image.open(results / "images" / "3_fake.png") as made, Image.open(tiny_data / "testB" / "3.jpg") as image:
        assert made.tobytes() == Translator.load(file, device="cpu")(image).tobytes()
    assert (results / "test_opt.json").is_file()
    assert sorted(path.name for path in file.parent.iterdir()) == ["horse2zebra.pth", "results"]
    assert testing.main([*argv, "--results_dir", str(tmp_path / "results"), "--name", "mine", "--num_test", "1"]) == 0
    assert (tmp_path / "results" / "mine" / "test_latest" / "index.html").is_file()
    with pytest.raises(ValueError, match=r"^--epoch chooses among the weights of a run"):
        testing.main([*argv, "--epoch", "5"])


def test_a_run_without_options_is_inferred(tiny_data, tmp_path, capsys):
    run_dir = tmp_path / "upstream"
    run_dir.mkdir()
    for label, channels in (("G_A", (3, 1)), ("G_B", (1, 3))):
        net = generator("resnet_6blocks", *channels, norm="batch", dropout=True)
        torch.save(net.state_dict(), run_dir / f"latest_net_{label}.pth")
    argv = ["--checkpoints_dir", str(tmp_path), "--name", "upstream", "--results_dir", str(tmp_path / "results")]
    for flags in ([], ["--model", "test"], ["--model", "test", "--direction", "BtoA"]):
        assert testing.main([*argv, "--dataroot", str(tiny_data), "--num_test", "1", *flags]) == 0
        shown = capsys.readouterr().out
        assert "inferred from the weights: netG=resnet_6blocks, input_nc=3, output_nc=1" in shown
        assert ("latest_net_G_B.pth" in shown) == ("BtoA" in flags or not flags)
    (run_dir / "latest_net_G_A.pth").rename(run_dir / "latest_net_G.pth")
    (run_dir / "latest_net_G_B.pth").unlink()
    assert testing.main([*argv, "--dataroot", str(tiny_data), "--model", "test", "--direction", "BtoA"]) == 0
    assert "latest_net_G.pth" in capsys.readouterr().out, "the requested direction is assumed to be that of training"


def test_results_have_the_size_of_their_images(tmp_path, tiny_data, capsys):
    """All six images of cycle_gan, where A and B differ and neither fits a U-Net."""
    run_dir = tmp_path / "sizes"
    run_dir.mkdir()
    for label in ("G_A", "G_B"):
        torch.save(generator("unet_128").state_dict(), run_dir / f"latest_net_{label}.pth")
    for side, size in (("A", (40, 36)), ("B", (24, 52))):
        (tmp_path / f"test{side}").mkdir()
        draw_shapes(side, size).save(tmp_path / f"test{side}" / "1.png")
    argv = ["--checkpoints_dir", str(tmp_path), "--name", "sizes", "--results_dir", str(tmp_path / "results")]
    assert testing.main([*argv, "--dataroot", str(tmp_path), "--preprocess", "none"]) == 0
    assert "weights do not show whether dropout was used: running without it" in capsys.readouterr().out
    sizes = {}
    for path in (tmp_path / "results").rglob("1_*.png"):
        with Image.open(path) as image:
            sizes[path.stem[2:]] = image.size
    of_A = dict.fromkeys(("real_A", "fake_B", "rec_A"), (40, 36))
    assert sizes == of_A | dict.fromkeys(("real_B", "fake_A", "rec_B"), (24, 52))
