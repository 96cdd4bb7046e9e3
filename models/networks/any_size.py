"""Images of any size for generators whose input has to be a multiple of their stride."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class AnySize(nn.Module):
    """A generator for images of any size: it pads them by reflection, to the right and below, and crops the result.

    Args:
        net: a generator that states its `stride` and its `smallest` side.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)."""
        height, width = x.shape[2:]
        return self.net(reflect(x, fitting_size(self.net, (height, width))))[..., :height, :width]


def fitting_size(net: nn.Module, size: Sequence[int]) -> tuple[int, int]:
    """The smallest (height, width) in pixels, at least `size`, that the generator accepts."""
    stride, smallest = getattr(net, "stride", 1), getattr(net, "smallest", 1)
    height, width = (max(math.ceil(side / stride) * stride, smallest) for side in size)
    return height, width


def visible_cells(net: nn.Module, size: Sequence[int], cells: Sequence[int]) -> tuple[int, int]:
    """The rows and columns of a feature map of `cells` that belong to an image of `size` and not to its padding."""
    if not hasattr(net, "stride"):
        return cells[0], cells[1]
    padded = fitting_size(net, size)
    rows, columns = (math.ceil(n * side / whole) for n, side, whole in zip(cells, size, padded, strict=True))
    return rows, columns


def reflect(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Pad (B, C, H, W) by reflection to `size` (height, width), back and forth if the image is much smaller."""
    while (missing := (size[0] - x.shape[2], size[1] - x.shape[3])) != (0, 0):
        # a reflection does not repeat the edge, so a single row or column has none
        below, right = (min(some, max(side - 1, 1)) for some, side in zip(missing, x.shape[2:], strict=True))
        x = F.pad(x, (0, right, 0, 0), mode="reflect" if x.shape[3] > 1 else "replicate")
        x = F.pad(x, (0, 0, 0, below), mode="reflect" if x.shape[2] > 1 else "replicate")
    return x
