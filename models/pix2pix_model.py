"""pix2pix: translation learned from pairs of pictures."""

from argparse import ArgumentParser
from typing import Any

import torch
from torch.nn import functional as F

from models import networks
from models.base_model import AttentionView, BaseModel, Images, Losses, Optimization
from models.image_pool import ImagePool
from models.losses import add_gan_flags, create_gan_loss
from options import values


class Pix2PixModel(BaseModel):
    """Paired A -> B, Isola et al. 2017, https://arxiv.org/abs/1611.07004.

    G: A -> B, close to the true B by the L1 distance; D judges A and B together, as one picture of all their channels.
    """

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """U-Net, batch norm, pairs side by side; in training, the cross-entropy GAN and the weight of L1."""
        parser.set_defaults(norm="batch", netG="unet_256", dataset_mode="aligned")
        if is_train:
            add_gan_flags(parser)
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

    def prepare_training(self, opt: Any, optimization: Optimization) -> None:
        """Discriminator, losses, pool and optimizers."""
        super().prepare_training(opt, optimization)
        self.lambda_L1 = opt.lambda_L1
        self.add_discriminators(opt)
        self.gan_loss = create_gan_loss(opt)
        self.mixes_images = opt.gan_mode == "wgangp" and opt.pool_size > 0
        self.pools = {"fake_AB": ImagePool(opt.pool_size)}
        optimization.add("G", [self.netG], lr=opt.lr_G)
        optimization.add("D", [self.netD], lr=opt.lr_D)
        optimization.add_averages(self, "netG")

    def forward(self, batch: dict) -> Images:
        """Translate a batch: images (B, C, H, W) in [-1, 1], as they are shown."""
        return self.preview(self.translate(batch))

    def translate(self, batch: dict) -> Images:
        """The two real pictures and the translation, (B, C, H, W) in [-1, 1], as the networks see them."""
        real_A, real_B = self.inputs(batch, "A", "B")
        return {"real_A": real_A, "fake_B": self.netG(real_A), "real_B": real_B}

    def step(self, batch: dict) -> tuple[Losses, Images]:
        """The discriminator first, which sees fakes from the pool, then the generator."""
        with self.optimization.autocast():
            x = self.translate(batch)
            real_AB, fake_AB = (torch.cat([x["real_A"], x[label]], 1) for label in ("real_B", "fake_B"))
            terms = self.gan_loss.discriminator_terms(self.netD, real_AB, self.pools["fake_AB"].query(fake_AB))
        self.optimization.backward("D", self.gan_loss.total(terms))
        self.optimization.update("D")
        with self.optimization.autocast():
            losses = {
                "G_GAN": self.gan_loss.generator(self.netD, fake_AB),
                "G_L1": F.l1_loss(x["fake_B"], x["real_B"]) * self.lambda_L1,
            }
        self.optimization.backward("G", *losses.values())
        self.optimization.update("G")
        self.optimization.end_step()
        return losses | {f"D_{name}": loss for name, loss in terms.items()} | self.gammas(), x

    def attention_views(self) -> dict[str, AttentionView]:
        """The generator on A; the discriminator on A and its translation."""
        views = {"G": AttentionView.on(self.netG, "real_A")}
        if hasattr(self, "netD"):
            views["D"] = AttentionView.on(self.netD, "real_A", "fake_B")
        return views
