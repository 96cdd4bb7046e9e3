"""BigGAN's networks: against formulas, and as large as the authors' networks."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from models.networks.biggan import BigGANDiscriminator, BigGANGenerator
from models.networks.layers import ModulatedBatchNorm2d
from models.networks.sagan import SAGANResnetDiscriminator
from options.train_options import TrainOptions
from tests.helpers import build_training_model

FLAGS = "--model sagan --netG biggan --netD biggan --crop_size 32 --ngf 8 --ndf 8 --batch_size 4 --dataroot ."


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_modulated_batch_norm_by_its_formula(dtype, tolerance):
    norm = ModulatedBatchNorm2d(4, 3)
    x, vectors = (torch.randn(6, 4, 5, 5) * 3 + 1).to(dtype), torch.randn(6, 3)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        made = norm(x, vectors)
    expected = normalize(x.double(), vectors.double(), norm.scale.weight.double(), norm.shift.weight.double())
    torch.testing.assert_close(made.double(), expected, rtol=tolerance, atol=tolerance)
    assert made.dtype == dtype and norm.num_batches_tracked == 1


def normalize(x: Tensor, vectors: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    scale, shift = (torch.einsum("bd,cd->bc", vectors, weight)[..., None, None] for weight in (scale, shift))
    return (x - mean) / (variance + 1e-5).sqrt() * (1 + scale) + shift


@pytest.mark.parametrize("n_classes", [0, 3])
def test_the_generator_by_its_formula(n_classes):
    """Four parts of the noise: one for the linear layer and one for each block."""
    net = BigGANGenerator(image_size=32, z_dim=10, ngf=8, attention=[], n_classes=n_classes).double()
    w = net.state_dict()
    z = torch.randn(4, 10 + n_classes, dtype=torch.float64)
    first, *parts = z[:, :3], z[:, 3:6], z[:, 6:8], z[:, 8:10]
    x = (first @ w["linear.1.weight"].T + w["linear.1.bias"]).view(4, 32, 4, 4)
    for number, part in enumerate(parts, 1):
        vectors = torch.cat([z[:, 10:] @ w["classes.weight"].T, part], 1) if n_classes else part
        block = {key.removeprefix(f"block{number}."): value for key, value in w.items()}
        doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        shortcut = F.conv2d(doubled, block["shortcut.1.weight"], block["shortcut.1.bias"])
        for norm, convolution in ((0, 3), (4, 6)):
            weights = (block[f"residual.{norm}.{name}.weight"] for name in ("scale", "shift"))
            x = normalize(x, vectors, *weights).relu()
            x = x if norm else x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            x = F.conv2d(x, *(block[f"residual.{convolution}.{name}"] for name in ("weight", "bias")), padding=1)
        x = x + shortcut
    x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    expected = F.conv2d(x.relu(), w["last.2.weight"], w["last.2.bias"], padding=1).tanh()
    torch.testing.assert_close(net(z), expected)


@pytest.mark.parametrize(
    ("size", "z_dim", "block_D", "count_G", "count_D"),
    [(128, 120, "block1", 70_433_988, 87_982_370), (256, 119, "block2", 82_108_548, 99_225_890)],
)
def test_networks_have_as_many_weights_as_those_of_the_authors(size, z_dim, block_D, count_G, count_D):
    with torch.device("meta"):
        G = BigGANGenerator(image_size=size, z_dim=z_dim, ngf=96, attention=["block4"], n_classes=1000)
        D = BigGANDiscriminator(image_size=size, ndf=96, attention=[block_D], n_classes=1000)
    assert [sum(weight.numel() for weight in net.parameters()) for net in (G, D)] == [count_G, count_D]


def test_the_discriminator_of_128_pixels_is_that_of_sagan():
    ours, sagans = (make(image_size=128, ndf=8) for make in (BigGANDiscriminator, SAGANResnetDiscriminator))
    sagans.load_state_dict(ours.state_dict())
    images = torch.rand(2, 3, 128, 128)
    assert torch.equal(ours(images), sagans(images))


def test_noise_has_to_be_long_enough():
    with pytest.raises(ValueError, match=r"--netG biggan .* --z_dim 3 .*: z_dim=3 is less than 4, the parts"):
        build_training_model(TrainOptions().parse([*FLAGS.split(), "--z_dim", "3"]))


def test_a_step_with_classes_updates_all_weights():
    classes = ["--class_of", "folder", "--class_names", "a", "b"]
    model = build_training_model(TrainOptions().parse([*FLAGS.split(), *classes]))
    weighted = {name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    normalized = {name for name, layer in model.named_modules() if is_parametrized(layer)}
    assert {name for name in weighted - normalized if "ema" not in name} == {"netG.classes"}
    embedding = model.netG.classes.weight
    torch.testing.assert_close(embedding.T @ embedding, torch.eye(2))  # orthogonal
    before = {name: weight.clone() for name, weight in model.netG.named_parameters()}
    for _ in range(2):  # attention starts with gamma 0, which stops the gradients of its convolutions
        losses, _ = model.step({"A": torch.rand(4, 3, 32, 32) * 2 - 1, "class": torch.tensor([0, 1, 1, 0])})
    assert all(loss.isfinite() for loss in losses.values())
    assert [name for name, weight in model.netG.named_parameters() if torch.equal(weight, before[name])] == []
