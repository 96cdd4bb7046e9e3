"""Pictures of any size for generators that take multiples of their stride: padded by reflection, and cropped back."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def fitting_size(net: nn.Module, size: Sequence[int]) -> tuple[int, int]:
    """(height, width) in pixels, at least `size`, that the generator gives back in the same size."""
    stride, smallest = getattr(net, "stride", 1), getattr(net, "smallest", 1)
    height, width = (max(math.ceil(side / stride) * stride, smallest) for side in size)
    return height, width


def visible_cells(net: nn.Module, size: Sequence[int], cells: Sequence[int]) -> tuple[int, int]:
    """How many rows and columns of a feature map of `cells` show a picture of `size` itself, not what padding added."""
    if not hasattr(net, "stride"):
        return cells[0], cells[1]
    padded = fitting_size(net, size)
    rows, columns = (math.ceil(n * side / whole) for n, side, whole in zip(cells, size, padded, strict=True))
    return rows, columns


def accept_any_size(net: nn.Module) -> None:
    """Let a generator that states its `stride` take pictures (B, C, H, W) of any size, and give the same size back.

    What does not fit is continued by reflection to the right and below, and cut off the result.
    """
    if not hasattr(net, "stride"):
        return
    sizes: list[torch.Size] = []

    def pad(_net: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        (x,) = args
        sizes.append(x.shape[2:])
        return (reflect(x, fitting_size(net, x.shape[2:])),)

    def crop(_net: nn.Module, _args: tuple[Tensor], result: Tensor) -> Tensor:
        height, width = sizes.pop()
        return result[..., :height, :width]

    net.register_forward_pre_hook(pad)
    net.register_forward_hook(crop)


def reflect(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) continued by reflection to `size` (height, width), to and fro where the picture is that small."""
    while (missing := (size[0] - x.shape[2], size[1] - x.shape[3])) != (0, 0):
        # a reflection does not repeat the edge, so a single row or column has none
        below, right = (min(some, max(side - 1, 1)) for some, side in zip(missing, x.shape[2:], strict=True))
        x = F.pad(x, (0, right, 0, 0), mode="reflect" if x.shape[3] > 1 else "replicate")
        x = F.pad(x, (0, 0, 0, below), mode="reflect" if x.shape[2] > 1 else "replicate")
    return x
