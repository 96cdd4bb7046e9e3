"""Datasets of other channels and depths than 8-bit color."""

import numpy as np
import pytest
from PIL import Image

from data import create_dataset
from data.image_folder import DataError
from tests.conftest import draw_shapes
from tests.test_data import opt_test, opt_train
from util.images import PixelFormat


def write_domains(root, phase="train"):
    """Two 16-bit gray images in A, two of five float channels in B."""
    for domain, shape in (("A", (40, 36)), ("B", (40, 36, 5))):
        (root / f"{phase}{domain}").mkdir(parents=True)
        for name in ("0", "1"):
            array = np.random.default_rng(ord(name)).random(shape)
            if domain == "A":
                Image.fromarray((array * 65535).astype(np.uint16)).save(root / f"{phase}A" / f"{name}.png")
            else:
                np.save(root / f"{phase}B" / f"{name}.npy", array.astype(np.float32))
    return root


DEEP = ["--input_nc", "1", "--output_nc", "5", "--lambda_identity", "0"]


def test_domains_of_other_channels_and_depths(tmp_path):
    loader = create_dataset(opt_train(write_domains(tmp_path), *DEEP, "--batch_size", "2"))
    batch = next(iter(loader))
    assert batch["A"].shape == (2, 1, 24, 24) and batch["B"].shape == (2, 5, 24, 24)
    assert loader.dataset.formats == {"A": PixelFormat("uint16", (0, 65535)), "B": PixelFormat("float32", (0, 1))}
    assert batch["A"].unique().numel() > 1000  # more than 8 bits can hold
    flipped = [*DEEP[2:], "--direction", "BtoA", "--input_nc", "5", "--output_nc", "1"]
    swapped = create_dataset(opt_train(tmp_path, *flipped)).dataset
    assert swapped.formats["A"].dtype == "float32" and swapped.formats["B"].dtype == "uint16"


def test_wrong_channels_are_named_before_the_first_step(tmp_path):
    write_domains(tmp_path)
    with pytest.raises(DataError, match=r"0\.npy has 5 channels, but the network takes 3\.") as caught:
        create_dataset(opt_train(tmp_path, "--input_nc", "1", "--lambda_identity", "0"))
    assert caught.value.flags() == ["--output_nc", "5"]
    for mode in ("single", "unaligned"):
        with pytest.raises(DataError, match=r"0\.png has 1 channels, but the network takes 4\.") as caught:
            create_dataset(opt_train(tmp_path, "--dataset_mode", mode, "--input_nc", "4"))
        assert caught.value.flags() == ["--input_nc", "1"]


def test_the_range_of_values_by_flag(tmp_path, tiny_data):
    write_domains(tmp_path)
    loader = create_dataset(opt_train(tmp_path, *DEEP, "--value_range=-5,5.5"))
    assert {fmt.value_range for fmt in loader.dataset.formats.values()} == {(-5.0, 5.5)}
    with pytest.raises(DataError, match=r"--value_range 0,9: the images of A and B have 8 bits"):
        create_dataset(opt_train(tiny_data, "--value_range", "0,9"))
    with pytest.raises(DataError, match="this dataset reads 8-bit images only"):
        create_dataset(opt_train(tiny_data, "--value_range", "0,9", "--dataset_mode", "template"))


@pytest.mark.parametrize("text", ["1", "1,1", "2,1", "0,inf", "nan,1", "a,b", "0,1,2"])
def test_invalid_value_ranges(text, tiny_data, capsys):
    with pytest.raises(SystemExit):
        opt_train(tiny_data, f"--value_range={text}")
    assert f"argument --value_range: {text!r} is not two numbers LOW,HIGH" in capsys.readouterr().err


def test_sizes_are_rounded_in_training_only(tmp_path):
    draw_shapes("a", (41, 35)).save(tmp_path / "a.png")
    flags = ["--dataset_mode", "single", "--preprocess", "none"]
    assert create_dataset(opt_train(tmp_path, *flags)).dataset[1, 0]["A"].shape == (3, 36, 40)
    testing = create_dataset(opt_test(tmp_path, *flags)).dataset
    assert testing[0, 0]["A"].shape == (3, 35, 41) and set(testing.sizes["A"]) == {(41, 35)}
