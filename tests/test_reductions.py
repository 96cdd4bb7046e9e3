"""What is lost between files and network is said by all scripts; suffixes of all kinds."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

import test as testing
import train as training
from data import create_dataset
from data.arrays import register_heif
from data.check import Check
from data.image_file import read_image
from data.image_folder import EXTENSIONS, WRITABLE, list_images
from data.reductions import of_sizes, reductions
from data.scans import READABLE
from data.transforms import Transform
from inference import Translator
from scripts import translate
from tests.conftest import COMBINE, draw_shapes
from tests.test_cli import TINY, train
from tests.test_data import opt_test, opt_train
from util.command import SKIPPED
from util.images import write_array

PLAIN = ["--preprocess", "none"]


def lines_of(root, *flags, train=True):
    """The lines about a dataset, without the names of folders."""
    options = opt_train if train else opt_test
    dataset = create_dataset(options(root, "--dataset_mode", "single", *flags)).dataset
    return [line.partition(": ")[2] for line in reductions(dataset, root, train=train)]


def save(path, image, **keywords):
    register_heif()
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **keywords)


def test_nothing_is_lost(tmp_path):
    save(tmp_path / "a.png", draw_shapes("a"))
    assert lines_of(tmp_path, *PLAIN) == []


def test_files_left_out_are_counted_by_suffix(tmp_path):
    for name in ("a.png", "b.txt", "sub/c.txt", "d.svg", "e", ".hidden"):
        save(tmp_path / name, draw_shapes("a"), format="PNG")
    lines = lines_of(tmp_path, *PLAIN)
    assert lines == ["left out, since they are not images that can be read: 2 .txt, 1 .svg, 1 without a suffix"]


def test_sizes(tmp_path):
    for name, size in (("a.png", (80, 40)), ("b.png", (40, 40))):
        save(tmp_path / name, Image.effect_noise(size, 50))
    square = ["--load_size", "30", "--crop_size", "24"]
    assert lines_of(tmp_path, *square) == [
        "the aspect ratio of 1 of 2 images changes 2.00 times or less: 80x40 becomes 30x30",
        "crop_size=24 removes 36% of an image or less, another part of it each time",
    ]
    assert lines_of(tmp_path, *square, train=False)[1:] == [
        "crop_size=24 removes 36% of an image or less, the same part each time"
    ]
    assert lines_of(tmp_path, "--center_crop", "max", "--load_size", "24", "--crop_size", "24") == [
        "center_crop=max removes 50% of an image or less"
    ]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(size=st.tuples(st.integers(40, 400), st.integers(40, 400)), load=st.integers(64, 300), crop=st.integers(1, 64))
def test_scale_width_keeps_proportions(size, load, crop):
    transform = Transform(preprocess="scale_width", load_size=load, crop_size=crop, multiple=1)
    width, height = transform.resized(size)
    assert width == load and height == max(load * size[1] // size[0], 1)
    assert of_sizes([size], Check(read_image, transform), "", train=True) == [] or height < 50


def test_scale_width_of_the_cases():
    assert Transform(preprocess="scale_width", load_size=128, crop_size=256).resized((160, 90)) == (128, 72)
    small = Transform(preprocess="scale_width", load_size=128, crop_size=96, multiple=1)
    assert small.resized((190, 109)) == (128, 73)


def test_opacity_frames_and_colors(tmp_path):
    image = draw_shapes("a").convert("RGBA")
    save(tmp_path / "a.png", image)
    assert lines_of(tmp_path, *PLAIN) == [], "an image without transparent parts loses nothing"
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    save(tmp_path / "b.png", image)
    assert lines_of(tmp_path, *PLAIN) == [
        "1 of 2 images have transparent parts, which become white: 4 channels keep them"
    ]
    assert lines_of(tmp_path, *PLAIN, "--input_nc", "4") == []
    (tmp_path / "b.png").unlink()
    frames = [draw_shapes(str(i)) for i in range(3)]
    save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert lines_of(tmp_path, *PLAIN) == ["1 of 2 files have several frames or pages, of which the first is used"]
    labels = np.zeros((40, 40), np.uint8)
    labels[10:13], labels[20:] = 100, 200
    root = tmp_path / "labels"
    save(root / "a.png", Image.fromarray(labels))
    (line,) = lines_of(root, "--load_size", "24", "--crop_size", "24")
    assert line.startswith("1 of 1 images have few colors, as label maps do, and resizing blends them: 3 become ")


@pytest.mark.parametrize(
    ("values", "flags", "line"),
    [
        (
            (0, 4095),
            (),
            "0 to 65535 become -1 to 1: 6% of the range is used; value_range=0,4095 would use all of it",
        ),
        ((0, 65535), (), ""),
        (
            (0, 4095),
            ("--value_range", "0,1000"),
            "0 to 1000 become -1 to 1: values outside are clipped",
        ),
    ],
)
def test_values(values, flags, line, tmp_path):
    write_array(np.linspace(*values, 1600).reshape(40, 40, 1).astype(np.uint16), tmp_path / "a.tif")
    found = lines_of(tmp_path, *PLAIN, "--input_nc", "1", *flags)
    assert len(found) == bool(line) and all(text == f"values are 0 to 4095, and {line}" for text in found)


def test_every_entrance_says_it(tiny_data, tmp_path, capsys):
    root = tmp_path / "data"
    for folder in ("trainA", "trainB", "testA", "testB"):
        save(root / folder / "0.png", draw_shapes(folder, (80, 40)))
        (root / folder / "0.mov").touch()
    expected = [
        "{}A: left out, since they are not images that can be read: 1 .mov",
        "{}A: the aspect ratio of 1 of 1 images changes 2.00 times or less: 80x40 becomes",
    ]
    flags = ["--dataroot", str(root), "--checkpoints_dir", str(tmp_path), "--name", "run", *TINY]
    assert training.main([*flags, "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert all(shown.index(line.format("train")) < shown.index("ready") for line in expected)
    assert "results have 8 bits" in shown
    train(tmp_path, "--dataroot", root, "--n_epochs_decay", "0")
    shown = capsys.readouterr().out
    assert all(line.format("train") in shown for line in expected) and "\ntrainA: crop_size=32 removes 21%" in shown
    run = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--device", "cpu"]
    assert testing.main([*run, "--results_dir", str(tmp_path / "results")]) == 0
    shown = capsys.readouterr().out
    assert all(line.format("test") in shown for line in expected) and "results have " in shown
    assert translate.main([str(root / "testA"), str(tmp_path / "out"), *run]) == 0
    assert f"{root / 'testA'}: left out" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [suffix for suffix in EXTENSIONS if suffix not in (".npy", *READABLE)])
def test_every_suffix_is_read_everywhere(suffix, tmp_path):
    image = draw_shapes("a", (40, 36))
    save(tmp_path / "in" / f"a{suffix.upper()}", image if suffix != ".pgm" else image.convert("L"))
    (path,) = list_images(tmp_path / "in")
    read = np.asarray(read_image(path)).astype(float)
    wanted = np.asarray(image if suffix != ".pgm" else image.convert("L").convert("RGB"))
    assert np.abs(read - wanted).mean() < 12
    assert lines_of(tmp_path / "in", *PLAIN) == []
    for folder in "AB":
        save(tmp_path / folder / f"1{suffix}", image if suffix != ".pgm" else image.convert("L"))
    assert COMBINE["combine"](tmp_path / "A", tmp_path / "B", tmp_path / "AB") == 1
    (made,) = (tmp_path / "AB").iterdir()
    with Image.open(made) as image:
        assert made.suffix in WRITABLE and image.size == (80, 36)


def test_suffixes_need_what_pillow_was_built_with():
    assert all(features.check(name) for name in ("webp", "avif", "jpg_2000"))


def test_pairs_of_other_suffixes_are_combined(tmp_path):
    save(tmp_path / "A" / "a.jpg", draw_shapes("a"))
    save(tmp_path / "B" / "a.png", draw_shapes("b"))
    assert COMBINE["combine"](tmp_path / "A", tmp_path / "B", tmp_path / "AB") == 1
    with Image.open(tmp_path / "AB" / "a.png") as made:
        assert made.size == (80, 36)


def test_a_run_trains_in_a_thread(tiny_data, tmp_path, capsys):
    status = []
    flags = ["--dataroot", str(tiny_data), "--checkpoints_dir", str(tmp_path), "--name", "run", *TINY]
    flags += ["--max_dataset_size", "1", "--n_epochs_decay", "0"]
    thread = threading.Thread(target=lambda: status.append(training.main(flags)))
    thread.start()
    thread.join()
    assert status == [0]
    assert capsys.readouterr().out.count("not in the main thread: signals do not stop this run") == 1


def test_a_finished_run_says_how_to_train_longer(tiny_data, tmp_path, capsys):
    train(tmp_path, "--dataroot", tiny_data, "--max_dataset_size", "1", "--n_epochs_decay", "0")
    assert "nothing was left to do" not in capsys.readouterr().out
    assert training.main(["--checkpoints_dir", str(tmp_path), "--name", "run", "--continue_train"]) == 0
    assert "nothing was left to do; to train longer, raise its length: python train.py" in capsys.readouterr().out


def test_batch_norm_depends_on_the_batch(tiny_data, tmp_path, capsys):
    train(tmp_path, "--dataroot", tiny_data, "--max_dataset_size", "1", "--n_epochs_decay", "0", "--norm", "batch")
    run = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--results_dir", str(tmp_path), "--num_test", "2"]
    for flags, count in ((["--batch_size", "2"], 1), ([], 0), (["--batch_size", "2", "--eval"], 0)):
        assert testing.main([*run, *flags]) == 0
        assert capsys.readouterr().out.count("so results depend on --batch_size 2: --eval takes") == count


def test_one_image_is_translated_like_a_folder_of_it(tiny_data, tmp_path):
    run = train(tmp_path, "--dataroot", tiny_data, "--max_dataset_size", "1", "--n_epochs_decay", "0")
    save(tmp_path / "in" / "a.webp", draw_shapes("a"), lossless=True)
    weights = ["--weights", str(run / "latest_net_G_A.pth"), "--device", "cpu"]
    assert translate.main([str(tmp_path / "in"), str(tmp_path / "out"), *weights]) == 0
    with Image.open(tmp_path / "out" / "a.png") as made, Image.open(tmp_path / "in" / "a.webp") as image:
        assert made.tobytes() == Translator.load(run, device="cpu")(image.convert("RGB")).tobytes()


def test_skipped_files_are_counted_at_the_end(tiny_data, tmp_path, capsys):
    run = train(tmp_path, "--dataroot", tiny_data, "--max_dataset_size", "1", "--n_epochs_decay", "0")
    save(tmp_path / "in" / "a.png", draw_shapes("a"))
    (tmp_path / "in" / "b.png").write_text("no image")
    weights = ["--weights", str(run / "latest_net_G_A.pth"), "--device", "cpu"]
    test = [*weights, "--dataroot", str(tmp_path / "in"), "--results_dir", str(tmp_path / "results")]
    for main, flags in (
        (translate.main, [str(tmp_path / "in"), str(tmp_path / "out"), *weights]),
        (testing.main, test),
    ):
        with pytest.raises(ValueError, match=r"Cannot read the image .*b\.png"):
            main(flags)
        capsys.readouterr()
        assert main([*flags, "--skip_bad_images"]) == SKIPPED
        last = capsys.readouterr().out.strip().splitlines()[-2:]
        assert last[0].startswith("1 ") and "skipped:" in last[0] and "b.png" in last[1]
