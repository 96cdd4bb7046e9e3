"""Adversarial losses, from the discriminator's side and from the generator's."""

from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.networks.layers import run_together
from options import values

GAN_MODES = ("lsgan", "vanilla", "wgangp", "hinge")


def add_gan_flags(parser: ArgumentParser) -> None:
    """Declare the flags that `create_gan_loss` reads, for models that train against a discriminator."""
    add = parser.add_argument_group("adversarial loss").add_argument
    add("--gan_mode", default="lsgan", choices=GAN_MODES, help="adversarial loss")
    add("--lambda_gp", type=values.non_negative_float, default=10.0, help="weight of the gradient penalty of wgangp")


def create_gan_loss(opt: Any) -> "GANLoss":
    """The loss that --gan_mode names."""
    if opt.given("lambda_gp") and opt.gan_mode != "wgangp":
        raise ValueError(f"--lambda_gp is for --gan_mode wgangp, not for {opt.gan_mode}: leave it out")
    return GANLoss(opt.gan_mode, lambda_gp=opt.lambda_gp)


class GANLoss:
    """The adversarial game between a generator and a discriminator of scores (no sigmoid at its end).

    Args:
        mode: lsgan (least squares, Mao et al. 2017, arXiv:1611.04076), vanilla (cross entropy, Goodfellow et al. 2014,
            arXiv:1406.2661), wgangp (Wasserstein with gradient penalty, Gulrajani et al. 2017, arXiv:1704.00028) or
            hinge (Lim and Ye 2017, arXiv:1705.02894).
        lambda_gp: weight of the gradient penalty, wgangp only.
    """

    def __init__(self, mode: str = "lsgan", *, lambda_gp: float = 10.0):
        if mode not in GAN_MODES:
            raise ValueError(f"mode={mode!r}: choose from {', '.join(GAN_MODES)}")
        self.mode = mode
        self.lambda_gp = lambda_gp

    def generator(self, net: Callable[[Tensor], Tensor], fake: Tensor) -> Tensor:
        """How far `net` is from taking fake (B, C, H, W) for real; a scalar."""
        score = net(fake)
        return -score.mean() if self.mode == "hinge" else self.distance(score, True)

    def discriminator(self, net: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
        """How badly `net` tells real from fake, both (B, C, H, W); a scalar. No gradient reaches the generator.

        lsgan and vanilla are halved, which slows the discriminator down relative to the generator, as in CycleGAN.
        """
        return self.total(self.discriminator_terms(net, real, fake))

    def discriminator_terms(self, net: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """The terms of `discriminator` one by one, not yet halved: "real", "fake" and, in wgangp, "penalty"."""
        fake = fake.detach()
        on_real, on_fake = run_together(net, real, fake)
        terms = {"real": self.distance(on_real, True), "fake": self.distance(on_fake, False)}
        if self.mode == "wgangp":
            terms["penalty"] = self.lambda_gp * gradient_penalty(net, real, fake)
        return terms

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The loss of `discriminator` from its terms; a scalar."""
        loss = terms["real"] + terms["fake"]
        if self.mode in ("lsgan", "vanilla"):
            return loss / 2
        return loss + terms["penalty"] if self.mode == "wgangp" else loss

    def distance(self, score: Tensor, real: bool) -> Tensor:
        """Distance of scores, of any shape, from the verdict `real`; a scalar."""
        if self.mode == "lsgan":
            return F.mse_loss(score, torch.full_like(score, float(real)))
        if self.mode == "vanilla":
            return F.binary_cross_entropy_with_logits(score, torch.full_like(score, float(real)))
        signed = -score if real else score
        return signed.mean() if self.mode == "wgangp" else F.relu(1 + signed).mean()


def gradient_penalty(net: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """Mean of (|gradient of the score| - 1)^2 at random points between real and fake (B, C, H, W); a scalar.

    Gulrajani et al. 2017, arXiv:1704.00028.

    Raises:
        ValueError: real and fake differ in size.
    """
    if real.shape[2:] != fake.shape[2:]:
        sizes = [f"{images.shape[3]}x{images.shape[2]}" for images in (real, fake)]
        raise ValueError(
            f"mode='wgangp' mixes real and fake images, which have to be of one size, not of {sizes[0]} and {sizes[1]} "
            "pixels: use --preprocess resize_and_crop or another --gan_mode"
        )
    mix = torch.rand(len(real), 1, 1, 1, device=real.device)
    points = torch.lerp(fake, real, mix).requires_grad_()
    # Neither compiled networks nor fused attention kernels have a second derivative.
    with torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH):
        scores = net(points)
        (gradient,) = torch.autograd.grad(scores.sum(), points, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()
