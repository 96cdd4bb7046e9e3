"""scripts.translate: files and folders."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import test as testing
from inference import Translator
from models.networks import GENERATORS
from options.test_options import TestOptions
from scripts import translate
from tests.conftest import draw_shapes
from tests.test_cli import ONE_THREAD, ROOT, train
from tests.test_scans import write_scene


@pytest.fixture
def file(tmp_path):
    """The weights of a generator."""
    torch.save(GENERATORS["resnet_6blocks"](3, 3, ngf=8).state_dict(), tmp_path / "net.pth")
    return tmp_path / "net.pth"


def test_script_takes_the_generator_of_a_run(tiny_data, tmp_path):
    run = train(tmp_path, "--dataroot", tiny_data, "--n_epochs_decay", "0", "--max_dataset_size", "1", "--lr", "0.1")
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--device", "cpu"]
    source = tiny_data / "testA" / "0.png"
    assert translate.main([str(source), str(tmp_path / "a.png"), *places]) == 0
    assert translate.main([str(source), str(tmp_path / "b.png"), *places, "--direction", "BtoA"]) == 0
    with Image.open(source) as image:
        for name, direction in (("a", "AtoB"), ("b", "BtoA")):
            with Image.open(tmp_path / f"{name}.png") as made:
                assert made.tobytes() == Translator.load(run, direction=direction, device="cpu")(image).tobytes()
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()
    for flag in ("value_range", "value_range_A", "value_range_B"):
        with pytest.raises(ValueError, match=f"--{flag} 0,9: these images have 8 bits"):
            translate.main([str(source), str(tmp_path / "a.png"), *places, f"--{flag}", "0,9"])


def test_script_translates_an_image(file, tiny_data, tmp_path):
    source = tiny_data / "testA" / "3.jpg"
    argv = [str(source), str(tmp_path / "new" / "out.png"), "--weights", str(file)]
    assert translate.main([*argv, "--device", "cpu"]) == 0
    with Image.open(source) as image, Image.open(tmp_path / "new" / "out.png") as made:
        assert made.tobytes() == Translator.load(file, device="cpu")(image).tobytes()
    (tmp_path / "folder").mkdir()
    assert translate.main([argv[0], str(tmp_path / "folder"), *argv[2:]]) == 0
    assert (tmp_path / "folder" / "3.png").is_file()


def test_script_translates_a_folder(file, tiny_data, tmp_path, capsys):
    images = tmp_path / "in"
    for name in ("1.png", "sub/1.png", "sub/2.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        draw_shapes(name, (21, 18)).save(images / name)
    assert translate.main([str(images), str(tmp_path / "out"), "--weights", str(file)]) == 0
    assert "3 translated" in capsys.readouterr().out
    made = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert made == {"1.png", "sub/1.png", "sub/2.png"}
    draw_shapes("same stem").save(images / "1.jpg")
    shutil.rmtree(tmp_path / "out")
    assert translate.main([str(images), str(tmp_path / "out"), "--weights", str(file)]) == 0
    made = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert made == {"1.png.png", "1.jpg.png", "sub/1.png.png", "sub/2.png.png"}


def test_names_that_some_disks_cannot_tell_apart_keep_their_suffixes(tmp_path):
    for name in ("a.png", "A.jpg"):
        draw_shapes(name).save(tmp_path / name)
    targets = {target.name for _, target in translate.plan(tmp_path, Path("out"))}
    assert targets == {"a.png.png", "A.jpg.png"}


def test_a_result_that_is_not_finite_is_no_image(tmp_path):
    net = GENERATORS["resnet_6blocks"](3, 3, ngf=8)
    next(net.parameters()).data[0] = torch.nan
    torch.save(net.state_dict(), tmp_path / "nan.pth")
    draw_shapes("photo").save(tmp_path / "in.png")
    argv = [str(tmp_path / "in.png"), str(tmp_path / "out.png"), "--weights", str(tmp_path / "nan.pth")]
    for flags in ([], ["--tile", "32"]):
        with pytest.raises(ValueError, match=r"in\.png: the result is not finite"):
            translate.main([*argv, *flags])
    flags = ["--dataroot", str(tmp_path), "--results_dir", str(tmp_path / "results")]
    with pytest.raises(ValueError, match=r"in\.png: the result is not finite"):
        testing.main(["--weights", str(tmp_path / "nan.pth"), *flags])
    assert not (tmp_path / "out.png").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("in.png", "in.png", "would replace the file"),
        ("in.png", ".", "would replace the file"),
        ("in.png", "link.png", "would replace the file"),
        ("in.png", "out.gif", "is not the name of an image file"),
        ("nothing.png", "out.png", "there is no such image"),
        ("folder", "folder/out", "lies in"),
        ("folder", "in.png", "give two files or two folders"),
        ("empty", "out", "has no images"),
    ],
)
def test_script_refuses_to_overwrite_and_to_guess(source, target, message, tmp_path):
    draw_shapes("in").save(tmp_path / "in.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "in.png")
    for folder in ("folder", "empty"):
        (tmp_path / folder).mkdir()
    draw_shapes("in").save(tmp_path / "folder" / "1.png")
    with pytest.raises(ValueError, match=message):
        translate.plan(tmp_path / source, tmp_path / target)


@pytest.mark.parametrize("flags", [[], ["--name", "a", "--weights", "b.pth"]])
def test_script_needs_one_generator(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        translate.main(["in.png", "out.png", *flags])
    assert ended.value.code == 2
    assert "either a run by --name, or a file by --weights" in capsys.readouterr().err


def test_script_ends_with_status_2(tmp_path):
    draw_shapes("in").save(tmp_path / "in.png")
    command = [
        sys.executable,
        "-m",
        "scripts.translate",
        str(tmp_path / "in.png"),
        str(tmp_path / "out.png"),
        "--name",
        "nothing",
    ]
    done = subprocess.run(command, cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no run 'nothing'" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out.png").exists()


def test_script_keeps_the_depth_of_the_image(file, tmp_path):
    deep = np.arange(400, dtype=np.uint16).reshape(20, 20) * 100
    (tmp_path / "in").mkdir()
    Image.fromarray(deep).save(tmp_path / "in" / "deep.png")
    assert translate.main([str(tmp_path / "in"), str(tmp_path / "out"), "--weights", str(file)]) == 0
    made = tifffile.imread(tmp_path / "out" / "deep.tif")
    assert made.dtype == np.uint16 and made.shape == (20, 20, 3)
    x = torch.from_numpy(deep.astype(np.float32) / 65535 * 2 - 1).expand(3, -1, -1)
    expected = (Translator.load(file)(x) + 1) / 2 * 65535
    assert np.abs(made - expected.permute(1, 2, 0).cpu().numpy()).max() < 2


@pytest.mark.parametrize("tiles", [[], ["--tile", "16"]])
def test_a_deep_result_does_not_replace_its_source(tiles, file, tmp_path):
    source = tmp_path / "in" / "deep.tif"
    source.parent.mkdir()
    tifffile.imwrite(source, np.zeros((20, 20, 3), np.uint16), photometric="rgb")
    before = source.read_bytes()
    with pytest.raises(ValueError, match=r"deep.tif would replace the file that it is made from"):
        translate.main([str(source), str(source.parent), "--weights", str(file), *tiles])
    assert source.read_bytes() == before


def test_results_of_equal_stems_have_names_of_their_own(file, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(tmp_path / "in" / "x.png")
    write_scene(tmp_path / "in" / "x.tif", "uint16", 0, bands=3)
    assert translate.main([str(tmp_path / "in"), str(tmp_path / "out"), "--weights", str(file)]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"x.png.tif", "x.tif"}


def test_script_takes_the_range_of_values_of_the_run(file, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    flags = ["--model", "test", "--name", "run", "--netG", "resnet_6blocks", "--ngf", "8", "--value_range", "0,4095"]
    TestOptions().parse([*flags, "--dataroot", str(tmp_path)]).save(run)
    (run / "test_opt.json").rename(run / "train_opt.json")
    file.rename(run / "latest_net_G.pth")
    translator = Translator.load(run, device="cpu")
    assert translator.value_range == (0, 4095)
    deep = np.arange(400, dtype=np.uint16).reshape(20, 20) * 10
    Image.fromarray(deep).save(tmp_path / "deep.png")
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--device", "cpu"]
    for number, (flags, top) in enumerate((([], 4095), (["--value_range", "0,9000"], 9000))):
        out = tmp_path / f"out{number}"
        assert translate.main([str(tmp_path / "deep.png"), str(out), *places, *flags]) == 0
        fake = translator(torch.from_numpy(deep.astype(np.float32) / top * 2 - 1).expand(3, -1, -1))
        made = torch.from_numpy(tifffile.imread(out / "deep.tif").astype(np.float32)).permute(2, 0, 1)
        torch.testing.assert_close(made, (fake + 1) / 2 * top, atol=2, rtol=0)


def test_script_refuses_a_range_of_8_bits_and_other_channels(file, tmp_path):
    draw_shapes("in").save(tmp_path / "in.png")
    argv = [str(tmp_path / "out.png"), "--weights", str(file)]
    with pytest.raises(ValueError, match="--value_range 0,9: these images have 8 bits"):
        translate.main([str(tmp_path / "in.png"), *argv, "--value_range", "0,9"])
    np.save(tmp_path / "in.npy", np.zeros((20, 20, 5), np.uint16))
    with pytest.raises(ValueError, match=r"in\.npy has 5 channels, but the network takes 3\.") as caught:
        translate.main([str(tmp_path / "in.npy"), *argv])
    assert caught.value.remedy == {}  # --input_nc is not a flag of the script
