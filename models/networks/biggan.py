"""The networks of BigGAN: SAGAN's residual networks, with noise and classes in every block of the generator."""

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from models.networks.layers import ModulatedBatchNorm2d, no_autocast
from models.networks.sagan import (
    NoiseGenerator,
    SAGANResnetDiscriminator,
    UpBlock,
    first_stage,
    image_stage,
    resampling_stages,
)

EMBEDDING = 128  # length of the vector of a class
# Image size -> channels in units of ngf or ndf, as in the paper for 128 and 256 pixels, and in the authors' code.
WIDTHS_G = {32: (4, 4, 4, 4), 64: (16, 16, 8, 4, 2), 128: (16, 16, 8, 4, 2, 1), 256: (16, 16, 8, 8, 4, 2, 1)}
WIDTHS_D = {32: (4, 4, 4, 4), 64: (1, 2, 4, 8, 16), 128: (1, 2, 4, 8, 16, 16), 256: (1, 2, 4, 8, 8, 16, 16)}


class BigGANGenerator(NoiseGenerator):
    """Residual blocks with nearest-neighbor upsampling, each with its own part of the noise, and pooled attention.

    The stages are linear (4 x 4), block1 (8 x 8), block2 (16 x 16), block3 (32 x 32), ..., last. The noise is split
    into equal parts, the first of which is the input of the linear layer. The scale and the shift of each batch norm
    of a block are linear functions of the part of this block and, if there are classes, of a vector of the class, which
    all blocks share.

    Args:
        output_nc: channels of the images.
        image_size: width and height in pixels: 32, 64, 128 or 256.
        z_dim: length of the noise vectors, at least 1 for each stage but the last one. Where it does not split into
            equal parts, the first ones are longer by 1.
        ngf: channels of the last block at 128 and 256 pixels; at 64 pixels it has twice, at 32 pixels 4 times as many.
        attention: blocks followed by attention; default: block3, or block2 at 32 pixels, where block3 is the last.
        n_classes: number of classes; 0 = none.

    Raises:
        ValueError: see NoiseGenerator; or `z_dim` is too short.

    Reference: Brock et al. 2018, Large Scale GAN Training for High Fidelity Natural Image Synthesis,
    https://arxiv.org/abs/1809.11096, appendix B. There, attention is at 64 x 64 positions.
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
        if z_dim <= count:
            raise ValueError(f"z_dim={z_dim} is less than {count + 1}, the parts that the noise is split into")
        parts = [z_dim // (count + 1) + (number < z_dim % (count + 1)) for number in range(count + 1)]
        before, *widths = (ngf * width for width in WIDTHS_G[image_size])
        stages: dict[str, tuple[nn.Module, int]] = {"linear": (first_stage(parts[0], before), before)}
        for number, channels in enumerate(widths, 1):
            norm = partial(ModulatedBatchNorm2d, length=parts[number] + (EMBEDDING if n_classes else 0))
            stages[f"block{number}"] = UpBlock(before, channels, norm), channels
            before = channels
        stages["last"] = image_stage(before, output_nc), output_nc
        super().__init__(stages, attention=attention, default=[f"block{min(count - 1, 3)}"], pooled=True)
        self.z_dim, self.n_classes, self.parts = z_dim, n_classes, parts
        if n_classes:
            self.classes = nn.Linear(n_classes, EMBEDDING, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        """See NoiseGenerator."""
        x, *vectors = z.split([*self.parts, *([self.n_classes] if self.n_classes else [])], 1)
        if self.n_classes:
            with no_autocast(z):
                embedded = self.classes(vectors.pop())
            vectors = [torch.cat([embedded, part], 1) for part in vectors]
        for name, layer in self.named_children():
            if isinstance(layer, UpBlock):
                x = layer(x, vectors.pop(0))
            elif name != "classes":
                x = layer(x)
        return x.to(z.dtype)


class BigGANDiscriminator(SAGANResnetDiscriminator):
    """The discriminator of SAGAN's paper with other channels, see WIDTHS_D; at 128 pixels it is the same network.

    Reference: see BigGANGenerator.
    """

    @staticmethod
    def widths(image_size: int) -> Sequence[int]:
        """See SAGANResnetDiscriminator."""
        return WIDTHS_D[image_size]
