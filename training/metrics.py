"""How close a picture is to the truth."""

import torch
from torch import Tensor
from torch.nn import functional as F


def mean_absolute_error(images: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute difference of (B, C, H, W) pictures in [-1, 1], in grey levels 0..255: (B,)."""
    return (images - truth).abs().flatten(1).mean(1) * 127.5


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of (B, C, H, W) pictures in [-1, 1], in dB: (B,), infinite for equal ones."""
    return -10 * ((images - truth) / 2).square().flatten(1).mean(1).log10()


def ssim(images: Tensor, truth: Tensor, *, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity of (B, C, H, W) pictures in [-1, 1]: (B,), 1 = equal.

    Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861: Gaussian window, averaged over channels and positions
    where the window fits; the window is smaller for pictures smaller than it.
    """
    window = min(window, *images.shape[2:])
    images, truth = (images + 1) / 2, (truth + 1) / 2
    distance = torch.arange(window, dtype=images.dtype, device=images.device) - (window - 1) / 2
    gaussian = torch.exp(-distance.square() / (2 * sigma**2))
    kernel = torch.outer(gaussian, gaussian)
    channels = images.shape[1]
    kernel = (kernel / kernel.sum()).expand(channels, 1, window, window)

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(x, kernel, groups=channels)

    mean_x, mean_y = blur(images), blur(truth)
    variance_x, variance_y = blur(images**2) - mean_x**2, blur(truth**2) - mean_y**2
    covariance = blur(images * truth) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    return similarity.flatten(1).mean(1)
