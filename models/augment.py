"""Differentiable augmentation of the images that a discriminator sees, for small datasets."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F


class DiffAugment:
    """Differentiable random augmentation, to apply to real and fake images alike before the discriminator.

    Random numbers come from torch's global generator.

    Args:
        policy: any of color, translation and cutout, applied in this order; empty for no augmentation.

    Raises:
        ValueError: a name is unknown.

    Reference: Zhao et al. 2020, Differentiable Augmentation for Data-Efficient GAN Training,
    https://arxiv.org/abs/2006.10738.
    """

    def __init__(self, policy: Iterable[str]):
        self.policy = list(policy)
        if unknown := [name for name in self.policy if name not in AUGMENTATIONS]:
            raise ValueError(f"policy={unknown[0]!r}: choose from {', '.join(AUGMENTATIONS)}")

    def __call__(self, images: Tensor) -> Tensor:
        """Augment images (B, C, H, W) in [-1, 1], each with random numbers of its own; the shape stays."""
        for name in self.policy:
            images = AUGMENTATIONS[name](images)
        return images


def color(images: Tensor) -> Tensor:
    """Shift brightness by -0.5 to 0.5, scale saturation by 0 to 2 and contrast by 0.5 to 1.5; may leave [-1, 1]."""
    brightness, saturation, contrast = torch.rand(3, len(images), 1, 1, 1, device=images.device)
    images = images + (brightness - 0.5)
    images = torch.lerp(images.mean(1, keepdim=True), images, saturation * 2)
    return torch.lerp(images.mean((1, 2, 3), keepdim=True), images, contrast + 0.5)


def translation(images: Tensor) -> Tensor:
    """Shift by up to an eighth of each side; uncovered pixels become 0."""
    batch, _, height, width = images.shape
    limits = (round(height / 8), round(width / 8))
    padded = F.pad(images, (limits[1], limits[1], limits[0], limits[0]))
    shifts = [torch.randint(2 * limit + 1, (batch, 1), device=images.device) for limit in limits]
    rows, columns = (
        shift + torch.arange(side, device=images.device) for shift, side in zip(shifts, (height, width), strict=True)
    )
    image = torch.arange(batch, device=images.device)[:, None, None]
    return padded.movedim(1, -1)[image, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def cutout(images: Tensor) -> Tensor:
    """Set a rectangle of half of each side to 0; it may extend beyond the image."""
    inside = torch.ones((), dtype=torch.bool, device=images.device)
    for axis, side in ((2, images.shape[2]), (3, images.shape[3])):
        size = round(side / 2)
        start = torch.randint(side + 1 - size % 2, (len(images), 1), device=images.device) - size // 2
        position = torch.arange(side, device=images.device)
        hit = (position >= start) & (position < start + size)
        inside = inside & hit.view(len(images), 1, *((-1, 1) if axis == 2 else (1, -1)))
    return images.masked_fill(inside, 0)


AUGMENTATIONS = {"color": color, "translation": translation, "cutout": cutout}
