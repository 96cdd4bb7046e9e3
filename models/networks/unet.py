"""The U-Net generator of pix2pix."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from models.networks.attention import place_attention
from models.networks.layers import needs_bias, norm_layer
from models.networks.resample import Downsample, double_layers


class UnetBlock(nn.Module):
    """One level of the U-Net: downsample, run the levels below, upsample, and concatenate the input (skip connection).

    Args:
        outer: channels at the input and output resolution of this level.
        inner: channels at the resolution below.
        below: the next level; None in the innermost one.
        input_nc: channels of the images, in the outermost level only, which has no skip connection and no norm.
        norm, resample: see UnetGenerator.
        dropout: use dropout after upsampling.
        attend: two modules, applied to the input and to the upsampled result; empty in the outermost level. The
            generator registers them, so their weights are not in the state_dict of this level.

    Shapes:
        (B, outer, H, W) -> (B, 2 * outer, H, W); in the outermost level (B, input_nc, H, W) -> (B, outer, H, W) in
        [-1, 1].
    """

    def __init__(
        self, outer: int, inner: int, *, below: nn.Module | None = None, input_nc: int | None = None,
        norm: str, dropout: bool = False, resample: str, attend: Sequence[nn.Module] = (),
    ):  # fmt: skip
        super().__init__()
        self.outermost = input_nc is not None
        self.attend = tuple(attend)  # in a tuple, modules are not registered, which keeps upstream's state_dict keys
        make_norm, bias = norm_layer(norm), needs_bias(norm)
        blur = resample == "blur"
        kernel, stride = (3, 1) if blur else (4, 2)
        half = nn.Conv2d(input_nc or outer, inner, kernel, stride=stride, padding=1, bias=bias)
        channels = 2 * inner if below else inner
        double = double_layers(resample, channels, outer, kernel_size=4, bias=bias or self.outermost)
        down: list[nn.Module] = [half] if self.outermost else [nn.LeakyReLU(0.2, inplace=True), half]
        if below and not self.outermost:
            down.append(make_norm(inner))
        if blur:
            down.append(Downsample(inner))
        up = [nn.ReLU(inplace=True), *double, nn.Tanh() if self.outermost else make_norm(outer)]
        self.model = nn.Sequential(*down, *([below] if below else []), *up, *([nn.Dropout(0.5)] if dropout else []))

    def forward(self, x: Tensor) -> Tensor:
        """See the class. The in-place LeakyReLU of `model` changes the x of the skip connection, as in upstream."""
        if self.outermost:
            return self.model(x)
        attend_down, attend_up = self.attend
        x = attend_down(x)
        return torch.cat([x, attend_up(self.model(x))], 1)


class UnetGenerator(nn.Module):
    """Encoder and decoder with skip connections at each resolution.

    Args:
        input_nc: channels of the input images.
        output_nc: channels of the output images.
        n_downs: number of downsampling layers, at least 5: 7 in unet_128, 8 in unet_256.
        ngf: channels of the outermost level; each level below doubles them up to 8 * ngf.
        norm: see `norm_layer`.
        dropout: use dropout in the levels from H / 16 down, except the innermost one.
        resample: deconv, nearest or blur, as in ResnetGenerator.
        attention: stages followed by a SelfAttention2d block: down1 (H / 2), down2 (H / 4) ... down{n_downs - 1} in the
            encoder, whose output the skip connection carries too; up{n_downs - 1} ... up2 (H / 4), up1 (H / 2) in the
            decoder; or bottleneck, which is down3, with 32 x 32 positions at 256 pixels.

    Shapes:
        (B, input_nc, H, W) -> (B, output_nc, H, W) in [-1, 1]; H and W are multiples of `stride`, which is 2**n_downs.

    Raises:
        ValueError: an argument has an unknown value, or attention does not fit the channels.

    Reference: Ronneberger et al. 2015, U-Net, arXiv:1505.04597; Isola et al. 2017 (pix2pix), arXiv:1611.07004.
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
        resample: str = "deconv",
        attention: Iterable[str] = (),
    ):
        super().__init__()
        self.stride = self.smallest = 2**n_downs
        depths = range(1, n_downs)
        widths = [ngf * min(2**depth, 8) for depth in range(n_downs)]
        stages = {f"down{depth}": widths[depth - 1] for depth in depths}
        stages |= {f"up{depth}": widths[depth - 1] for depth in reversed(depths)}
        blocks = place_attention(stages, attention, aliases={"bottleneck": ("down3",)})
        level: UnetBlock | None = None
        for depth in reversed(depths):
            attend = [blocks.get(f"{way}{depth}", nn.Identity()) for way in ("down", "up")]
            level = UnetBlock(
                widths[depth - 1], widths[depth], below=level, norm=norm, resample=resample, attend=attend,
                dropout=dropout and 4 <= depth < n_downs - 1,
            )  # fmt: skip
        self.model = UnetBlock(output_nc, ngf, below=level, input_nc=input_nc, norm=norm, resample=resample)
        self.attention = nn.ModuleDict(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, input_nc, H, W) -> (B, output_nc, H, W), in the dtype of x."""
        return self.model(x).to(x.dtype)
