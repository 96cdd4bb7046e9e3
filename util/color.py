"""Conversion between RGB and CIE Lab on any device, and the scaling of Lab for networks."""

import torch
from torch import Tensor

# IEC 61966-2-1 (sRGB): CIE XYZ of linear red, green and blue, by rows; relative to white, D65 seen at 2 degrees.
XYZ_OF_RGB = torch.tensor(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]],
    dtype=torch.float64,
) / torch.tensor([[0.95047], [1.0], [1.08883]], dtype=torch.float64)  # fmt: skip
# L + 16, a and b from the three cube roots (x, y, z)
LAB_OF_ROOTS = torch.tensor([[0.0, 116, 0], [500, -500, 0], [0, 200, -200]], dtype=torch.float64)
BELOW = 0.008856  # of white: here CIE replaces the cube root by a line


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """sRGB (..., 3, H, W) in [0, 1] -> CIE Lab (..., 3, H, W): L in [0, 100], a and b within -110 .. 110."""
    rgb = _widen(rgb)
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = _mix(XYZ_OF_RGB, linear)
    roots = torch.where(xyz > BELOW, xyz.clamp(min=BELOW) ** (1 / 3), 7.787 * xyz + 16 / 116)
    return _mix(LAB_OF_ROOTS, roots) - roots.new_tensor([16.0, 0, 0]).view(3, 1, 1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """CIE Lab (..., 3, H, W) -> sRGB (..., 3, H, W) in [0, 1]; colors outside sRGB are clamped."""
    lab = _widen(lab)
    roots = _mix(LAB_OF_ROOTS.inverse(), lab + lab.new_tensor([16.0, 0, 0]).view(3, 1, 1)).clamp(min=0)
    xyz = torch.where(roots > BELOW ** (1 / 3), roots**3, (roots - 16 / 116) / 7.787)
    linear = _mix(XYZ_OF_RGB.inverse(), xyz).clamp(0, 1)
    return torch.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


def split_lab(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """RGB (..., 3, H, W) in [-1, 1] -> L (..., 1, H, W) and ab (..., 2, H, W), in [-1, 1]: L / 50 - 1, ab / 110."""
    lab = rgb_to_lab((_widen(rgb) + 1) / 2)
    return lab[..., :1, :, :] / 50 - 1, lab[..., 1:, :, :] / 110


def join_lab(L: Tensor, ab: Tensor) -> Tensor:
    """Invert `split_lab`: RGB (..., 3, H, W) in [-1, 1]."""
    return lab_to_rgb(torch.cat([(_widen(L) + 1) * 50, _widen(ab) * 110], -3)) * 2 - 1


def _mix(matrix: Tensor, channels: Tensor) -> Tensor:
    """Each pixel of (..., 3, H, W) times the matrix."""
    with torch.autocast(channels.device.type, enabled=False):  # in bf16, colors would be up to 36 levels off
        return torch.einsum("ij,...jhw->...ihw", matrix.to(channels), channels)


def _widen(x: Tensor) -> Tensor:
    """x, in float32 if it has less precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
