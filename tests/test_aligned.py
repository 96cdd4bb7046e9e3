"""Pairs side by side: the dataset, its errors, and the script that makes such files."""

import numpy as np
import pytest
import torch
from PIL import Image

from data import create_dataset
from data.aligned_dataset import missing_pairs
from data.arrays import read_array
from data.image_folder import DataError, list_images
from options.train_options import TrainOptions
from tests.conftest import COMBINE, draw_shapes

combine, write = COMBINE["combine"], COMBINE["write"]


def aligned(dataroot, *flags):
    sizes = ["--load_size", "28", "--crop_size", "24", "--device", "cpu"]
    flags = ["--dataroot", str(dataroot), "--dataset_mode", "aligned", *sizes, *flags]
    return create_dataset(TrainOptions().parse(flags)).dataset


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


# ---- the dataset


def test_halves_are_the_images_they_were_made_from(tiny_data, paired_data):
    dataset = aligned(paired_data, "--preprocess", "none", "--no_flip")
    unaligned = ["--dataroot", str(tiny_data), "--preprocess", "none", "--no_flip", "--serial_batches"]
    expected = create_dataset(TrainOptions().parse(unaligned)).dataset
    assert len(dataset) == 5 and dataset.sizes["A"].keys() == {(40, 36)}
    for index in range(3):  # the others are JPEG, which is lossy
        sample, parts = dataset[1, index], expected[1, index]
        assert torch.equal(sample["A"], parts["A"]) and torch.equal(sample["B"], parts["B"])
        assert sample["A_paths"] == sample["B_paths"] == str(paired_data / "train" / f"{index}.png")


@pytest.mark.parametrize("preprocess", ["resize_and_crop", "crop", "scale_width_and_crop"])
def test_both_halves_get_the_same_crop_and_flip(tmp_path, preprocess):
    A = draw_shapes("same")
    AB = Image.new("RGB", (2 * A.width, A.height))
    AB.paste(A, (0, 0))
    AB.paste(A, (A.width, 0))
    save(tmp_path / "train" / "0.png", AB)
    dataset = aligned(tmp_path, "--preprocess", preprocess)
    samples = [dataset[epoch, 0] for epoch in range(6)]
    assert all(torch.equal(sample["A"], sample["B"]) for sample in samples)
    assert not all(torch.equal(sample["A"], samples[0]["A"]) for sample in samples)


def test_direction_swaps_the_halves_once_and_keeps_the_channels(paired_data):
    forth = aligned(paired_data)[1, 0]
    back = aligned(paired_data, "--direction", "BtoA")[1, 0]
    assert torch.equal(forth["A"], back["B"]) and torch.equal(forth["B"], back["A"])
    gray = aligned(paired_data, "--direction", "BtoA", "--input_nc", "1")[1, 0]
    assert gray["A"].shape == (1, 24, 24) and gray["B"].shape == (3, 24, 24)


@pytest.mark.parametrize("preprocess", ["resize_and_crop", "none"])
def test_an_odd_width_is_named(tmp_path, preprocess):
    save(tmp_path / "train" / "odd.png", draw_shapes("odd", (61, 40)))
    with pytest.raises(DataError, match=r"odd\.png is 61 pixels wide, an odd number"):
        aligned(tmp_path, "--preprocess", preprocess)[1, 0]


def test_halves_that_are_too_small_are_named_before_the_first_step(tmp_path):
    save(tmp_path / "train" / "small.png", draw_shapes("small", (40, 40)))
    with pytest.raises(DataError, match=r"small\.png is 20x40 pixels, too small for preprocess=crop with crop_size=24"):
        aligned(tmp_path, "--preprocess", "crop")


def test_folders_of_two_domains_hold_pairs_by_name(tiny_data, paired_data, tmp_path):
    two, one = (aligned(root, "--preprocess", "none") for root in (tiny_data, paired_data))
    assert len(two) == len(one) == 5 and two.sizes["A"].keys() == {(40, 36)}
    for index in range(3):  # the others are JPEG, which is lossy
        assert all(torch.equal(two[1, index][side], one[1, index][side]) for side in "AB")
    back = aligned(tiny_data, "--direction", "BtoA", "--preprocess", "none")[1, 0]
    assert torch.equal(back["A"], two[1, 0]["B"]) and back["A_paths"] == str(tiny_data / "trainB" / "0.png")


def test_pairs_in_two_folders_have_their_own_channels_and_depth(tmp_path, caplog):
    for index in range(2):
        for folder, dtype, channels, suffix in (("trainA", "uint16", 6, "npy"), ("trainB", "uint8", 3, "png")):
            (tmp_path / folder).mkdir(exist_ok=True)
            array = np.random.default_rng(index).integers(0, 255, (40, 40, channels)).astype(dtype)
            write(array, tmp_path / folder / f"{index}.{suffix}")
    save(tmp_path / "trainB" / "alone.png", draw_shapes("alone"))
    for preprocess in ("resize_and_crop", "crop", "none"):
        dataset = aligned(tmp_path, "--input_nc", "6", "--preprocess", preprocess, "--value_range_A", "0,4095")
        assert len(dataset) == 2 and dataset[1, 1]["A"].shape[0] == 6 and dataset[1, 1]["B"].shape[0] == 3
        assert "1 images without a partner are left out, such as" in caplog.text
        assert dataset[1, 1]["A"].max() < -0.8 and dataset[1, 1]["B"].max() > 0.5
    assert dataset.formats["A"].value_range == (0, 4095) and dataset.formats["B"].is_8bit
    save(tmp_path / "trainB" / "1.png", draw_shapes("other size"))
    with pytest.raises(
        DataError, match=r"1\.npy has 40x40 and .*1\.png has 40x36 pixels: crops of a pair show the same"
    ):
        aligned(tmp_path, "--input_nc", "6", "--preprocess", "crop")
    (tmp_path / "trainB" / "1.png").write_text("damaged")
    assert len(aligned(tmp_path, "--input_nc", "6", "--skip_bad_images")) == 1


def test_halves_have_the_same_channels(tmp_path):
    (tmp_path / "train").mkdir()
    np.save(tmp_path / "train" / "0.npy", np.zeros((32, 64, 6), np.float32))
    with pytest.raises(DataError, match="Put A into a folder trainA and B into trainB, under the same names"):
        aligned(tmp_path, "--input_nc", "6")


def test_halves_have_their_own_range_of_values(tmp_path):
    (tmp_path / "train").mkdir()
    np.save(tmp_path / "train" / "0.npy", np.concatenate([np.full((32, 32), 100.0), np.full((32, 32), -500.0)], 1))
    ranges = ["--value_range_A", "0,200", "--value_range_B=-1000,0", "--input_nc", "1", "--output_nc", "1"]
    for direction in ("AtoB", "BtoA"):
        dataset = aligned(tmp_path, *ranges, "--direction", direction)
        assert all(dataset[1, 0][side].abs().max() == 0 for side in "AB")
        assert dataset.domain_formats["B"].value_range == (-1000, 0)


def test_the_error_for_missing_pairs_shows_both_trees(tmp_path):
    save(tmp_path / "testA" / "0.png", draw_shapes("0"))
    with pytest.raises(DataError) as caught:
        aligned(tmp_path)
    assert str(caught.value) == (
        f"dataroot={tmp_path}: there is no folder train in it.\nExpected:\n{tmp_path}/\n"
        "  train/  images of A and B side by side, A on the left\n  trainA/  or images of A\n"
        f"  trainB/  and images of B, by the same names\nFound:\n{tmp_path}/  0 images\n  testA/  1 image"
    )


def test_the_folder_above_is_offered(paired_data):
    with pytest.raises(DataError, match=rf"There is a folder train in {paired_data}\.$") as caught:
        aligned(paired_data / "train")
    assert caught.value.flags() == ["--dataroot", str(paired_data)]


# ---- combine_A_and_B.py


def test_subfolders_are_kept_and_images_joined_left_and_right(tiny_data, tmp_path):
    for domain in "AB":
        for phase in ("train", "test"):
            for path in list_images(tiny_data / f"{phase}{domain}", 2):
                save(tmp_path / domain / phase / path.name, Image.open(path))
    assert combine(tmp_path / "A", tmp_path / "B", tmp_path / "AB", threads=1) == 4
    made = list_images(tmp_path / "AB")
    assert [path.relative_to(tmp_path / "AB").as_posix() for path in made] == [
        "test/0.png", "test/1.png", "train/0.png", "train/1.png",
    ]  # fmt: skip
    with (
        Image.open(made[0]) as AB,
        Image.open(tiny_data / "testA/0.png") as A,
        Image.open(tiny_data / "testB/0.png") as B,
    ):
        assert AB.crop((0, 0, 40, 36)).tobytes() == A.tobytes()
        assert AB.crop((40, 0, 80, 36)).tobytes() == B.tobytes()


def test_use_AB_and_num_imgs(tmp_path):
    for folder, names in (("A", "a_A.png b_A.png c_A.png other.png"), ("B", "a_B.png b_B.png c_B.png other.png")):
        for name in names.split():
            save(tmp_path / folder / name, draw_shapes(name))
    assert combine(tmp_path / "A", tmp_path / "B", tmp_path / "AB", use_AB=True, num_imgs=2) == 2
    assert [path.name for path in list_images(tmp_path / "AB")] == ["a.png", "b.png"]


def test_16_bits_stay_16_bits(tmp_path):
    for folder, value in (("A", 300), ("B", 60000)):
        save(tmp_path / folder / "0.png", Image.new("I;16", (4, 4), value))
    combine(tmp_path / "A", tmp_path / "B", tmp_path / "AB")
    with Image.open(tmp_path / "AB" / "0.png") as image:
        assert image.size == (8, 4) and [image.getpixel((x, 0)) for x in (3, 4)] == [300, 60000]


@pytest.mark.parametrize(
    ("name", "dtype", "channels"),
    [
        ("0.png", "uint16", 3),
        ("0.png", "uint16", 4),
        ("0.tif", "uint16", 3),
        ("0.tif", "float32", 1),
        ("0.tif", "float32", 5),
        ("0.npy", "float64", 1),
        ("0.npy", "int16", 2),
    ],
)
@pytest.mark.parametrize("size", [(20, 30), (6, 20)])
def test_depth_and_channels_are_kept(name, dtype, channels, size, tmp_path):
    pair = [np.random.default_rng(seed).uniform(0, 30000, (*size, channels)).astype(dtype) for seed in (0, 1)]
    for folder, array in zip("AB", pair, strict=True):
        (tmp_path / folder).mkdir()
        write(array, tmp_path / folder / name)
        assert np.array_equal(read_array(tmp_path / folder / name), array)
    combine(tmp_path / "A", tmp_path / "B", tmp_path / "AB")
    made = read_array(tmp_path / "AB" / name)
    assert made.dtype == dtype and np.array_equal(made, np.concatenate(pair, axis=1))


def test_transparent_parts_become_white_and_depth_is_never_reduced(tmp_path):
    for folder in "AB":
        save(tmp_path / folder / "0.png", Image.new("RGBA", (4, 4), (10, 20, 30, 0)))
    combine(tmp_path / "A", tmp_path / "B", tmp_path / "AB")
    with Image.open(tmp_path / "AB" / "0.png") as image:
        assert image.mode == "RGB" and image.getcolors() == [(32, (255, 255, 255))]
    with pytest.raises(ValueError, match=r"0\.jpg: \.jpg cannot hold 3 channels of uint16: use \.tif or \.npy"):
        write(np.zeros((4, 4, 3), np.uint16), tmp_path / "0.jpg")


def test_a_phase_in_other_letters_is_offered(tmp_path):
    (tmp_path / "Train").mkdir()
    assert str(missing_pairs(tmp_path, "train")).endswith(
        f"Rename {tmp_path / 'Train'} to {tmp_path / 'train'}, then use dataroot={tmp_path}."
    )
    (tmp_path / "Train").rename(tmp_path / "trai_n")
    assert "Rename" not in str(missing_pairs(tmp_path, "train"))


def test_images_without_a_partner_are_reported(tmp_path, capsys):
    for name in ("A/0.png", "A/1.png", "B/1.png"):
        save(tmp_path / name, draw_shapes(name))
    assert combine(tmp_path / "A", tmp_path / "B", tmp_path / "AB") == 1
    assert "skipped: 1 images without a partner, such as" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("B", "fold_AB", "message"),
    [
        (
            ("0.png", draw_shapes("b", (40, 30))),
            "AB",
            r"0\.png and .*0\.png have different sizes, 40x36 and 40x30",
        ),
        (("0.png", Image.new("I;16", (40, 36))), "AB", "have different channels, 3 x uint8 and 1 x uint16"),
        (("1.png", draw_shapes("b")), "AB", "No image of --fold_A .* has a partner"),
        (("0.png", draw_shapes("b")), "B", "would overwrite the images"),
        (None, "AB", r"--fold_B .*B: no such folder"),
    ],
)
def test_mistakes_of_combining(tmp_path, B, fold_AB, message):
    save(tmp_path / "A" / "0.png", draw_shapes("a"))
    if B:
        save(tmp_path / "B" / B[0], B[1])
    with pytest.raises(DataError, match=message):
        combine(tmp_path / "A", tmp_path / "B", tmp_path / fold_AB)


def test_the_script_takes_upstreams_flags(tiny_data, tmp_path, capsys):
    folders = ["--fold_A", tiny_data / "trainA", "--fold_B", tiny_data / "trainB", "--fold_AB", tmp_path / "train"]
    assert COMBINE["main"]([*map(str, folders), "--num_imgs", "3", "--no_multiprocessing"]) == 0
    assert capsys.readouterr().out == f"3 pairs are in {tmp_path / 'train'}\n"


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    for folder in "AB":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.png").write_text("no image")
    with pytest.raises(DataError, match=f"Cannot read the image {tmp_path / 'A' / '0.png'}"):
        combine(tmp_path / "A", tmp_path / "B", tmp_path / "AB")


def test_two_pairs_do_not_become_one_file(tmp_path):
    for name in ("A/1.jpg", "A/1.png", "B/1.png"):
        save(tmp_path / name, draw_shapes("same"))
    with pytest.raises(DataError, match=r"1\.jpg and .*1\.png would both become 1\.png: remove or rename one"):
        combine(tmp_path / "A", tmp_path / "B", tmp_path / "AB")
    assert not (tmp_path / "AB").exists()
