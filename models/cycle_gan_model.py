"""CycleGAN: translation between two sets of pictures that need no pairs."""

from argparse import ArgumentParser
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from data import BUNDLED
from models import networks
from models.base_model import BaseModel, Images, Losses
from models.losses import GANLoss
from models.networks.layers import run_together
from options import values
from util.image_pool import ImagePool

IMAGES = ("real_A", "fake_B", "rec_A", "real_B", "fake_A", "rec_B", "idt_A", "idt_B")  # in the order they are shown
LOSSES = ("G_A", "G_B", "cycle_A", "cycle_B", "idt_A", "idt_B", "D_A", "D_B")


class CycleGANModel(BaseModel):
    """Unpaired A <-> B, Zhu et al. 2017, https://arxiv.org/abs/1703.10593.

    G_A: A -> B (paper: G), G_B: B -> A (F); D_A judges B (D_Y), D_B judges A (D_X).
    """

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """No dropout, the earth pictures, and the weights of the cycle and identity losses."""
        parser.set_defaults(no_dropout=True, dataroot=str(BUNDLED / "earth"))
        if is_train:
            add = parser.add_argument_group("cycle_gan").add_argument
            weight = values.non_negative_float
            add("--lambda_A", type=weight, default=10.0, help="weight of the cycle loss A -> B -> A")
            add("--lambda_B", type=weight, default=10.0, help="weight of the cycle loss B -> A -> B")
            add("--lambda_identity", type=weight, default=0.5, help="identity loss, times the two above; 0 = off")
        return parser

    def __init__(self, opt: Any) -> None:
        super().__init__()
        self.netG_A = networks.define_G(opt, opt.input_nc, opt.output_nc)
        self.netG_B = networks.define_G(opt, opt.output_nc, opt.input_nc)

    def add_discriminators(self, opt: Any) -> None:
        """D_A, which judges B, and D_B, which judges A."""
        self.netD_A = networks.define_D(opt, opt.output_nc).to(self.device)
        self.netD_B = networks.define_D(opt, opt.input_nc).to(self.device)

    def prepare_training(self, opt: Any) -> None:
        """Discriminators, losses, pools and optimizers."""
        super().prepare_training(opt)
        if opt.lambda_identity and opt.input_nc != opt.output_nc:
            raise ValueError(
                f"the identity loss compares pictures of A and B, but --input_nc {opt.input_nc} and --output_nc "
                f"{opt.output_nc} differ: add --lambda_identity 0"
            )
        self.lambda_A, self.lambda_B, self.lambda_identity = opt.lambda_A, opt.lambda_B, opt.lambda_identity
        self.add_discriminators(opt)
        self.gan_loss = GANLoss(opt.gan_mode, lambda_gp=opt.lambda_gp)
        self.pools = {"fake_A": ImagePool(opt.pool_size), "fake_B": ImagePool(opt.pool_size)}
        self.add_optimizer("G", [self.netG_A, self.netG_B], opt, lr=opt.lr_G)
        self.add_optimizer("D", [self.netD_A, self.netD_B], opt, lr=opt.lr_D)
        self.add_ema("netG_A", "netG_B")

    def forward(self, batch: dict) -> Images:
        """Translate a batch in both directions and back: images (B, C, H, W) in [-1, 1]."""
        real_A, real_B = self.inputs(batch, "A", "B")
        fake_B, fake_A = self.netG_A(real_A), self.netG_B(real_B)
        return {
            "real_A": real_A, "fake_B": fake_B, "rec_A": self.netG_B(fake_B),
            "real_B": real_B, "fake_A": fake_A, "rec_B": self.netG_A(fake_A),
        }  # fmt: skip

    def step(self, batch: dict) -> tuple[Losses, Images]:
        """The generators first, then the discriminators, which see fakes from the pools."""
        x: Images = dict(zip(("real_A", "real_B"), self.inputs(batch, "A", "B"), strict=True))
        losses: Losses = {}
        for a, b, weight in (("A", "B", self.lambda_A), ("B", "A", self.lambda_B)):
            with self.autocast():
                images, terms = self.there_and_back(a, b, x[f"real_{a}"], weight)
            self.backward("G", *terms.values())
            x |= {name: image.detach() for name, image in images.items()}
            losses |= {name: loss.detach() for name, loss in terms.items()}
            del images, terms  # and what they keep for the backward pass, before the other direction
        self.update("G")
        for a, b in ("AB", "BA"):
            with self.autocast():
                fake = self.pools[f"fake_{b}"].query(x[f"fake_{b}"])
                loss = self.gan_loss.discriminator(self.get_submodule(f"netD_{a}"), x[f"real_{b}"], fake)
            self.backward("D", loss)
            losses[f"D_{a}"] = loss.detach()
        self.update("D")
        self.end_step()
        losses = {name: losses[name] for name in LOSSES if name in losses}
        return losses | self.gammas(), {name: x[name] for name in IMAGES if name in x}

    def there_and_back(self, a: str, b: str, real: Tensor, weight: float) -> tuple[Images, Losses]:
        """Translate real pictures of domain `a` into `b` and back: the images made, and the generators' losses.

        The network that leads back sees the translation and, for the identity loss, the picture itself: in one batch,
        where that makes no difference.
        """
        G, back, D = (self.get_submodule(name) for name in (f"netG_{a}", f"netG_{b}", f"netD_{a}"))
        fake = G(real)
        images, losses = {f"fake_{b}": fake}, {f"G_{a}": self.gan_loss.generator(D, fake)}
        if self.lambda_identity:
            both = run_together(back, fake, real)
            images |= dict(zip((f"rec_{a}", f"idt_{b}"), both, strict=True))
            losses[f"idt_{b}"] = F.l1_loss(images[f"idt_{b}"], real) * weight * self.lambda_identity
        else:
            images[f"rec_{a}"] = back(fake)
        losses[f"cycle_{a}"] = F.l1_loss(images[f"rec_{a}"], real) * weight
        return images, losses

    def translators(self) -> dict[str, tuple[str, nn.Module]]:
        """The generators."""
        return {"G_A": ("real_A", self.netG_A), "G_B": ("real_B", self.netG_B)}

    def judges(self) -> dict[str, tuple[tuple[str, ...], nn.Module]]:
        """The discriminators, on translations."""
        if not hasattr(self, "netD_A"):
            return {}
        return {"D_A": (("fake_B",), self.netD_A), "D_B": (("fake_A",), self.netD_B)}

    def sources(self, name: str, *, reverse: bool) -> list[str]:
        """In the other direction, the two generators change places."""
        label = name.removeprefix("net")
        return [label.translate(str.maketrans("AB", "BA")) if reverse else label]
