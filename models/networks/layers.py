"""Normalization, weight initialization and spectral normalization, shared by all networks."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize


class InstanceNorm2d(nn.InstanceNorm2d):
    """Instance normalization that keeps channels_last inputs in that memory format when no gradient is needed.

    nn.InstanceNorm2d copies them to contiguous memory. Group norm with one group per channel computes the same and does
    not copy, but its backward pass on CPUs is 60 times slower, so inputs that need a gradient use nn.InstanceNorm2d.

    Compiled for a GPU, it is written out: the compiler fuses that with its neighbors, in either memory format.

    Reference: Ulyanov et al. 2016, Instance Normalization, arXiv:1607.08022.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if torch.compiler.is_compiling() and not input.is_cpu and not self.affine:
            return normalize_instances(input, self.eps)
        if input.requires_grad or input.is_contiguous() or not input.is_contiguous(memory_format=torch.channels_last):
            return super().forward(input)
        return F.group_norm(input, self.num_features, self.weight, self.bias, self.eps)


def normalize_instances(x: Tensor, eps: float) -> Tensor:
    """Instance normalization of (B, C, H, W), of the same dtype; statistics are in float32 or wider."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, (2, 3), correction=0, keepdim=True)
    return ((wide - mean) * torch.rsqrt(variance + eps)).to(x.dtype)


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch normalization over the images of all processes; statistics are in float32 or wider.

    nn.SyncBatchNorm is for GPUs alone, waits for them in each forward pass, and has no second derivative, which
    gradient penalties need.

    Reference: Ioffe and Szegedy 2015, Batch Normalization, arXiv:1502.03167.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), of the same dtype."""
        if input.is_meta or not self.training or not dist.is_initialized():
            return super().forward(input)
        assert self.num_batches_tracked is not None and self.momentum is not None
        assert self.running_mean is not None and self.running_var is not None
        x, dims = input.to(torch.promote_types(input.dtype, torch.float32)), (0, 2, 3)
        count_here = x.new_full((1,), x.numel() / x.shape[1])
        sums = all_reduce(torch.cat([x.sum(dims), count_here]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centered = x - mean[:, None, None]
        variance = all_reduce(centered.square().sum(dims)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centered * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def no_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A context that disables autocast for the device of `x`, if it is enabled."""
    device = x.device.type  # the meta device has no autocast
    enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if enabled else nullcontext()


class ReflectionPad2d(nn.ReflectionPad2d):
    """Reflection padding that keeps the dtype of its input: autocast on CPUs would convert it to float32."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H + top + bottom, W + left + right)."""
        if not input.is_cpu:  # entering a context for each layer takes as long as a small kernel
            return reflect(input, self.padding)
        with no_autocast(input):
            return reflect(input, self.padding)


def reflect(x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    """Pad (B, C, H, W) by reflection. `padding` is left, right, top, bottom, each smaller than its side.

    The gradient of PyTorch's own kernel for GPUs differs from run to run in its last bits. Where that is not wanted,
    flipped strips are concatenated.
    """
    if x.is_cpu or not torch.are_deterministic_algorithms_enabled():
        return F.pad(x, padding, mode="reflect")
    return concatenate_reflected(x, padding)


def concatenate_reflected(x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    """Compute `reflect` by concatenating flipped strips."""
    for dim, before, after in ((3, *padding[:2]), (2, *padding[2:])):
        size = x.shape[dim]
        first, last = x.narrow(dim, 1, before).flip(dim), x.narrow(dim, size - 1 - after, after).flip(dim)
        x = torch.cat([first, x, last], dim)
    return x


class NarrowConv2d(nn.Conv2d):
    """Convolution without padding or stride that is faster on CPUs for few output channels, such as RGB.

    CPU kernels compute 16 output channels at a time, so 3 channels take as long as 16. Here each column of the kernel
    becomes an output channel of its own, of a kernel that is one pixel wide. The result is the sum of these channels,
    each shifted by the offset of its column. GPUs use nn.Conv2d.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H - kernel height + 1, W - kernel width + 1)."""
        if not input.is_cpu:
            return super().forward(input)
        assert self.bias is not None and self.stride == self.dilation == (1, 1) and self.padding == (0, 0)
        outputs, columns, width = self.out_channels, self.kernel_size[1], input.shape[3]
        by_column = F.conv2d(input, self.weight.permute(0, 3, 1, 2).flatten(0, 1)[..., None])
        rows = by_column.unflatten(1, (outputs, columns)).transpose(2, 3).flatten(3)
        # A row of (columns * width) elements, cut after every width + 1, shifts each column by one more pixel.
        shifted = F.pad(rows, (0, columns)).unflatten(3, (columns, width + 1))[..., : width - columns + 1]
        return shifted.sum(3) + self.bias[:, None, None].to(shifted.dtype)


class SpectralNorm(parametrizations._SpectralNorm):
    """Spectral normalization in float32: autocast on GPUs would run the power iteration in half precision.

    Reference: Miyato et al. 2018, Spectral Normalization for GANs, arXiv:1802.05957.
    """

    def forward(self, weight: Tensor) -> Tensor:
        """Divide a weight of any shape by its largest singular value, with the shape kept."""
        with no_autocast(weight):
            return super().forward(weight)


# ResNets and PatchGANs have no in-place activation after these: autograd would copy instance norm's result, a view.
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "instance": InstanceNorm2d,
    "batch": nn.BatchNorm2d,
    "syncbatch": SyncBatchNorm,
    "none": lambda channels: nn.Identity(),
}
WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def norm_layer(name: str) -> Callable[[int], nn.Module]:
    """Return the constructor of a normalization layer: channels -> layer.

    Args:
        name: instance (without weights), batch (affine), syncbatch (batch norm over the images of all processes; the
            same as batch in a single process) or none.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in NORMS:
        raise ValueError(f"norm={name!r}: choose from {', '.join(NORMS)}")
    return NORMS[name]


class MinibatchStd(nn.Module):
    """Appends a channel that tells a discriminator how much the images of a batch differ, so that G keeps them diverse.

    A batch is split into groups of 4 images or a few more, but a batch below 8 is one group. The channel of an image is
    the standard deviation over its group, averaged over all channels and positions; 0 in a group of one image.

    Reference: Karras et al. 2018, Progressive Growing of GANs, arXiv:1710.10196.
    """

    smallest = 4  # images in a group

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C + 1, H, W), in the dtype of x; statistics are in float32 or wider."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        groups = wide.tensor_split(max(len(x) // self.smallest, 1))
        # The small number keeps the gradient finite where all images are equal.
        spreads = [((group.var(0, correction=0) + 1e-8).sqrt().mean()).expand(len(group), 1, 1, 1) for group in groups]
        return torch.cat([x, torch.cat(spreads).expand(-1, -1, *x.shape[2:]).to(x.dtype)], 1)


class ConditionalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization with a scale and a shift for each class.

    Args:
        channels: C.
        n_classes: number of classes.

    Reference: Dumoulin et al. 2017, A Learned Representation for Artistic Style, arXiv:1610.07629; de Vries et al.
    2017, arXiv:1707.00683.
    """

    def __init__(self, channels: int, n_classes: int):
        super().__init__(channels, affine=False)
        self.weight = nn.Parameter(torch.ones(n_classes, channels))
        self.bias = nn.Parameter(torch.zeros(n_classes, channels))

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:  # type: ignore[override]
        """Normalize x (B, C, H, W); classes (B, n_classes) are weights of classes: one-hot, or a mixture."""
        assert self.num_batches_tracked is not None and self.momentum is not None
        if self.training:
            self.num_batches_tracked.add_(1)
        normalized = F.batch_norm(
            x, self.running_mean, self.running_var, training=self.training, momentum=self.momentum, eps=self.eps
        )
        with no_autocast(x):
            scale, shift = ((classes @ values)[:, :, None, None].to(x.dtype) for values in (self.weight, self.bias))
        return torch.addcmul(shift, normalized, scale)


class ModulatedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization whose scale, around 1, and shift are linear functions of a vector for each image.

    Args:
        channels: C.
        length: D, of the vectors.

    Reference: de Vries et al. 2017, arXiv:1707.00683; Brock et al. 2018, arXiv:1809.11096, appendix B.
    """

    def __init__(self, channels: int, length: int):
        super().__init__(channels, affine=False)
        self.scale = nn.Linear(length, channels, bias=False)
        self.shift = nn.Linear(length, channels, bias=False)

    def forward(self, x: Tensor, vectors: Tensor) -> Tensor:  # type: ignore[override]
        """Normalize x (B, C, H, W), with vectors (B, D)."""
        with no_autocast(x):
            scale, shift = 1 + self.scale(vectors), self.shift(vectors)
        scale, shift = (values[:, :, None, None].to(x.dtype) for values in (scale, shift))
        return torch.addcmul(shift, super().forward(x), scale)


# Layers whose result for an image depends on the other images, or on how often they run.
DEPENDENT = (nn.BatchNorm2d, SpectralNorm, MinibatchStd)


def run_together(net: Callable[[Tensor], Tensor], *images: Tensor) -> tuple[Tensor, ...]:
    """Run `net` on several batches (B, C, H, W), concatenated into one if the results are the same, which is faster.

    Batches run separately if `net` contains batch norm or MinibatchStd, which mix the images of a batch, or spectral
    norm, which updates its estimate in each forward pass; also if their images differ in size or `net` is not a module.

    Returns:
        The output for each batch.
    """
    same_size = len({image.shape[1:] for image in images}) == 1
    if isinstance(net, nn.Module) and same_size and is_batch_independent(net):
        return net(torch.cat(images)).split([len(image) for image in images])
    return tuple(net(image) for image in images)


def is_batch_independent(net: nn.Module) -> bool:
    """Whether the result of `net` for an image depends on this image alone. Its layers are looked at once."""
    if net not in _ALONE:
        _ALONE[net] = not any(isinstance(module, DEPENDENT) for module in net.modules())
    return _ALONE[net]


_ALONE: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def needs_bias(norm: str) -> bool:
    """Whether a convolution before this normalization has a bias, as in upstream's checkpoints."""
    return norm == "instance"


def init_weights(net: nn.Module, init_type: str = "normal", init_gain: float = 0.02) -> nn.Module:
    """Initialize the weights of `net` in place and return it. Biases become 0, weights of batch norm N(1, 0.02).

    Args:
        init_type: of convolutions and linear layers: normal (standard deviation `init_gain`), xavier (Glorot and Bengio
            2010), kaiming (He et al. 2015, arXiv:1502.01852; ignores the gain) or orthogonal (Saxe et al. 2013,
            arXiv:1312.6120).

    Raises:
        ValueError: `init_type` is unknown.
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
        elif isinstance(module, nn.BatchNorm2d) and module.weight is not None:
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)
    return net


def spectral_normalize(net: nn.Module, exclude: tuple[str, ...] = ()) -> nn.Module:
    """Parametrize the convolutions and linear layers of `net` with SpectralNorm, in place, and return it.

    Call it after `init_weights`, which has no effect on parametrized weights.

    Args:
        exclude: prefixes of the names of layers to leave unchanged.
    """
    for name, module in list(net.named_modules()):
        if isinstance(module, WEIGHTED) and not name.startswith(exclude):
            norm = SpectralNorm(module.weight, dim=int(isinstance(module, nn.ConvTranspose2d)))
            parametrize.register_parametrization(module, "weight", norm)
    return net


def remove_spectral_norm(net: nn.Module) -> None:
    """Replace the parametrized weights of `net`, in place, by plain ones with the values they have now."""
    for module in list(net.modules()):
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Run `net` and its modules in eval mode inside this context, and return them to their modes.

    Neither buffers nor random states change. Compiled networks run eagerly: compiling them again for eval mode takes
    longer than a few images are worth.
    """
    modes = {module: module.training for module in net.modules()}
    with ExitStack() as stack:
        if any(module._compiled_call_impl for module in modes):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            net.eval()
            yield
        finally:
            for module, training in modes.items():
                module.training = training
