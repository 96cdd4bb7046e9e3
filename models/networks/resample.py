"""Layers that halve and double the resolution (--resample)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.layers import no_autocast, reflect

RESAMPLINGS = ("deconv", "nearest", "blur")
LARGEST_SIDE = 512  # px, up to which matrix products are the faster way to blur


class Downsample(nn.Module):
    """Blurs with [1, 2, 1] in both directions and keeps every second pixel, so that details do not become patterns.

    The kernel is the buffer `filt`, as in CUT's checkpoints. CPUs multiply rows and columns by matrices with the same
    result, which takes a tenth of the time in bf16.

    Reference: Zhang 2019, Making Convolutional Networks Shift-Invariant Again, arXiv:1904.11486; Park et al. 2020,
    Contrastive Learning for Unpaired Image-to-Image Translation (CUT), arXiv:2007.15651.
    """

    filt: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("filt", kernel([1, 2, 1], channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ceil(H / 2), ceil(W / 2)), of the same dtype; both sides have at least 2 pixels."""
        with no_autocast(x):
            if suits_matrices(x):
                return by_matrices(x, halve_line)
            padded = reflect(x, (1, 1, 1, 1))
            return F.conv2d(padded, self.filt.to(x.dtype), stride=2, groups=len(self.filt))


class Upsample(nn.Module):
    """Doubles the resolution with the kernel [1, 3, 3, 1] in both directions, which is bilinear interpolation.

    The buffer `filt` is there for CUT's checkpoints. CPUs use matrices, see Downsample.

    Reference: see Downsample.
    """

    filt: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("filt", 4 * kernel([1, 3, 3, 1], channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W), of the same dtype."""
        with no_autocast(x):
            if suits_matrices(x):
                return by_matrices(x, double_line)
            return F.interpolate(x, scale_factor=2, mode="bilinear")


def kernel(weights: list[int], channels: int) -> Tensor:
    """A kernel with sum 1 for each channel, (channels, 1, n, n): the outer product of `weights` with themselves."""
    line = torch.tensor(weights, dtype=torch.get_default_dtype())
    line = line / line.sum()
    return torch.outer(line, line).repeat(channels, 1, 1, 1)


def suits_matrices(x: Tensor) -> bool:
    """Whether matrices resample images (B, C, H, W) fast: on CPUs, unless the images are large."""
    return x.is_cpu and max(x.shape[2:]) <= LARGEST_SIDE


def by_matrices(x: Tensor, resample: Callable[[Tensor], Tensor]) -> Tensor:
    """Resample the rows and the columns of images (B, C, H, W) by matrix products.

    Args:
        resample: a linear function of lines, (N, 1, L) -> (N, 1, M). Lines with a single 1 give its matrix.
    """
    rows, columns = (resample(torch.eye(side, dtype=x.dtype).unsqueeze(1)).squeeze(1) for side in x.shape[2:])
    return rows.T @ (x @ columns)


def halve_line(lines: Tensor) -> Tensor:
    """Blur lines (N, 1, L) with [1, 2, 1] and keep every second value: (N, 1, ceil(L / 2))."""
    padded = F.pad(lines, (1, 1), mode="reflect")
    return padded[..., :-2:2] / 4 + padded[..., 1:-1:2] / 2 + padded[..., 2::2] / 4


def double_line(lines: Tensor) -> Tensor:
    """Interpolate lines (N, 1, L) linearly to twice as many values: (N, 1, 2L)."""
    return F.interpolate(lines, scale_factor=2, mode="linear")


class ResizeConv2d(nn.Conv2d):
    """Nearest-neighbor upsampling by 2, then a 3x3 convolution with reflection padding.

    Unlike a transposed convolution with weights of its own, it does not make checkerboard patterns. It is computed as
    the one that equals it, from 4 instead of 9 products: of the doubled image, each output sees 2x2 pixels.

    Reference: Odena et al. 2016, Deconvolution and Checkerboard Artifacts,
    https://distill.pub/2016/deconv-checkerboard/.
    """

    fold: Tensor

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True):
        super().__init__(in_channels, out_channels, 3, padding=1, padding_mode="reflect", bias=bias)
        taps = torch.tensor([[0.0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0]])  # of the transposed kernel, for each weight
        self.register_buffer("fold", torch.kron(taps, taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, 2H, 2W)."""
        with no_autocast(x):
            kernel = (self.weight.transpose(0, 1).flatten(2) @ self.fold).unflatten(2, (4, 4))
        for dim in (2, 3):  # reflecting the doubled image repeats the border of x
            x = torch.cat([x.narrow(dim, 0, 1), x, x.narrow(dim, x.shape[dim] - 1, 1)], dim)
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=3)


def check_resampling(name: str) -> None:
    """Raise ValueError if `name` is not in RESAMPLINGS."""
    if name not in RESAMPLINGS:
        raise ValueError(f"resample={name!r}: choose from {', '.join(RESAMPLINGS)}")


def double_layers(
    name: str, in_channels: int, out_channels: int, *, kernel_size: int = 3, bias: bool
) -> list[nn.Module]:
    """Layers (B, in_channels, H, W) -> (B, out_channels, 2H, 2W).

    Args:
        name: deconv (transposed convolution, as in upstream), nearest (ResizeConv2d) or blur (Upsample, convolution).
        kernel_size: of deconv, 3 or 4; the others have 3.

    Raises:
        ValueError: the name is unknown.
    """
    check_resampling(name)
    if name == "deconv":
        odd = kernel_size % 2
        layer = nn.ConvTranspose2d(
            in_channels, out_channels, kernel_size, stride=2, padding=1, output_padding=odd, bias=bias
        )
        return [layer]
    if name == "nearest":
        return [ResizeConv2d(in_channels, out_channels, bias=bias)]
    return [Upsample(in_channels), nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)]
