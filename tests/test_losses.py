"""Adversarial losses of generators and discriminators."""

import pytest
import torch
from torch import nn

from models.losses import GAN_MODES, GANLoss, gradient_penalty
from models.networks.patchgan import NLayerDiscriminator
from tests.test_networks import GOLDEN


@pytest.mark.parametrize("mode", ["lsgan", "vanilla", "wgangp"])
@pytest.mark.parametrize("target", ["real", "fake"])
def test_losses_equal_the_reference(mode, target):
    entry = GOLDEN["gan_loss"]
    torch.testing.assert_close(GANLoss(mode).distance(entry["prediction"], target == "real"), entry[mode][target])


def test_hinge_loss():
    score = torch.tensor([-2.0, 0.5, 3.0])
    assert GANLoss("hinge").distance(score, True).item() == pytest.approx((3 + 0.5 + 0) / 3)
    assert GANLoss("hinge").distance(score, False).item() == pytest.approx((0 + 1.5 + 4) / 3)
    assert GANLoss("hinge").generator(nn.Identity(), score).item() == pytest.approx(-0.5)


@pytest.mark.parametrize("mode", GAN_MODES)
def test_discriminator_loss_has_no_gradient_for_the_generator(mode):
    net = NLayerDiscriminator(3, ndf=8, n_layers=1, attention=["bottleneck"])
    real = torch.randn(2, 3, 16, 16)
    fake = torch.randn(2, 3, 16, 16, requires_grad=True)
    GANLoss(mode).discriminator(net, real, fake).backward()
    assert fake.grad is None
    assert net.model[0].weight.grad.abs().sum() > 0


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
        torch.autograd.grad(GANLoss("wgangp", lambda_gp=gp).discriminator(net, real, fake), weight)[0] for gp in (0, 10)
    ]
    assert not torch.allclose(*gradients)


def test_wgangp_refuses_images_of_two_sizes():
    net, real, fake = NLayerDiscriminator(3, ndf=8, n_layers=1), torch.zeros(1, 3, 16, 20), torch.zeros(1, 3, 24, 16)
    with pytest.raises(ValueError, match=r"gan_mode='wgangp' mixes .* 20x16 and 16x24 pixels here.*one size"):
        GANLoss("wgangp").discriminator(net, real, fake)
    GANLoss("lsgan").discriminator(net, real, fake)


def test_unknown_mode_lists_the_choices():
    with pytest.raises(ValueError, match="mode='wgan': choose from lsgan, vanilla, wgangp, hinge"):
        GANLoss("wgan")


def test_wgangp_trains_a_compiled_discriminator():
    """Compiled code has no second derivative, so the penalty runs the network eagerly."""
    torch.manual_seed(0)
    real, fake = torch.randn(2, 2, 3, 16, 16)
    net = NLayerDiscriminator(3, ndf=8, n_layers=1, attention=["bottleneck"])
    weights, losses = list(net.parameters()), []
    for compiled in (False, True):
        if compiled:
            net.compile(backend="aot_eager", dynamic=False)
        torch.manual_seed(1)
        loss = GANLoss("wgangp").discriminator(net, real, fake)
        losses.append([loss, *torch.autograd.grad(loss, weights)])
    torch.testing.assert_close(*losses)
