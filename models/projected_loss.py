"""The losses of a projected discriminator beside the one of the model."""

from argparse import ArgumentParser
from collections.abc import Callable

from torch import Tensor

from models.losses import GANLoss
from options import values


def add_projected_flag(parser: ArgumentParser) -> None:
    """Declare --lambda_projected."""
    text = "weight of the loss of G on a second discriminator, --netD projected, such as 0.2; 0 = none"
    add = parser.add_argument_group("adversarial loss").add_argument
    add("--lambda_projected", type=values.non_negative_float, default=0.0, help=text)


class ProjectedLoss:
    """The hinge losses of a generator and a second, projected discriminator.

    Args:
        net: the discriminator, images (B, 3, H, W) -> scores, see `models.networks.projected`.
        weight: of the loss of the generator.

    Reference: Sauer et al. 2021, Projected GANs Converge Faster, arXiv:2111.01007.
    """

    hinge = GANLoss("hinge")

    def __init__(self, net: Callable[[Tensor], Tensor], *, weight: float):
        self.net, self.weight = net, weight

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        """The weighted loss of the generator (a scalar) for fake images (B, C, H, W)."""
        return self.hinge.generator(self.net, real, fake) * self.weight

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """The loss of the discriminator (a scalar) for images (B, C, H, W), without a gradient for the generator."""
        return self.hinge.total(self.hinge.discriminator(self.net, real, fake))
