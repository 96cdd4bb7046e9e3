"""Metrics against values of other libraries, their definitions, and images where they are known."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torchvision.transforms.v2.functional import pil_to_tensor

from tests.conftest import draw_shapes
from training import metrics
from training.features import Extractor
from training.meter import Meter
from training.metrics import (
    SUBSETS,
    edge_correlation,
    frechet_distance,
    kernel_distance,
    mean_absolute_error,
    mutual_information,
    nearest,
    precision_recall,
    psnr,
    ssim,
)
from util.images import to_tensor
from util.paths import BUNDLED, ROOT
from util.rules import parse_rule


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


def features(count: int, seed: int, shift: float = 0.0, size: int = 16) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) + shift


def test_kid_is_unbiased_and_repeatable():
    """Its mean over many small sets of one distribution is 0 within three standard errors; other sets are farther."""
    values = torch.tensor([kernel_distance(features(12, 2 * seed), features(12, 2 * seed + 1)) for seed in range(200)])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(len(values))
    assert kernel_distance(features(12, 1), features(12, 2, shift=1.0)) > values.max()
    state = torch.get_rng_state()
    uneven = [kernel_distance(features(12, 1), features(30, 2)) for _ in range(2)]
    assert uneven[0] == uneven[1]
    assert torch.equal(torch.get_rng_state(), state), "metrics draw no number of a run"


def test_kid_and_fid_are_those_of_torch_fidelity():
    fakes, reals = features(40, 1), features(50, 2, shift=0.3)
    subsets = {"kid_subsets": SUBSETS, "kid_subset_size": 40, "kid_kernel": "poly", "rng_seed": 0, "verbose": False}
    theirs = kid_features_to_metric(fakes, reals[:40], **subsets)["kernel_inception_distance_mean"]
    assert kernel_distance(fakes, reals[:40]) == pytest.approx(theirs, abs=1e-5)
    statistics = [fid_features_to_statistics(x) for x in (fakes, reals)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(fakes, reals) == pytest.approx(theirs, abs=1e-5)


def test_precision_and_recall_by_their_meaning():
    reals = features(60, 1)
    assert precision_recall(reals, reals) == (1, 1)
    assert precision_recall(features(60, 2, shift=9.0), reals) == (0, 0)
    one_mode = reals[:1] + 0.01 * features(60, 3)
    precision, recall = precision_recall(one_mode, reals)
    assert precision == 1 and recall < 0.1, "good images, no variety"
    two_modes = torch.cat([reals[:30], features(30, 4, shift=9.0)])
    assert precision_recall(two_modes, reals)[0] == pytest.approx(0.5)


def test_the_nearest_image(monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK", 7)
    points, others = features(30, 1), features(20, 2)

    def expected(point: torch.Tensor, among: dict[int, torch.Tensor]) -> int:
        return min(among, key=lambda index: math.dist(point, among[index]))

    assert nearest(points, others).tolist() == [expected(point, dict(enumerate(others))) for point in points]
    left_out = [{index: other for index, other in enumerate(points) if index != own} for own in range(30)]
    assert nearest(points).tolist() == [expected(point, among) for point, among in zip(points, left_out, strict=True)]


@pytest.mark.parametrize(("metric", "least"), [(kernel_distance, 2), (frechet_distance, 2), (precision_recall, 4)])
def test_too_few_images_are_refused(metric, least):
    with pytest.raises(
        ValueError, match=rf"needs at least {least} images of each kind, not {least - 1} made and 8 real"
    ):
        metric(features(least - 1, 0), features(8, 1))


def drawn(*seeds: str) -> torch.Tensor:
    return torch.stack([to_tensor(draw_shapes(seed)) for seed in seeds])


def test_edges_and_mutual_information():
    images, others = drawn("a", "b"), drawn("c", "d")
    assert edge_correlation(images, -images).tolist() == pytest.approx([1, 1], abs=1e-4)
    assert (edge_correlation(images, others) < 0.5).all()
    assert edge_correlation(images, torch.zeros_like(images)).tolist() == [0, 0]
    own = mutual_information(images, images)
    assert torch.allclose(mutual_information(images, -images), own, atol=0.2)
    assert (mutual_information(images, others) < own / 2).all()
    assert mutual_information(images, torch.zeros_like(images)).tolist() == [0, 0]
    halves = torch.ones(1, 1, 4, 4)
    halves[..., :2] = -1
    assert mutual_information(halves, halves).item() == pytest.approx(1, abs=1e-5), "one bit"


def test_rules_find_pixels_by_color():
    sea = parse_rule("sea: A(B - G > 15, B > 150); B(not B <= R - 20)")
    red, blue = torch.tensor([200.0, 0]), torch.tensor([100.0, 200])
    values = {"R": red, "G": torch.zeros(2), "B": blue}
    assert sea.mask("A", values).tolist() == [False, True]
    assert sea.mask("B", values).tolist() == [False, True]
    assert sea.swapped().mask("B", values).tolist() == sea.mask("A", values).tolist()
    dark = parse_rule("dark: A(R + G + B < 150)")
    assert dark.mask("A", values).tolist() == [False, False] and dark.swapped().conditions.keys() == {"B"}
    both = parse_rule("warm: R >= 2 * B, 10 < R < 300")
    assert both.mask("A", values).tolist() == both.mask("B", values).tolist() == [True, False]


@pytest.mark.parametrize(
    "text",
    [
        "B > 15", "sea:", "sea: C(B > 1)", "sea: A(B > 1); A(B > 2)", "sea: B", "sea: B + 1", "sea: (B > 1) + 1",
        "sea: B > __import__('os')", "sea: open('x') > 1", "sea: B.real > 1", "sea: B ** 9 > 1", "sea: 1 < 2",
        "sea: B > 10000000", "sea: B > R if G else 1", "a b: B > 1", "sea: B > 1; R > 1", "sea: " + "(" * 300,
    ],
)  # fmt: skip
def test_other_texts_are_no_rules(text):
    with pytest.raises(ValueError, match="NAME: CONDITION"):
        parse_rule(text)


def test_features_need_gray_or_color():
    extractor = Extractor("none", "key", lambda pixels: pixels.float().mean((2, 3)), torch.device("cpu"))
    assert extractor(torch.ones(2, 1, 4, 4)).tolist() == [[255, 255, 255]] * 2
    with pytest.raises(ValueError, match="these have 4 channels: compare them with l1"):
        extractor(torch.ones(2, 4, 4, 4))


def test_figures_of_pairs_and_content():
    meter = Meter(["l1", "cycle", "content"], rules=[parse_rule("blue: B > 100, R < 100")])
    blue = torch.tensor([-1.0, -1, 1]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    half = blue.clone()
    half[..., :2] = -1
    images = {"fake_B": half, "real_B": blue, "real_A": -blue, "rec_A": -blue}
    assert meter.names() == ["l1", "cycle", "iou_blue"]
    content = Meter(["content"], rules=meter.rules)
    paired = meter.figures(meter.measure(images, [True, True]))
    unpaired = content.figures(content.measure(images, [False, False]))
    assert paired == {"l1": pytest.approx(255 / 6), "cycle": 0, "iou_blue": 0.5}
    assert unpaired == {"iou_blue": 0}
    with pytest.raises(ValueError, match="no image of B has the name and the size of one of A"):
        meter.figures(meter.measure(images, [False, False]))
