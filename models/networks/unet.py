"""The U-Net generator of pix2pix."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from models.networks.layers import needs_bias, norm_layer
from models.networks.resnet import ResizeConv2d


class UnetBlock(nn.Module):
    """One level of the U: halve the size, run the levels below, double it, and hand the input over beside the result.

    (B, outer, H, W) -> (B, 2 * outer, H, W); the outermost level, which has no norm, (B, input_nc, H, W) ->
    (B, outer, H, W) in [-1, 1]. `inner` is the number of channels below.
    """

    def __init__(
        self, outer: int, inner: int, *, below: nn.Module | None = None, input_nc: int | None = None,
        norm: str, dropout: bool = False, upsample: str,
    ):  # fmt: skip
        super().__init__()
        self.outermost = input_nc is not None
        make_norm, bias = norm_layer(norm), needs_bias(norm)
        half: nn.Module = nn.Conv2d(input_nc or outer, inner, 4, stride=2, padding=1, bias=bias)
        channels = 2 * inner if below else inner
        up_bias = bias or self.outermost
        if upsample == "nearest":
            double: nn.Module = ResizeConv2d(channels, outer, 3, padding=1, padding_mode="reflect", bias=up_bias)
        else:
            double = nn.ConvTranspose2d(channels, outer, 4, stride=2, padding=1, bias=up_bias)
        down: list[nn.Module] = [half] if self.outermost else [nn.LeakyReLU(0.2, inplace=True), half]
        if below and not self.outermost:
            down.append(make_norm(inner))
        up = [nn.ReLU(inplace=True), double, nn.Tanh() if self.outermost else make_norm(outer)]
        self.model = nn.Sequential(*down, *([below] if below else []), *up, *([nn.Dropout(0.5)] if dropout else []))

    def forward(self, x: Tensor) -> Tensor:
        """See the class. The skip carries x after the block's in-place LeakyReLU, as in the original."""
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class UnetGenerator(nn.Module):
    """Encoder and decoder with skips at every size, Ronneberger et al. 2015, arXiv:1505.04597; Isola et al. 2017,
    arXiv:1611.07004.

    (B, input_nc, H, W) -> (B, output_nc, H, W) in [-1, 1]; H and W are multiples of 2 ** n_downs. It has no attention
    stages.

    Args:
        n_downs: halvings of the size, at least 5: 7 make unet_128, 8 unet_256.
        ngf: channels of the outermost level, doubled below up to 8 * ngf.
        upsample: deconv or nearest, as in ResnetGenerator.
    """

    def __init__(
        self,
        input_nc: int,
        output_nc: int,
        *,
        n_downs: int,
        ngf: int = 64,
        norm: str = "batch",
        dropout: bool = False,
        upsample: str = "deconv",
        attention: Iterable[str] = (),
    ):
        super().__init__()
        if tuple(attention):
            raise ValueError("--netG unet_128 and unet_256 have no stage for attention: --attn_G none")
        self.stride = self.smallest = 2**n_downs  # of H and W, as in ResnetGenerator
        level = partial(UnetBlock, norm=norm, upsample=upsample)
        block = level(8 * ngf, 8 * ngf)
        for _ in range(n_downs - 5):
            block = level(8 * ngf, 8 * ngf, below=block, dropout=dropout)
        for channels in (4 * ngf, 2 * ngf, ngf):
            block = level(channels, 2 * channels, below=block)
        self.model = level(output_nc, ngf, below=block, input_nc=input_nc)

    def forward(self, x: Tensor) -> Tensor:
        """(B, input_nc, H, W) -> (B, output_nc, H, W), of the dtype of x."""
        return self.model(x).to(x.dtype)
