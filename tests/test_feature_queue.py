"""The batch head of PatchGANs and its queues."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.feature_queue import FeatureQueue, QueuedDiscriminator
from models.losses import GANLoss, squared_gradient
from models.networks.patchgan import NLayerDiscriminator
from tests.helpers import random_batch, training_model
from training.resume import training_state


def test_a_queue_keeps_the_last_features():
    queue = FeatureQueue(3)
    for first in (0.0, 2.0):
        queue.push(torch.tensor([first, first + 1])[:, None, None, None])
    assert [image.item() for image in queue.images] == [1, 2, 3]


def scores_beside(net: NLayerDiscriminator, image: Tensor, others: list[Tensor]) -> Tensor:
    """The scores of one image beside the features of others: the spread of all as a channel, two convolutions."""
    features = net.model(image)
    everyone = torch.cat([features, *(other[None] for other in others)])
    spread = (everyone.var(0, correction=0) + 1e-8).sqrt().mean()
    first, last = (layer for layer in net.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3))
    channel = spread.expand(1, 1, *features.shape[2:])
    return last(F.leaky_relu(first(torch.cat([features, channel], 1)), 0.2))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_losses_beside_the_queues_by_their_formula(precision):
    torch.manual_seed(0)
    net = NLayerDiscriminator(3, ndf=8, n_layers=1, norm="none", batch_head=True)
    queued = QueuedDiscriminator(net, {"real": FeatureQueue(3), "fake": FeatureQueue(3)})
    loss, features = GANLoss("relativistic", lambda_r1=2.0), {"real": [], "fake": []}
    for step in range(5):
        real, fake = torch.randn(2, 1, 3, 16, 16)
        expected_real = scores_beside(net, real, features["real"])
        expected_fake = scores_beside(net, fake, features["fake"])
        gradient = squared_gradient(lambda x: scores_beside(net, x, features["real"]), real)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            G = loss.generator(queued, real, fake)
            terms = loss.discriminator(queued, real, fake, step=step)
        close = {"rel": 1e-5 if precision == torch.float32 else 0.02}
        assert terms["pair"].item() == pytest.approx(F.softplus(expected_fake - expected_real).mean().item(), **close)
        assert terms["r1"].item() == pytest.approx(gradient.item(), **close)
        assert G.item() == pytest.approx(F.softplus(expected_real - expected_fake).mean().item(), **close)
        for kind, images in (("real", real), ("fake", fake)):
            features[kind] = [*features[kind], net.model(images)[0].detach()][-3:]
            assert len(queued.queues[kind].images) == min(step + 1, 3)
    assert not torch.allclose(scores_beside(net, real, []), expected_real, rtol=1e-5)


@pytest.mark.parametrize("name", ["cycle_gan_attn", "pix2pix"])
def test_the_queues_are_part_of_the_state(name):
    flags = ["--model", name, "--dataroot", ".", "--batch_head", "2", "--pool_size", "0", "--norm", "instance"]
    model = training_model(*flags)
    for _ in range(2):
        losses, _ = model.step(random_batch())
    assert all(loss.isfinite() for loss in losses.values())
    saved = training_state(model, model.optimization)["pools"]
    queues = ["D_A_real", "D_A_fake", "D_B_real", "D_B_fake"] if "cycle" in name else ["D_real", "D_fake"]
    assert {key: len(saved[key]) for key in queues} == dict.fromkeys(queues, 2)
    model.check_sizes([(32, 32)])
    with pytest.raises(ValueError, match="batch_head=2 compares images of several steps, which have 2 sizes here"):
        model.check_sizes([(32, 32), (64, 32)])


def test_only_patchgans_have_a_batch_head(capsys):
    with pytest.raises(ValueError, match="--batch_head 3 needs --netD basic or n_layers, not pixel"):
        training_model("--batch_head", "3", "--netD", "pixel")
    plain = NLayerDiscriminator(3, ndf=8)
    assert isinstance(plain.model[-1], nn.Conv2d) and not any("head" in key for key in plain.state_dict())
