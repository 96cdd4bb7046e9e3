"""The U-Net generator of pix2pix."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from models.networks.attention import place_attention
from models.networks.layers import needs_bias, norm_layer
from models.networks.resnet import ResizeConv2d


class UnetBlock(nn.Module):
    """One level of the U: halve the size, run the levels below, double it, and hand the input over beside the result.

    (B, outer, H, W) -> (B, 2 * outer, H, W); the outermost level, which has no norm, (B, input_nc, H, W) ->
    (B, outer, H, W) in [-1, 1]. `inner` is the number of channels below. `attend` acts on what comes in, and on the
    result before it is joined with that; it belongs to the generator, and so do its weights.
    """

    def __init__(
        self, outer: int, inner: int, *, below: nn.Module | None = None, input_nc: int | None = None,
        norm: str, dropout: bool = False, upsample: str, attend: Sequence[nn.Module] = (),
    ):  # fmt: skip
        super().__init__()
        self.outermost = input_nc is not None
        self.attend = tuple(attend)  # a tuple registers nothing: the keys of the level stay upstream's
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
        if self.outermost:
            return self.model(x)
        attend_down, attend_up = self.attend
        x = attend_down(x)
        return torch.cat([x, attend_up(self.model(x))], 1)


class UnetGenerator(nn.Module):
    """Encoder and decoder with skips at every size, Ronneberger et al. 2015, arXiv:1505.04597; Isola et al. 2017,
    arXiv:1611.07004.

    (B, input_nc, H, W) -> (B, output_nc, H, W) in [-1, 1]; H and W are multiples of 2 ** n_downs. Attention stages: on
    the way down, down1 (H / 2), down2 (H / 4) ... down{n_downs - 1}, seen by all below and by the skip; on the way up,
    up{n_downs - 1} ... up2 (H / 4), up1 (H / 2). `bottleneck` is down3: 32 x 32 positions at 256 px, where the true
    bottleneck has but one.

    Args:
        n_downs: halvings of the size, at least 5: 7 make unet_128, 8 unet_256.
        ngf: channels of the outermost level, doubled below up to 8 * ngf.
        upsample: deconv or nearest, as in ResnetGenerator.
        attention: stages after which a SelfAttention2d block acts; the blocks lie beside the nested `model`.
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
        self.stride = self.smallest = 2**n_downs  # of H and W, as in ResnetGenerator
        depths = range(1, n_downs)
        widths = [ngf * min(2**halvings, 8) for halvings in range(n_downs)]
        stages = {f"down{depth}": widths[depth - 1] for depth in depths}
        stages |= {f"up{depth}": widths[depth - 1] for depth in reversed(depths)}
        blocks = place_attention(stages, attention, aliases={"bottleneck": ("down3",)})
        level: UnetBlock | None = None
        for depth in reversed(depths):
            attend = [blocks.get(f"{way}{depth}", nn.Identity()) for way in ("down", "up")]
            level = UnetBlock(
                widths[depth - 1], widths[depth], below=level, norm=norm, upsample=upsample, attend=attend,
                dropout=dropout and 4 <= depth < n_downs - 1,
            )  # fmt: skip
        self.model = UnetBlock(output_nc, ngf, below=level, input_nc=input_nc, norm=norm, upsample=upsample)
        self.attention = nn.ModuleDict(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, input_nc, H, W) -> (B, output_nc, H, W), of the dtype of x."""
        return self.model(x).to(x.dtype)
