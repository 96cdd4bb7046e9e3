"""How close an image is to the truth."""

from torch import Tensor

WINDOW = 11  # pixels, of the Gaussian window of SSIM
SIGMA = 1.5


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
