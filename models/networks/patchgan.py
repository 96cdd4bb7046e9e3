"""PatchGAN discriminators, which score each patch of an image."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from models.networks.attention import AttentiveChain
from models.networks.layers import MinibatchStd, needs_bias, norm_layer
from models.networks.resample import Downsample, check_resampling


class NLayerDiscriminator(AttentiveChain):
    """PatchGAN of overlapping patches, 70 pixels wide with 3 layers.

    Args:
        input_nc: channels of the images.
        ndf: channels of the first layer; each further layer doubles them up to 8 * ndf.
        n_layers: number of layers that halve the resolution.
        norm: see `norm_layer`.
        resample: with blur, convolutions have stride 1 and a Downsample layer each halves the resolution, as in CUT,
            whose checkpoints fit; deconv and nearest, which are for generators, leave stride 2.
        attention: stages followed by a SelfAttention2d block: layer1 ... layer{n_layers + 1}, or bottleneck, the last
            layer with stride 2 (stride 8 of the image with 3 layers).
        batch_head: replace the last convolution by a head that sees how much the images of a batch differ: MinibatchStd
            and two 3 x 3 convolutions, as in UVCGAN2 (Torbunov et al. 2023, arXiv:2303.16280). Scores are one row and
            column larger.

    Shapes:
        (B, input_nc, H, W) -> scores (B, 1, h, w) before the sigmoid; 256 x 256 pixels give 30 x 30 scores.

    Raises:
        ValueError: an argument has an unknown value, or attention does not fit the channels.

    Reference: Isola et al. 2017, Image-to-Image Translation with Conditional Adversarial Networks, arXiv:1611.07004.
    """

    def __init__(
        self,
        input_nc: int,
        *,
        ndf: int = 64,
        n_layers: int = 3,
        norm: str = "instance",
        resample: str = "deconv",
        attention: Iterable[str] = (),
        batch_head: bool = False,
    ):
        check_resampling(resample)
        make_norm, bias = norm_layer(norm), needs_bias(norm)
        half, blur = (1, [Downsample]) if resample == "blur" else (2, [])
        layers: list[nn.Module] = [nn.Conv2d(input_nc, ndf, 4, stride=half, padding=1), nn.LeakyReLU(0.2)]
        layers += [layer(ndf) for layer in blur]
        stages, before = {"layer1": (len(layers) - 1, ndf)}, ndf
        for i in range(2, n_layers + 2):
            channels = ndf * min(2 ** (i - 1), 8)
            stride = half if i <= n_layers else 1
            convolution = nn.Conv2d(before, channels, 4, stride=stride, padding=1, bias=bias)
            layers += [convolution, make_norm(channels), nn.LeakyReLU(0.2)]
            if i <= n_layers:
                layers += [layer(channels) for layer in blur]
            stages[f"layer{i}"] = len(layers) - 1, channels
            before = channels
        if not batch_head:
            layers.append(nn.Conv2d(before, 1, 4, stride=1, padding=1))
        super().__init__(layers, stages, attention, {"bottleneck": (f"layer{n_layers}",)})
        self.head: nn.Sequential | None = None
        if batch_head:
            first, last = nn.Conv2d(before + 1, before, 3, padding=1), nn.Conv2d(before, 1, 3, padding=1)
            self.head = nn.Sequential(MinibatchStd(), first, nn.LeakyReLU(0.2), last)

    def forward(self, x: Tensor) -> Tensor:
        """Score images (B, input_nc, H, W). The scores have the dtype of `x`, under autocast too."""
        return super().forward(x) if self.head is None else self.with_features(x)[0]

    def with_features(self, x: Tensor, beside: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Score images with the batch head, and return the features that it saw. Never compiled.

        Args:
            x: images (B, input_nc, H, W).
            beside: the features of other images, (N, C, h, w), which count as part of the batch.

        Returns:
            Scores (B, 1, h, w) and features (B, C, h, w), in the dtype of `x`.
        """
        assert self.head is not None
        features = super().forward(x)
        together = features if beside is None else torch.cat([features, beside])
        return self.head(together)[: len(x)].to(x.dtype), features


class PixelDiscriminator(nn.Module):
    """1 x 1 PatchGAN, which scores each pixel by its color alone.

    Args:
        input_nc: channels of the images.
        ndf: channels of the first layer.
        norm: see `norm_layer`.
        attention: has to be empty, since scores would depend on other pixels.

    Shapes:
        (B, input_nc, H, W) -> scores (B, 1, H, W) before the sigmoid.

    Raises:
        ValueError: the norm is unknown, or attention is not empty.

    Reference: Isola et al. 2017, Image-to-Image Translation with Conditional Adversarial Networks, arXiv:1611.07004.
    """

    def __init__(self, input_nc: int, *, ndf: int = 64, norm: str = "instance", attention: Iterable[str] = ()):
        super().__init__()
        if attention := list(attention):
            raise ValueError(f"attention={attention}: a discriminator of single pixels has no stages, use []")
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
        """(B, input_nc, H, W) -> (B, 1, H, W), in the dtype of x."""
        return self.net(x).to(x.dtype)
