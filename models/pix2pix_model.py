"""pix2pix: translation learned from paired images."""

from argparse import ArgumentParser
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models import networks
from models.base_model import (
    AttentionView,
    BaseModel,
    GeneratorView,
    Images,
    Losses,
    Optimization,
    average_losses,
)
from models.feature_queue import create_queues, with_queues
from models.image_pool import ImagePool
from models.losses import add_gan_flags, create_gan_loss
from options import values


class Pix2PixModel(BaseModel):
    """Paired translation from A to B.

    netG translates A to B, with an L1 loss to the true B. netD discriminates pairs of A and B, concatenated by channel.

    Reference: Isola et al. 2017, https://arxiv.org/abs/1611.07004.
    """

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """Add the weight of L1; by default a U-Net, batch norm, aligned data and the cross-entropy loss."""
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
        """Build netD for pairs of A and B."""
        self.netD = networks.define_D(opt, opt.input_nc + opt.output_nc).to(self.device)

    def prepare_training(self, opt: Any, optimization: Optimization) -> None:
        """Build discriminator, losses and image pool, and add optimizers."""
        super().prepare_training(opt, optimization)
        self.lambda_L1 = opt.lambda_L1
        self.add_discriminators(opt)
        self.gan_loss = create_gan_loss(opt)
        self.one_size_reason = self.gan_loss.run_one_size_reason(mixes=opt.pool_size > 0, batch_head=opt.batch_head)
        self.pools = {"fake_AB": ImagePool(opt.pool_size)}
        self.queues = create_queues(opt.batch_head, "D")
        optimization.add("G", [self.netG], lr=opt.lr_G)
        optimization.add("D", [self.netD], lr=opt.lr_D)
        optimization.add_averages(self, "netG")

    def forward(self, batch: dict) -> Images:
        """Translate a batch. Returns the images to show, (B, C, H, W) in [-1, 1], by label."""
        return self.preview(self.translate(batch))

    def translate(self, batch: dict) -> Images:
        """Translate a batch. Returns the images that the networks see, (B, C, H, W) in [-1, 1], by label."""
        real_A, real_B = self.inputs(batch, "A", "B")
        return {"real_A": real_A, "fake_B": self.netG(real_A), "real_B": real_B}

    def step(self, batch: dict) -> tuple[Losses, Images]:
        """Update the discriminator on fake images from the pool, then the generator; see BaseModel."""
        netD = with_queues("D", self.netD, self.queues)
        micro_batches, losses_D, losses_G = self.micro_batches(batch), [], []
        keep_graph = len(micro_batches) == 1  # several graphs would fill the memory
        for micro in micro_batches:
            with self.optimization.autocast():
                with torch.set_grad_enabled(keep_graph):
                    x = self.translate(micro.batch)
                real_AB, fake_AB = self.pairs(x)
                terms = self.gan_loss.discriminator(
                    netD, real_AB, self.pools["fake_AB"].query(fake_AB), step=self.optimization.updates,
                    progress=self.optimization.progress,
                )  # fmt: skip
            self.optimization.backward("D", self.gan_loss.total(terms), share=micro.share)
            losses_D.append((micro.share, {f"D_{name}": loss.detach() for name, loss in terms.items()}))
        self.optimization.update("D")
        for micro in micro_batches:
            with self.optimization.autocast():
                if not keep_graph:
                    x = self.translate(micro.batch)
                    real_AB, fake_AB = self.pairs(x)
                losses = {
                    "G_GAN": self.gan_loss.generator(netD, real_AB, fake_AB),
                    "G_L1": F.l1_loss(x["fake_B"], x["real_B"]) * self.lambda_L1,
                }
            self.optimization.backward("G", *losses.values(), share=micro.share)
            losses_G.append((micro.share, {name: loss.detach() for name, loss in losses.items()}))
        self.optimization.update("G")
        self.optimization.end_step()
        images = {label: image.detach() for label, image in x.items()}
        return average_losses(losses_G) | average_losses(losses_D) | self.gammas(), images

    def pairs(self, images: Images) -> tuple[Tensor, Tensor]:
        """The pairs that the discriminator sees, concatenated by channel: of A with the true B, and with the fake."""
        A = images["real_A"]
        return torch.cat([A, images["real_B"]], 1), torch.cat([A, images["fake_B"]], 1)

    def attention_views(self) -> dict[str, AttentionView]:
        """Show the generator on A and the discriminator on A and its translation."""
        views = {"G": AttentionView.on(self.netG, "real_A")}
        if hasattr(self, "netD"):
            views["D"] = AttentionView.on(self.netD, "real_A", "fake_B")
        return views

    def generator_views(self) -> dict[str, GeneratorView]:
        """The generator, with the discriminator of pairs."""

        def score(images: Images, label: str) -> Tensor:
            return self.netD(torch.cat([images["real_A"], images[label]], 1))

        return {"G": GeneratorView("fake_B", "real_B", "real_A", paired=True, score=score)}
