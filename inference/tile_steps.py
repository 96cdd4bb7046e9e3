"""The layers of a generator as steps that run on windows of feature maps; see `inference.tiles`."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from inference.tile_maps import Box, Observer, Positions, Range, Statistics
from models.networks.any_size import AnySize
from models.networks.attention import SelfAttention2d
from models.networks.layers import NarrowConv2d
from models.networks.resample import Downsample, ResizeConv2d, Upsample


@dataclass(frozen=True)
class Step:
    """One layer: how it computes a range of its output from a range of its padded input, the same in both directions.

    Args:
        apply: padded inputs -> output, without padding of its own.
        inputs: numbers of the steps before it; -1 is the image.
        kernel, stride, padding: as of a convolution.
        mode: of the padding at the borders of the image, as in F.pad.
        doubles: enlarges by `stride`, as a transposed convolution does, instead of dividing by it.
        observer: what has to see the whole input first; None if `apply` is known.
        module: for the observer.
        channels: of the output; None for those of the input.
    """

    apply: Callable[..., Tensor]
    inputs: tuple[int, ...]
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    mode: str = "constant"
    doubles: bool = False
    observer: type[Observer] | None = None
    module: nn.Module | None = None
    channels: int | None = None

    def side(self, side: int) -> int:
        """Cells of the output for cells of the input."""
        return side * self.stride if self.doubles else (side + 2 * self.padding - self.kernel) // self.stride + 1

    def span(self, wanted: Range) -> Range:
        """The range of the input that a range of the output depends on; beyond the borders it is padding."""
        first, end = wanted
        if self.doubles:
            low = -((self.kernel - 1 - self.padding - first) // self.stride)
            return low, (end - 1 + self.padding) // self.stride + 1
        return first * self.stride - self.padding, (end - 1) * self.stride - self.padding + self.kernel

    def first(self, span: Range) -> int:
        """The position in the output of the first value that `apply` returns for a span of the input."""
        return span[0] * self.stride - self.padding if self.doubles else (span[0] + self.padding) // self.stride

    def clipped(self, wanted: Range, side: int) -> Range:
        """The part of `span` inside an input of `side` cells, with the cells that reflection pads by."""
        low, high = self.span(wanted)
        first, end = max(low, 0), min(high, side)
        if self.mode == "reflect":
            first, end = min(first, max(2 * side - 1 - high, 0)), max(end, min(1 - low, side))
        elif self.mode == "replicate":
            first, end = min(first, side - 1), max(end, 1)
        return first, end

    def padded(self, x: Tensor, have: Box, wanted: Box, sides: Sequence[int]) -> Tensor:
        """The spans of `wanted` as a tensor, from a window `x` that covers the box `have` of the input."""
        pads: list[int] = []
        cuts: list[slice] = []
        for (first, end), want, side in zip(have, wanted, sides, strict=True):
            low, high = self.span(want)
            before, after = max(-low, 0), max(high - side, 0)
            assert (first == 0 or not before) and (end == side or not after), "only borders of the image are padded"
            pads = [before, after, *pads]
            cuts.append(slice(low - first + before, high - first + before))
        if any(pads):
            x = F.pad(x, pads, mode=self.mode)
        return x[:, :, cuts[0], cuts[1]]

    def reach(self) -> int:
        """Cells of the input that a tile needs beyond its own, in each direction."""
        wanted = (64, 128)  # far from borders and a multiple of any stride
        low, high = self.span(wanted)
        first, end = (side // self.stride if self.doubles else side * self.stride for side in wanted)
        return max(first - low, high - end, 0)


class _Tracer(fx.Tracer):
    """Records the layers of a network in the order in which they run."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module is a layer, not a container."""
        return isinstance(m, LAYERS)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Leave out layers that do nothing, which a U-Net does not register."""
        if isinstance(m, nn.Identity) or (isinstance(m, nn.Dropout) and not m.training):
            return args[0]
        return super().call_module(m, forward, args, kwargs)


POINTWISE = (nn.ReLU, nn.LeakyReLU, nn.Tanh)
LAYERS = (
    nn.Conv2d, nn.ConvTranspose2d, nn.ReflectionPad2d, nn.InstanceNorm2d, nn.BatchNorm2d, nn.Dropout, *POINTWISE,
    Downsample, Upsample, SelfAttention2d,
)  # fmt: skip


def unwrap(net: nn.Module) -> nn.Module:
    """The generator inside AnySize."""
    return net.net if isinstance(net, AnySize) else net


def steps_of(net: nn.Module) -> list[Step]:
    """The layers of a generator as steps, in the order in which they run; the last one makes the result.

    Raises:
        ValueError: a layer does not run in tiles.
    """
    net = unwrap(net)
    steps: list[Step] = []
    number: dict[fx.Node, int] = {}

    def add(step: Step) -> int:
        steps.append(step)
        return len(steps) - 1

    for node in _Tracer().trace(net, {"layers": ()}).nodes:  # a ResNet's output, not that of single layers
        if node.op == "placeholder":
            number[node] = -1
        elif node.op == "call_module":
            (before,) = node.args
            module = net.get_submodule(str(node.target))
            for step in layer_steps(module, number[before], len(steps)):
                number[node] = add(step)
            if getattr(module, "inplace", False):  # a skip connection carries the changed values, as in upstream
                number[before] = number[node]
        elif node.op == "call_function" and node.target is operator.add:
            number[node] = add(Step(operator.add, tuple(number[arg] for arg in node.args)))
        elif node.op == "call_function" and node.target is torch.cat:
            number[node] = add(Step(concatenate, tuple(number[arg] for arg in node.args[0])))
        elif node.op == "call_method" and node.target == "to":
            number[node] = number[node.args[0]]
        elif node.op != "output" and node.target is not getattr:  # the dtype of the input
            raise ValueError(f"{type(net).__name__} does not run in tiles: it computes {node.target}")
    return steps


def layer_steps(module: nn.Module, before: int, following: int) -> list[Step]:
    """The steps of one layer.

    Args:
        before: the number of the step that makes its input.
        following: the number that its first step gets.

    Raises:
        ValueError: the layer does not run in tiles.
    """
    inputs = (before,)
    if isinstance(module, ResizeConv2d):
        doubled = Step(lambda x: F.interpolate(x, scale_factor=2), inputs, kernel=2, stride=2, doubles=True)
        return [doubled, convolution(module, (following,), padding=1, mode="reflect")]
    if isinstance(module, NarrowConv2d):
        return [Step(module, inputs, kernel=module.kernel_size[0], channels=module.out_channels)]
    if isinstance(module, nn.Conv2d):
        assert module.padding_mode == "zeros"
        return [convolution(module, inputs, padding=int(module.padding[0]))]
    if isinstance(module, nn.ConvTranspose2d):
        kernel, stride, padding = module.kernel_size[0], module.stride[0], int(module.padding[0])
        assert (stride, padding) == (2, 1) and kernel in (3, 4)
        weight, bias = module.weight.detach(), module.bias
        return [
            Step(
                lambda x: F.conv_transpose2d(x, weight, bias, stride), inputs, kernel, stride, padding,
                doubles=True, channels=module.out_channels,
            )
        ]  # fmt: skip
    if isinstance(module, nn.ReflectionPad2d):
        return [Step(same, inputs, padding=int(module.padding[0]), mode="reflect")]
    if isinstance(module, Downsample):
        filt = module.filt
        return [Step(lambda x: F.conv2d(x, filt.to(x.dtype), stride=2, groups=len(filt)), inputs, 3, 2, 1, "reflect")]
    if isinstance(module, Upsample):
        return [Step(interpolate, inputs, kernel=4, stride=2, padding=1, mode="replicate", doubles=True)]
    if isinstance(module, POINTWISE):
        return [
            Step(nn.LeakyReLU(module.negative_slope) if isinstance(module, nn.LeakyReLU) else type(module)(), inputs)
        ]
    if isinstance(module, SelfAttention2d) and isinstance(module.pool, nn.Identity):
        return [Step(same, inputs, observer=Positions, module=module)]
    if isinstance(module, nn.BatchNorm2d) and not module.training:
        return [Step(module, inputs)]
    if isinstance(module, (nn.InstanceNorm2d, nn.BatchNorm2d)):
        return [Step(same, inputs, observer=Statistics, module=module)]
    if isinstance(module, nn.Dropout):
        raise ValueError("dropout draws other values in each tile: turn it off by --eval (evaluate=True)")
    raise ValueError(f"a layer {type(module).__name__} does not run in tiles")


def convolution(module: nn.Conv2d, inputs: tuple[int, ...], *, padding: int, mode: str = "constant") -> Step:
    """A convolution, with its weight computed once: spectral norm computes it at each access."""
    assert module.dilation == (1, 1) and module.groups == 1
    (kernel, _), (stride, _) = module.kernel_size, module.stride
    weight, bias = module.weight.detach(), module.bias
    return Step(
        lambda x: F.conv2d(x, weight, bias, stride), inputs, kernel, stride, padding, mode,
        channels=module.out_channels,
    )  # fmt: skip


def same(x: Tensor) -> Tensor:
    """The input: what padding leaves to do, and the place of a layer whose statistics are not known yet."""
    return x


def concatenate(*parts: Tensor) -> Tensor:
    """Concatenate the channels."""
    return torch.cat(parts, 1)


def interpolate(x: Tensor) -> Tensor:
    """Double the resolution of a window bilinearly. The ends lack a neighbor, and Step.span leaves them out."""
    return F.pad(F.interpolate(x, scale_factor=2, mode="bilinear"), (1, 1, 1, 1))
