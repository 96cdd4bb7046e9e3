"""Projected discriminators: frozen features, heads that learn, and metrics that do not share the features."""

import copy

import pytest
import torch
from torch.nn import functional as F

from models.networks.efficientnet import efficientnet_lite
from models.networks.infer import infer_network
from models.networks.projected import ProjectedDiscriminator
from options.test_options import TestOptions
from options.train_options import TrainOptions
from tests.helpers import random_batch, training_model

PROJECTED = ["--netD", "projected", "--gan_mode", "hinge"]
SAGAN = ["--model", "sagan", "--netG", "sagan", "--netD", "sagan", "--batch_size", "2"]


def test_scores_by_their_formula():
    torch.manual_seed(0)
    net = ProjectedDiscriminator(3, ndf=8)
    x = torch.rand(2, 3, 128, 160) * 2 - 1
    one, two, three, four = efficientnet_lite(0)(x)
    b = dict(net.named_buffers())

    def mix(number, features, coarser=None):
        mixed = F.conv2d(features, b[f"across_channels{number}"])
        if coarser is not None:
            mixed = mixed + F.interpolate(coarser, mixed.shape[2:], mode="bilinear")
        return F.conv2d(mixed, b[f"across_scales{number}"], padding=1)

    four = mix(3, four)
    three = mix(2, three, four)
    two = mix(1, two, three)
    one = mix(0, one, two)
    expected = [head(maps) for head, maps in zip(reversed(net.heads), (four, three, two, one), strict=True)]
    assert {scores.shape for scores in expected} == {(2, 1, 4, 5)}
    torch.testing.assert_close(net(x), torch.cat(expected, 1))
    small = F.interpolate(x, (32, 40), mode="bilinear")
    torch.testing.assert_close(net(small), net(F.interpolate(small, (64, 80), mode="bilinear")))
    assert net(torch.rand(1, 3, 70, 33)).shape[:2] == (1, 4), "any size"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--model", "cycle_gan", *PROJECTED, "--pool_size", "0"], "netD_A"),
        (["--model", "cycle_gan", "--lambda_projected", "0.5", "--pool_size", "0"], "netP_A"),
        (["--model", "cut", "--lambda_projected", "0.5"], "netP"),
        ([*SAGAN, "--lambda_projected", "0.5"], "netP"),
    ],
)
def test_only_the_heads_learn(flags, name, precision):
    model = training_model(*flags, "--precision", precision)
    net = model.get_submodule(name)
    assert not any("stem" in key for key in net.state_dict()), "checkpoints do not hold the pretrained network"
    before = copy.deepcopy(net.state_dict())
    pretrained = copy.deepcopy(net._features[0].state_dict())
    model.check_sizes([(32, 32)])
    losses, _ = model.step(random_batch())
    assert all(loss.isfinite() for loss in losses.values())
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and all(key.startswith("heads.") for key in changed)
    assert all(torch.equal(value, pretrained[key]) for key, value in net._features[0].state_dict().items())
    if name == "netP_A":
        assert {"projected_A", "projected_B", "projected_D_A", "projected_D_B"} <= losses.keys()


@pytest.mark.parametrize(("name", "side"), [("cycle_gan", "_A"), ("cut", "")])
def test_the_losses_of_a_second_discriminator(name, side):
    model = training_model("--model", name, "--lambda_projected", "0.5", "--lr", "1e-9", "--pool_size", "0")
    batch = random_batch()
    losses, images = model.step(batch)
    net = model.get_submodule(f"netP{side}").eval()
    real, fake = net(batch["B"]), net(images["fake_B"])
    assert losses[f"projected{side}"].item() == pytest.approx(-0.5 * fake.mean().item(), rel=0.05, abs=1e-3)
    expected = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    assert losses[f"projected_D{side}"].item() == pytest.approx(expected.item(), rel=0.05)


def test_sagan_augments_images_for_both_discriminators():
    model = training_model(*SAGAN, "--lambda_projected", "0.5", "--diffaugment", "color")
    passes = []
    model.get_submodule("netP").register_forward_hook(lambda _, inputs, scores: passes.append((inputs[0], scores)))
    losses, images = model.step(random_batch(2))
    (real, on_real), (_, on_fake), (fake, on_fake_G) = passes
    for seen, image in ((real, images["real"]), (fake, images["fake"])):
        assert seen.shape == image.shape and not torch.allclose(seen, image)
    assert losses["projected"].item() == pytest.approx(-0.5 * on_fake_G.mean().item())
    expected = F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean()
    assert losses["projected_D"].item() == pytest.approx(expected.item())


def test_weights_are_inferred_and_wrong_uses_refused():
    assert infer_network(ProjectedDiscriminator(3, ndf=8).state_dict()) == {
        "netD": "projected", "input_nc": 3, "ndf": 8,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"--netD projected .*input_nc=6: a projected discriminator takes images of 3"):
        training_model("--model", "pix2pix", "--dataroot", ".", *PROJECTED)
    with pytest.raises(ValueError, match=r"--lambda_projected 1.0: input_nc=1"):
        training_model("--lambda_projected", "1", "--input_nc", "1", "--lambda_identity", "0")
    with pytest.raises(ValueError, match=r"--no-spectral_norm_D: --netD projected always has spectral norm"):
        training_model("--model", "cycle_gan", *PROJECTED, "--no-spectral_norm_D")
    with pytest.raises(ValueError, match=r"--attn_D bottleneck: .*has no stages"):
        training_model("--model", "cycle_gan_attn", *PROJECTED)


@pytest.mark.parametrize("flags", [PROJECTED, ["--lambda_projected", "1"]])
def test_other_features_measure_the_run(flags, capsys):
    opt = TrainOptions().parse(["--metrics", "kid", *flags])
    assert opt.metrics_features == TestOptions().parse([], opt.as_dict()).metrics_features == "lite2"
    with pytest.raises(SystemExit):
        TrainOptions().parse(["--metrics_features", "lite0", *flags])
    assert "judges a run that learns from the same features: take lite2" in capsys.readouterr().err
