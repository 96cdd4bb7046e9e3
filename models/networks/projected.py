"""A discriminator that looks at images through frozen features of a pretrained network."""

from collections.abc import Callable, Iterable, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.efficientnet import efficientnet_lite
from models.networks.layers import no_autocast

SMALLEST = 64  # px: smaller images are upsampled, since the features know objects of a certain size


class ProjectedDiscriminator(nn.Module):
    """Small heads that score random mixtures of the features of EfficientNet-Lite0, trained on ImageNet and frozen.

    Each of the four feature maps is mixed across channels by a random 1 x 1 convolution, then with the coarser ones by
    random 3 x 3 convolutions, from coarse to fine. These weights never change; they are buffers, part of the
    state_dict. The pretrained network is not part of it. Only the heads learn, one for each resolution.

    Args:
        input_nc: channels of the images: 3.
        ndf: channels of the mixtures and heads.
        attention: has to be empty.

    Shapes:
        (B, 3, H, W) -> scores (B, 4, h, w) before the sigmoid; h and w are about a 32nd of the sides, of at least 64
        pixels, to which smaller images are upsampled.

    Raises:
        ValueError: images have other channels, attention is not empty, or the pretrained weights are not installed.

    Reference: Sauer et al. 2021, Projected GANs Converge Faster, arXiv:2111.01007.
    """

    def __init__(self, input_nc: int, *, ndf: int = 64, attention: Iterable[str] = ()):
        super().__init__()
        if input_nc != 3:
            raise ValueError(f"input_nc={input_nc}: a projected discriminator takes images of 3 channels")
        if attention := list(attention):
            raise ValueError(f"attention={attention}: a projected discriminator has no stages, use []")
        self.input_nc = input_nc
        features = efficientnet_lite(0)
        self._features: Sequence[nn.Module] = [features]  # in a list, it is not registered
        for number, channels in enumerate(features.channels):
            self.register_buffer(f"across_channels{number}", random_kernel(ndf, channels, 1))
            self.register_buffer(f"across_scales{number}", random_kernel(ndf, ndf, 3))
        self.heads = nn.ModuleList(score_head(ndf, halvings=3 - number) for number in range(4))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Apply `fn`, such as a move to a device, to the pretrained network too."""
        for features in self._features:
            features._apply(fn)
        return super()._apply(fn, recurse)

    def forward(self, x: Tensor) -> Tensor:
        """Score images (B, 3, H, W) in [-1, 1]. The scores have the dtype of `x`, under autocast too."""
        dtype, shorter = x.dtype, min(x.shape[2:])
        if shorter < SMALLEST:
            size = [round(side * SMALLEST / shorter) for side in x.shape[2:]]
            x = F.interpolate(x, size, mode="bilinear")
        scores: list[Tensor] = []
        coarser: Tensor | None = None
        with no_autocast(x):  # on CPUs, autocast takes longer to convert the frozen weights in each pass than it saves
            maps = self._features[0](x.to(torch.promote_types(dtype, torch.float32)))
        for number, features in reversed(list(enumerate(maps))):
            mixed = F.conv2d(features, self.get_buffer(f"across_channels{number}"))
            if coarser is not None:
                mixed = mixed + F.interpolate(coarser, mixed.shape[2:], mode="bilinear")
            coarser = F.conv2d(mixed, self.get_buffer(f"across_scales{number}"), padding=1)
            scores.append(self.heads[number](coarser))
        return torch.cat([F.interpolate(each, scores[0].shape[2:]) for each in scores], 1).to(dtype)


def random_kernel(out_channels: int, channels: int, size: int) -> Tensor:
    """A random kernel (out_channels, channels, size, size) that keeps the variance of features."""
    return torch.randn(out_channels, channels, size, size) / (channels * size**2) ** 0.5


def score_head(channels: int, *, halvings: int) -> nn.Sequential:
    """A network (B, channels, H, W) -> scores (B, 1, h, w) that halves the resolution `halvings` times."""
    layers: list[nn.Module] = []
    for _ in range(halvings):
        layers += [nn.Conv2d(channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(channels, 1, 1)]
    return nn.Sequential(*layers)
