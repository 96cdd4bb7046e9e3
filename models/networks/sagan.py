"""The networks of SAGAN: generators of images from noise, and discriminators with one score per image."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from models.networks.attention import place_attention
from models.networks.layers import MinibatchStd

SIZES = (32, 64, 128, 256)  # pixels


class Stages(nn.Sequential):
    """A sequence of named stages with attention blocks attn1, attn2, ... after some of them.

    Args:
        stages: name -> (stage, its output channels). Attention cannot follow the last stage.
        attention: names of stages followed by a SelfAttention2d block, or "default".
        default: the stages that "default" stands for.
        pooled: see SelfAttention2d.

    Raises:
        ValueError: a stage is unknown, or attention does not fit its channels.
    """

    def __init__(
        self,
        stages: Mapping[str, tuple[nn.Module, int]],
        *,
        attention: Iterable[str],
        default: Sequence[str],
        pooled: bool = False,
    ):
        super().__init__()
        channels = {name: channels for name, (_, channels) in list(stages.items())[:-1]}
        blocks = place_attention(channels, attention, aliases={"default": default}, pooled=pooled)
        count = 0
        for name, (stage, _) in stages.items():
            self.add_module(name, stage)
            if name in blocks:
                count += 1
                self.add_module(f"attn{count}", blocks[name])


class NoiseGenerator(Stages):
    """A generator of square images. Its subclasses raise ValueError for unknown stages and other image sizes.

    Shapes:
        (B, z_dim) -> (B, output_nc, image_size, image_size) in [-1, 1].
    """

    z_dim: int

    def forward(self, z: Tensor) -> Tensor:
        """Generate images from noise z ~ N(0, 1). They have the dtype of `z`, under autocast too."""
        return super().forward(z[:, :, None, None]).to(z.dtype)


class ImageDiscriminator(Stages):
    """A discriminator of square images. Its subclasses raise ValueError for unknown stages and other image sizes.

    Shapes:
        (B, input_nc, image_size, image_size) in [-1, 1] -> scores (B,) before the sigmoid.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Score images. The scores have the dtype of `images`, under autocast too."""
        return super().forward(images).flatten().to(images.dtype)


def resampling_stages(image_size: int) -> int:
    """The number of stages with factor 2 between 4 x 4 positions and `image_size`. ValueError if it is not in SIZES."""
    if image_size not in SIZES:
        raise ValueError(f"image_size={image_size}: choose from {', '.join(map(str, SIZES))}")
    return image_size.bit_length() - 3


class SAGANGenerator(NoiseGenerator):
    """The generator of the well-known PyTorch code for SAGAN: transposed convolutions as in DCGAN, and attention.

    At 64 pixels the stages are l1 (4 x 4), l2, l3, attn1 (16 x 16), l4, attn2 (32 x 32), last. Larger images have more
    stages.

    Args:
        output_nc: channels of the images.
        image_size: width and height in pixels: 32, 64, 128 or 256.
        z_dim: length of the noise vectors.
        ngf: channels of the last hidden stage; each earlier stage doubles them up to 8 * ngf.
        attention: stages l1, l2, ... followed by attention; default: l3 and l4, with 16 x 16 and 32 x 32 positions.

    Reference: Zhang et al. 2019, https://arxiv.org/abs/1805.08318; Radford et al. 2016 (DCGAN), arXiv:1511.06434.
    """

    def __init__(
        self,
        output_nc: int = 3,
        *,
        image_size: int = 64,
        z_dim: int = 128,
        ngf: int = 64,
        attention: Iterable[str] = ("default",),
    ):
        count = resampling_stages(image_size)
        stages: dict[str, tuple[nn.Module, int]] = {}
        before = z_dim
        for number in range(1, count + 1):
            channels = ngf * min(2 ** (count - number), 8)
            stride, padding = (1, 0) if number == 1 else (2, 1)
            convolution = nn.ConvTranspose2d(before, channels, 4, stride, padding)
            stages[f"l{number}"] = nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)), channels
            before = channels
        stages["last"] = nn.Sequential(nn.ConvTranspose2d(before, output_nc, 4, 2, 1), nn.Tanh()), output_nc
        super().__init__(stages, attention=attention, default=[name for name in ("l3", "l4") if name in stages])
        self.z_dim = z_dim


class SAGANDiscriminator(ImageDiscriminator):
    """The discriminator of the well-known PyTorch code for SAGAN: strided convolutions as in DCGAN, and attention.

    At 64 pixels the stages are l1 (32 x 32), l2, l3, attn1 (8 x 8), l4, attn2 (4 x 4), last. Larger images have more
    stages.

    Args:
        input_nc: channels of the images.
        image_size: width and height in pixels: 32, 64, 128 or 256.
        ndf: channels of the first stage; each further stage doubles them up to 8 * ndf.
        attention: stages l1, l2, ... followed by attention; default: l3 and l4.
        minibatch_std: the last stage also sees how much the images of a batch differ, see MinibatchStd.

    Reference: Zhang et al. 2019, https://arxiv.org/abs/1805.08318; Radford et al. 2016 (DCGAN), arXiv:1511.06434.
    """

    def __init__(
        self,
        input_nc: int = 3,
        *,
        image_size: int = 64,
        ndf: int = 64,
        attention: Iterable[str] = ("default",),
        minibatch_std: bool = False,
    ):
        stages: dict[str, tuple[nn.Module, int]] = {}
        before = input_nc
        for number in range(1, resampling_stages(image_size) + 1):
            channels = ndf * min(2 ** (number - 1), 8)
            convolution = nn.Conv2d(before, channels, 4, 2, 1)
            stages[f"l{number}"] = nn.Sequential(convolution, nn.LeakyReLU(0.1, inplace=True)), channels
            before = channels
        extra = [MinibatchStd()] if minibatch_std else []
        stages["last"] = nn.Sequential(*extra, nn.Conv2d(before + len(extra), 1, 4)), 1
        super().__init__(stages, attention=attention, default=[name for name in ("l3", "l4") if name in stages])


class UpBlock(nn.Module):
    """Residual block with nearest-neighbor upsampling: (B, before, H, W) -> (B, channels, 2H, 2W).

    Reference: Miyato et al. 2018, arXiv:1802.05957, appendix B.
    """

    def __init__(self, before: int, channels: int):
        super().__init__()
        # The first ReLU is not in place: the shortcut needs the input unchanged.
        self.residual = nn.Sequential(
            nn.BatchNorm2d(before),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(before, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.shortcut = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(before, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.residual(x)


class DownBlock(nn.Module):
    """Residual block with average pooling: (B, before, H, W) -> (B, channels, H / 2, W / 2).

    Args:
        first: the input is an image, so the block starts without ReLU.
        down: False keeps the resolution, and the shortcut is the identity.

    Reference: Miyato et al. 2018, arXiv:1802.05957, appendix B.
    """

    def __init__(self, before: int, channels: int, *, first: bool = False, down: bool = True):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Identity() if first else nn.ReLU(),
            nn.Conv2d(before, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.AvgPool2d(2) if down else nn.Identity(),
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(before, channels, 1)) if down else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.residual(x)


class SAGANResnetGenerator(NoiseGenerator):
    """The generator of the paper, without classes: residual blocks with nearest-neighbor upsampling, pooled attention.

    The stages are linear (4 x 4), block1 (8 x 8), block2 (16 x 16), block3 (32 x 32), ..., last.

    Args:
        output_nc: channels of the images.
        image_size: width and height in pixels: 32, 64, 128 or 256.
        z_dim: length of the noise vectors.
        ngf: channels of the last block; each earlier block doubles them up to 16 * ngf.
        attention: blocks followed by attention; default: block3, or block2 at 32 pixels, where block3 is the last.

    Reference: Zhang et al. 2019, https://arxiv.org/abs/1805.08318, and its official code.
    """

    def __init__(
        self,
        output_nc: int = 3,
        *,
        image_size: int = 64,
        z_dim: int = 128,
        ngf: int = 64,
        attention: Iterable[str] = ("default",),
    ):
        count = resampling_stages(image_size)
        before = ngf * min(2 ** (count - 1), 16)
        linear = nn.Sequential(nn.Flatten(), nn.Linear(z_dim, before * 16), nn.Unflatten(1, (before, 4, 4)))
        stages: dict[str, tuple[nn.Module, int]] = {"linear": (linear, before)}
        for number in range(1, count + 1):
            channels = ngf * min(2 ** (count - number), 16)
            stages[f"block{number}"] = UpBlock(before, channels), channels
            before = channels
        last = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU(), nn.Conv2d(before, output_nc, 3, padding=1), nn.Tanh())
        stages["last"] = last, output_nc
        super().__init__(stages, attention=attention, default=[f"block{min(count - 1, 3)}"], pooled=True)
        self.z_dim = z_dim


class SumPool(nn.Module):
    """Sum over all positions: (B, C, H, W) -> (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(dim=(2, 3))


class SAGANResnetDiscriminator(ImageDiscriminator):
    """The discriminator of the paper, without classes: residual blocks down to 4 x 4, one more there, pooled attention.

    Args:
        input_nc: channels of the images.
        image_size: width and height in pixels: 32, 64, 128 or 256.
        ndf: channels of the first block; each further block doubles them up to 16 * ndf.
        attention: blocks followed by attention; default: the one with 32 x 32 positions, or 16 x 16 at 32 pixels.
        minibatch_std: the last stage also sees how much the images of a batch differ, see MinibatchStd.

    Reference: Zhang et al. 2019, https://arxiv.org/abs/1805.08318, and its official code.
    """

    def __init__(
        self,
        input_nc: int = 3,
        *,
        image_size: int = 64,
        ndf: int = 64,
        attention: Iterable[str] = ("default",),
        minibatch_std: bool = False,
    ):
        count = resampling_stages(image_size)
        stages: dict[str, tuple[nn.Module, int]] = {}
        before = input_nc
        for number in range(1, count + 1):
            channels = ndf * min(2 ** (number - 1), 16)
            stages[f"block{number}"] = DownBlock(before, channels, first=number == 1), channels
            before = channels
        stages[f"block{count + 1}"] = DownBlock(before, before, down=False), before
        extra = [MinibatchStd()] if minibatch_std else []
        stages["last"] = nn.Sequential(*extra, nn.ReLU(), SumPool(), nn.Linear(before + len(extra), 1)), 1
        super().__init__(stages, attention=attention, default=[f"block{max(count - 3, 1)}"], pooled=True)
