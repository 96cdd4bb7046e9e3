"""Training of CycleGAN and pix2pix in plain PyTorch, in the order of upstream's code.

It shares only networks with `models`, which are tested against golden values.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = Mapping[str, Tensor]
Losses = dict[str, Tensor]


def cycle_gan(nets: Mapping[str, nn.Module], batches: Iterable[Batch]) -> Iterator[Losses]:
    """Train netG_A, netG_B, netD_A and netD_B with the default flags and an image pool that is never full.

    Yields:
        The losses of each step. The weights still have the gradients of the step.
    """
    G_A, G_B, D_A, D_B = (nets[name] for name in ("netG_A", "netG_B", "netD_A", "netD_B"))
    optimizer_G, optimizer_D = adam(G_A, G_B), adam(D_A, D_B)
    for batch in batches:
        real_A, real_B = batch["A"], batch["B"]
        fake_B, fake_A = G_A(real_A), G_B(real_B)
        rec_A, rec_B = G_B(fake_B), G_A(fake_A)

        require_grad(False, D_A, D_B)
        optimizer_G.zero_grad()
        losses = {
            "G_A": least_squares(D_A(fake_B), 1.0),
            "G_B": least_squares(D_B(fake_A), 1.0),
            "cycle_A": (rec_A - real_A).abs().mean() * 10.0,
            "cycle_B": (rec_B - real_B).abs().mean() * 10.0,
            "idt_A": (G_A(real_B) - real_B).abs().mean() * 10.0 * 0.5,
            "idt_B": (G_B(real_A) - real_A).abs().mean() * 10.0 * 0.5,
        }
        sum(losses.values()).backward()
        optimizer_G.step()

        require_grad(True, D_A, D_B)
        optimizer_D.zero_grad()
        losses["D_A"] = discriminator_loss(least_squares, D_A(real_B), D_A(fake_B.detach()))
        losses["D_B"] = discriminator_loss(least_squares, D_B(real_A), D_B(fake_A.detach()))
        losses["D_A"].backward()
        losses["D_B"].backward()
        optimizer_D.step()
        yield losses


def pix2pix(nets: Mapping[str, nn.Module], batches: Iterable[Batch]) -> Iterator[Losses]:
    """Train netG and netD with the default flags; see `cycle_gan`."""
    G, D = nets["netG"], nets["netD"]
    optimizer_G, optimizer_D = adam(G), adam(D)
    for batch in batches:
        real_A, real_B = batch["A"], batch["B"]
        fake_B = G(real_A)

        require_grad(True, D)
        optimizer_D.zero_grad()
        on_fake = D(torch.cat([real_A, fake_B.detach()], 1))
        on_real = D(torch.cat([real_A, real_B], 1))
        losses = {"D_real": cross_entropy(on_real, 1.0), "D_fake": cross_entropy(on_fake, 0.0)}
        ((losses["D_real"] + losses["D_fake"]) * 0.5).backward()
        optimizer_D.step()

        require_grad(False, D)
        optimizer_G.zero_grad()
        losses["G_GAN"] = cross_entropy(D(torch.cat([real_A, fake_B], 1)), 1.0)
        losses["G_L1"] = (fake_B - real_B).abs().mean() * 100.0
        (losses["G_GAN"] + losses["G_L1"]).backward()
        optimizer_G.step()
        yield losses


def adam(*nets: nn.Module) -> torch.optim.Adam:
    """Adam as a loop over weights."""
    weights = [weight for net in nets for weight in net.parameters()]
    return torch.optim.Adam(weights, lr=2e-4, betas=(0.5, 0.999), foreach=False, fused=False)


def require_grad(required: bool, *nets: nn.Module) -> None:
    """Set whether the weights of networks require a gradient."""
    for net in nets:
        for weight in net.parameters():
            weight.requires_grad = required


def least_squares(score: Tensor, target: float) -> Tensor:
    """Mean squared difference of scores from the target, 1 (real) or 0 (fake)."""
    return (score - target).square().mean()


def cross_entropy(score: Tensor, target: float) -> Tensor:
    """Mean of -log p(target), where p(real) = sigmoid(score)."""
    return F.softplus(-score if target else score).mean()


def discriminator_loss(loss: Callable[[Tensor, float], Tensor], on_real: Tensor, on_fake: Tensor) -> Tensor:
    """Half the sum of the losses on real and fake images."""
    return (loss(on_real, 1.0) + loss(on_fake, 0.0)) * 0.5
