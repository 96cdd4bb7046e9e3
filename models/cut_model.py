"""CUT: unpaired translation in one direction, with a contrastive loss in place of a cycle."""

import argparse
from argparse import ArgumentParser
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

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
from models.content import add_content_flag, create_content_loss
from models.contrastive import draw_positions, flipped_positions, patch_nce
from models.feature_queue import create_queues, with_queues
from models.image_pool import ImagePool
from models.losses import Scorer, add_gan_flags, create_gan_loss
from models.projected_loss import add_projected_flag, create_projected_loss
from options import values
from util.paths import BUNDLED


class Patches(NamedTuple):
    """Patches of the images that a generator translated.

    Attributes:
        keys: for each layer, unit vectors (B, P, C) of the patches.
        positions: for each layer, the numbers (P,) of their places in the translation, row by row.
    """

    keys: list[Tensor]
    positions: list[Tensor]


class CUTModel(BaseModel):
    """Unpaired translation from A to B, which keeps the content of each patch.

    netG translates A to B. netD discriminates images of B. The encoder of netG and the heads netF map patches to
    vectors: a patch of a translation has to be closer to the patch at the same place of its source than to others.

    Reference: Park et al. 2020, Contrastive Learning for Unpaired Image-to-Image Translation,
    https://arxiv.org/abs/2007.15651.
    """

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """Add the flags of the contrastive loss; by default as in the paper, and the bundled chart images."""
        parser.set_defaults(no_dropout=True, resample="blur", init_type="xavier", dataroot=str(BUNDLED / "chart"))
        add_projected_flag(parser)
        if is_train:
            add_gan_flags(parser)
            add_content_flag(parser)
            parser.set_defaults(pool_size=0, n_epochs=200, n_epochs_decay=200)
            add, switch = parser.add_argument_group("cut").add_argument, argparse.BooleanOptionalAction
            add("--lambda_NCE", type=values.positive_float, default=1.0, help="weight of the contrastive loss")
            text = "contrastive loss of images of B and their translations too, so that G keeps what is in B already"
            add("--nce_idt", action=switch, default=True, help=text)
            text = "flip A in half of the steps: patches have to keep their content then too"
            add("--flip_equivariance", action=switch, default=False, help=text)
            text = "layers of G whose features are compared; default: the padded image, the convolutions that halve "
            text += "it, blocks 1 and 5, which are 0,4,8,12,16 with --resample blur"
            add("--nce_layers", type=values.layers, default="default", metavar="N,N,...", help=text)
            patches = values.checked(int, lambda value: value >= 2, "a whole number from 2")
            add("--num_patches", type=patches, default=256, help="patches of an image in each layer")
            add("--nce_T", type=values.positive_float, default=0.07, help="temperature of the contrastive loss")
            add("--netF_nc", type=values.positive_int, default=256, help="length of the vectors of patches")
        return parser

    def __init__(self, opt: Any) -> None:
        super().__init__()
        self.netG = networks.define_G(opt, opt.input_nc, opt.output_nc)

    def add_discriminators(self, opt: Any) -> None:
        """Build netD for images of B."""
        self.netD = networks.define_D(opt, opt.output_nc).to(self.device)

    def prepare_training(self, opt: Any, optimization: Optimization) -> None:
        """Build discriminator, heads, losses and image pool, and add optimizers.

        Raises:
            ValueError: the generator cannot encode its own translations, or a flag does not suit it.
        """
        super().prepare_training(opt, optimization)
        if opt.label_A != opt.label_B:
            raise ValueError(
                "the contrastive loss encodes images of A and B by one network, and not label maps with --label_A or "
                "--label_B alone: take --model cycle_gan"
            )
        if opt.input_nc != opt.output_nc:
            raise ValueError(
                f"the contrastive loss encodes images of A and B by one network, but --input_nc {opt.input_nc} and "
                f"--output_nc {opt.output_nc} differ: make them equal, or take --model cycle_gan"
            )
        self.lambda_NCE, self.nce_idt, self.temperature = opt.lambda_NCE, opt.nce_idt, opt.nce_T
        self.num_patches, self.flip_equivariance, self.seed = opt.num_patches, opt.flip_equivariance, opt.seed
        self.content_loss, self.lambda_content = create_content_loss(opt), opt.lambda_content
        self.add_discriminators(opt)
        heads, self.layers = networks.define_F(opt, self.netG)
        self.netF = heads.to(self.device)
        self.gan_loss, self.projected = create_gan_loss(opt), None
        discriminators = [self.netD]
        if opt.lambda_projected:
            self.projected = create_projected_loss(opt, self, "netP", opt.output_nc)
            discriminators.append(self.projected.net)
        random_pairs = opt.dataset_mode == "unaligned" and not opt.serial_batches
        mixes = opt.pool_size > 0 or random_pairs
        self.one_size_reason = self.gan_loss.run_one_size_reason(mixes=mixes, batch_head=opt.batch_head)
        self.pools = {"fake_B": ImagePool(opt.pool_size)}
        self.queues = create_queues(opt.batch_head, "D")
        optimization.add("G", [self.netG, self.netF], lr=opt.lr_G)
        optimization.add("D", discriminators, lr=opt.lr_D)
        optimization.add_averages(self, "netG")

    def forward(self, batch: dict) -> Images:
        """Translate a batch. Returns images (B, C, H, W) in [-1, 1] by label."""
        real_A, real_B = self.inputs(batch, "A", "B")
        return {"real_A": real_A, "fake_B": self.netG(real_A), "real_B": real_B}

    def step(self, batch: dict) -> tuple[Losses, Images]:
        """Update the discriminator, then the generator with the heads; see BaseModel.

        The backward pass of images of A ends before images of B are translated, so that only one graph is in memory.
        """
        netD = with_queues("D", self.netD, self.queues)
        # The same in all processes: they have to make the same forward passes, for syncbatch.
        flipped = self.flip_equivariance and Random(f"{self.seed} {self.optimization.updates}").random() < 0.5
        micro_batches, losses_D, losses_G = self.micro_batches(batch), [], []
        keep_graph = len(micro_batches) == 1  # several graphs would fill the memory
        for micro in micro_batches:
            real_A, real_B = self.inputs(micro.batch, "A", "B")
            with self.optimization.autocast(), torch.set_grad_enabled(keep_graph):
                fake_B, patches = self.translate(real_A, flipped=flipped)
            queried = self.pools["fake_B"].query(fake_B)
            losses_D.append((micro.share, self.backward_D(netD, real_B, queried, micro.share)))
        self.optimization.update("D")
        weight = 0.5 if self.nce_idt else 1.0  # the mean of both contrastive losses
        for micro in micro_batches:
            with self.optimization.autocast():
                if not keep_graph:
                    real_A, real_B = self.inputs(micro.batch, "A", "B")
                    fake_B, patches = self.translate(real_A, flipped=flipped)
                losses = {
                    "G_GAN": self.gan_loss.generator(netD, real_B, fake_B),
                    "NCE": self.contrastive_loss(fake_B, patches),
                }
                source = real_A.flip(3) if flipped else real_A
                if self.projected:
                    losses["projected"] = self.projected.generator(real_B, fake_B)
                if self.content_loss:
                    losses["content"] = self.content_loss(source, fake_B, domain="A") * self.lambda_content
            self.optimization.backward(
                "G", *(loss * (weight if name == "NCE" else 1) for name, loss in losses.items()), share=micro.share
            )
            images = {"real_A": source, "fake_B": fake_B.detach(), "real_B": real_B}
            if self.nce_idt:
                with self.optimization.autocast():
                    idt_B, patches = self.translate(real_B, flipped=flipped)
                    losses["NCE_Y"] = self.contrastive_loss(idt_B, patches)
                self.optimization.backward("G", losses["NCE_Y"] * weight, share=micro.share)
                images["idt_B"] = (idt_B.flip(3) if flipped else idt_B).detach()
            losses_G.append((micro.share, {name: loss.detach() for name, loss in losses.items()}))
        self.optimization.update("G")
        self.optimization.end_step()
        return average_losses(losses_G) | average_losses(losses_D) | self.gammas(), images

    def backward_D(self, netD: Scorer, real: Tensor, fake: Tensor, share: float) -> Losses:
        """Accumulate the gradients of the discriminators. Returns their losses, detached.

        `share` is that of these images in the batch.
        """
        with self.optimization.autocast():
            terms = self.gan_loss.discriminator(
                netD, real, fake, step=self.optimization.updates, progress=self.optimization.progress
            )
            losses = {f"D_{name}": loss for name, loss in terms.items()}
            total = [self.gan_loss.total(terms)]
            if self.projected:
                losses["projected_D"] = self.projected.discriminator(real, fake)
                total.append(losses["projected_D"])
        self.optimization.backward("D", *total, share=share)
        return {name: loss.detach() for name, loss in losses.items()}

    def translate(self, images: Tensor, *, flipped: bool) -> tuple[Tensor, Patches]:
        """Translate images (B, C, H, W), flipped if `flipped`, and draw patches of `images`."""
        if flipped:
            fake = self.netG(images.flip(3))
            with torch.no_grad():
                features = self.netG(images, self.layers)
        else:
            *features, fake = self.netG(images, (*self.layers, self.netG.last))
        positions = draw_positions(features, self.num_patches)
        with torch.no_grad():
            keys = self.netF([feature.detach() for feature in features], positions)
        torch.clear_autocast_cache()  # PyTorch up to 2.9 takes casts from under no_grad for later passes, too
        return fake, Patches(keys, flipped_positions(positions, features) if flipped else positions)

    def contrastive_loss(self, fake: Tensor, patches: Patches) -> Tensor:
        """The weighted PatchNCE loss (a scalar) of translations (B, C, H, W) and the patches of their sources."""
        queries = self.netF(self.netG(fake, self.layers), patches.positions)
        return patch_nce(queries, patches.keys, temperature=self.temperature) * self.lambda_NCE

    def example_input(self, name: str, size: tuple[int, int], *, batch_size: int = 1) -> Tensor | None:
        """See BaseModel; netF takes features of netG."""
        return None if name == "netF" else super().example_input(name, size, batch_size=batch_size)

    def attention_views(self) -> dict[str, AttentionView]:
        """Show the generator on real images and the discriminator on translations."""
        views = {"G": AttentionView.on(self.netG, "real_A")}
        if hasattr(self, "netD"):
            views["D"] = AttentionView.on(self.netD, "fake_B")
        return views

    def generator_views(self) -> dict[str, GeneratorView]:
        """The generator, with its discriminator."""
        return {"G": GeneratorView("fake_B", "real_B", "real_A", score=lambda images, label: self.netD(images[label]))}
