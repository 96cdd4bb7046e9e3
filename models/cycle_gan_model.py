"""CycleGAN: translation between two domains, learned from unpaired images."""

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
from models.content import add_content_flag, create_content_loss
from models.feature_queue import create_queues, with_queues
from models.image_pool import ImagePool
from models.losses import Scorer, add_gan_flags, create_gan_loss
from models.networks.layers import run_together
from models.projected_loss import ProjectedLoss, add_projected_flag, create_projected_loss
from options import values
from util.paths import BUNDLED


class CycleGANModel(BaseModel):
    """Unpaired translation between domains A and B.

    netG_A translates A to B (G in the paper), netG_B translates B to A (F). netD_A discriminates images of B (D_Y),
    netD_B images of A (D_X).

    Reference: Zhu et al. 2017, https://arxiv.org/abs/1703.10593.
    """

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """Add the weights of the cycle and identity losses; by default no dropout and the bundled chart images."""
        add_projected_flag(parser)
        parser.set_defaults(no_dropout=True, dataroot=str(BUNDLED / "chart"))
        if is_train:
            add_gan_flags(parser)
            add_content_flag(parser)
            add = parser.add_argument_group("cycle_gan").add_argument
            weight = values.non_negative_float
            add("--lambda_A", type=weight, default=10.0, help="weight of the cycle loss A -> B -> A")
            add("--lambda_B", type=weight, default=10.0, help="weight of the cycle loss B -> A -> B")
            add("--lambda_identity", type=weight, default=0.5, help="identity loss, times the two above; 0 = off")
            add("--identity_decay", action="store_true", help="let the identity loss fall to 0, linearly over the run")
            text = "noise on translations before they are translated back, so that they cannot hide the image in tiny "
            text += "patterns: its standard deviation, for images in [-1, 1]; 0 = none"
            add("--cycle_noise", type=weight, default=0.0, help=text)
        return parser

    def __init__(self, opt: Any) -> None:
        super().__init__()
        self.netG_A = networks.define_G(opt, opt.input_nc, opt.output_nc)
        self.netG_B = networks.define_G(opt, opt.output_nc, opt.input_nc)

    def add_discriminators(self, opt: Any) -> None:
        """Build netD_A for images of B and netD_B for images of A."""
        self.netD_A = networks.define_D(opt, opt.output_nc).to(self.device)
        self.netD_B = networks.define_D(opt, opt.input_nc).to(self.device)

    def prepare_training(self, opt: Any, optimization: Optimization) -> None:
        """Build discriminators, losses and image pools, and add optimizers.

        Raises:
            ValueError: the identity loss would compare images of different channels, or a flag has no effect.
        """
        super().prepare_training(opt, optimization)
        if opt.lambda_identity and opt.input_nc != opt.output_nc:
            raise ValueError(
                f"the identity loss compares images of A and B, but --input_nc {opt.input_nc} and --output_nc "
                f"{opt.output_nc} differ: add --lambda_identity 0"
            )
        if opt.lambda_identity and opt.label_A != opt.label_B:
            raise ValueError("the identity loss compares images of A and B, not classes: add --lambda_identity 0")
        if opt.identity_decay and not opt.lambda_identity:
            raise ValueError("--identity_decay has no effect with --lambda_identity 0: omit it")
        self.lambda_cycle, self.lambda_identity = {"A": opt.lambda_A, "B": opt.lambda_B}, opt.lambda_identity
        self.identity_decay, self.cycle_noise = opt.identity_decay, opt.cycle_noise
        self.content_loss, self.lambda_content = create_content_loss(opt), opt.lambda_content
        self.add_discriminators(opt)
        self.gan_loss = create_gan_loss(opt)
        discriminators = [self.netD_A, self.netD_B]
        self.projected: dict[str, ProjectedLoss] = {}  # by side
        if opt.lambda_projected:
            self.projected["A"] = create_projected_loss(opt, self, "netP_A", opt.output_nc)
            self.projected["B"] = create_projected_loss(opt, self, "netP_B", opt.input_nc)
            discriminators += [loss.net for loss in self.projected.values()]
        random_pairs = opt.dataset_mode == "unaligned" and not opt.serial_batches
        mixes = opt.pool_size > 0 or random_pairs
        self.one_size_reason = self.gan_loss.run_one_size_reason(mixes=mixes, batch_head=opt.batch_head)
        self.pools = {"fake_A": ImagePool(opt.pool_size), "fake_B": ImagePool(opt.pool_size)}
        self.queues = create_queues(opt.batch_head, "D_A", "D_B")
        optimization.add("G", [self.netG_A, self.netG_B], lr=opt.lr_G)
        optimization.add("D", discriminators, lr=opt.lr_D)
        optimization.add_averages(self, "netG_A", "netG_B")

    def forward(self, batch: dict) -> Images:
        """Translate a batch in both directions and back. Returns images (B, C, H, W) in [-1, 1] by label."""
        real_A, real_B = self.inputs(batch, "A", "B")
        fake_B, fake_A = self.netG_A(real_A), self.netG_B(real_B)
        return {
            "real_A": real_A, "fake_B": fake_B, "rec_A": self.netG_B(fake_B),
            "real_B": real_B, "fake_A": fake_A, "rec_B": self.netG_A(fake_A),
        }  # fmt: skip

    def measured(self, batch: dict, *, cycle: bool) -> Images:
        """See BaseModel: one direction only, which takes a quarter of the time of `forward`."""
        real_A, real_B = self.inputs(batch, "A", "B")
        images = {"real_A": real_A, "fake_B": self.netG_A(real_A), "real_B": real_B}
        return images | ({"rec_A": self.netG_B(images["fake_B"])} if cycle else {})

    def step(self, batch: dict) -> tuple[Losses, Images]:
        """Update the generators, then the discriminators on fake images from the pools; see BaseModel."""
        D_A, D_B = (with_queues(f"D_{side}", self.get_submodule(f"netD_{side}"), self.queues) for side in "AB")
        made: list[tuple[float, Losses, Images]] = []
        for micro in self.micro_batches(batch):
            real_A, real_B = self.inputs(micro.batch, "A", "B")
            losses_A, images_A = self.backward_G("A", real_A, real_B, D_A, micro.share)
            losses_B, images_B = self.backward_G("B", real_B, real_A, D_B, micro.share)
            made.append((micro.share, losses_A | losses_B, images_A | images_B))
        self.optimization.update("G")
        logged: list[tuple[float, Losses]] = []
        for share, losses, images in made:
            losses |= self.backward_D("A", D_A, images["real_B"], self.pools["fake_B"].query(images["fake_B"]), share)
            losses |= self.backward_D("B", D_B, images["real_A"], self.pools["fake_A"].query(images["fake_A"]), share)
            logged.append((share, losses))
        self.optimization.update("D")
        self.optimization.end_step()
        return average_losses(logged) | self.gammas(), images

    def backward_G(self, side: str, real: Tensor, target: Tensor, netD: Scorer, share: float) -> tuple[Losses, Images]:
        """Translate images and back, and accumulate the gradients of the losses of both generators.

        The two directions run one after the other, so that only one autograd graph is in memory.

        Args:
            side: the domain of the images, "A" or "B".
            real: images (B, C, H, W) in [-1, 1].
            target: real images of the other domain.
            netD: the discriminator of the translations.
            share: of these images in the batch.

        Returns:
            The weighted losses and the images of this direction, detached.
        """
        other = "B" if side == "A" else "A"
        net, back = self.get_submodule(f"netG_{side}"), self.get_submodule(f"netG_{other}")
        weight = self.lambda_cycle[side]
        with self.optimization.autocast():
            fake = net(real)
            losses = {f"G_{side}": self.gan_loss.generator(netD, target, fake)}
            images = {f"real_{side}": real, f"fake_{other}": fake}
            sent = fake + self.cycle_noise * torch.randn_like(fake) if self.cycle_noise else fake
            rec, idt = run_together(back, sent, real) if self.lambda_identity else (back(sent), None)
            losses[f"cycle_{side}"] = F.l1_loss(rec, real) * weight
            images[f"rec_{side}"] = rec
            if idt is not None:
                identity = self.lambda_identity * (1 - self.optimization.progress if self.identity_decay else 1)
                losses[f"idt_{other}"] = F.l1_loss(idt, real) * weight * identity
                images[f"idt_{other}"] = idt
            if self.projected:
                losses[f"projected_{side}"] = self.projected[side].generator(target, fake)
            if self.content_loss:
                losses[f"content_{side}"] = self.content_loss(real, fake, domain=side) * self.lambda_content
        self.optimization.backward("G", *losses.values(), share=share)
        return without_graphs(losses), without_graphs(images)

    def backward_D(self, side: str, netD: Scorer, real: Tensor, fake: Tensor, share: float) -> Losses:
        """Accumulate the gradients of the discriminators of a side, "A" or "B". Returns their losses, detached.

        `share` is that of these images in the batch.
        """
        with self.optimization.autocast():
            terms = self.gan_loss.discriminator(
                netD, real, fake, step=self.optimization.updates, progress=self.optimization.progress
            )
        self.optimization.backward("D", self.gan_loss.total(terms), share=share)
        losses = self.gan_loss.logged(terms, suffix=f"_{side}")
        if self.projected:
            with self.optimization.autocast():
                loss = self.projected[side].discriminator(real, fake)
            self.optimization.backward("D", loss, share=share)
            losses[f"projected_D_{side}"] = loss.detach()
        return losses

    def attention_views(self) -> dict[str, AttentionView]:
        """Show the generators on real images and the discriminators on translations."""
        views = {"G_A": AttentionView.on(self.netG_A, "real_A"), "G_B": AttentionView.on(self.netG_B, "real_B")}
        if hasattr(self, "netD_A"):
            views["D_A"] = AttentionView.on(self.netD_A, "fake_B")
            views["D_B"] = AttentionView.on(self.netD_B, "fake_A")
        return views

    def generator_views(self) -> dict[str, GeneratorView]:
        """Each generator, with the discriminator of its images and the generator that translates them back."""
        return {
            "G_A": GeneratorView(
                "fake_B", "real_B", "real_A", score=lambda images, label: self.netD_A(images[label]), back=self.netG_B
            ),
            "G_B": GeneratorView(
                "fake_A", "real_A", "real_B", score=lambda images, label: self.netD_B(images[label]), back=self.netG_A
            ),
        }

    def sources(self, name: str, *, reverse: bool) -> list[str]:
        """See BaseModel. In the other direction, A and B are swapped."""
        label = name.removeprefix("net")
        return [label.translate(str.maketrans("AB", "BA")) if reverse else label]


def without_graphs(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, detached."""
    return {name: tensor.detach() for name, tensor in tensors.items()}
