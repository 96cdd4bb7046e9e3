"""The losses of a projected discriminator beside the one of the model."""

from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from models import networks
from models.base_model import BaseModel
from models.losses import GANLoss
from options import values


def add_projected_flag(parser: ArgumentParser) -> None:
    """Declare --lambda_projected."""
    text = "weight of the loss of G on a second discriminator, --netD projected, such as 0.2; 0 = none"
    add = parser.add_argument_group("adversarial loss").add_argument
    add("--lambda_projected", type=values.non_negative_float, default=0.0, help=text)


def create_projected_loss(
    opt: Any, model: BaseModel, name: str, input_nc: int, *, augment: Callable[[Tensor], Tensor] | None = None
) -> "ProjectedLoss":
    """Give a model the discriminator of --lambda_projected, as its child `name`. Returns its losses.

    Raises:
        ValueError: the images have other than 3 channels, or the pretrained weights are not installed.
    """
    net = networks.define_projected_D(opt, input_nc, "lambda_projected").to(model.device)
    model.add_module(name, net)
    return ProjectedLoss(net, weight=opt.lambda_projected, augment=augment)


class ProjectedLoss:
    """The hinge losses of a generator and a second, projected discriminator.

    Args:
        net: the discriminator, images (B, 3, H, W) -> scores, see `models.networks.projected`.
        weight: of the loss of the generator.
        augment: a differentiable augmentation of the images that it scores; None for none.

    Reference: Sauer et al. 2021, Projected GANs Converge Faster, arXiv:2111.01007.
    """

    hinge = GANLoss("hinge")

    def __init__(self, net: nn.Module, *, weight: float, augment: Callable[[Tensor], Tensor] | None = None):
        self.net, self.weight, self.augment = net, weight, augment

    def score(self, images: Tensor) -> Tensor:
        """The scores of images (B, 3, H, W) after augmentation."""
        return self.net(self.augment(images) if self.augment else images)

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        """The weighted loss of the generator (a scalar) for fake images (B, C, H, W)."""
        return self.hinge.generator(self.score, real, fake) * self.weight

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """The loss of the discriminator (a scalar) for images (B, C, H, W), without a gradient for the generator."""
        return self.hinge.total(self.hinge.discriminator(self.score, real, fake))
