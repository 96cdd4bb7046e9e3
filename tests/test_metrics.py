"""Metrics against values of scikit-image 0.25, their definitions, and images where they are known."""

import itertools
import math
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

from data.image_file import image_size
from scripts.score_earth import load, score
from scripts.score_earth import main as score_earth
from training.metrics import mean_absolute_error, psnr, ssim
from util.paths import BUNDLED, ROOT


def earth(folder: str) -> torch.Tensor:
    return torch.cat([load(path) for path in sorted((BUNDLED / "earth" / folder).glob("*.jpg"))])


def test_the_photo_left_as_it_is():
    assert score(earth("testA"), earth("testB")) == pytest.approx((80.1, 0.2666, 0.859), abs=0.05)
    assert score(earth("testA"), earth("testB"))[1] == pytest.approx(0.26659, abs=1e-4)  # scikit-image's value


def test_metrics_of_equal_images():
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert ssim(images, images).tolist() == pytest.approx([1, 1])
    assert mean_absolute_error(images, images).tolist() == [0, 0]
    assert mean_absolute_error(images, images - 1 / 127.5).tolist() == pytest.approx([1, 1], abs=1e-3)
    assert ssim(images[..., :6], images[..., :6]).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("side", "window", "sigma"), [(11, 11, 1.5), (8, 7, 0.9), (7, 7, 0.9), (2, 1, 1.0), (1, 1, 1.0)]
)
def test_ssim_by_its_definition(side, window, sigma):
    """The mean over all windows, from weighted means and variances."""
    x, y = torch.rand(2, 1, 1, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    distance = torch.arange(window, dtype=torch.float64) - window // 2
    weights = torch.exp(-(distance[:, None] ** 2 + distance**2) / (2 * sigma**2))
    weights /= weights.sum()
    values = []
    for top, left in itertools.product(range(side - window + 1), repeat=2):
        a, b = (z[0, 0, top : top + window, left : left + window] + 1 for z in (x, y))  # in 0..2
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
        covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
        c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
        above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
        values.append(above / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    assert ssim(x, y).item() == pytest.approx(torch.stack(values).mean().item(), abs=1e-9)


def test_psnr_by_its_definition():
    truth = torch.zeros(2, 3, 4, 4)
    images = torch.stack([truth[0] + 2 / 255, truth[1]])
    assert psnr(images, truth).tolist() == [pytest.approx(20 * math.log10(255), abs=1e-3), math.inf]


def test_scripts_import_torchmetrics_only_to_compute_metrics():
    code = "import sys, train, test; sys.exit('torchmetrics' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_missing_results_and_other_sizes_are_named(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    first, *others = sorted((BUNDLED / "earth" / "testB").glob("*.jpg"))
    for path in others:
        shutil.copy(path, folder / f"{path.stem}_fake_B.png")
    with pytest.raises(ValueError, match=rf"^missing: {folder}/{first.stem}_fake_B\.png\. Is "):
        score_earth([str(tmp_path)])
    Image.new("RGB", (7, 9)).save(folder / f"{first.stem}_fake_B.png")
    size = "x".join(map(str, image_size(first)))
    with pytest.raises(ValueError, match=rf"_fake_B\.png is 7x9 pixels, but the true map {first} is {size}"):
        score_earth([str(tmp_path)])
