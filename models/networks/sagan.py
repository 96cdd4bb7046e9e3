"""The networks of SAGAN: images from noise, and one score for a whole image."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from models.networks.attention import place_attention

SIZES = (32, 64, 128, 256)  # px


class Stages(nn.Sequential):
    """A chain of named stages, with attention blocks attn1, attn2, ... after some of them.

    Args:
        stages: name -> (stage, its output channels); no attention can follow the last one.
        attention: names of the stages after which a SelfAttention2d block acts, see `place_attention`; `default` stands
            for those in `default`.
        default: where the authors place attention.
        pooled: the form of the blocks, see SelfAttention2d.
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
    """Stages from noise (B, z_dim) to images (B, output_nc, image_size, image_size) in [-1, 1]."""

    z_dim: int

    def forward(self, z: Tensor) -> Tensor:
        """(B, z_dim) of N(0, 1) -> images. They have the dtype of `z`, under autocast too."""
        return super().forward(z[:, :, None, None]).to(z.dtype)


class ImageDiscriminator(Stages):
    """Stages from images (B, input_nc, image_size, image_size) in [-1, 1] to scores (B,)."""

    def forward(self, images: Tensor) -> Tensor:
        """Images -> scores. They have the dtype of `images`, under autocast too."""
        return super().forward(images).flatten().to(images.dtype)


def halvings(image_size: int) -> int:
    """How often `image_size`, in pixels, is halved down to 4. ValueError if it is not one of SIZES."""
    if image_size not in SIZES:
        raise ValueError(f"image_size={image_size}: SAGAN makes images of {', '.join(map(str, SIZES))} pixels")
    return image_size.bit_length() - 3


class SAGANGenerator(NoiseGenerator):
    """Transposed convolutions, each doubling the size from 4 x 4, in the form that the public PyTorch code made known.

    After Zhang et al. 2019, https://arxiv.org/abs/1805.08318; the trunk is that of DCGAN (Radford et al. 2016,
    arXiv:1511.06434). At 64 px: l1 (4 x 4), l2, l3, attn1 (16 x 16), l4, attn2 (32 x 32), last. A larger image has more
    stages; none is wider than 8 * ngf.

    Args:
        image_size: of the square images, in pixels: 32, 64, 128 or 256.
        z_dim: length of the noise vectors.
        ngf: channels of the last hidden stage.
        attention: stages l1, l2, ... after which attention acts; default = l3 and l4, 16 x 16 and 32 x 32 positions.
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
        count = halvings(image_size)
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
    """Convolutions, each halving the size down to 4 x 4, and one score an image; the mirror of SAGANGenerator.

    At 64 px: l1 (32 x 32), l2, l3, attn1 (8 x 8), l4, attn2 (4 x 4), last. Arguments as there.
    """

    def __init__(
        self,
        input_nc: int = 3,
        *,
        image_size: int = 64,
        ndf: int = 64,
        attention: Iterable[str] = ("default",),
    ):
        stages: dict[str, tuple[nn.Module, int]] = {}
        before = input_nc
        for number in range(1, halvings(image_size) + 1):
            channels = ndf * min(2 ** (number - 1), 8)
            convolution = nn.Conv2d(before, channels, 4, 2, 1)
            stages[f"l{number}"] = nn.Sequential(convolution, nn.LeakyReLU(0.1, inplace=True)), channels
            before = channels
        stages["last"] = nn.Sequential(nn.Conv2d(before, 1, 4)), 1
        super().__init__(stages, attention=attention, default=[name for name in ("l3", "l4") if name in stages])


class UpBlock(nn.Module):
    """Residual block that doubles the size by nearest-neighbour upsampling: (B, C, H, W) -> (B, channels, 2H, 2W).

    Miyato et al. 2018, arXiv:1802.05957, appendix B.
    """

    def __init__(self, before: int, channels: int):
        super().__init__()
        # no ReLU in place here: the way around the block needs the input as it came
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
    """Residual block that halves the size by averaging: (B, C, H, W) -> (B, channels, H / 2, W / 2).

    Miyato et al. 2018, arXiv:1802.05957, appendix B. The `first` one, which sees pixels, begins without ReLU; one
    without `down` keeps the size, and the way around it is the input itself.
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
    """The paper's own generator: residual blocks, nearest-neighbour upsampling, pooled attention at 32 x 32.

    Zhang et al. 2019, https://arxiv.org/abs/1805.08318, and its official code, without the classes. A linear layer
    makes 4 x 4 positions; every block doubles the size: block1 (8 x 8), block2 (16 x 16), block3 (32 x 32), ...

    Args:
        image_size: of the square images, in pixels: 32, 64, 128 or 256.
        z_dim: length of the noise vectors.
        ngf: channels of the last block, doubled with every halving of the size up to 16 * ngf.
        attention: blocks after which attention acts; default = block3 (block2 at 32 px, where 32 x 32 is the image).
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
        count = halvings(image_size)
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
    """Sum over the positions: (B, C, H, W) -> (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(dim=(2, 3))


class SAGANResnetDiscriminator(ImageDiscriminator):
    """The paper's own discriminator: residual blocks down to 4 x 4, one more at that size, pooled attention at 32 x 32.

    Zhang et al. 2019, https://arxiv.org/abs/1805.08318, and its official code, without the classes.

    Args:
        image_size: of the square images, in pixels: 32, 64, 128 or 256.
        ndf: channels of the first block, doubled in every further one up to 16 * ndf.
        attention: blocks after which attention acts; default = the one that makes 32 x 32 positions (16 x 16 at 32 px).
    """

    def __init__(
        self,
        input_nc: int = 3,
        *,
        image_size: int = 64,
        ndf: int = 64,
        attention: Iterable[str] = ("default",),
    ):
        count = halvings(image_size)
        stages: dict[str, tuple[nn.Module, int]] = {}
        before = input_nc
        for number in range(1, count + 1):
            channels = ndf * min(2 ** (number - 1), 16)
            stages[f"block{number}"] = DownBlock(before, channels, first=number == 1), channels
            before = channels
        stages[f"block{count + 1}"] = DownBlock(before, before, down=False), before
        stages["last"] = nn.Sequential(nn.ReLU(), SumPool(), nn.Linear(before, 1)), 1
        super().__init__(stages, attention=attention, default=[f"block{max(count - 3, 1)}"], pooled=True)
