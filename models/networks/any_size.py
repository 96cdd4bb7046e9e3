"""Images of any size for generators whose input sides are multiples of a stride."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class AnySize(nn.Module):
    """Wraps a generator to take images of any size: pads them by reflection at the right and bottom, crops the output.

    Threads may share an instance.

    Args:
        net: a generator with the attributes `stride` and `smallest`.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)."""
        height, width = x.shape[2:]
        return self.net(reflect(x, fitting_size(self.net, (height, width))))[..., :height, :width]


def fitting_size(net: nn.Module, size: Sequence[int]) -> tuple[int, int]:
    """The smallest (height, width) in pixels that contains `size` and that the generator accepts."""
    stride, smallest = getattr(net, "stride", 1), getattr(net, "smallest", 1)
    height, width = (max(math.ceil(side / stride) * stride, smallest) for side in size)
    return height, width


def visible_cells(net: nn.Module, size: Sequence[int], cells: Sequence[int]) -> tuple[int, int]:
    """The (rows, columns) of a feature map that show the image and not its padding.

    Args:
        net: the network that padded the image.
        size: (height, width) of the image in pixels.
        cells: (rows, columns) of the feature map of the padded image.
    """
    if not hasattr(net, "stride"):
        return cells[0], cells[1]
    padded = fitting_size(net, size)
    rows, columns = (math.ceil(n * side / whole) for n, side, whole in zip(cells, size, padded, strict=True))
    return rows, columns


def reflect(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Pad (B, C, H, W) by reflection to `size` (height, width); images much smaller are reflected repeatedly."""
    while (missing := (size[0] - x.shape[2], size[1] - x.shape[3])) != (0, 0):
        # A reflection leaves out the edge itself, so a single row or column is replicated instead.
        bottom, right = (min(pixels, max(side - 1, 1)) for pixels, side in zip(missing, x.shape[2:], strict=True))
        x = F.pad(x, (0, right, 0, 0), mode="reflect" if x.shape[3] > 1 else "replicate")
        x = F.pad(x, (0, 0, 0, bottom), mode="reflect" if x.shape[2] > 1 else "replicate")
    return x
