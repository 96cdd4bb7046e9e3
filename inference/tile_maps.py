"""Feature maps that come in windows: what needs to see all of one, and a file that holds one; see `inference.tiles`."""

import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.attention import SelfAttention2d, attend, tokens

log = logging.getLogger(__name__)

Range = tuple[int, int]  # first and end
Box = tuple[Range, Range]  # rows and columns


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
        dims = (0, 2, 3) if isinstance(self.module, nn.BatchNorm2d) else (2, 3)
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
            return x + block.gamma.to(out.dtype) * out.transpose(1, 2).unflatten(2, x.shape[2:])

        return attended


Observer = Statistics | Positions


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
