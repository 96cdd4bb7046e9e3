"""Normalisation by name, weight initialisation and spectral normalisation: the parts that every network shares."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize


class InstanceNorm2d(nn.InstanceNorm2d):
    """PyTorch's own (Ulyanov et al. 2016, arXiv:1607.08022), but channels last stay so where nothing is to be trained.

    There it is group norm with a group a channel, whose backward pass would be slow.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if input.requires_grad or input.is_contiguous() or not input.is_contiguous(memory_format=torch.channels_last):
            return super().forward(input)
        return F.group_norm(input, self.num_features, self.weight, self.bias, self.eps)


class SyncBatchNorm(nn.SyncBatchNorm):
    """Batch norm (Ioffe and Szegedy 2015, arXiv:1502.03167) over the pictures of all processes.

    PyTorch's own, which refuses CPUs, and the same for them.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), of the same dtype."""
        if not input.is_cpu or not self.training or not dist.is_initialized():
            return super().forward(input)
        assert self.num_batches_tracked is not None and self.momentum is not None
        assert self.running_mean is not None and self.running_var is not None
        x, dims = input.to(torch.promote_types(input.dtype, torch.float32)), (0, 2, 3)
        here = x.new_tensor([x.numel() / x.shape[1]])
        sums = all_reduce(torch.cat([x.sum(dims), here]))
        number = sums[-1].detach()
        mean = sums[:-1] / number
        centred = x - mean[:, None, None]
        variance = all_reduce(centred.square().sum(dims)) / number
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * number / (number - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def no_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """The context in which operations on tensors such as `x` keep their dtype."""
    device = x.device.type  # the meta device knows no autocast
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


class ReflectionPad2d(nn.ReflectionPad2d):
    """PyTorch's own, but of the dtype of its input: autocast on CPUs would widen it to float32."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H + top + bottom, W + left + right)."""
        with no_autocast(input):
            return super().forward(input)


class NarrowConv2d(nn.Conv2d):
    """PyTorch's own without padding or stride, for few output channels, such as colours: faster on CPUs.

    Convolutions there work on 16 output channels at a time. So every column of the kernel becomes an output channel of
    a kernel of one column, and the pictures of these are added up, each one place further to the left.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H - kernel height + 1, W - kernel width + 1)."""
        if not input.is_cpu:
            return super().forward(input)
        assert self.bias is not None and self.stride == self.dilation == (1, 1) and self.padding == (0, 0)
        outputs, columns, width = len(self.weight), self.kernel_size[1], input.shape[3]
        made = F.conv2d(input, self.weight.permute(0, 3, 1, 2).flatten(0, 1)[..., None])
        rows = made.unflatten(1, (outputs, columns)).transpose(2, 3).flatten(3)  # all columns of a row side by side
        shifted = F.pad(rows, (0, columns)).unflatten(3, (columns, width + 1))[..., : width - columns + 1]
        return shifted.sum(3) + self.bias[:, None, None].to(shifted.dtype)


class SpectralNorm(parametrizations._SpectralNorm):
    """PyTorch's own, but in float32: autocast on GPUs would run the power iteration in half precision."""

    def forward(self, weight: Tensor) -> Tensor:
        """A weight of any shape, divided by its largest singular value."""
        with no_autocast(weight):
            return super().forward(weight)


# No activation behind these is in place: instance norm returns a view, and to change one makes the backward pass copy.
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "instance": InstanceNorm2d,
    "batch": nn.BatchNorm2d,
    "syncbatch": SyncBatchNorm,
    "none": lambda channels: nn.Identity(),
}
BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def norm_layer(name: str) -> Callable[[int], nn.Module]:
    """Return the constructor `channels -> layer` of a normalisation.

    instance (no weights), batch (affine), syncbatch (batch norm over the pictures of all processes of a distributed
    run; in a single process the same as batch) or none.
    """
    if name not in NORMS:
        raise ValueError(f"norm={name!r}: choose from {', '.join(NORMS)}")
    return NORMS[name]


def run_together(net: Callable[[Tensor], Tensor], *images: Tensor) -> tuple[Tensor, ...]:
    """What `net` makes of each of several batches (B, C, H, W): in one go, which is faster, if nothing else changes.

    Batch norm lets the pictures of a batch change each other, and spectral norm moves on with every run; pictures of
    several sizes, and functions that are not a module, take a run each.
    """
    modules = list(net.modules()) if isinstance(net, nn.Module) else []
    same_size = len({image.shape[1:] for image in images}) == 1
    if modules and same_size and not any(isinstance(module, (*BATCH_NORMS, SpectralNorm)) for module in modules):
        return net(torch.cat(images)).split([len(image) for image in images])
    return tuple(net(image) for image in images)


def needs_bias(norm: str) -> bool:
    """Whether a convolution before this normalisation has a bias, as in upstream, whose checkpoints fix it."""
    return norm == "instance"


def init_weights(net: nn.Module, init_type: str = "normal", init_gain: float = 0.02) -> nn.Module:
    """Fill the convolutions and linear layers of `net` in place and return it.

    `init_type` is normal (standard deviation init_gain), xavier (Glorot and Bengio 2010), kaiming (He et al. 2015,
    arXiv:1502.01852; takes no gain) or orthogonal (Saxe et al. 2013, arXiv:1312.6120). Biases become 0, the weights of
    batch norm N(1, 0.02).
    """
    fills: dict[str, Callable] = {
        "normal": lambda weight: nn.init.normal_(weight, 0.0, init_gain),
        "xavier": lambda weight: nn.init.xavier_normal_(weight, init_gain),
        "kaiming": lambda weight: nn.init.kaiming_normal_(weight),
        "orthogonal": lambda weight: nn.init.orthogonal_(weight, init_gain),
    }
    if init_type not in fills:
        raise ValueError(f"init_type={init_type!r}: choose from {', '.join(fills)}")
    for module in net.modules():
        if isinstance(module, WEIGHTED):
            fills[init_type](module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, BATCH_NORMS):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)
    return net


def spectral_normalize(net: nn.Module, leave_out: tuple[str, ...] = ()) -> nn.Module:
    """Divide every convolution and linear layer of `net` by its largest singular value, in place, and return `net`.

    PyTorch's own parametrization (Miyato et al. 2018, arXiv:1802.05957). Comes after `init_weights`: filling a weight
    that is already parametrized has no effect. Layers whose name begins with one of `leave_out` stay as they are.
    """
    for name, module in list(net.named_modules()):
        if isinstance(module, WEIGHTED) and not name.startswith(leave_out):
            norm = SpectralNorm(module.weight, dim=int(isinstance(module, nn.ConvTranspose2d)))
            parametrize.register_parametrization(module, "weight", norm)
    return net
