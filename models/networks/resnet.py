"""The ResNet generator."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from models.networks.attention import AttentiveChain
from models.networks.layers import NarrowConv2d, ReflectionPad2d, needs_bias, norm_layer

UPSAMPLINGS = ("deconv", "nearest")


class ResidualBlock(nn.Module):
    """x + (pad, convolution, norm, ReLU, [dropout], pad, convolution, norm)(x).

    Args:
        checkpointed: keep only the input for the backward pass, which recomputes the activations (Chen et al. 2016,
            arXiv:1604.06174).

    Reference: He et al. 2016, Deep Residual Learning, arXiv:1512.03385.
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
    """Nearest-neighbor upsampling by 2, then a convolution.

    Unlike a transposed convolution, it does not make checkerboard patterns.

    Reference: Odena et al. 2016, Deconvolution and Checkerboard Artifacts,
    https://distill.pub/2016/deconv-checkerboard/.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, 2H, 2W)."""
        return super().forward(F.interpolate(x, scale_factor=2))


def upsample_layer(name: str, in_channels: int, out_channels: int, *, bias: bool) -> nn.Module:
    """A layer (B, in_channels, H, W) -> (B, out_channels, 2H, 2W).

    Args:
        name: deconv (transposed convolution, as in upstream) or nearest (ResizeConv2d).

    Raises:
        ValueError: the name is unknown.
    """
    if name == "deconv":
        return nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1, bias=bias)
    if name == "nearest":
        return ResizeConv2d(in_channels, out_channels, 3, padding=1, padding_mode="reflect", bias=bias)
    raise ValueError(f"upsample={name!r}: choose from {', '.join(UPSAMPLINGS)}")


class ResnetGenerator(AttentiveChain):
    """Residual blocks at a quarter of the resolution, between two downsampling and two upsampling layers.

    Args:
        input_nc: channels of the input images.
        output_nc: channels of the output images.
        ngf: channels of the first and last layers; the residual blocks have 4 * ngf.
        norm: see `norm_layer`.
        dropout: use dropout in the residual blocks.
        n_blocks: number of residual blocks.
        upsample: deconv or nearest, see `upsample_layer`.
        attention: stages followed by a SelfAttention2d block: down1 (H / 2), down2 (H / 4), block1 ... block{n_blocks}
            (H / 4), up1 (H / 2), up2 (H), or bottleneck, the middle block.
        checkpoint_blocks: save memory in the residual blocks, see ResidualBlock.

    Shapes:
        (B, input_nc, H, W) -> (B, output_nc, H, W) in [-1, 1]; H and W are multiples of `stride`, at least `smallest`.

    Raises:
        ValueError: an argument has an unknown value, or attention does not fit the channels.

    Reference: Johnson et al. 2016, arXiv:1603.08155; Zhu et al. 2017 (CycleGAN), arXiv:1703.10593.
    """

    stride = 4
    smallest = 8  # for the reflection padding in the blocks

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
