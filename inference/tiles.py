"""Large images in tiles: the result of the whole image in bounded memory.

The statistics of instance norm are those of the whole image, and a layer knows them only after all layers before it
have seen the whole image. So a network runs in passes over the image, one for each map that something needs in full:
the input of a normalization with statistics, the input of an attention block, and the result. A pass computes its map
tile by tile, and adds up the statistics while it does so. Maps of less than the full resolution are kept in a file on
disk, so a later pass starts from them, and the network is computed about once. Maps of the full resolution are as large
as everything below them together, and the first and last layers are cheap: a later pass computes them again.

A tile reads as much of its neighbors as its layers see, and pads only at the borders of the image, so each value is the
one that the whole image would give; nothing is blended. `overlap` limits how much of its neighbors a tile computes
again: where the layers of a pass see farther, a map between them is kept too.

The alternatives were: a thumbnail's statistics, which are not exact; and a pass from the image for each normalization
without files, which is, but computes a ResNet of 9 blocks 12 times, and more for what its tiles share.
"""

import itertools
import logging
import math
import operator
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from tqdm import tqdm

from models.networks.any_size import AnySize, fitting_size
from models.networks.attention import SelfAttention2d, attend, tokens
from models.networks.layers import BATCH_NORMS, NarrowConv2d
from models.networks.resample import Downsample, ResizeConv2d, Upsample

log = logging.getLogger(__name__)

TILE = 512  # px
OVERLAP = 64  # px
SMALLEST = 32  # cells of a feature map in a tile: maps of low resolution would have tiles of a few cells
KEYS = 2**16  # positions that attention sees exactly: the feature map of 1024 x 1024 px of a ResNet

Range = tuple[int, int]  # first and end
Box = tuple[Range, Range]  # rows and columns


class Windows(Protocol):
    """An image that is read in windows."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, C, H, W)."""

    def read(self, box: Box) -> Tensor:
        """Read a window: (B, C, rows, columns) in [-1, 1]."""


Write = Callable[[Box, Tensor], None]  # takes a window (B, C, rows, columns) in [-1, 1] of the result


@dataclass(frozen=True)
class InMemory:
    """A tensor (B, C, H, W) as Windows."""

    image: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, C, H, W)."""
        batch, channels, height, width = self.image.shape
        return batch, channels, height, width

    def read(self, box: Box) -> Tensor:
        """See Windows."""
        return crop(self.image, box)


class Tiled(nn.Module):
    """Runs a generator in tiles: (B, C_in, H, W) -> (B, C_out, H, W) for any size, on the CPU.

    Args:
        net: an AnySize generator of `models.networks`, ready for inference.
        tile: pixels of a side of a tile.
        overlap: pixels around a tile that it may compute again for its neighbors.

    Attributes:
        output_nc: channels of the result.

    Raises:
        ValueError: the network has a layer that does not run in tiles.
    """

    def __init__(self, net: nn.Module, *, tile: int = TILE, overlap: int = OVERLAP):
        super().__init__()
        self.net, self.tile, self.overlap = net, tile, overlap
        self.output_nc = next(step.channels for step in reversed(steps_of(net)) if step.channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W), on the device of x."""
        made: list[Tensor] = []

        def write(box: Box, window: Tensor) -> None:
            if not made:
                made.append(torch.empty(*window.shape[:2], *x.shape[2:]))
            crop(made[0], box).copy_(window)

        self.run(InMemory(x), write)
        return made[0].to(x.device)

    @torch.no_grad()
    def run(self, image: Windows, write: Write, *, keys: int = KEYS) -> None:
        """Translate `image`, and pass each window of the result to `write`, in rows of tiles.

        Feature maps are kept in a temporary folder ($TMPDIR), which is removed. The memory does not depend on the size
        of the image.

        Args:
            keys: positions of a feature map up to which attention is exact. Beyond that, queries see averages of
                squares of positions, as many as this at most, each with the weight of its positions. A log message says
                so.

        Raises:
            OSError: the disk has no room for the feature maps.
        """
        Run(self.net, image, tile=self.tile, overlap=self.overlap, keys=keys).run(write)


def crop(x: Tensor, box: Box) -> Tensor:
    """The window of (B, C, H, W) in a box, as a view."""
    (top, bottom), (left, right) = box
    return x[:, :, top:bottom, left:right]


# Steps -------------------------------------------------------------------------------------------------------------


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
    observer: "type[Statistics] | type[Positions] | None" = None
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
    nn.Conv2d, nn.ConvTranspose2d, nn.ReflectionPad2d, nn.InstanceNorm2d, *BATCH_NORMS, nn.Dropout, *POINTWISE,
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
    if isinstance(module, BATCH_NORMS) and not module.training:
        return [Step(module, inputs)]
    if isinstance(module, (nn.InstanceNorm2d, *BATCH_NORMS)):
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


# What sees a whole map -----------------------------------------------------------------------------------------------


class Statistics:
    """The mean and the variance of a map that comes in windows, in float64 (Chan et al. 1979), for a normalization."""

    def __init__(self, module: nn.Module, shape: Sequence[int], keys: int):
        self.module = module
        self.count: float = 0
        self.mean = self.squares = torch.zeros(())

    def granularity(self) -> int:
        """Windows may begin anywhere."""
        return 1

    def add(self, x: Tensor, box: Box) -> None:
        """Take a window (B, C, rows, columns)."""
        dims = (0, 2, 3) if isinstance(self.module, BATCH_NORMS) else (2, 3)
        variance, mean = (part.cpu().double() for part in torch.var_mean(x.float(), dims, correction=0, keepdim=True))
        new = math.prod(x.shape[dim] for dim in dims)
        total, delta = self.count + new, mean - self.mean
        self.squares = self.squares + variance * new + delta.square() * (self.count * new / total)
        self.mean = self.mean + delta * (new / total)
        self.count = total

    def finish(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """The normalization by these statistics."""
        module: Any = self.module
        scale = torch.rsqrt(self.squares / self.count + module.eps)
        mean, scale = self.mean.float().to(device), scale.float().to(device)
        if module.weight is None:
            return lambda x: (x - mean.to(x.dtype)) * scale.to(x.dtype)
        weight, bias = (part.detach()[:, None, None] for part in (module.weight, module.bias))
        return lambda x: (x - mean.to(x.dtype)) * (scale * weight).to(x.dtype) + bias.to(x.dtype)


class Positions:
    """The positions of a map that comes in windows, for an attention block: all of them, or averages of squares."""

    def __init__(self, module: nn.Module, shape: Sequence[int], keys: int):
        assert isinstance(module, SelfAttention2d)
        self.module, (batch, channels, *sides) = module, shape
        self.square = square = math.ceil(math.sqrt(math.prod(sides) / keys))
        self.cells = torch.empty(batch, channels, *(math.ceil(side / square) for side in sides))
        self.counts = torch.empty(self.cells.shape[2:])
        if square > 1:
            rows, columns = sides
            log.info("attention over %d x %d positions: averages of %d x %d as keys", rows, columns, square, square)

    def granularity(self) -> int:
        """Windows begin at multiples of this."""
        return self.square

    def add(self, x: Tensor, box: Box) -> None:
        """Take a window (B, C, rows, columns)."""
        rows, columns = (slice(first // self.square, math.ceil(end / self.square)) for first, end in box)
        averages = F.avg_pool2d(x.float(), self.square, ceil_mode=True, count_include_pad=False)
        self.cells[:, :, rows, columns] = averages.cpu()
        ones = torch.ones(x.shape[2:])[None]
        self.counts[rows, columns] = F.avg_pool2d(ones, self.square, ceil_mode=True, divisor_override=1)[0]

    def finish(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """The block, whose queries attend to these positions. A key for n positions has the weight of n."""
        block, cells = self.module, self.cells.to(device)
        key, value = tokens(block.key_conv(cells)), tokens(block.value_conv(cells))
        if self.square > 1:
            key = torch.cat([key, self.counts.to(device).log().flatten()[None, :, None].expand(len(key), -1, 1)], 2)

        def attended(x: Tensor) -> Tensor:
            query = tokens(block.query_conv(x))
            if self.square > 1:
                query = F.pad(query, (0, 1), value=1.0)
            out = attend(query, key.to(query.dtype), value.to(query.dtype))
            return x + block.gamma * out.transpose(1, 2).unflatten(2, x.shape[2:])

        return attended


# Running -------------------------------------------------------------------------------------------------------------


class Kept:
    """A map (B, C, H, W) in a file, in float32, that is read and written in windows.

    A window maps the file for as long as it is copied, so the memory of this process does not grow with the file.
    """

    def __init__(self, path: Path, shape: Sequence[int]):
        batch, channels, height, width = shape
        self.path, self.shape = path, (batch, height, width, channels)
        with path.open("wb") as file:
            os.truncate(file.fileno(), math.prod(shape) * 4)

    def _open(self, mode: Any, box: Box) -> np.ndarray:
        (top, bottom), (left, right) = box
        return np.memmap(self.path, np.float32, mode, shape=self.shape)[:, top:bottom, left:right]

    def write(self, box: Box, x: Tensor) -> None:
        """Write a window (B, C, rows, columns)."""
        self._open("r+", box)[:] = x.permute(0, 2, 3, 1).float().cpu().numpy()

    def read(self, box: Box) -> Tensor:
        """Read a window (B, C, rows, columns), in channels_last."""
        return torch.from_numpy(np.array(self._open("r", box))).permute(0, 3, 1, 2)


class Run:
    """One image through one network: the plan of the passes, and what is known so far.

    Attributes:
        targets: the steps whose maps are computed, a pass each, in order.
        kept: those that later passes read from disk.
    """

    def __init__(self, net: nn.Module, image: Windows, *, tile: int, overlap: int, keys: int):
        self.image, self.tile, self.overlap, self.keys = image, tile, overlap, keys
        self.device = next(net.parameters()).device
        self.steps = steps_of(net)
        batch, channels, *size = image.shape
        self.size = size
        self.padded = fitting_size(unwrap(net), size)
        self.shapes = [*self._shapes(), (batch, channels, *self.padded)]  # the last one, [-1], is the image
        self.observing: dict[int, list[int]] = {}  # step -> the steps that see its whole map
        for index, step in enumerate(self.steps):
            if step.observer:
                self.observing.setdefault(step.inputs[0], []).append(index)
        self.kept: set[int] = set()
        self._choose_kept()
        last = len(self.steps) - 1
        self.kept.discard(last)
        self.targets = sorted(self.kept | self.observing.keys() | {last})
        reads = {target: self._read_by(target) for target in self.targets}
        self.last_use = {index: max((t for t in reads if index in reads[t]), default=-1) for index in self.kept}
        self.apply = [step.apply for step in self.steps]
        self.maps: dict[int, Kept] = {}

    def _shapes(self) -> list[tuple[int, ...]]:
        batch, channels = self.image.shape[:2]
        shapes: list[tuple[int, ...]] = []
        for step in self.steps:
            before = [shapes[index] if index >= 0 else (batch, channels, *self.padded) for index in step.inputs]
            width = sum(shape[1] for shape in before) if step.apply is concatenate else before[0][1]
            shapes.append((batch, step.channels or width, *(step.side(side) for side in before[0][2:])))
        return shapes

    def _scale(self, index: int) -> float:
        """Pixels of the image per cell of a map."""
        return self.padded[0] / self.shapes[index][2]

    def _choose_kept(self) -> None:
        """Choose the maps to keep, see the module."""
        reach: dict[int, float] = {-1: 0}  # step -> pixels of its neighbors that a tile computes again
        sources: dict[int, frozenset[int]] = {-1: frozenset((-1,))}  # step -> the kept maps it is computed from
        for index, step in enumerate(self.steps):
            own = {before: step.reach() * self._scale(before) for before in step.inputs}
            if max(reach[before] + own[before] for before in step.inputs) > self.overlap:
                for before in step.inputs:
                    if reach[before] > 0:
                        self.kept.add(before)
                        reach[before], sources[before] = 0, frozenset((before,))
            reach[index] = max(reach[before] + own[before] for before in step.inputs)
            sources[index] = frozenset().union(*(sources[before] for before in step.inputs))
            observed = index in self.observing and self._scale(index) > 1
            # Or the sum of the next residual block would need all earlier ones.
            is_sum = step.apply is operator.add and len(sources[index]) > 1
            if observed or is_sum or step.observer is Positions:
                self.kept.add(index)
                reach[index], sources[index] = 0, frozenset((index,))

    def _read_by(self, target: int) -> set[int]:
        """The kept maps that the pass of a target reads."""
        found, waiting = set(), set(self.steps[target].inputs)
        while waiting:
            index = waiting.pop()
            if index in self.kept:
                found.add(index)
            elif index >= 0:
                waiting |= set(self.steps[index].inputs)
        return found

    def run(self, write: Write) -> None:
        """Run the passes, see `Tiled.run`."""
        last = len(self.steps) - 1
        observers: dict[int, Statistics | Positions] = {}
        for index, step in enumerate(self.steps):
            if step.observer and step.module:
                observers[index] = step.observer(step.module, self.shapes[step.inputs[0]], self.keys)
        grids = {
            target: self._grid(target, [observers[i] for i in self.observing.get(target, ())])
            for target in self.targets
        }
        with (
            tempfile.TemporaryDirectory(prefix="tiles_") as folder,
            tqdm(total=sum(map(len, grids.values())), unit="tile", delay=2, leave=False, disable=None) as bar,
        ):
            self._check_room(Path(folder))
            for target, grid in grids.items():
                if target in self.kept:
                    self.maps[target] = Kept(Path(folder) / f"{target}", self.shapes[target])
                for box in grid:
                    x = self._compute(target, box)
                    for index in self.observing.get(target, ()):
                        observers[index].add(x, box)
                    if target in self.kept:
                        self.maps[target].write(box, x)
                    if target == last:
                        write(box, x)
                    bar.update()
                for index in self.observing.get(target, ()):
                    self.apply[index] = observers.pop(index).finish(self.device)
                for index in [index for index in self.maps if self.last_use[index] <= target]:
                    self.maps.pop(index).path.unlink()

    def _grid(self, target: int, observers: "Sequence[Statistics | Positions]") -> list[Box]:
        """The tiles of a map, row by row."""
        most = max(SMALLEST, int(self.tile / self._scale(target)))
        granularity = math.lcm(*(observer.granularity() for observer in observers))
        step = max(most // granularity, 1) * granularity
        sides = self.size if target == len(self.steps) - 1 else self.shapes[target][2:]
        rows, columns = ([(first, min(first + step, side)) for first in range(0, side, step)] for side in sides)
        return list(itertools.product(rows, columns))

    def _check_room(self, folder: Path) -> None:
        """Raise OSError if the disk cannot hold the maps that exist at one time."""
        most = max(
            sum(math.prod(self.shapes[i]) * 4 for i in self.kept if i <= target <= self.last_use[i])
            for target in self.targets
        )
        free = shutil.disk_usage(folder).free
        if most > free:
            raise OSError(
                f"{folder.parent} has {free / 2**30:.1f} GiB free, but the feature maps of an image of "
                f"{self.size[1]}x{self.size[0]} pixels take {most / 2**30:.1f} GiB: set TMPDIR to a folder with more"
            )

    def _compute(self, target: int, box: Box) -> Tensor:
        """One tile of a map."""
        wanted: dict[int, Box] = {target: box}
        users: dict[int, int] = {}  # step -> the first step that reads its window
        for index in range(target, -1, -1):
            if index not in wanted or (index in self.kept and index != target):
                continue
            step = self.steps[index]
            for before in step.inputs:
                rows, columns = (
                    step.clipped(want, side) for want, side in zip(wanted[index], self.shapes[before][2:], strict=True)
                )
                wanted[before] = union(wanted[before], (rows, columns)) if before in wanted else (rows, columns)
                users.setdefault(before, index)
        windows: dict[int, Tensor] = {}
        for index in sorted(wanted):
            if index == -1 or (index in self.kept and index != target):
                windows[index] = self._load(index, wanted[index])
                continue
            step, inputs = self.steps[index], []
            for before in step.inputs:
                sides = self.shapes[before][2:]
                inputs.append(step.padded(windows[before], wanted[before], wanted[index], sides))
                if users[before] == index:
                    del windows[before]
            x = self.apply[index](*inputs)
            cuts = [slice(want[0] - (first := step.first(step.span(want))), want[1] - first) for want in wanted[index]]
            windows[index] = x[:, :, cuts[0], cuts[1]]
        return windows[target]

    def _load(self, index: int, box: Box) -> Tensor:
        """A window of a kept map, or of the image, padded as AnySize does."""
        if index >= 0:
            return self.maps[index].read(box).to(self.device)
        positions = [mirrored(want, side) for want, side in zip(box, self.size, strict=True)]
        spans = [(int(places.min()), int(places.max()) + 1) for places in positions]
        x = self.image.read((spans[0], spans[1]))
        for dim, want, places, span in zip((2, 3), box, positions, spans, strict=True):
            if span != want:  # beyond the border
                x = x.index_select(dim, (places - span[0]).to(x.device))
        return x.to(self.device, torch.float32)


def union(one: Box, other: Box) -> Box:
    """The smallest box around two."""
    rows, columns = ((min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(one, other, strict=True))
    return rows, columns


def mirrored(wanted: Range, side: int) -> Tensor:
    """The positions in a line of `side` pixels that a range shows, which reflects at the ends as `reflect` does."""
    period = max(2 * (side - 1), 1)
    places = torch.arange(*wanted) % period
    return torch.where(places < side, places, period - places)
