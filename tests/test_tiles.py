"""Images in tiles: the result of the whole image, in bounded memory."""

import copy
import itertools
import logging

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import test as testing
from inference import Translator
from inference.tile_maps import Kept, Positions
from inference.tiles import InMemory, Tiled, crop, mirrored
from inference.trained import prepare
from models.networks import GENERATORS
from models.networks.any_size import AnySize, reflect
from models.networks.layers import init_weights, spectral_normalize
from models.networks.resnet import ResnetGenerator
from models.networks.unet import UnetGenerator
from scripts import translate
from tests.conftest import draw_shapes


def resnet(**keywords):
    return ResnetGenerator(3, 3, **{"n_blocks": 2, "ngf": 8, "attention": ["block1"], **keywords})


def unet(**keywords):
    return UnetGenerator(3, 3, **{"n_downs": 5, "ngf": 8, "attention": ["bottleneck"], **keywords})


def generator(make=resnet, *, spectral=False, evaluate=False, **keywords):
    torch.manual_seed(0)
    net = init_weights(make(**keywords), "xavier", 1.0)
    for name, parameter in net.named_parameters():
        if name.endswith("gamma"):
            parameter.data.fill_(0.5)
    if spectral:
        spectral_normalize(net)
    return prepare(net, torch.device("cpu"), evaluate=evaluate)


def image(*size, batch=1):
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize("resample", ["deconv", "nearest", "blur"])
@pytest.mark.parametrize("make", [resnet, unet])
def test_tiles_give_the_result_of_the_whole_image(make, resample, norm):
    """Of sizes that divide by nothing, padded by more than a tile."""
    net, x = generator(make, resample=resample, norm=norm), image(67, 141, batch=2)
    expected = net(x)
    for tile, overlap in ((32, 16), (45, 0)):
        made = Tiled(net, tile=tile, overlap=overlap)(x)
        torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.01, "the test compares something"


@pytest.mark.parametrize("keywords", [{"spectral": True}, {"evaluate": True, "norm": "batch", "dropout": True}])
def test_more_networks_in_tiles(keywords):
    net, x = generator(**keywords), image(50, 71)
    torch.testing.assert_close(Tiled(net, tile=32)(x), net(x), atol=1e-4, rtol=0)


def test_tiles_are_closer_to_float64_than_the_whole_image_is():
    """Statistics are added up in float64. Instance norm in channels_last sums up squares in float32."""
    net, x = generator(n_blocks=6), image(61, 83)
    exact = copy.deepcopy(net).double()(x.double())
    assert (Tiled(net, tile=32)(x) - exact).abs().max() < 1e-4


@pytest.mark.parametrize("size", [(3, 2), (9, 70)])
def test_small_images_in_tiles(size):
    net, x = generator(), image(*size)
    torch.testing.assert_close(Tiled(net, tile=16)(x), net(x), atol=1e-4, rtol=0)


def test_tiles_leave_no_seams():
    """The gradients across borders of tiles are those of the whole image. With statistics of their own they are not."""
    net, x = generator(), image(160, 160) * torch.linspace(0, 1, 160)  # contrast grows to the right

    def across_borders(made):
        return made.diff(dim=3).abs().mean((0, 1, 2))[39::40]

    expected = across_borders(net(x))
    torch.testing.assert_close(across_borders(Tiled(net, tile=40)(x)), expected, atol=1e-4, rtol=0)
    alone = torch.cat([net(part) for part in x.split(40, 3)], 3)
    assert (across_borders(alone) - expected).abs().max() > 0.05


def test_attention_over_large_images_sees_averages(caplog):
    """A map whose squares are constant has the same attention from averages as from all positions."""
    net = AnySize(ResnetGenerator(3, 3, n_blocks=1, ngf=8, norm="none", attention=["block1"]).eval())
    torch.manual_seed(0)
    init_weights(net, "xavier", 1.0)
    net.requires_grad_(False)
    net.net.attention["block1"].gamma.fill_(0.5)
    x = torch.full((1, 3, 100, 76), 0.3)
    x[:, :, 60:] = -0.5
    made = []
    with caplog.at_level(logging.INFO, logger="inference.tile_maps"):
        tiled = Tiled(net, tile=32)
        result = torch.empty_like(x)
        tiled.run(InMemory(x), lambda box, window: crop(result, box).copy_(window), keys=80)
        made.append(result)
    assert "25 x 19 positions: averages of 3 x 3" in caplog.text
    torch.testing.assert_close(made[0], net(x), atol=5e-3, rtol=0)


def test_a_key_for_several_positions_has_their_weight():
    """In float64, with the softmax written out: the last row and column of squares hold fewer positions."""
    from models.networks.attention import SelfAttention2d

    torch.manual_seed(0)
    block = SelfAttention2d(8).double().requires_grad_(False)
    block.gamma.fill_(1.0)
    squares = torch.randn(1, 8, 2, 2, dtype=torch.float64)
    x = squares.repeat_interleave(3, 2).repeat_interleave(3, 3)[:, :, :5, :4]
    positions = Positions(block, x.shape, keys=4)
    assert positions.granularity() == 3
    positions.add(x, ((0, 5), (0, 4)))
    torch.testing.assert_close(positions.cells.double(), squares, atol=1e-6, rtol=0)
    positions.cells = squares
    torch.testing.assert_close(positions.finish(torch.device("cpu"))(x), block(x), atol=1e-6, rtol=0)


def test_padding_reflects_like_the_whole_image():
    for side, padded in ((1, 4), (2, 9), (7, 8), (5, 32)):
        line = torch.arange(side)
        expected = reflect(line.float().view(1, 1, 1, side), (1, padded)).flatten()
        assert mirrored((0, padded), side).tolist() == expected.tolist()


def test_kept_maps_are_read_in_windows(tmp_path):
    kept, x = Kept(tmp_path / "map", (2, 3, 10, 8)), torch.randn(2, 3, 10, 8)
    for rows, columns in itertools.product(((0, 6), (6, 10)), ((0, 5), (5, 8))):
        kept.write((rows, columns), crop(x, (rows, columns)))
    assert torch.equal(kept.read(((3, 9), (2, 7))), x[:, :, 3:9, 2:7])
    assert (tmp_path / "map").stat().st_size == x.numel() * 4


def test_no_room_for_the_maps_is_an_error(monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"0.0 GiB free, but the feature maps of an image of 71x50 pixels take .* TMPDIR"):
        Tiled(generator(), tile=32)(image(50, 71))


def test_dropout_does_not_run_in_tiles():
    with pytest.raises(ValueError, match="dropout draws other values in each tile: turn it off by --eval"):
        Tiled(generator(dropout=True), tile=32)


@pytest.fixture
def file(tmp_path):
    """The weights of a generator."""
    net = generator(GENERATORS["resnet_6blocks"], input_nc=3, output_nc=3, ngf=8, attention=["block3"])
    torch.save(net.net.state_dict(), tmp_path / "net.pth")
    return tmp_path / "net.pth"


def test_translator_in_tiles(file):
    photo = draw_shapes("photo", (83, 61))
    whole = np.asarray(Translator.load(file, device="cpu")(photo), int)
    tiled = np.asarray(Translator.load(file, device="cpu", tile=32, tile_overlap=16)(photo), int)
    assert np.abs(whole - tiled).max() <= 1


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        ("uint8", {}),
        ("uint16", {"tile": (32, 32), "compression": "zlib"}),
        ("float32", {"rowsperstrip": 7, "compression": "zlib", "predictor": True}),
        ("uint8", {"compression": "lzw"}),
    ],
)
def test_script_reads_and_writes_windows(file, tmp_path, dtype, layout, capsys):
    """Files of every depth become what they become as whole images."""
    pixels = np.asarray(draw_shapes("photo", (83, 61)))
    pixels = (pixels / 255 * {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]).astype(dtype)
    tifffile.imwrite(tmp_path / "in.tif", pixels, photometric="rgb", **layout)
    made = []
    for flags in ([], ["--tile", "32", "--tile_overlap", "16"]):
        argv = [str(tmp_path / "in.tif"), str(tmp_path / "out.tif"), "--weights", str(file), "--device", "cpu"]
        assert translate.main([*argv, *flags]) == 0
        made.append(tifffile.imread(tmp_path / "out.tif"))
    assert made[0].dtype == made[1].dtype == dtype and made[0].shape == made[1].shape
    tolerance = {"uint8": 2, "uint16": 400, "float32": 6e-3}[
        dtype
    ]  # the whole image in float32 is this far from float64
    assert np.abs(made[0].astype(float) - made[1].astype(float)).max() <= tolerance


def test_script_takes_other_files_whole(file, tmp_path):
    draw_shapes("photo", (83, 61)).save(tmp_path / "in.png")
    for name, flags in (("whole.png", []), ("tiled.png", ["--tile", "32"])):
        argv = [str(tmp_path / "in.png"), str(tmp_path / name), "--weights", str(file), "--device", "cpu"]
        assert translate.main([*argv, *flags]) == 0
    with Image.open(tmp_path / "whole.png") as whole, Image.open(tmp_path / "tiled.png") as tiled:
        assert np.abs(np.asarray(whole, int) - np.asarray(tiled, int)).max() <= 1


def test_deep_windows_do_not_become_png(file, tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", np.zeros((40, 40, 3), np.uint16), photometric="rgb")
    argv = ["--weights", str(file), "--device", "cpu", "--tile", "32"]
    with pytest.raises(ValueError, match=r"out.png: .png cannot hold 3 channels of uint16: use .tif"):
        translate.main([str(tmp_path / "in.tif"), str(tmp_path / "out.png"), *argv])
    (tmp_path / "photos").mkdir()
    (tmp_path / "in.tif").rename(tmp_path / "photos" / "in.tif")
    assert translate.main([str(tmp_path / "photos"), str(tmp_path / "out"), *argv]) == 0
    assert tifffile.imread(tmp_path / "out" / "in.tif").dtype == np.uint16


def test_windows_of_an_unknown_range_name_their_values(file, tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", np.arange(-700, 900).astype(np.int16).reshape(40, 40))
    argv = ["--weights", str(file), "--device", "cpu", "--tile", "32"]
    with pytest.raises(ValueError, match="holds int16 values from -700 to 899, and value_range is not set"):
        translate.main([str(tmp_path / "in.tif"), str(tmp_path / "out.tif"), *argv])


def test_test_py_in_tiles(file, tmp_path, tiny_data):
    argv = ["--weights", str(file), "--dataroot", str(tiny_data / "testA"), "--preprocess", "none", "--num_test", "1"]
    made = []
    for name, flags in (("whole", []), ("tiled", ["--tile", "24", "--tile_overlap", "8"])):
        assert testing.main([*argv, "--results_dir", str(tmp_path / name), *flags]) == 0
        (path,) = (tmp_path / name).rglob("*_fake.png")
        with Image.open(path) as result:
            made.append(np.asarray(result, int))
    assert np.abs(made[0] - made[1]).max() <= 1


@pytest.mark.parametrize("main", [testing.main, translate.main], ids=["test", "translate"])
def test_an_overlap_without_tiles_is_refused(main, file, capsys):
    argv = ["a.png", "b.png"] if main is translate.main else []
    with pytest.raises(SystemExit):
        main([*argv, "--weights", str(file), "--tile_overlap", "8"])
    assert "--tile_overlap 8 needs --tile" in capsys.readouterr().err
