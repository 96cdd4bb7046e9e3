"""Layers that halve and double the resolution (--resample)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.layers import ReflectionPad2d, no_autocast

RESAMPLINGS = ("deconv", "nearest", "blur")


class Downsample(nn.Module):
    """Blurs with [1, 2, 1] in both directions and keeps every second pixel, so that details do not become patterns.

    The kernel is the buffer `filt`, as in CUT's checkpoints.

    Reference: Zhang 2019, Making Convolutional Networks Shift-Invariant Again, arXiv:1904.11486; Park et al. 2020,
    Contrastive Learning for Unpaired Image-to-Image Translation (CUT), arXiv:2007.15651.
    """

    filt: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("filt", kernel([1, 2, 1], channels))
        self.pad = ReflectionPad2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ceil(H / 2), ceil(W / 2)); both sides have at least 2 pixels."""
        return F.conv2d(self.pad(x), self.filt, stride=2, groups=len(self.filt))


class Upsample(nn.Module):
    """Doubles the resolution with the kernel [1, 3, 3, 1] in both directions, which is bilinear interpolation.

    The buffer `filt` is there for CUT's checkpoints; interpolation is several times faster than this kernel.

    Reference: see Downsample.
    """

    filt: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("filt", 4 * kernel([1, 3, 3, 1], channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W), of the same dtype."""
        with no_autocast(x):  # which would convert it to float32 on CPUs
            return F.interpolate(x, scale_factor=2, mode="bilinear")


def kernel(weights: list[int], channels: int) -> Tensor:
    """A kernel with sum 1 for each channel, (channels, 1, n, n): the outer product of `weights` with themselves."""
    line = torch.tensor(weights, dtype=torch.get_default_dtype())
    line = line / line.sum()
    return torch.outer(line, line).repeat(channels, 1, 1, 1)


class ResizeConv2d(nn.Conv2d):
    """Nearest-neighbor upsampling by 2, then a convolution.

    Unlike a transposed convolution, it does not make checkerboard patterns.

    Reference: Odena et al. 2016, Deconvolution and Checkerboard Artifacts,
    https://distill.pub/2016/deconv-checkerboard/.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, 2H, 2W)."""
        return super().forward(F.interpolate(x, scale_factor=2))


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
        return [ResizeConv2d(in_channels, out_channels, 3, padding=1, padding_mode="reflect", bias=bias)]
    return [Upsample(in_channels), nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)]
