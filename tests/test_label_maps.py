"""Domains of label maps: classes stay classes in every entrance, and results are label maps of the same kind."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import test as testing
import train as training
from data import create_dataset
from data.arrays import read_label_map
from data.image_folder import DataError
from data.reductions import reductions
from data.transforms import Transform
from inference import Translator
from scripts import demo, translate
from scripts import export as exporting
from tests.conftest import draw_shapes
from tests.test_cli import TINY, train
from tests.test_data import opt_test, opt_train
from util import label_maps
from util.images import PixelFormat, read_formats

COLORS = {0: "#000000", 3: "#ff0000", 9: "#00ff80"}  # value in files -> color in a palette
KINDS = {
    "palette": ("0#000000", "3#ff0000", "9#00ff80"),
    "gray": ("0", "3", "9"),
    "deep": ("0", "3", "900"),
    "rgb": ("#000000", "#00ff80", "#ff0000"),
}


def label_map(kind: str, seed: int, size: tuple[int, int] = (40, 36), values=tuple(COLORS)) -> Image.Image:
    """Blocks of the classes of a kind; the first ones have all of them."""
    generator = np.random.default_rng(seed)
    blocks = generator.choice(values, (size[1] // 4, size[0] // 4))
    blocks[0, : len(values)] = values
    numbers = np.kron(blocks, np.ones((4, 4), int)).astype(np.uint8)
    if kind == "gray":
        return Image.fromarray(numbers)
    if kind == "deep":
        return Image.fromarray(np.where(numbers == 9, np.uint16(900), numbers))
    image = Image.fromarray(numbers)
    image.putpalette([byte for value in range(256) for byte in bytes.fromhex(COLORS.get(value, "#123456")[1:])])
    return image if kind == "palette" else image.convert("RGB")


def write_domains(root, kind, phases=("train", "test")):
    """Color images in A and label maps in B, two each, of the same names."""
    for phase in phases:
        for number in range(2):
            for domain, image in (("A", draw_shapes(f"{phase}{number}")), ("B", label_map(kind, number))):
                path = root / f"{phase}{domain}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)


def run_of(root, kind, *flags):
    """A run on label maps in B, and the flags that find it."""
    write_domains(root / "data", kind)
    run = train(
        root, "--dataroot", root / "data", "--label_B", "--n_epochs_decay", "0", "--netD", "pixel", "--no_html", *flags
    )
    return run, ["--checkpoints_dir", str(root), "--name", "run", "--device", "cpu"]


def assert_label_map(path, planes, kind):
    """Assert that a file is the label map of planes (C, H, W), of the kind of the training images."""
    classes = KINDS[kind]
    array, palette = read_label_map(path)
    assert np.array_equal(array, label_maps.to_values(planes.argmax(0).numpy(), classes)), path
    if kind == "palette":
        assert palette is not None and [palette[value] for value in COLORS] == list(COLORS.values())
    else:
        assert palette is None and array.dtype == (np.uint16 if kind == "deep" else np.uint8)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_entrance_reads_and_writes_label_maps(kind, tmp_path):
    run, places = run_of(tmp_path, kind, "--lambda_identity", "0")
    fmt = PixelFormat(classes=KINDS[kind])
    assert read_formats(run) == {"A": PixelFormat(), "B": fmt}
    options = json.loads((run / "train_opt.json").read_text())
    assert (options["input_nc"], options["output_nc"], options["label_B"]) == (3, 3, list(KINDS[kind]))

    results = tmp_path / "results"
    plain = ["--results_dir", str(results), "--preprocess", "none"]
    assert testing.main([*places, *plain]) == 0
    images = results / "run" / "test_latest" / "images"
    there, back = (Translator.load(run, direction=direction, device="cpu") for direction in ("AtoB", "BtoA"))
    suffix = ".tif" if kind in ("gray", "deep") else ".png"  # beside an image in color
    with Image.open(tmp_path / "data" / "testA" / "0.png") as photo:
        planes = there(torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 127.5 - 1)
        assert_label_map(images / f"0_fake_B{suffix}", planes, kind)
        shown = np.array(Image.open(images / "0_fake_B.png").convert("RGB"))
        assert np.array_equal(shown, label_maps.colors(KINDS[kind])[planes.argmax(0)])
        there(photo).save(tmp_path / "one.png")
        assert_label_map(tmp_path / "one.png", planes, kind)
        values = there(np.array(photo))
        assert np.array_equal(np.atleast_3d(values), label_maps.to_values(planes.argmax(0).numpy(), KINDS[kind]))
    source = tmp_path / "data" / "testB" / "0.png"
    array, palette = read_label_map(source)
    x = label_maps.one_hot(label_maps.to_numbers(array, KINDS[kind], palette), 3)
    made = Image.open(images / "0_fake_A.png")
    assert np.abs(np.array(made) - (back(x) + 1).mul(127.5).permute(1, 2, 0).numpy()).max() <= 0.51
    assert back(label_map(kind, 0)).tobytes() == made.tobytes()
    assert np.array_equal(back(array[..., 0] if array.shape[2] == 1 else array), np.array(made))

    assert translate.main([str(tmp_path / "data" / "testA"), str(tmp_path / "out"), *places]) == 0
    assert_label_map(tmp_path / "out" / "0.png", planes, kind)
    assert translate.main([str(source), str(tmp_path / "photo.png"), *places, "--direction", "BtoA"]) == 0
    assert Image.open(tmp_path / "photo.png").tobytes() == made.tobytes()
    single = ["--model", "test", "--dataroot", str(source.parent), "--direction", "BtoA"]
    assert testing.main([*places, *plain[2:], *single, "--results_dir", str(tmp_path / "single")]) == 0
    found = tmp_path / "single" / "run" / "test_latest" / "images" / "0_fake.png"
    assert Image.open(found).tobytes() == made.tobytes()
    with pytest.raises(ValueError, match="value_range_B 0,9: these images have 8 bits or classes"):
        translate.main(
            [str(source), str(tmp_path / "new.png"), *places, "--direction", "BtoA", "--value_range_B", "0,9"]
        )
    with pytest.raises(ValueError, match=r"label maps are written as \.png"):
        translate.main([str(tmp_path / "data" / "testA" / "0.png"), str(tmp_path / "one.jpg"), *places])
    with pytest.raises(ValueError, match="does not show label maps"):
        demo.main(["--name", "run", "--checkpoints_dir", str(tmp_path), "--device", "cpu"])


def test_tiles_exports_and_resumed_runs_keep_the_classes(tmp_path, capsys):
    run, places = run_of(tmp_path, "palette", "--direction", "BtoA", "--lambda_identity", "0")
    assert "the 3 classes 0#000000 3#ff0000 9#00ff80 in B" in capsys.readouterr().out
    source = tmp_path / "data" / "testB" / "0.png"
    translator = Translator.load(run, device="cpu")
    whole = translator(Image.open(source)).tobytes()
    assert translate.main([str(source), str(tmp_path / "tiles.png"), *places, "--tile", "16"]) == 0
    tiled = np.array(Image.open(tmp_path / "tiles.png")).astype(int)
    assert np.abs(tiled - np.frombuffer(whole, np.uint8).reshape(tiled.shape)).max() <= 1
    for kind in ("onnx", "safetensors"):
        file = tmp_path / f"net.{kind}"
        assert exporting.main([*places[:4], "--out", str(file), "--format", kind]) == 0
        exported = np.array(Translator.load(file)(Image.open(source))).astype(int)
        assert np.abs(exported - np.frombuffer(whole, np.uint8).reshape(tiled.shape)).max() <= 2
    for path in (tmp_path / "data" / "trainB").iterdir():  # fewer classes than before
        label_map("palette", 5, values=(0, 3)).save(path)
    assert training.main([*places, "--continue_train", "--n_epochs", "2", "--label_B"]) == 0
    assert read_formats(run)["B"].classes == KINDS["palette"]
    label_map("palette", 0, values=(0, 3, 4)).save(source)
    for main, argv in ((testing.main, []), (translate.main, [str(source), str(tmp_path / "new.png")])):
        with pytest.raises(DataError, match=r"testB.0\.png holds the class 4#123456, which is none of training: 0#000"):
            main([*argv, *places])


def test_pairs_are_measured_in_color(tmp_path, capsys):
    flags = ["--model", "pix2pix", "--netG", "resnet_6blocks", "--netD", "pixel", "--metrics", "l1"]
    write_domains(tmp_path / "data", "gray")
    run = train(tmp_path, "--dataroot", tmp_path / "data", "--label_B", "--n_epochs_decay", "0", *flags)
    shown = np.array(Image.open(run / "web" / "images" / "epoch001_real_B.png"))
    allowed = {tuple(color) for color in label_maps.colors(KINDS["gray"])}
    assert {tuple(color) for color in shown.reshape(-1, 3)} == allowed
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--device", "cpu"]
    assert testing.main([*places, "--results_dir", str(tmp_path / "results"), "--metrics", "l1"]) == 0
    assert "L1 (0..255)" in capsys.readouterr().out


@pytest.mark.parametrize("preprocess", ["resize_and_crop", "scale_width", "none"])
def test_resizing_keeps_classes(preprocess, tmp_path):
    write_domains(tmp_path, "gray")
    loader = create_dataset(opt_train(tmp_path, "--label_B", "--lambda_identity", "0", "--preprocess", preprocess))
    for index in range(2):
        planes = loader.dataset[1, index]["B"]
        assert set(planes.unique().tolist()) == {-1, 1} and torch.equal(planes.sum(0), torch.full_like(planes[0], -1))
    numbers = torch.arange(64, dtype=label_maps.NUMBERS).view(1, 8, 8)
    small = Transform(load_size=4, crop_size=4, channels=64)(numbers).argmax(0)
    assert torch.equal(small, numbers[0, 1::2, 1::2]), "as Pillow resizes to the nearest pixel"


def test_lost_classes_are_reported(tmp_path):
    write_domains(tmp_path, "gray")
    array = np.array(label_map("gray", 0))
    array[1, 1] = 200
    Image.fromarray(array).save(tmp_path / "trainB" / "0.png")
    opt = opt_train(tmp_path, "--label_B", "--load_size", "24")
    lines = [
        line for line in reductions(create_dataset(opt).dataset, tmp_path, train=True) if "label maps lose" in line
    ]
    assert lines == ["trainB: 1 of 2 label maps lose classes by resizing and cropping, 1 or less: 1 lose 200"]


def test_what_is_no_label_map_is_refused(tmp_path):
    write_domains(tmp_path, "palette")
    noise = Image.effect_noise((40, 36), 90)
    other = label_map("palette", 0)
    other.putpalette([7] * 768)
    clear = Image.new("LA", (40, 36), (3, 9))
    for image, message in (
        (noise, r"0\.png does not look like a label map: it has \d+ values, and label maps have 64 or less"),
        (
            other,
            r"1\.png shows a class as 0#000000, and .*0\.png one as 0#070707: save all label maps with one palette",
        ),
        (label_map("rgb", 0), r"shows a class as #ff0000, and .*1\.png one as 0#000000"),
        (clear, r"Cannot read the image .*0\.png \(has transparent pixels"),
    ):
        image.save(tmp_path / "trainB" / "0.png")
        with pytest.raises(DataError, match=message):
            create_dataset(opt_train(tmp_path, "--label_B"))
    assert create_dataset(opt_train(tmp_path, "--label_B", "--skip_bad_images")).dataset.formats["B"].classes
    for path in (tmp_path / "trainB").iterdir():
        Image.new("L", (40, 36), 5).save(path)
    with pytest.raises(DataError, match="trainB: the number of classes in its images is 1, so"):
        create_dataset(opt_train(tmp_path, "--label_B"))


def test_flags_that_do_not_fit_are_refused(tmp_path, tiny_data, capsys):
    write_domains(tmp_path, "gray")
    with pytest.raises(DataError, match=r"have 3 classes, but the network takes 5 channels: 0 3 9") as caught:
        create_dataset(opt_train(tmp_path, "--label_B", "--output_nc", "5"))
    assert caught.value.remedy == {"output_nc": 3}
    for flags, message in {
        ("--label_B", "7", "#ff0000"): "7 and #ff0000 cannot be classes|#ff0000 and 7 cannot be classes",
        ("--label_B", "cat"): "'cat' is no class",
        ("--label_B", "0", "3"): r"B.\d\.png holds the class 9, which is none of training: 0 3",
        ("--label_B", "--value_range_B", "0,9"): "the images of B have 8 bits or classes",
        ("--label_A", "--dataset_mode", "template"): "--dataset_mode template reads no label maps of A",
        (
            "--label_A",
            "--label_B",
            "--dataset_mode",
            "aligned",
            "--phase",
            "side",
        ): "side by side, as label maps cannot",
    }.items():
        shutil.copytree(tmp_path / "trainA", tmp_path / "side", dirs_exist_ok=True)
        with pytest.raises(DataError, match=message):
            dataset = create_dataset(opt_train(tmp_path, *flags)).dataset
            dataset[0, 0], dataset[0, 1]
    with pytest.raises(DataError, match="--label_B: this run has no classes"):
        create_dataset(opt_test(tmp_path, "--label_B"))
    with pytest.raises(ValueError, match="not classes: add --lambda_identity 0"):
        train(tmp_path, "--dataroot", tmp_path, "--label_B")
    with pytest.raises(ValueError, match="take --model cycle_gan"):
        train(tmp_path, "--dataroot", tmp_path, "--label_B", "--model", "cut")
    with pytest.raises(SystemExit):
        training.main([*TINY, "--model", "sagan", "--label_A"])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data(), kind=st.sampled_from(["gray", "palette", "rgb"]), seed=st.integers(0, 999))
def test_classes_survive_a_round_trip(data, kind, seed):
    top = {"gray": 2**16, "palette": 2**8, "rgb": 2**24}[kind]
    values = data.draw(st.lists(st.integers(0, top - 1), min_size=2, max_size=64, unique=True))
    if kind == "rgb":
        classes = [f"#{value:06x}" for value in values]
    else:
        mark = "#{:06x}" if kind == "palette" else ""
        classes = [f"{value}{mark.format(value * 999)}" for value in values]
    classes = label_maps.checked(label_maps.order(classes))
    numbers = np.random.default_rng(seed).integers(0, len(classes), (5, 4))
    image = label_maps.to_image(label_maps.to_values(numbers, classes), classes)
    array, palette = label_maps.pixels(image)
    assert np.array_equal(label_maps.to_numbers(array, classes, palette), numbers)
    assert set(label_maps.find_classes(array, palette)) == {classes[number] for number in np.unique(numbers)}
    planes = label_maps.one_hot(torch.from_numpy(numbers), len(classes))
    assert np.array_equal(PixelFormat(classes=classes).to_array(planes), label_maps.to_values(numbers, classes))
    shown = label_maps.in_color(planes[None], classes)[0].add(1).mul(127.5).round().permute(1, 2, 0)
    assert np.array_equal(shown, label_maps.colors(classes)[numbers])
