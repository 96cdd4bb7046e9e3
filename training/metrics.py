"""Figures of merit: how close an image is to the truth, and a set of images to another one."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cosine_similarity

from data.transforms import LUMA

WINDOW = 11  # pixels, of the Gaussian window of SSIM
SIGMA = 1.5
SUBSET, SUBSETS = 1000, 100  # of KID, as torch-fidelity publishes it
NEIGHBOR = 3  # whose distance is the radius of a ball, as in the paper on precision and recall
LEVELS = 32  # of gray, in the histogram of mutual information
LEAST = {"kid": 2, "fid": 2, "precision_recall": NEIGHBOR + 1}  # images of each kind
CHUNK = 1000  # rows of a matrix of distances at a time


def mean_absolute_error(images: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute difference of images (B, C, H, W) in [-1, 1], in gray levels 0..255: (B,)."""
    return (images - truth).abs().flatten(1).mean(1) * 127.5


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of images (B, C, H, W) in [-1, 1], in dB: (B,), infinite for equal images."""
    from torchmetrics.functional.image import peak_signal_noise_ratio  # slow to import

    return peak_signal_noise_ratio(images, truth, data_range=2.0, reduction="none", dim=(1, 2, 3))


def ssim(images: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of images (B, C, H, W) in [-1, 1]: (B,), 1 for equal images.

    The mean over channels and over the positions where the Gaussian window fits: 11 pixels wide, sigma 1.5. Smaller
    images have the largest odd window that fits, and sigma in proportion.

    Reference: Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # slow to import

    border = (min(WINDOW, *images.shape[2:]) - 1) // 2
    # torchmetrics ignores kernel_size here and derives the window from sigma: 2 * int(3.5 * sigma + 0.5) + 1
    sigma = SIGMA * max(2 * border, 0.1) / (WINDOW - 1)
    _, similarity = structural_similarity_index_measure(
        images + 1, truth + 1, data_range=2.0, sigma=sigma, reduction="none", return_full_image=True
    )
    inner = similarity[..., border : similarity.shape[2] - border, border : similarity.shape[3] - border]
    return inner.mean((1, 2, 3))


def kernel_distance(fakes: Tensor, reals: Tensor) -> float:
    """KID of features (N, D) and (M, D): 0 on average for samples of one distribution, however few; may be negative.

    The unbiased estimate from all images, if both sets are equally large, up to 1000. Otherwise the mean over 100
    random subsets of up to 1000 images. It draws from its own generator: equal features give equal figures.

    Raises:
        ValueError: a set has fewer than 2 images.

    Reference:
        Binkowski et al. 2018, https://arxiv.org/abs/1801.01401.
    """
    from torchmetrics.image.kid import poly_mmd  # slow to import

    check_count("kid", len(fakes), len(reals))
    size = min(SUBSET, len(fakes), len(reals))
    subsets = 1 if len(fakes) == len(reals) == size else SUBSETS
    generator = torch.Generator().manual_seed(0)
    sets = fakes.double(), reals.double()
    parts = ([x[torch.randperm(len(x), generator=generator)[:size]] for x in sets] for _ in range(subsets))
    return sum(poly_mmd(real, fake).item() for fake, real in parts) / subsets


class _Given(nn.Module):
    """Stands for a network in torchmetrics: the features are there already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(fakes: Tensor, reals: Tensor) -> float:
    """FID of features (N, D) and (M, D). It is too high for few images: compare it between sets of one size only.

    Raises:
        ValueError: a set has fewer than 2 images.

    Reference:
        Heusel et al. 2017, https://arxiv.org/abs/1706.08500.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance  # slow to import

    check_count("fid", len(fakes), len(reals))
    metric = FrechetInceptionDistance(feature=_Given(fakes.shape[1])).set_dtype(torch.float64)
    metric.update(reals.double(), real=True)
    metric.update(fakes.double(), real=False)
    return metric.compute().item()


def precision_recall(fakes: Tensor, reals: Tensor) -> tuple[float, float]:
    """Precision and recall of features (N, D) and (M, D), in [0, 1].

    Precision is the share of fakes that lie among the real images, and recall the share of real images that lie among
    the fakes. Low precision means bad images, low recall little variety. A point lies among a set if it is no farther
    from one of its points than this point from its third neighbor.

    Raises:
        ValueError: a set has fewer than 4 images.

    Reference:
        Kynkaanniemi et al. 2019, https://arxiv.org/abs/1904.06991.
    """
    check_count("precision_recall", len(fakes), len(reals))
    return _share_among(fakes, reals), _share_among(reals, fakes)


def _share_among(points: Tensor, others: Tensor) -> float:
    """The share of `points` that lie among the `others`."""
    # a point is the nearest to itself
    radii = torch.cat([torch.cdist(part, others).kthvalue(NEIGHBOR + 1, 1).values for part in others.split(CHUNK)])
    return (
        torch.cat([(torch.cdist(part, others) <= radii).any(1) for part in points.split(CHUNK)]).double().mean().item()
    )


def nearest(points: Tensor, others: Tensor | None = None) -> Tensor:
    """The index of the nearest of `others` (M, D), or else of the nearest other point, for each of `points` (N, D)."""
    found = []
    for number, part in enumerate(points.split(CHUNK)):
        distances = torch.cdist(part, points if others is None else others)
        if others is None:
            distances.diagonal(number * CHUNK).fill_(torch.inf)
        found.append(distances.argmin(1))
    return torch.cat(found)


def check_count(metric: str, made: int, real: int) -> None:
    """Raise ValueError if there are too few images, made or real, for one of the metrics LEAST."""
    if min(made, real) < LEAST[metric]:
        raise ValueError(
            f"{metric} needs at least {LEAST[metric]} images of each kind, not {made} made and {real} real"
        )


def gray(images: Tensor) -> Tensor:
    """Images (B, C, H, W) as gray ones, (B, 1, H, W): the luma of 3 channels, or else the mean of all channels."""
    count = images.shape[1]
    weights = images.new_tensor(LUMA if count == 3 else [1 / count] * count)
    return torch.einsum("bchw,c->bhw", images, weights)[:, None]


def edge_correlation(images: Tensor, others: Tensor) -> Tensor:
    """Correlation of the edges of images (B, C, H, W) with those of others of their size: (B,) in [-1, 1].

    Edges are the magnitudes of the gradients of gray images, by Sobel's filter. 1 means edges at the same places, 0
    unrelated ones; images without edges give 0. It tells whether shapes stay where they are, not what they are.
    """
    kernel = images.new_tensor([[1, 2, 1], [0, 0, 0], [-1, -2, -1]])
    kernels = torch.stack([kernel, kernel.T])[:, None]
    edges = [conv2d(gray(x), kernels).norm(dim=1).flatten(1) for x in (images, others)]
    return cosine_similarity(*(x - x.mean(1, keepdim=True) for x in edges))


def mutual_information(images: Tensor, others: Tensor) -> Tensor:
    """Mutual information of the gray values of images (B, C, H, W) in [-1, 1] and others of their size: (B,) in bits.

    How much the gray value of a pixel tells about that of the other image at this place, from a histogram of 32 x 32
    values. 0 means nothing. Unlike a correlation, it is as high for inverted images. It cannot tell whether a change
    of colors is wanted.
    """
    from torchmetrics.functional.clustering import mutual_info_score  # slow to import

    levels = [gray(x).add(1).mul(LEVELS / 2).long().clamp(0, LEVELS - 1).flatten(1) for x in (images, others)]
    with torch.sparse.check_sparse_tensor_invariants(enable=False):  # or torchmetrics causes a warning
        return torch.stack([mutual_info_score(x, y) for x, y in zip(*levels, strict=True)]) / math.log(2)


def overlap(masks: Tensor, others: Tensor) -> Tensor:
    """Pixels in both masks and in either one, of masks (B, H, W) of bool: (B, 2).

    Their sums over all images give the intersection over union (IoU).
    """
    return torch.stack([(masks & others).sum((1, 2)), (masks | others).sum((1, 2))], 1)
