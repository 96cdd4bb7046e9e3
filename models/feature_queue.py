"""Features of earlier images, beside which a discriminator with a batch head scores new ones."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.networks.patchgan import NLayerDiscriminator


class FeatureQueue:
    """The features of the last images of one kind, oldest first.

    Args:
        size: number of images.

    Attributes:
        images: the features, (C, h, w) each. Checkpoints contain them, as they contain the images of an ImagePool.
    """

    def __init__(self, size: int):
        self.size = size
        self.images: list[Tensor] = []

    def push(self, features: Tensor) -> None:
        """Append features (B, C, h, w) and drop the oldest."""
        self.images = [*self.images, *(image.clone() for image in features.detach())][-self.size :]


class QueuedDiscriminator:
    """A discriminator with a batch head that scores real and fake images, each beside earlier ones of the same kind.

    So even a batch of one image shows the discriminator how much images differ.

    Args:
        net: a discriminator with batch_head=True.
        queues: those of "real" and "fake" images.

    Reference: Torbunov et al. 2023 (UVCGAN2), arXiv:2303.16280.
    """

    def __init__(self, net: NLayerDiscriminator, queues: Mapping[str, FeatureQueue]):
        self.net, self.queues = net, queues

    def score(self, kind: str, images: Tensor) -> Tensor:
        """The scores (B, 1, h, w) of "real" or "fake" images (B, C, H, W)."""
        return self.with_features(kind, images)[0]

    def with_features(self, kind: str, images: Tensor) -> tuple[Tensor, Tensor]:
        """The same scores, and the features of the images, (B, C, h, w), for their queue."""
        queue = self.queues[kind].images
        return self.net.with_features(images, torch.stack(queue) if queue else None)


def create_queues(size: int, *names: str) -> dict[str, FeatureQueue]:
    """The queues of the named discriminators, by {name}_real and {name}_fake; none if the size is 0."""
    return {f"{name}_{kind}": FeatureQueue(size) for name in names for kind in ("real", "fake")} if size else {}


def with_queues(name: str, net: nn.Module, queues: Mapping[str, FeatureQueue]) -> nn.Module | QueuedDiscriminator:
    """The discriminator `net` for a loss, together with the queues of its name if there are any."""
    if not queues:
        return net
    assert isinstance(net, NLayerDiscriminator)
    return QueuedDiscriminator(net, {kind: queues[f"{name}_{kind}"] for kind in ("real", "fake")})
