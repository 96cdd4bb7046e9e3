"""Generators whose layers PyTorch's exporters can record, for every batch and size."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks import layers, resample
from models.networks.any_size import AnySize
from models.networks.attention import SelfAttention2d, attend_plain, tokens
from models.networks.layers import remove_spectral_norm
from models.networks.sagan import NoiseGenerator

# Layers that run on every size and device alike, and contain nothing that a tracer would take as constant.


class _Downsample(resample.Downsample):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.filt.to(x.dtype), stride=2, groups=len(self.filt))


class _Upsample(resample.Upsample):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class _ResizeConv2d(resample.ResizeConv2d):
    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(F.interpolate(x, scale_factor=2.0, mode="nearest"), (1, 1, 1, 1), mode="reflect")
        return F.conv2d(padded, self.weight, self.bias)


class _Attention(SelfAttention2d):
    def forward(self, x: Tensor) -> Tensor:
        query = tokens(self.query_conv(x))
        key, value = (tokens(self.pool(conv(x))) for conv in (self.key_conv, self.value_conv))
        # contiguous, or torch.export asks for a proof about strides that it cannot find
        out = attend_plain(query, key, value).transpose(1, 2).contiguous()
        return x + self.gamma * self.out_conv(out.unflatten(2, x.shape[2:]))


class _BatchStatistics(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        scale = self.weight[:, None, None] * torch.rsqrt(variance + self.eps)
        return (x - mean) * scale + self.bias[:, None, None]


PORTABLE: dict[type[nn.Module], type[nn.Module]] = {
    layers.NarrowConv2d: nn.Conv2d,
    layers.ReflectionPad2d: nn.ReflectionPad2d,
    layers.InstanceNorm2d: nn.InstanceNorm2d,
    resample.Downsample: _Downsample,
    resample.Upsample: _Upsample,
    resample.ResizeConv2d: _ResizeConv2d,
    SelfAttention2d: _Attention,
}


class Portable(nn.Module, ABC):
    """A generator of which exporters can record all that it does.

    Args:
        net: the generator, with layers as `make_portable` leaves them.

    Attributes:
        dtype: of its weights and layers; what it takes and makes is float32.
        input_name, output_name: of ONNX files.
    """

    input_name: str
    output_name: str

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.dtype = net, torch.float32

    @abstractmethod
    def example(self) -> Tensor:
        """An input to record."""

    @abstractmethod
    def dynamic_dims(self) -> dict[int, tuple[str, int]]:
        """The dimensions of inputs that vary: number -> name, smallest size."""


class Padded(Portable):
    """AnySize by gathers alone, which tracers follow for every size: they have no branches and check no sizes."""

    input_name, output_name = "image", "result"

    def __init__(self, net: nn.Module):
        super().__init__(net)
        assert isinstance(net.stride, int)
        self.stride = net.stride

    def example(self) -> Tensor:
        """See Portable: images (2, C_in, H, W)."""
        channels = next(weight.shape[1] for weight in self.net.parameters() if weight.dim() == 4)
        return torch.zeros(2, channels, 2 * self.stride, 3 * self.stride)

    def dynamic_dims(self) -> dict[int, tuple[str, int]]:
        """See Portable. PyTorch proves its records for sides above the stride alone."""
        return {0: ("batch", 1), 2: ("height", self.stride + 1), 3: ("width", self.stride + 1)}

    def forward(self, image: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W) in [-1, 1]."""
        x = image
        for dim in (2, 3):
            side = image.shape[dim]
            cells = (side + self.stride - 1) // self.stride
            # a tensor, since the ONNX exporter does not translate the remainder by a size
            period = torch.full((1,), 2 * (side - 1), device=image.device)
            places = torch.arange(cells * self.stride, device=image.device).remainder(period)
            x = x.index_select(dim, torch.minimum(places, period - places))
        made = self.net(x.to(self.dtype)).to(image.dtype)
        for dim in (2, 3):
            made = made.index_select(dim, torch.arange(image.shape[dim], device=image.device))
        return made


class FromNoise(Portable):
    """A generator of sagan."""

    input_name, output_name = "noise", "images"

    def __init__(self, net: NoiseGenerator):
        super().__init__(net)
        self.length = net.z_dim + net.n_classes

    def example(self) -> Tensor:
        """See Portable: noise (2, z_dim + n_classes)."""
        return torch.zeros(2, self.length)

    def dynamic_dims(self) -> dict[int, tuple[str, int]]:
        """See Portable."""
        return {0: ("batch", 1)}

    def forward(self, noise: Tensor) -> Tensor:
        """(B, z_dim + n_classes) -> (B, C, S, S) in [-1, 1]."""
        return self.net(noise.to(self.dtype)).to(noise.dtype)


def make_portable(net: AnySize | NoiseGenerator) -> Portable:
    """Change the layers of a generator, in place, to ones that can be exported, and return it ready for export.

    Weights of spectral norm become plain. Batch norm in training mode keeps using the statistics of the batch; dropout
    is off.

    Args:
        net: as `inference.trained.prepare` returns it. An AnySize is exported for images of any size.
    """
    inner = net.net if isinstance(net, AnySize) else net
    remove_spectral_norm(inner)
    for module in list(inner.modules()):
        if isinstance(module, nn.BatchNorm2d):
            if module.training:
                module.__class__ = _BatchStatistics
        elif type(module) in PORTABLE:
            module.__class__ = PORTABLE[type(module)]  # in place: a U-Net refers to its attention blocks twice
    inner.to(memory_format=torch.contiguous_format)
    return (FromNoise(net) if isinstance(net, NoiseGenerator) else Padded(inner)).eval()
