"""The ResNet generator of CycleGAN."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from models.networks.attention import AttentiveChain
from models.networks.layers import NarrowConv2d, ReflectionPad2d, needs_bias, norm_layer

UPSAMPLINGS = ("deconv", "nearest")


class ResidualBlock(nn.Module):
    """x + (pad, convolution, norm, ReLU, [dropout], pad, convolution, norm)(x), He et al. 2016, arXiv:1512.03385.

    With `checkpointed` it keeps nothing but its input for the backward pass, which computes the rest anew (Chen et al.
    2016, arXiv:1604.06174).
    """

    def __init__(self, channels: int, *, norm: str = "instance", dropout: bool = False, checkpointed: bool = False):
        super().__init__()
        self.checkpointed = checkpointed
        make_norm, bias = norm_layer(norm), needs_bias(norm)
        self.conv_block = nn.Sequential(
            ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=bias),
            make_norm(channels),
            nn.ReLU(),
            *([nn.Dropout(0.5)] if dropout else []),
            ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=bias),
            make_norm(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.checkpointed and torch.is_grad_enabled():
            return x + checkpoint(self.conv_block, x, use_reentrant=False)
        return x + self.conv_block(x)


class ResizeConv2d(nn.Conv2d):
    """Nearest-neighbour enlargement by 2, then a convolution: no overlapping kernels, hence no checkerboard.

    Odena et al. 2016, https://distill.pub/2016/deconv-checkerboard/.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, 2H, 2W)."""
        return super().forward(F.interpolate(x, scale_factor=2))


def upsample_layer(name: str, in_channels: int, out_channels: int, *, bias: bool) -> nn.Module:
    """One doubling of height and width: `deconv` (transposed convolution, upstream's) or `nearest` (ResizeConv2d)."""
    if name == "deconv":
        return nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1, bias=bias)
    if name == "nearest":
        return ResizeConv2d(in_channels, out_channels, 3, padding=1, padding_mode="reflect", bias=bias)
    raise ValueError(f"upsample={name!r}: choose from {', '.join(UPSAMPLINGS)}")


class ResnetGenerator(AttentiveChain):
    """Two halvings of the size, residual blocks at a quarter of it, two doublings.

    Johnson et al. 2016, arXiv:1603.08155, as used by CycleGAN (Zhu et al. 2017, arXiv:1703.10593).
    (B, input_nc, H, W) -> (B, output_nc, H, W) in [-1, 1]; H and W are multiples of 4. Attention stages: down1 (H / 2),
    down2, block1 ... blockN (H / 4; `bottleneck` is the middle block), up1 (H / 2), up2 (H).

    Args:
        ngf: channels of the first and last layers; 4 * ngf in the residual blocks.
        upsample: deconv or nearest, see `upsample_layer`.
        attention: stages after which a SelfAttention2d block acts.
        checkpoint_blocks: keep less of the residual blocks for the backward pass, see ResidualBlock.
    """

    stride = 4  # H and W are multiples of it,
    smallest = 8  # and at least this, for the reflection in the blocks

    def __init__(
        self,
        input_nc: int,
        output_nc: int,
        *,
        ngf: int = 64,
        norm: str = "instance",
        dropout: bool = False,
        n_blocks: int = 9,
        upsample: str = "deconv",
        attention: Iterable[str] = (),
        checkpoint_blocks: bool = False,
    ):
        make_norm, bias = norm_layer(norm), needs_bias(norm)
        layers = [ReflectionPad2d(3), nn.Conv2d(input_nc, ngf, 7, bias=bias), make_norm(ngf), nn.ReLU()]
        stages = {}
        for i, channels in enumerate((2 * ngf, 4 * ngf), 1):
            convolution = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1, bias=bias)
            layers += [convolution, make_norm(channels), nn.ReLU()]
            stages[f"down{i}"] = len(layers) - 1, channels
        for i in range(1, n_blocks + 1):
            layers.append(ResidualBlock(4 * ngf, norm=norm, dropout=dropout, checkpointed=checkpoint_blocks))
            stages[f"block{i}"] = len(layers) - 1, 4 * ngf
        for i, channels in enumerate((2 * ngf, ngf), 1):
            layers += [upsample_layer(upsample, 2 * channels, channels, bias=bias), make_norm(channels)]
            layers.append(nn.ReLU())
            stages[f"up{i}"] = len(layers) - 1, channels
        layers += [ReflectionPad2d(3), NarrowConv2d(ngf, output_nc, 7), nn.Tanh()]
        super().__init__(layers, stages, attention, {"bottleneck": (f"block{(n_blocks + 1) // 2}",)})
