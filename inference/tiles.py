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
import math
import operator
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from inference.tile_maps import Box, Kept, Observer, Positions, Range
from inference.tile_steps import concatenate, steps_of, unwrap
from models.networks.any_size import fitting_size

TILE = 512  # px
OVERLAP = 64  # px
SMALLEST = 32  # cells of a feature map in a tile: maps of low resolution would have tiles of a few cells
KEYS = 2**16  # positions that attention sees exactly: the feature map of 1024 x 1024 px of a ResNet


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
        observers: dict[int, Observer] = {}
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

    def _grid(self, target: int, observers: Sequence[Observer]) -> list[Box]:
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
