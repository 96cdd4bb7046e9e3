"""The networks of SAGAN: generators of images from noise, and discriminators with one score per image."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.attention import place_attention
from models.networks.layers import ConditionalBatchNorm2d, MinibatchStd, ModulatedBatchNorm2d
from models.networks.resample import double_layers

SIZES = (32, 64, 128, 256)  # pixels


def run_layers(layers: Iterable[nn.Module], x: Tensor, classes: Tensor | None) -> Tensor:
    """Run layers on x (B, ...). Those that take them get `classes`: weights of classes, or what the norms take."""
    for layer in layers:
        x = layer(x, classes) if isinstance(layer, TAKE_CLASSES) else layer(x)
    return x


class ClassSequential(nn.Sequential):
    """A sequence of layers, some of which may depend on the classes of the images."""

    def forward(self, input: Tensor, classes: Tensor | None = None) -> Tensor:
        """See `run_layers`."""
        return run_layers(self, input, classes)


def batch_norm(channels: int, n_classes: int) -> nn.Module:
    """Batch normalization, for each class if there are any."""
    return ConditionalBatchNorm2d(channels, n_classes) if n_classes else nn.BatchNorm2d(channels)


class ProjectionScores(nn.Sequential):
    """The last stage of a discriminator of images of several classes: (B, C, h, w) -> scores (B, n_classes).

    The score of an image for a class is that of `layers`, which do not know the class, plus the product of its summed
    features and a vector of the class.

    Args:
        layers: (B, C, h, w) -> (B, 1, ...).
        channels: C.
        n_classes: number of classes.

    Reference: Miyato and Koyama 2018, cGANs with Projection Discriminator, arXiv:1802.05637.
    """

    def __init__(self, *layers: nn.Module, channels: int, n_classes: int):
        super().__init__(*layers)
        self.classes = nn.Linear(channels, n_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, n_classes)."""
        score = x
        for name, layer in self.named_children():
            if name != "classes":
                score = layer(score)
        return score.flatten(1) + self.classes(F.relu(x).sum((2, 3)))


def last_stage(*layers: nn.Module, channels: int, n_classes: int) -> nn.Module:
    """The last stage of a discriminator, with a score for each class if there are any."""
    return ProjectionScores(*layers, channels=channels, n_classes=n_classes) if n_classes else nn.Sequential(*layers)


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
        (B, z_dim) -> (B, output_nc, image_size, image_size) in [-1, 1]; with classes, (B, z_dim + n_classes).
    """

    z_dim: int
    n_classes: int

    def forward(self, z: Tensor) -> Tensor:
        """Generate images from noise z ~ N(0, 1). They have the dtype of `z`, under autocast too.

        With classes, the last values of each vector are not noise but the weights of the classes: one-hot, or a
        mixture of classes. So the input is one tensor, for every function that runs networks.
        """
        noise, classes = z, None
        if self.n_classes:
            noise, classes = z.split([self.z_dim, self.n_classes], 1)
        return run_layers(self, noise[:, :, None, None], classes).to(z.dtype)


class ImageDiscriminator(Stages):
    """A discriminator of square images. Its subclasses raise ValueError for unknown stages and other image sizes.

    Shapes:
        (B, input_nc, image_size, image_size) in [-1, 1] -> scores (B,) before the sigmoid; with classes, the scores of
        each image for all classes, (B, n_classes).
    """

    n_classes: int

    def forward(self, images: Tensor) -> Tensor:
        """Score images. The scores have the dtype of `images`, under autocast too."""
        scores = super().forward(images).to(images.dtype)
        return scores if self.n_classes else scores.flatten()


def resampling_stages(image_size: int) -> int:
    """The number of stages with factor 2 between 4 x 4 positions and `image_size`. ValueError if it is not in SIZES."""
    if image_size not in SIZES:
        raise ValueError(f"image_size={image_size}: choose from {', '.join(map(str, SIZES))}")
    return image_size.bit_length() - 3


class SAGANGenerator(NoiseGenerator):
    """The generator of the well-known PyTorch code for SAGAN: plain convolutions as in DCGAN, and attention.

    At 64 pixels the stages are l1 (4 x 4), l2, l3, attn1 (16 x 16), l4, attn2 (32 x 32), last. Larger images have more
    stages.

    Args:
        output_nc: channels of the images.
        image_size: width and height in pixels: 32, 64, 128 or 256.
        z_dim: length of the noise vectors.
        ngf: channels of the last hidden stage; each earlier stage doubles them up to 8 * ngf.
        attention: stages l1, l2, ... followed by attention; default: l3 and l4, with 16 x 16 and 32 x 32 positions.
        n_classes: number of classes, see ConditionalBatchNorm2d; 0 = none.
        resample: how stages double the resolution, deconv (as in that code), nearest or blur; see `double_layers`.

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
        n_classes: int = 0,
        resample: str = "deconv",
    ):
        count = resampling_stages(image_size)
        double = partial(double_layers, resample, kernel_size=4, bias=True)
        stages: dict[str, tuple[nn.Module, int]] = {}
        before = z_dim
        for number in range(1, count + 1):
            channels = ngf * min(2 ** (count - number), 8)
            convolution = [nn.ConvTranspose2d(before, channels, 4)] if number == 1 else double(before, channels)
            layers = *convolution, batch_norm(channels, n_classes), nn.ReLU(inplace=True)
            stages[f"l{number}"] = ClassSequential(*layers), channels
            before = channels
        stages["last"] = nn.Sequential(*double(before, output_nc), nn.Tanh()), output_nc
        super().__init__(stages, attention=attention, default=[name for name in ("l3", "l4") if name in stages])
        self.z_dim, self.n_classes = z_dim, n_classes


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
        n_classes: number of classes, see ProjectionScores; 0 = none.

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
        n_classes: int = 0,
    ):
        stages: dict[str, tuple[nn.Module, int]] = {}
        before = input_nc
        for number in range(1, resampling_stages(image_size) + 1):
            channels = ndf * min(2 ** (number - 1), 8)
            convolution = nn.Conv2d(before, channels, 4, 2, 1)
            stages[f"l{number}"] = nn.Sequential(convolution, nn.LeakyReLU(0.1, inplace=True)), channels
            before = channels
        extra = [MinibatchStd()] if minibatch_std else []
        layers = *extra, nn.Conv2d(before + len(extra), 1, 4)
        stages["last"] = last_stage(*layers, channels=before, n_classes=n_classes), 1
        super().__init__(stages, attention=attention, default=[name for name in ("l3", "l4") if name in stages])
        self.n_classes = n_classes


class UpBlock(nn.Module):
    """Residual block with nearest-neighbor upsampling: (B, before, H, W) -> (B, channels, 2H, 2W).

    Args:
        norm: channels -> normalization layer.

    Reference: Miyato et al. 2018, arXiv:1802.05957, appendix B.
    """

    def __init__(self, before: int, channels: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        # The first ReLU is not in place: the shortcut needs the input unchanged.
        self.residual = ClassSequential(
            norm(before),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(before, channels, 3, padding=1),
            norm(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.shortcut = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(before, channels, 1))

    def forward(self, x: Tensor, classes: Tensor | None = None) -> Tensor:
        """`classes` is for the normalization layers, if they depend on the image."""
        return self.shortcut(x) + self.residual(x, classes)


TAKE_CLASSES = (ConditionalBatchNorm2d, ModulatedBatchNorm2d, ClassSequential, UpBlock)


class DownBlock(nn.Module):
    """Residual block with average pooling: (B, before, H, W) -> (B, channels, H / 2, W / 2).

    Args:
        first: the input is an image, so the block starts without ReLU.
        down: False keeps the resolution; with as many channels, the shortcut is the identity then.

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
        self.shortcut: nn.Module = nn.Identity()
        if down or before != channels:
            pool = nn.AvgPool2d(2) if down else nn.Identity()
            self.shortcut = nn.Sequential(pool, nn.Conv2d(before, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.shortcut(x) + self.residual(x)


def first_stage(z_dim: int, channels: int) -> nn.Module:
    """A linear layer: noise (B, z_dim) or (B, z_dim, 1, 1) -> (B, channels, 4, 4)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(z_dim, channels * 16), nn.Unflatten(1, (channels, 4, 4)))


def image_stage(channels: int, output_nc: int) -> nn.Module:
    """The last stage of a generator of residual blocks: (B, channels, H, W) -> (B, output_nc, H, W) in [-1, 1]."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, output_nc, 3, padding=1), nn.Tanh())


class SAGANResnetGenerator(NoiseGenerator):
    """The generator of the paper: residual blocks with nearest-neighbor upsampling, pooled attention.

    The stages are linear (4 x 4), block1 (8 x 8), block2 (16 x 16), block3 (32 x 32), ..., last.

    Args:
        output_nc: channels of the images.
        image_size: width and height in pixels: 32, 64, 128 or 256.
        z_dim: length of the noise vectors.
        ngf: channels of the last block; each earlier block doubles them up to 16 * ngf.
        attention: blocks followed by attention; default: block3, or block2 at 32 pixels, where block3 is the last.
        n_classes: number of classes, see ConditionalBatchNorm2d; 0 = none.

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
        n_classes: int = 0,
    ):
        count = resampling_stages(image_size)
        before = ngf * min(2 ** (count - 1), 16)
        stages: dict[str, tuple[nn.Module, int]] = {"linear": (first_stage(z_dim, before), before)}
        for number in range(1, count + 1):
            channels = ngf * min(2 ** (count - number), 16)
            stages[f"block{number}"] = UpBlock(before, channels, partial(batch_norm, n_classes=n_classes)), channels
            before = channels
        stages["last"] = image_stage(before, output_nc), output_nc
        super().__init__(stages, attention=attention, default=[f"block{min(count - 1, 3)}"], pooled=True)
        self.z_dim, self.n_classes = z_dim, n_classes


class SumPool(nn.Module):
    """Sum over all positions: (B, C, H, W) -> (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x.sum(dim=(2, 3))


class SAGANResnetDiscriminator(ImageDiscriminator):
    """The discriminator of the paper: residual blocks down to 4 x 4, one more there, pooled attention.

    Args:
        input_nc: channels of the images.
        image_size: width and height in pixels: 32, 64, 128 or 256.
        ndf: channels of the first block; each further block doubles them up to 16 * ndf.
        attention: blocks followed by attention; default: the one with 32 x 32 positions, or 16 x 16 at 32 pixels.
        minibatch_std: the last stage also sees how much the images of a batch differ, see MinibatchStd.
        n_classes: number of classes, see ProjectionScores; 0 = none.

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
        n_classes: int = 0,
    ):
        count = resampling_stages(image_size)
        stages: dict[str, tuple[nn.Module, int]] = {}
        before = input_nc
        for number, width in enumerate(self.widths(image_size), 1):
            block = DownBlock(before, ndf * width, first=number == 1, down=number <= count)
            before = ndf * width
            stages[f"block{number}"] = block, before
        extra = [MinibatchStd()] if minibatch_std else []
        layers = *extra, nn.ReLU(), SumPool(), nn.Linear(before + len(extra), 1)
        stages["last"] = last_stage(*layers, channels=before, n_classes=n_classes), 1
        super().__init__(stages, attention=attention, default=[f"block{max(count - 3, 1)}"], pooled=True)
        self.n_classes = n_classes

    @staticmethod
    def widths(image_size: int) -> Sequence[int]:
        """The channels of each block, in units of ndf. The last block keeps the resolution."""
        count = resampling_stages(image_size)
        return [min(2**number, 16) for number in (*range(count), count - 1)]
