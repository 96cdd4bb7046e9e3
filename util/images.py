"""Tensors in [-1, 1] to 8-bit images and image files."""

import math
from pathlib import Path

from PIL import Image
from torch import Tensor


def to_image(tensor: Tensor) -> Image.Image:
    """The picture of `tensor`, (C, H, W) or (1, C, H, W) with C 1 (grey) or 3, in [-1, 1]; values beyond are clamped.

    Raises:
        ValueError: another shape.
    """
    from torchvision.transforms.v2 import functional as F  # slow to import, and --help does without

    shape = tuple(tensor.shape)
    if len(shape) == 4 and shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise ValueError(f"an image is (C, H, W) or (1, C, H, W) with 1 or 3 channels, not {shape}")
    return F.to_pil_image(tensor.detach().cpu().float().add(1).mul(127.5).round().clamp(0, 255).byte())


def save_image(tensor: Tensor, path: str | Path) -> None:
    """Write `tensor` as `to_image` shows it; the suffix of `path` chooses the format. Makes the folders it needs."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    to_image(tensor).save(path)


def grid(images: Tensor, columns: int = 0) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] in rows of `columns`, or as square as can be, white between: (3, H', W')."""
    from torchvision.utils import make_grid  # slow to import

    return make_grid(images, nrow=columns or math.ceil(math.sqrt(len(images))), pad_value=1)
