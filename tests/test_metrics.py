"""Figures against values computed by scikit-image 0.25, and on pictures where they are known."""

import pytest
import torch

from data import BUNDLED
from scripts.score_earth import load, score
from util.metrics import mean_absolute_error, ssim


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
