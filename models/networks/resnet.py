"""The ResNet generator."""

from collections.abc import Iterable, Sequence
from typing import overload

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.networks.attention import AttentiveChain
from models.networks.layers import NarrowConv2d, ReflectionPad2d, needs_bias, norm_layer
from models.networks.resample import Downsample, double_layers


class ResidualBlock(nn.Module):
    """x + (pad, convolution, norm, ReLU, [dropout], pad, convolution, norm)(x).

    Args:
        checkpointed: keep only the input for the backward pass, which recomputes the activations (Chen et al. 2016,
            arXiv:1604.06174).

    Reference: He et al. 2016, Deep Residual Learning, arXiv:1512.03385.
    """

    def __init__(self, channels: int, *, norm: str = "instance", dropout: bool = False, checkpointed: bool = False):
        super().__init__()
        self.checkpointed = checkpointed
        make_norm, bias = norm_layer(norm), needs_bias(norm)
        self.conv_block = nn.Sequential(
            ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=bias),
            make_norm(channels),
            nn.ReLU(),
            *([nn.Dropout(0.5)] if dropout else []),
            ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=bias),
            make_norm(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.checkpointed and torch.is_grad_enabled():
            return x + checkpoint(self.conv_block, x, use_reentrant=False)
        return x + self.conv_block(x)


class ResnetGenerator(AttentiveChain):
    """Residual blocks at a quarter of the resolution, between two downsampling and two upsampling layers.

    Args:
        input_nc: channels of the input images.
        output_nc: channels of the output images.
        ngf: channels of the first and last layers; the residual blocks have 4 * ngf.
        norm: see `norm_layer`.
        dropout: use dropout in the residual blocks.
        n_blocks: number of residual blocks.
        resample: deconv, nearest or blur, see `double_layers`. With blur, halving blurs too, as in CUT, whose
            checkpoints fit; otherwise convolutions have stride 2.
        attention: stages followed by a SelfAttention2d block: down1 (H / 2), down2 (H / 4), block1 ... block{n_blocks}
            (H / 4), up1 (H / 2), up2 (H), or bottleneck, the middle block.
        checkpoint_blocks: save memory in the residual blocks, see ResidualBlock.

    Shapes:
        (B, input_nc, H, W) -> (B, output_nc, H, W) in [-1, 1]; H and W are multiples of `stride`, at least `smallest`.

    Attributes:
        encoder: number of layers of `model` before upsampling.
        last: number of the last layer of `model`.
        landmarks: layers in the encoder whose features CUT compares: the padded image, both halving convolutions, the
            first and the fifth block.

    Raises:
        ValueError: an argument has an unknown value, or attention does not fit the channels.

    Reference: Johnson et al. 2016, arXiv:1603.08155; Zhu et al. 2017 (CycleGAN), arXiv:1703.10593.
    """

    stride = 4
    smallest = 8  # for the reflection padding in the blocks

    def __init__(
        self,
        input_nc: int,
        output_nc: int,
        *,
        ngf: int = 64,
        norm: str = "instance",
        dropout: bool = False,
        n_blocks: int = 9,
        resample: str = "deconv",
        attention: Iterable[str] = (),
        checkpoint_blocks: bool = False,
    ):
        make_norm, bias = norm_layer(norm), needs_bias(norm)
        layers = [ReflectionPad2d(3), nn.Conv2d(input_nc, ngf, 7, bias=bias), make_norm(ngf), nn.ReLU()]
        stages = {}
        blur = resample == "blur"
        landmarks = [0]
        for i, channels in enumerate((2 * ngf, 4 * ngf), 1):
            convolution = nn.Conv2d(channels // 2, channels, 3, stride=1 if blur else 2, padding=1, bias=bias)
            landmarks.append(len(layers))
            layers += [convolution, make_norm(channels), nn.ReLU(), *([Downsample(channels)] if blur else [])]
            stages[f"down{i}"] = len(layers) - 1, channels
        encoder = len(layers) + n_blocks
        landmarks += range(len(layers), encoder, 4)
        for i in range(1, n_blocks + 1):
            layers.append(ResidualBlock(4 * ngf, norm=norm, dropout=dropout, checkpointed=checkpoint_blocks))
            stages[f"block{i}"] = len(layers) - 1, 4 * ngf
        for i, channels in enumerate((2 * ngf, ngf), 1):
            layers += [*double_layers(resample, 2 * channels, channels, bias=bias), make_norm(channels), nn.ReLU()]
            stages[f"up{i}"] = len(layers) - 1, channels
        layers += [ReflectionPad2d(3), NarrowConv2d(ngf, output_nc, 7), nn.Tanh()]
        super().__init__(layers, stages, attention, {"bottleneck": (f"block{(n_blocks + 1) // 2}",)})
        self.input_nc, self.encoder, self.landmarks = input_nc, encoder, tuple(landmarks[:5])
        self.last = len(layers) - 1

    @overload
    def forward(self, x: Tensor) -> Tensor: ...

    @overload
    def forward(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]: ...

    def forward(self, x: Tensor, layers: Sequence[int] = ()) -> Tensor | list[Tensor]:
        """Translate images, or return what single layers make of them.

        Args:
            x: images (B, input_nc, H, W) in [-1, 1].
            layers: ascending numbers of layers of `model`; later ones do not run.

        Returns:
            Images (B, output_nc, H, W) in the dtype of `x`; with `layers`, the output of each, before attention. The
            output of the last layer of `model` is the image.
        """
        return self.outputs(x, layers) if layers else super().forward(x)
