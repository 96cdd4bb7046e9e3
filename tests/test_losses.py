"""Adversarial losses of generators and discriminators."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.losses import GAN_MODES, GANLoss, gradient_penalty
from models.networks.patchgan import NLayerDiscriminator
from models.networks.sagan import SAGANDiscriminator
from tests.helpers import random_batch, training_model
from tests.test_networks import GOLDEN

SAGAN = ["--model", "sagan", "--netG", "sagan", "--netD", "sagan", "--batch_size", "2"]
SAGAN += ["--no-spectral_norm_G", "--no-spectral_norm_D"]


def loss_D(loss: GANLoss, net: nn.Module, real: Tensor, fake: Tensor, **at) -> Tensor:
    return loss.total(loss.discriminator(net, real, fake, **at))


@pytest.mark.parametrize("mode", ["lsgan", "vanilla", "wgangp"])
@pytest.mark.parametrize("target", ["real", "fake"])
def test_losses_equal_the_reference(mode, target):
    entry = GOLDEN["gan_loss"]
    torch.testing.assert_close(GANLoss(mode).distance(entry["prediction"], target == "real"), entry[mode][target])


def test_hinge_loss():
    score = torch.tensor([-2.0, 0.5, 3.0])
    assert GANLoss("hinge").distance(score, True).item() == pytest.approx((3 + 0.5 + 0) / 3)
    assert GANLoss("hinge").distance(score, False).item() == pytest.approx((0 + 1.5 + 4) / 3)
    assert GANLoss("hinge").generator(nn.Identity(), score, score).item() == pytest.approx(-0.5)


def test_relativistic_compares_each_patch_with_the_one_at_its_place():
    real, fake = torch.tensor([[[[-2.0, 0.5]]], [[[1.0, 3.0]]]]), torch.tensor([[[[1.0, 0.25]]], [[[-1.0, 4.0]]]])
    loss = GANLoss("relativistic")
    ahead = [-2 - 1, 0.5 - 0.25, 1 + 1, 3 - 4]  # of real images
    for made, sign in ((loss.total(loss.discriminator(nn.Identity(), real, fake)), -1),
                       (loss.generator(nn.Identity(), real, fake), 1)):  # fmt: skip
        assert made.item() == pytest.approx(sum(math.log1p(math.exp(sign * lead)) for lead in ahead) / 4)
    short = loss.generator(nn.Identity(), real[:1], fake)
    assert short.item() == pytest.approx(sum(math.log1p(math.exp(lead)) for lead in ahead[:2]) / 2)


@pytest.mark.parametrize("mode", GAN_MODES)
def test_each_loss_has_gradients_for_its_own_network(mode):
    net = NLayerDiscriminator(3, ndf=8, n_layers=1, attention=["bottleneck"])
    real = torch.randn(2, 3, 16, 16)
    fake = torch.randn(2, 3, 16, 16, requires_grad=True)
    loss_D(GANLoss(mode, lambda_r1=1, lambda_r2=1, lambda_zero_gp=1), net, real, fake).backward()
    assert fake.grad is None
    assert net.model[0].weight.grad.abs().sum() > 0
    GANLoss(mode).generator(net, real, fake).backward()
    assert fake.grad.abs().sum() > 0


def test_gradient_penalty_is_exact_for_a_linear_discriminator():
    weight = torch.randn(1, 12)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    net[1].weight.data.copy_(weight)
    penalty = gradient_penalty(net, torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2))
    assert penalty.item() == pytest.approx((weight.norm().item() - 1) ** 2, rel=1e-5)


def test_the_gradient_penalty_has_a_gradient():
    torch.manual_seed(0)
    real, fake = torch.randn(2, 2, 3, 16, 16)
    net = NLayerDiscriminator(3, ndf=8, n_layers=1, norm="none", attention=["bottleneck"])
    weight = net.model[0].weight
    gradients = [
        torch.autograd.grad(loss_D(GANLoss("wgangp", lambda_gp=gp), net, real, fake), weight)[0] for gp in (0, 10)
    ]
    assert not torch.allclose(*gradients)


def test_the_gradient_penalty_is_in_float32_under_autocast():
    torch.manual_seed(0)
    real, fake = torch.randn(2, 2, 3, 16, 16)
    net = NLayerDiscriminator(3, ndf=8, n_layers=1, norm="none")
    penalties = []
    for enabled in (False, True):
        torch.manual_seed(1)  # of the mixtures
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            penalties.append(gradient_penalty(net, real, fake))
    assert torch.equal(*penalties)


@pytest.mark.parametrize("name", ["patchgan", "sagan"])
def test_zero_centered_penalties_by_their_formula(name):
    """Their values by single images and patches, and their gradients by finite differences."""
    torch.manual_seed(0)
    real, fake = torch.randn(2, 2, 3, 32, 32, dtype=torch.float64)
    if name == "sagan":
        net = SAGANDiscriminator(image_size=32, ndf=8).double()
    else:
        net = NLayerDiscriminator(3, ndf=8, n_layers=1, norm="none", attention=["bottleneck"]).double()
    for module in list(net.modules()):  # a kink would make the penalty jump
        for child, layer in module.named_children():
            if isinstance(layer, nn.LeakyReLU):
                setattr(module, child, nn.Tanh())
    loss = GANLoss("relativistic", lambda_r1=3.0, lambda_r2=5.0, lambda_zero_gp=7.0, penalty_every=2)

    def squared(images: Tensor) -> float:
        total = 0.0
        for image in images:
            image = image[None].requires_grad_()
            patches = net(image).flatten()
            of_patches = [torch.autograd.grad(patch, image, retain_graph=True)[0] for patch in patches]
            total += (sum(of_patches) / len(patches)).square().sum().item()
        return total / len(images)

    def terms() -> dict[str, Tensor]:
        torch.manual_seed(1)
        return loss.discriminator(net, real, fake, step=3, progress=0.25)

    torch.manual_seed(1)
    mixture = torch.rand(())
    fall = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))
    expected = {"r1": 3 / 2 * fall * 2 * squared(real), "r2": 5 / 2 * fall * 2 * squared(fake)}
    expected |= {"zero_gp": 7 * 2 * squared(mixture * real + (1 - mixture) * fake)}
    made = terms()
    assert {name: made[name].item() for name in expected} == pytest.approx(expected, rel=1e-6)
    assert loss.total(made).item() == pytest.approx(made["pair"].item() + sum(expected.values()), rel=1e-6)
    assert loss.discriminator(net, real, fake, step=2).keys() == {"pair"}, "every second step"

    weight = next(net.parameters())
    (gradient,) = torch.autograd.grad(loss.total(made), weight)
    direction, small = torch.randn_like(weight), 1e-6
    values = []
    for sign in (1, -1):
        weight.data.add_(direction, alpha=sign * small)
        values.append(loss.total(terms()).item())
        weight.data.sub_(direction, alpha=sign * small)
    slope = (values[0] - values[1]) / (2 * small)
    assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-3)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 1.0), (0.5, 0.55), (1.0, 0.1)])
def test_r1_falls_to_a_tenth(progress, share):
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    images = torch.randn(4, 3, 2, 2)
    terms = GANLoss("vanilla", lambda_r1=4).discriminator(net, images, images, progress=progress)
    assert terms["r1"].item() == pytest.approx(share * 4 / 2 * net[1].weight.square().sum().item(), rel=1e-5)


@pytest.mark.parametrize("mode", ["wgangp", "relativistic", "lambda_zero_gp"])
def test_images_of_two_sizes_are_refused_where_they_meet(mode):
    net, real, fake = NLayerDiscriminator(3, ndf=8, n_layers=1), torch.zeros(1, 3, 16, 20), torch.zeros(1, 3, 24, 16)
    loss = GANLoss(lambda_zero_gp=1.0) if mode == "lambda_zero_gp" else GANLoss(mode)
    with pytest.raises(ValueError, match=rf"{mode}.* real and fake images, which have 20x16 and 16x24 .*one size"):
        loss.discriminator(net, real, fake)
    if mode == "relativistic":
        with pytest.raises(ValueError, match="one size"):
            loss.generator(net, real, fake)
    GANLoss("lsgan", lambda_r1=1).discriminator(net, real, fake)


def test_unknown_mode_lists_the_choices():
    with pytest.raises(ValueError, match="mode='wgan': choose from lsgan, vanilla, wgangp, hinge, relativistic"):
        GANLoss("wgan")


@pytest.mark.parametrize("loss", [GANLoss("wgangp"), GANLoss("relativistic", lambda_r1=2, lambda_zero_gp=2)])
def test_penalties_train_a_compiled_discriminator(loss):
    """Compiled code has no second derivative, so the penalty runs the network eagerly."""
    torch.manual_seed(0)
    real, fake = torch.randn(2, 2, 3, 16, 16)
    net = NLayerDiscriminator(3, ndf=8, n_layers=1, attention=["bottleneck"])
    weights, losses = list(net.parameters()), []
    for compiled in (False, True):
        if compiled:
            net.compile(backend="aot_eager", dynamic=False)
        torch.manual_seed(1)
        total = loss_D(loss, net, real, fake)
        losses.append([total, *torch.autograd.grad(total, weights)])
    torch.testing.assert_close(*losses)


def r3gan(net: nn.Module, real: Tensor, fake: Tensor) -> dict[str, float]:
    """The losses of a discriminator with --lambda_r1 2 --lambda_r2 1 at the start of a run, in float32."""
    real, fake = (images.detach().requires_grad_() for images in (real, fake))
    on_real, on_fake = net(real), net(fake)
    losses = {"D": F.softplus(on_fake - on_real).mean().item()}
    for name, weight, images, scores in (("r1", 2, real, on_real), ("r2", 1, fake, on_fake)):
        (gradient,) = torch.autograd.grad(scores.sum() * len(scores) / scores.numel(), images)
        losses[name] = weight / 2 * gradient.square().sum((1, 2, 3)).mean().item()
    return losses


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["cycle_gan", "cycle_gan_attn", "pix2pix", "sagan"])
def test_a_step_has_the_losses_of_r3gan(name, precision):
    flags = ["--gan_mode", "relativistic", "--lambda_r1", "2", "--lambda_r2", "1", "--precision", precision]
    flags += ["--lr", "1e-9", "--dataroot", "."]  # weights do not change, as far as losses show
    flags += SAGAN if name == "sagan" else ["--model", name, "--pool_size", "0"]
    model, batch = training_model(*flags), random_batch(2)
    if name == "sagan":
        torch.manual_seed(0)
        with torch.no_grad(), model.optimization.autocast():
            fake = model.netG(model.noise())
    torch.manual_seed(0)
    losses, images = model.step(batch)
    if name == "sagan":
        names = {key: key for key in ("D", "r1", "r2")}
        net, real, label_G = model.netD, batch["A"], "G"
    elif name == "pix2pix":
        names, net, label_G = {"D": "D_pair", "r1": "D_r1", "r2": "D_r2"}, model.netD, "G_GAN"
        real, fake = (torch.cat([batch["A"], image], 1) for image in (batch["B"], images["fake_B"]))
    else:
        names, net, label_G = {key: f"{key}_B" for key in ("D", "r1", "r2")}, model.netD_B, "G_B"
        real, fake = batch["A"], images["fake_A"]
    expected, made = r3gan(net, real, fake), {key: losses[name].item() for key, name in names.items()}
    assert made.pop("D") == pytest.approx(expected.pop("D"), rel=1e-4 if precision == "fp32" else 0.02)
    assert made == pytest.approx(expected, rel=1e-4), "in float32 whatever the precision"
    if name != "sagan":  # whose generator is trained with other fake images
        loss_G = F.softplus(net(real) - net(fake)).mean().item()
        assert losses[label_G].item() == pytest.approx(loss_G, rel=1e-4 if precision == "fp32" else 0.02)


def test_penalties_without_effect_are_refused():
    with pytest.raises(ValueError, match="--penalty_every needs --lambda_r1, --lambda_r2 or --lambda_zero_gp"):
        training_model("--penalty_every", "4")
