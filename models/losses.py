"""Adversarial losses of generators and discriminators."""

import math
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.feature_queue import QueuedDiscriminator
from models.networks.layers import no_autocast, run_together
from options import values
from util.errors import RemediedError

GAN_MODES = ("lsgan", "vanilla", "wgangp", "hinge", "relativistic")
ZERO_CENTERED = ("r1", "r2", "zero_gp")  # gradient penalties


class ClassDiscriminator:
    """A discriminator with a score for each class, which scores images for the classes they have or should have.

    Args:
        net: images (B, C, H, W) -> scores (B, n_classes).
        classes: numbers of classes, (B,), of "real" and "fake" images. If there are fewer images, the first ones count.
    """

    def __init__(self, net: Callable[[Tensor], Tensor], classes: Mapping[str, Tensor]):
        self.net, self.classes = net, classes

    def score(self, kind: str, images: Tensor) -> Tensor:
        """The scores (B,) of "real" or "fake" images (B, C, H, W)."""
        return self.net(images).gather(1, self.classes[kind][: len(images), None]).squeeze(1)


Scorer = Callable[[Tensor], Tensor] | QueuedDiscriminator | ClassDiscriminator


def add_gan_flags(parser: ArgumentParser) -> None:
    """Declare the flags that `create_gan_loss` reads."""
    add = parser.add_argument_group("adversarial loss").add_argument
    weight = values.non_negative_float
    add("--gan_mode", default="lsgan", choices=GAN_MODES, help="adversarial loss; relativistic is that of R3GAN")
    add("--lambda_gp", type=weight, default=10.0, help="weight of the gradient penalty of wgangp")
    text = "gradient penalty of D on {}: half of this times |gradient|^2; falls to a tenth over the run; 0 = off"
    add("--lambda_r1", type=weight, default=0.0, help=text.format("real images (R1), such as 2"))
    add("--lambda_r2", type=weight, default=0.0, help=text.format("fake images (R2)"))
    text = "gradient penalty of D on mixtures of real and fake images, as in UVCGAN2: this times |gradient|^2; 0 = off"
    add("--lambda_zero_gp", type=weight, default=0.0, help=text)
    text = "compute --lambda_r1, --lambda_r2 and --lambda_zero_gp every N steps only, with N times the weight"
    add("--penalty_every", type=values.positive_int, default=1, help=text)


def create_gan_loss(opt: Any) -> "GANLoss":
    """Create the loss --gan_mode. ValueError if --lambda_gp or --penalty_every is given and would have no effect."""
    if opt.given("lambda_gp") and opt.gan_mode != "wgangp":
        raise ValueError(f"--lambda_gp has an effect with --gan_mode wgangp only, not with {opt.gan_mode}: omit it")
    if opt.given("penalty_every") and not (opt.lambda_r1 or opt.lambda_r2 or opt.lambda_zero_gp):
        raise ValueError("--penalty_every needs --lambda_r1, --lambda_r2 or --lambda_zero_gp: omit it, or give one")
    return GANLoss(
        opt.gan_mode, lambda_gp=opt.lambda_gp, lambda_r1=opt.lambda_r1, lambda_r2=opt.lambda_r2,
        lambda_zero_gp=opt.lambda_zero_gp, penalty_every=opt.penalty_every,
    )  # fmt: skip


class GANLoss:
    """The adversarial losses of a generator and a discriminator whose scores have not passed a sigmoid.

    Args:
        mode: lsgan (least squares, Mao et al. 2017, arXiv:1611.04076), vanilla (cross entropy, Goodfellow et al. 2014,
            arXiv:1406.2661), wgangp (Wasserstein with gradient penalty, Gulrajani et al. 2017, arXiv:1704.00028), hinge
            (Lim and Ye 2017, arXiv:1705.02894) or relativistic (each fake image against a real one, Huang et al. 2024,
            arXiv:2501.05441).
        lambda_gp: weight of the gradient penalty of wgangp.
        lambda_r1: weight of the penalty R1, see `penalties`. All three are off with 0 and suit every mode.
        lambda_r2: weight of the penalty R2.
        lambda_zero_gp: weight of the penalty on mixed images.
        penalty_every: compute these three in every so many steps only, with as many times the weight.

    Raises:
        ValueError: the mode is unknown.
    """

    def __init__(
        self,
        mode: str = "lsgan",
        *,
        lambda_gp: float = 10.0,
        lambda_r1: float = 0.0,
        lambda_r2: float = 0.0,
        lambda_zero_gp: float = 0.0,
        penalty_every: int = 1,
    ):
        if mode not in GAN_MODES:
            raise ValueError(f"mode={mode!r}: choose from {', '.join(GAN_MODES)}")
        self.mode = mode
        self.lambda_gp = lambda_gp
        self.lambda_r1, self.lambda_r2, self.lambda_zero_gp = lambda_r1, lambda_r2, lambda_zero_gp
        self.penalty_every = penalty_every

    @property
    def one_size_reason(self) -> str:
        """Why real and fake images need the same size, as the start of a message; empty if they do not."""
        if self.mode == "wgangp":
            return "gan_mode='wgangp' mixes real and fake images"
        if self.mode == "relativistic":
            return "gan_mode='relativistic' compares real and fake images"
        return f"lambda_zero_gp={self.lambda_zero_gp} mixes real and fake images" if self.lambda_zero_gp else ""

    def run_one_size_reason(self, *, mixes: bool, batch_head: int) -> str:
        """Why all images of a run need one size, as the start of a message; empty if they do not.

        Args:
            mixes: a step may compare real and fake images of different files, such as fake ones from a pool.
            batch_head: see `models.feature_queue`; 0 = none.
        """
        if batch_head:
            return f"batch_head={batch_head} compares images of several steps"
        return self.one_size_reason if mixes else ""

    def generator(self, net: Scorer, real: Tensor, fake: Tensor) -> Tensor:
        """The loss of the generator (a scalar) for fake images, scored by the discriminator `net`.

        Only relativistic looks at the real images. It compares image i and patch j of both. If a last batch has fewer
        real images, it leaves out the other fake ones.

        Args:
            net: the discriminator; with a batch head, a QueuedDiscriminator.
            real: images (B, C, H, W).
            fake: images (B, C, H, W).

        Raises:
            ValueError: real and fake images need the same size, see `one_size_reason`.
        """
        if self.mode == "relativistic":
            self.check_sizes(real, fake)
            with torch.no_grad():  # the generator has no part in this score
                on_real = scorer(net, "real")(real)
            return relativistic(scorer(net, "fake")(fake[: len(real)]), on_real)
        score = scorer(net, "fake")(fake)
        return -score.mean() if self.mode == "hinge" else self.distance(score, True)

    def discriminator(
        self, net: Scorer, real: Tensor, fake: Tensor, *, step: int = 0, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """The terms of the loss of the discriminator `net`, for `total`. None has a gradient for the generator.

        Args:
            net: the discriminator; with a batch head, a QueuedDiscriminator.
            real: images (B, C, H, W).
            fake: images (B, C, H, W).
            step: number of the training step, from 0.
            progress: of the run, in [0, 1].

        Returns:
            "real" and "fake", or "pair" for relativistic; "penalty" for wgangp; and the terms of `penalties`.

        Raises:
            ValueError: real and fake images need the same size, see `one_size_reason`.
        """
        fake = fake.detach()
        self.check_sizes(real, fake)
        features: dict[str, Tensor] = {}
        if isinstance(net, QueuedDiscriminator):
            on_real, features["real"] = net.with_features("real", real)
            on_fake, features["fake"] = net.with_features("fake", fake)
        elif isinstance(net, ClassDiscriminator):
            on_real, on_fake = net.score("real", real), net.score("fake", fake)
        else:
            on_real, on_fake = run_together(net, real, fake)
        if self.mode == "relativistic":
            terms = {"pair": relativistic(on_real, on_fake)}
        else:
            terms = {"real": self.distance(on_real, True), "fake": self.distance(on_fake, False)}
        if self.mode == "wgangp":
            terms["penalty"] = self.lambda_gp * gradient_penalty(scorer(net, "fake"), real, fake)
        terms |= self.penalties(net, real, fake, step=step, progress=progress)
        if isinstance(net, QueuedDiscriminator):  # not before the penalties, which see the same queues
            for kind, queue in net.queues.items():
                queue.push(features[kind])
        return terms

    def penalties(self, net: Scorer, real: Tensor, fake: Tensor, *, step: int, progress: float) -> dict[str, Tensor]:
        """The zero-centered gradient penalties of a step, computed in float32 or wider and weighted.

        R1 and R2 are lambda / 2 times `squared_gradient` of real and fake images, and lambda falls to a tenth over the
        run, along a cosine. "zero_gp" is lambda times `squared_gradient` of a mixture of both, with one random
        proportion for the batch.

        Args:
            net, real, fake, step, progress: see `discriminator`.

        Returns:
            "r1", "r2" and "zero_gp" as far as they are on; empty in the steps between, see `penalty_every`.

        Reference: Mescheder et al. 2018, arXiv:1801.04406 (R1, R2); Huang et al. 2024 (R3GAN), arXiv:2501.05441;
        Torbunov et al. 2023 (UVCGAN2), arXiv:2303.16280; Karras et al. 2020 (steps without), arXiv:1912.04958.
        """
        if (step + 1) % self.penalty_every:
            return {}
        falling = self.penalty_every * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)
        terms = {}
        if self.lambda_r1:
            terms["r1"] = self.lambda_r1 / 2 * falling * squared_gradient(scorer(net, "real"), real)
        if self.lambda_r2:
            terms["r2"] = self.lambda_r2 / 2 * falling * squared_gradient(scorer(net, "fake"), fake)
        if self.lambda_zero_gp:
            mixed = torch.lerp(fake, real, torch.rand((), device=real.device).to(real.dtype))
            terms["zero_gp"] = self.lambda_zero_gp * self.penalty_every * squared_gradient(scorer(net, "fake"), mixed)
        return terms

    def logged(self, terms: dict[str, Tensor], *, suffix: str = "") -> dict[str, Tensor]:
        """The losses of a discriminator to log: "D", "r1", "r2" and "zero_gp", each with a suffix such as "_A"."""
        penalties = {name: terms[name] for name in ZERO_CENTERED if name in terms}
        losses = {"D": self.adversarial(terms)} | penalties
        return {f"{name}{suffix}": loss.detach() for name, loss in losses.items()}

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The loss of the discriminator (a scalar) from the terms of `discriminator`."""
        loss = self.adversarial(terms)
        return sum((terms[name] for name in ZERO_CENTERED if name in terms), start=loss)

    def adversarial(self, terms: dict[str, Tensor]) -> Tensor:
        """The loss of the discriminator (a scalar) from its terms, without "r1", "r2" and "zero_gp".

        For lsgan and vanilla it is halved, as in CycleGAN, which slows the discriminator relative to the generator.
        """
        if self.mode == "relativistic":
            return terms["pair"]
        loss = terms["real"] + terms["fake"]
        if self.mode in ("lsgan", "vanilla"):
            return loss / 2
        return loss + terms["penalty"] if self.mode == "wgangp" else loss

    def distance(self, score: Tensor, real: bool) -> Tensor:
        """The loss of scores of any shape whose target is real or fake; a scalar. Relativistic has none."""
        assert self.mode != "relativistic"
        if self.mode == "lsgan":
            return F.mse_loss(score, torch.full_like(score, float(real)))
        if self.mode == "vanilla":
            return F.binary_cross_entropy_with_logits(score, torch.full_like(score, float(real)))
        signed = -score if real else score
        return signed.mean() if self.mode == "wgangp" else F.relu(1 + signed).mean()

    def check_sizes(self, real: Tensor, fake: Tensor) -> None:
        """Raise ValueError if real and fake images (B, C, H, W) need the same size and do not have it."""
        if self.one_size_reason and real.shape[2:] != fake.shape[2:]:
            sizes = [f"{images.shape[3]}x{images.shape[2]}" for images in (real, fake)]
            raise RemediedError(
                f"{self.one_size_reason}, which have {sizes[0]} and {sizes[1]} pixels here. It needs images of one "
                "size.",
                remedy={"preprocess": "resize_and_crop"},
            )


def scorer(net: Scorer, kind: str) -> Callable[[Tensor], Tensor]:
    """The function that scores images of a kind, "real" or "fake"."""
    return partial(net.score, kind) if isinstance(net, QueuedDiscriminator | ClassDiscriminator) else net


def relativistic(winner: Tensor, loser: Tensor) -> Tensor:
    """softplus(loser - winner) of two sets of scores of the same shape, averaged: low if the winner's are higher.

    Reference: Jolicoeur-Martineau 2019, The Relativistic Discriminator, arXiv:1807.00734.
    """
    return F.softplus(loser - winner).mean()


def gradient_penalty(net: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """Mean of (|gradient of the score| - 1)^2 at random points between real and fake images (B, C, H, W).

    A scalar, in float32 or wider.

    Reference: Gulrajani et al. 2017, Improved Training of Wasserstein GANs, arXiv:1704.00028.
    """
    mix = torch.rand(len(real), 1, 1, 1, device=real.device)
    gradient = score_gradient(net, torch.lerp(fake, real, mix))
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def squared_gradient(net: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """|gradient of the score|^2 at images (B, C, H, W), averaged over them; a scalar, in float32 or wider.

    The score of an image is the mean of its patches, so the number of patches does not change the scale.
    """
    gradient = score_gradient(lambda points: net(points).reshape(len(points), -1).mean(1), images)
    return gradient.square().sum() / len(images)


def score_gradient(net: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The gradient of the sum of all scores at images (B, C, H, W), of the same shape; it can be differentiated.

    It is in float32 or wider, under autocast too.
    """
    points = images.detach().to(torch.promote_types(images.dtype, torch.float32)).requires_grad_()
    # Neither compiled networks nor fused attention kernels have a second derivative.
    with no_autocast(points), torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH):
        (gradient,) = torch.autograd.grad(net(points).sum(), points, create_graph=True)
    return gradient
