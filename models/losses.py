"""Adversarial losses of generators and discriminators."""

from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.networks.layers import run_together
from options import values
from util.errors import RemediedError

GAN_MODES = ("lsgan", "vanilla", "wgangp", "hinge")


def add_gan_flags(parser: ArgumentParser) -> None:
    """Declare the flags that `create_gan_loss` reads."""
    add = parser.add_argument_group("adversarial loss").add_argument
    add("--gan_mode", default="lsgan", choices=GAN_MODES, help="adversarial loss")
    add("--lambda_gp", type=values.non_negative_float, default=10.0, help="weight of the gradient penalty of wgangp")


def create_gan_loss(opt: Any) -> "GANLoss":
    """Create the loss --gan_mode. ValueError if --lambda_gp is given and would have no effect."""
    if opt.given("lambda_gp") and opt.gan_mode != "wgangp":
        raise ValueError(f"--lambda_gp has an effect with --gan_mode wgangp only, not with {opt.gan_mode}: omit it")
    return GANLoss(opt.gan_mode, lambda_gp=opt.lambda_gp)


class GANLoss:
    """The adversarial losses of a generator and a discriminator whose scores have not passed a sigmoid.

    Args:
        mode: lsgan (least squares, Mao et al. 2017, arXiv:1611.04076), vanilla (cross entropy, Goodfellow et al. 2014,
            arXiv:1406.2661), wgangp (Wasserstein with gradient penalty, Gulrajani et al. 2017, arXiv:1704.00028) or
            hinge (Lim and Ye 2017, arXiv:1705.02894).
        lambda_gp: weight of the gradient penalty of wgangp.

    Raises:
        ValueError: the mode is unknown.
    """

    def __init__(self, mode: str = "lsgan", *, lambda_gp: float = 10.0):
        if mode not in GAN_MODES:
            raise ValueError(f"mode={mode!r}: choose from {', '.join(GAN_MODES)}")
        self.mode = mode
        self.lambda_gp = lambda_gp

    def generator(self, net: Callable[[Tensor], Tensor], fake: Tensor) -> Tensor:
        """The loss of the generator (a scalar) for fake images (B, C, H, W), scored by the discriminator `net`."""
        score = net(fake)
        return -score.mean() if self.mode == "hinge" else self.distance(score, True)

    def discriminator(self, net: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
        """The loss of the discriminator `net` (a scalar) for real and fake images (B, C, H, W).

        It has no gradient for the generator. For lsgan and vanilla it is halved, as in CycleGAN, which slows the
        discriminator down relative to the generator.

        Raises:
            ValueError: see `gradient_penalty`.
        """
        return self.total(self.discriminator_terms(net, real, fake))

    def discriminator_terms(self, net: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """The terms of `discriminator` before halving: "real", "fake" and, for wgangp, "penalty"."""
        fake = fake.detach()
        on_real, on_fake = run_together(net, real, fake)
        terms = {"real": self.distance(on_real, True), "fake": self.distance(on_fake, False)}
        if self.mode == "wgangp":
            terms["penalty"] = self.lambda_gp * gradient_penalty(net, real, fake)
        return terms

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The loss of the discriminator (a scalar) from its terms."""
        loss = terms["real"] + terms["fake"]
        if self.mode in ("lsgan", "vanilla"):
            return loss / 2
        return loss + terms["penalty"] if self.mode == "wgangp" else loss

    def distance(self, score: Tensor, real: bool) -> Tensor:
        """The loss of scores of any shape whose target is real or fake; a scalar."""
        if self.mode == "lsgan":
            return F.mse_loss(score, torch.full_like(score, float(real)))
        if self.mode == "vanilla":
            return F.binary_cross_entropy_with_logits(score, torch.full_like(score, float(real)))
        signed = -score if real else score
        return signed.mean() if self.mode == "wgangp" else F.relu(1 + signed).mean()


def gradient_penalty(net: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """Mean of (|gradient of the score| - 1)^2 at random points between real and fake images (B, C, H, W); a scalar.

    Raises:
        ValueError: real and fake images differ in size.

    Reference: Gulrajani et al. 2017, Improved Training of Wasserstein GANs, arXiv:1704.00028.
    """
    if real.shape[2:] != fake.shape[2:]:
        sizes = [f"{images.shape[3]}x{images.shape[2]}" for images in (real, fake)]
        raise RemediedError(
            f"gan_mode='wgangp' mixes real and fake images, which have {sizes[0]} and {sizes[1]} pixels here. It needs "
            "images of one size; other modes do not.",
            remedy={"preprocess": "resize_and_crop"},
        )
    mix = torch.rand(len(real), 1, 1, 1, device=real.device)
    points = torch.lerp(fake, real, mix).requires_grad_()
    # Neither compiled networks nor fused attention kernels have a second derivative.
    with torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH):
        scores = net(points)
        (gradient,) = torch.autograd.grad(scores.sum(), points, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()
