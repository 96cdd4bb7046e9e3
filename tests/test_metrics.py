"""Metrics against values of scikit-image 0.25, their definitions, and images where they are known."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from training.metrics import mean_absolute_error, psnr, ssim
from util.paths import BUNDLED, ROOT


def images_of(folder: Path) -> torch.Tensor:
    images = [pil_to_tensor(Image.open(path)) for path in sorted(folder.iterdir())]
    return torch.stack(images) / 127.5 - 1


def test_the_photo_left_as_it_is():
    photos, charts = (images_of(BUNDLED / "chart" / folder) for folder in ("testA", "testB"))
    assert mean_absolute_error(photos, charts).mean().item() == pytest.approx(71.13, abs=0.01)
    assert ssim(photos, charts).mean().item() == pytest.approx(0.2419, abs=1e-4)


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
