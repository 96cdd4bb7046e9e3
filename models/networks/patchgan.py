"""The PatchGAN discriminators: one score for every patch of the picture."""

from collections.abc import Iterable

from torch import Tensor, nn

from models.networks.attention import AttentiveChain
from models.networks.layers import needs_bias, norm_layer


class NLayerDiscriminator(AttentiveChain):
    """PatchGAN with overlapping patches (70 px wide with 3 layers), Isola et al. 2017, arXiv:1611.07004.

    (B, input_nc, H, W) -> (B, 1, h, w) scores; 256 px gives 30 x 30. Attention stages: layer1 ... layer{n_layers + 1},
    all but the last at half the size of the one before; `bottleneck` is the last of these (stride 8 with 3 layers).

    Args:
        ndf: channels of the first layer, doubled in every further one up to 8 * ndf.
        n_layers: number of halvings.
        attention: stages after which a SelfAttention2d block acts.
    """

    def __init__(
        self,
        input_nc: int,
        *,
        ndf: int = 64,
        n_layers: int = 3,
        norm: str = "instance",
        attention: Iterable[str] = (),
    ):
        make_norm, bias = norm_layer(norm), needs_bias(norm)
        layers: list[nn.Module] = [nn.Conv2d(input_nc, ndf, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        stages, before = {"layer1": (1, ndf)}, ndf
        for i in range(2, n_layers + 2):
            channels = ndf * min(2 ** (i - 1), 8)
            stride = 2 if i <= n_layers else 1
            convolution = nn.Conv2d(before, channels, 4, stride=stride, padding=1, bias=bias)
            layers += [convolution, make_norm(channels), nn.LeakyReLU(0.2)]
            stages[f"layer{i}"] = len(layers) - 1, channels
            before = channels
        layers.append(nn.Conv2d(before, 1, 4, stride=1, padding=1))
        super().__init__(layers, stages, attention, {"bottleneck": (f"layer{n_layers}",)})


class PixelDiscriminator(nn.Module):
    """1 x 1 PatchGAN: every pixel judged by its colour alone, Isola et al. 2017, arXiv:1611.07004.

    (B, input_nc, H, W) -> (B, 1, H, W) scores. It has no attention stages: it would not be blind to its neighbours.
    """

    def __init__(self, input_nc: int, *, ndf: int = 64, norm: str = "instance", attention: Iterable[str] = ()):
        super().__init__()
        if tuple(attention):
            raise ValueError("attention: a discriminator of single pixels has no stage for it; leave it empty")
        bias = needs_bias(norm)
        self.net = nn.Sequential(
            nn.Conv2d(input_nc, ndf, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(ndf, 2 * ndf, 1, bias=bias),
            norm_layer(norm)(2 * ndf),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * ndf, 1, 1, bias=bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, input_nc, H, W) -> (B, 1, H, W), of the dtype of x."""
        return self.net(x).to(x.dtype)
