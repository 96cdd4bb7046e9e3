"""pix2pix: translation learned from pairs of pictures."""

from argparse import ArgumentParser
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from models import networks
from models.base_model import BaseModel, Images, Losses
from models.losses import GANLoss
from options import values
from util.image_pool import ImagePool


class Pix2PixModel(BaseModel):
    """Paired A -> B, Isola et al. 2017, https://arxiv.org/abs/1611.07004.

    G: A -> B, close to the true B by the L1 distance; D judges A and B together, as one picture of all their channels.
    """

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """U-Net, batch norm, pairs side by side; in training, the cross-entropy GAN and the weight of L1."""
        parser.set_defaults(norm="batch", netG="unet_256", dataset_mode="aligned")
        if is_train:
            parser.set_defaults(pool_size=0, gan_mode="vanilla")
            add = parser.add_argument_group("pix2pix").add_argument
            add("--lambda_L1", type=values.non_negative_float, default=100.0, help="weight of the L1 loss; 0 = off")
        return parser

    def __init__(self, opt: Any) -> None:
        super().__init__()
        self.netG = networks.define_G(opt, opt.input_nc, opt.output_nc)

    def add_discriminators(self, opt: Any) -> None:
        """D, which judges A and B together."""
        self.netD = networks.define_D(opt, opt.input_nc + opt.output_nc).to(self.device)

    def prepare_training(self, opt: Any) -> None:
        """Discriminator, losses, pool and optimizers."""
        super().prepare_training(opt)
        self.lambda_L1 = opt.lambda_L1
        self.add_discriminators(opt)
        self.gan_loss = GANLoss(opt.gan_mode, lambda_gp=opt.lambda_gp)
        self.pools = {"fake_AB": ImagePool(opt.pool_size)}
        self.add_optimizer("G", [self.netG], opt, lr=opt.lr_G)
        self.add_optimizer("D", [self.netD], opt, lr=opt.lr_D)
        self.add_ema("netG")

    def forward(self, batch: dict) -> Images:
        """Translate a batch: images (B, C, H, W) in [-1, 1], as they are shown."""
        return self.preview(self.translate(batch))

    def translate(self, batch: dict) -> Images:
        """The two real pictures and the translation, (B, C, H, W) in [-1, 1], as the networks see them."""
        real_A, real_B = self.inputs(batch, "A", "B")
        return {"real_A": real_A, "fake_B": self.netG(real_A), "real_B": real_B}

    def step(self, batch: dict) -> tuple[Losses, Images]:
        """The discriminator first, which sees fakes from the pool, then the generator."""
        with self.autocast():
            x = self.translate(batch)
            real_AB, fake_AB = (torch.cat([x["real_A"], x[label]], 1) for label in ("real_B", "fake_B"))
            verdicts = self.gan_loss.verdicts(self.netD, real_AB, self.pools["fake_AB"].query(fake_AB))
        self.backward("D", self.gan_loss.total(verdicts))
        self.update("D")
        with self.autocast():
            losses = {
                "G_GAN": self.gan_loss.generator(self.netD, fake_AB),
                "G_L1": F.l1_loss(x["fake_B"], x["real_B"]) * self.lambda_L1,
            }
        self.backward("G", *losses.values())
        self.update("G")
        self.end_step()
        return losses | {f"D_{name}": loss for name, loss in verdicts.items()} | self.gammas(), x

    def translators(self) -> dict[str, tuple[str, nn.Module]]:
        """The generator."""
        return {"G": ("real_A", self.netG)}

    def judges(self) -> dict[str, tuple[tuple[str, ...], nn.Module]]:
        """The discriminator, on A and its translation."""
        return {"D": (("real_A", "fake_B"), self.netD)} if hasattr(self, "netD") else {}
