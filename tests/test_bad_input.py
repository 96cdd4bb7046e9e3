"""Damaged images, names that lead elsewhere, places that cannot be written: one clear error, or skipped."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import test as testing
import train as training
from data import create_dataset
from data.image_file import describe, image_size, read_image
from data.image_folder import DataError
from options.base_options import read_saved
from options.test_options import TestOptions
from options.train_options import TrainOptions
from tests.conftest import draw_shapes
from tests.helpers import PATIENCE
from tests.test_cli import ONE_THREAD, ROOT, TINY, script
from util.command import writing

OPTIONS = {"train": TrainOptions, "test": TestOptions}


def damage_and_read(count):
    """The output of tests.damage as a dict. It runs in its own process, which may crash, hang or take all memory."""
    command = [sys.executable, "-m", "tests.damage", str(count)]
    done = subprocess.run(
        command, cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    return {name: float(number) for name, _, number in (line.rpartition(" ") for line in done.stdout.splitlines())}


@pytest.mark.parametrize("count", [96, pytest.param(1000, marks=pytest.mark.faults)])
def test_every_damaged_image_is_read_right_or_named(count):
    found = damage_and_read(count)
    assert found["total"] == count
    assert found["memory"] < 1500, "MiB, of which torch takes some hundred"
    for kind in ("truncated", "flipped", "zeroed", "empty", "garbage", "huge"):
        assert found[f"{kind} refused"] > 0
    for kind in ("palette", "cmyk", "alpha", "bits", "rotated", "renamed"):
        assert f"{kind} refused" not in found


def test_a_png_with_a_wrong_checksum_is_refused(tmp_path):
    draw_shapes("a").save(tmp_path / "a.png", compress_level=0)
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[500] ^= 1  # one bit of one pixel
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(
        DataError, match=r"^Cannot read the image .*a\.png \(.*\): replace or remove this file\.$"
    ) as caught:
        read_image(tmp_path / "a.png")
    assert caught.value.remedy == {"skip_bad_images": True}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in this file system")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for read in (read_image, image_size, describe):
        with pytest.raises(DataError, match=r"a\.png .*not a file"):
            read(tmp_path / "a.png")


def test_only_image_formats_are_tried(tmp_path):
    draw_shapes("a").save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(DataError, match="cannot identify"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".bmp"])
def test_a_wrong_suffix_does_not_matter(suffix, tmp_path):
    draw_shapes("a").save(tmp_path / f"a{suffix}")
    (tmp_path / f"a{suffix}").rename(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg").size == (40, 36)
    assert describe(tmp_path / "a.jpg").startswith(suffix[1:].upper())


# ---- --skip_bad_images


@pytest.fixture
def damaged_data(tiny_data, tmp_path):
    """`tiny_data`, but 1.png of trainA and testA is truncated."""
    root = tmp_path / "data"
    shutil.copytree(tiny_data, root)
    for folder in ("trainA", "testA"):
        path = root / folder / "1.png"
        path.write_bytes(path.read_bytes()[:100])
    return root


def flags_of(which, dataroot, *flags):
    sizes = ["--load_size", "28", "--crop_size", "24", "--device", "cpu"]
    return OPTIONS[which]().parse(["--dataroot", str(dataroot), *sizes, *flags])


@pytest.mark.parametrize("which", ["train", "test"])
def test_a_bad_image_stops_a_run_unless_it_is_skipped(which, damaged_data, capsys):
    loader = create_dataset(flags_of(which, damaged_data))
    with pytest.raises(DataError, match=rf"{which}A/1\.png .*replace or remove this file\.$"):
        list(loader)
    loader = create_dataset(flags_of(which, damaged_data, "--skip_bad_images"))
    assert re.search(rf"1 of 5 images are skipped:\n  .*{which}A/1\.png \(", capsys.readouterr().out)
    batches = list(loader)
    assert {Path(batch["A_paths"][0]).name for batch in batches} == {"0.png", "2.png", "3.jpg", "4.jpg"}
    if which == "test":  # pairs of one name stay pairs
        assert all(Path(batch["A_paths"][0]).name == Path(batch["B_paths"][0]).name for batch in batches)


@pytest.mark.parametrize(
    ("mode", "bad", "reason", "flags"),
    [
        ("single", lambda path: Image.new("RGB", (10, 50)).save(path), "too small", ["--preprocess", "crop"]),
        ("template", lambda path: path.write_bytes(b""), "cannot identify", []),
        ("colorization", lambda path: path.write_bytes(b""), "cannot identify", []),
        ("aligned", lambda path: Image.new("RGB", (41, 40)).save(path), "odd number", []),
    ],
)  # fmt: skip
def test_every_dataset_skips_images_that_it_cannot_use(mode, bad, reason, flags, tmp_path, capsys):
    (tmp_path / "train").mkdir()
    for name in ("a.png", "b.png"):
        draw_shapes(name).save(tmp_path / "train" / name)
    bad(tmp_path / "train" / "c.png")
    loader = create_dataset(flags_of("train", tmp_path, "--dataset_mode", mode, "--skip_bad_images", *flags))
    assert len(list(loader)) == 2
    assert reason in capsys.readouterr().out
    for name in ("a.png", "b.png"):
        (tmp_path / "train" / name).unlink()
    with pytest.raises(DataError, match=rf"None of 1 images can be used\. .*c\.png.*{reason}"):
        create_dataset(flags_of("train", tmp_path, "--dataset_mode", mode, "--skip_bad_images", *flags))


@pytest.mark.parametrize("flags", [["--dataset_mode", "aligned"], ["--dataset_mode", "unaligned", "--serial_batches"]])
def test_without_a_whole_pair_there_is_no_training(flags, tmp_path):
    for folder, bad in (("trainA", "1.png"), ("trainB", "2.png")):
        (tmp_path / folder).mkdir()
        for name in ("1.png", "2.png"):
            draw_shapes(name).save(tmp_path / folder / name)
        (tmp_path / folder / bad).write_text("damaged")
    with pytest.raises(DataError, match=r"^No pair of images is left"):
        create_dataset(flags_of("train", tmp_path, *flags, "--skip_bad_images"))


def test_only_the_first_bad_images_are_named(tmp_path, capsys):
    draw_shapes("a").save(tmp_path / "a.png")
    for number in range(9):
        (tmp_path / f"{number}.png").touch()
    create_dataset(flags_of("train", tmp_path, "--dataset_mode", "single", "--skip_bad_images"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "9 of 10 images are skipped:"
    assert len(lines) == 5 and lines[-1] == "  and 6 more"


# ---- names that lead elsewhere


@pytest.mark.parametrize("flag", ["--name", "--epoch", "--phase"])
@pytest.mark.parametrize("value", ["../../x", "/x", "..", ".", "", "a/b", "a\\b", "a\nb"])
@pytest.mark.parametrize("which", ["train", "test"])
def test_names_stay_in_their_folder(which, flag, value, capsys):
    with pytest.raises(SystemExit):
        OPTIONS[which]().parse([f"{flag}={value}"])
    assert f"argument {flag}: {value!r} is not a plain name" in capsys.readouterr().err


def test_saved_options_do_not_choose_where_results_go(tmp_path):
    (tmp_path / "train_opt.json").write_text('{"results_dir": "/elsewhere", "name": "../x", "netG": "unet_128"}')
    opt = TestOptions().parse(["--name", "run"], read_saved(tmp_path))
    assert (opt.results_dir, opt.name, opt.netG) == ("./results/", "run", "unet_128")


# ---- places that cannot be written


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    """A folder of runs with one, called run."""
    folder = tmp_path_factory.mktemp("checkpoints")
    flags = ["--dataroot", str(tiny_data), "--max_dataset_size", "1", "--no_html"]
    assert training.main(["--checkpoints_dir", str(folder), "--name", "run", *TINY, *flags]) == 0
    return folder


@pytest.mark.parametrize("place", ["file/x", "/proc/x"])
def test_a_place_that_cannot_be_made_is_named(place, trained, tiny_data, tmp_path):
    (tmp_path / "file").touch()
    place = tmp_path / place
    with pytest.raises(OSError, match=rf"^Cannot write {place.parent}.*choose another --checkpoints_dir\.$"):
        training.main(["--checkpoints_dir", str(place), "--dataroot", str(tiny_data), *TINY])
    with pytest.raises(OSError, match=rf"^Cannot write {place.parent}.*choose another --results_dir\.$"):
        testing.main(["--checkpoints_dir", str(trained), "--name", "run", "--results_dir", str(place)])


def test_the_error_is_one_line_and_the_status_not_0(trained, tmp_path):
    (tmp_path / "file").touch()
    flags = ["--checkpoints_dir", trained, "--name", "run", "--results_dir", tmp_path / "file"]
    done = script("test.py", *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"test\.py: error: Cannot write .*choose another --results_dir\.\n", done.stderr)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("which", ["train", "test"])
def test_a_full_disk_is_named(which, trained, tiny_data, tmp_path):
    if which == "train":
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "loss_log.txt").symlink_to("/dev/full")
        flags = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--dataroot", str(tiny_data), *TINY]
        main, folder = training.main, tmp_path / "run"
    else:
        folder = tmp_path / "run" / "test_latest"
        (folder / "images").mkdir(parents=True)
        (folder / "images" / "0_real_A.png").symlink_to("/dev/full")
        flags = ["--checkpoints_dir", str(trained), "--name", "run", "--results_dir", str(tmp_path)]
        main = testing.main
    with pytest.raises(OSError, match=rf"Cannot write {folder}.* \(No space left on device\): "):
        main(flags)


def test_errors_of_other_places_are_left_alone(tmp_path):
    with pytest.raises(FileNotFoundError), writing("--results_dir", tmp_path / "results"):
        (tmp_path / "other").read_bytes()
    with pytest.raises(ConnectionError), writing("--results_dir", tmp_path / "results"):
        raise ConnectionResetError
