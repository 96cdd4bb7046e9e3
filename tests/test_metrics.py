"""Figures against values computed by scikit-image 0.25, and on pictures where they are known."""

import shutil

import pytest
import torch
from PIL import Image

from data.image_file import image_size
from scripts.score_earth import load, score
from scripts.score_earth import main as score_earth
from training.metrics import mean_absolute_error, ssim
from util.paths import BUNDLED


def earth(folder: str) -> torch.Tensor:
    return torch.cat([load(path) for path in sorted((BUNDLED / "earth" / folder).glob("*.jpg"))])


def test_the_photo_left_as_it_is():
    assert score(earth("testA"), earth("testB")) == pytest.approx((80.1, 0.2666, 0.859), abs=0.05)
    assert score(earth("testA"), earth("testB"))[1] == pytest.approx(0.26659, abs=1e-4)  # scikit-image's value


def test_a_picture_equals_itself():
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    assert ssim(pictures, pictures).tolist() == pytest.approx([1, 1])
    assert mean_absolute_error(pictures, pictures).tolist() == [0, 0]
    assert mean_absolute_error(pictures, pictures - 1 / 127.5).tolist() == pytest.approx([1, 1], abs=1e-3)
    assert ssim(pictures[..., :6], pictures[..., :6]).tolist() == pytest.approx([1, 1])


def test_results_that_are_none_of_the_bundled_pictures_are_named(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    first, *others = sorted((BUNDLED / "earth" / "testB").glob("*.jpg"))
    for path in others:
        shutil.copy(path, folder / f"{path.stem}_fake_B.png")
    with pytest.raises(ValueError, match=rf"^missing: {folder}/{first.stem}_fake_B\.png\. Is "):
        score_earth([str(tmp_path)])
    Image.new("RGB", (7, 9)).save(folder / f"{first.stem}_fake_B.png")
    size = "x".join(map(str, image_size(first)))
    with pytest.raises(ValueError, match=rf"_fake_B\.png has 7x9 pixels and its truth {first} {size}"):
        score_earth([str(tmp_path)])
