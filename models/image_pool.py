"""A history of generated images for the discriminator."""

import torch
from torch import Tensor


class ImagePool:
    """Shows the discriminator older fakes half of the time, to steady it; Shrivastava et al. 2017, arXiv:1612.07828.

    Args:
        size: images kept; 0 = none, every query returns the images it was given.
    """

    def __init__(self, size: int = 50):
        self.size = size
        self.images: list[Tensor] = []

    def query(self, images: Tensor) -> Tensor:
        """Each of (B, C, H, W), or, with probability 1/2 once the pool is full, a stored one that it replaces."""
        if self.size == 0:
            return images
        chosen = []
        for image in images.detach():
            if len(self.images) < self.size:
                self.images.append(image.clone())
            elif torch.rand(()) < 0.5:
                index = int(torch.randint(self.size, ()))
                self.images[index], image = image.clone(), self.images[index]
            chosen.append(image)
        return torch.stack(chosen)
