"""A buffer of generated images for the discriminator."""

import torch
from torch import Tensor


class ImagePool:
    """A buffer of generated images, from which the discriminator gets older ones half of the time.

    Args:
        size: number of images; with 0, a query returns its images.

    Reference: Shrivastava et al. 2017, arXiv:1612.07828.
    """

    def __init__(self, size: int = 50):
        self.size = size
        self.images: list[Tensor] = []

    def query(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W). Once the pool is full, each is swapped for a stored one with probability 1/2."""
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
