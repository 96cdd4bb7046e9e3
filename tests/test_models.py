"""Training steps against reference trajectories, the state of training, and the sizes of images."""

import copy
import itertools
from collections.abc import Mapping
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from models.base_model import BaseModel
from models.cycle_gan_model import CycleGANModel
from models.image_pool import ImagePool
from models.losses import GAN_MODES
from models.networks.attention import AttentiveChain
from models.networks.unet import UnetGenerator
from tests import reference
from tests.golden.fill import fill
from tests.helpers import assert_as_exact, gradients, random_batch, training_model
from tests.test_networks import GOLDEN
from training.resume import load_training_state, training_state

REFERENCES = {"cycle_gan": reference.cycle_gan, "pix2pix": reference.pix2pix}


def golden_model(name: str) -> BaseModel:
    """The model of a golden trajectory with its initial weights."""
    model = training_model("--model", name, "--dataroot", ".", "--no_dropout")
    for net in model.children():
        net.load_state_dict(fill(net.state_dict()))
    return model


def golden_batches(name: str, dtype: torch.dtype = torch.float64) -> list[dict[str, Tensor]]:
    return [{side: image.to(dtype) for side, image in batch.items()} for batch in GOLDEN[f"train_{name}"]["batches"]]


def copies(nets: Mapping[str, nn.Module], dtype: torch.dtype) -> dict[str, nn.Module]:
    return {name: copy.deepcopy(net).to(dtype) for name, net in nets.items()}


@pytest.mark.parametrize("name", REFERENCES)
def test_the_reference_in_plain_pytorch_equals_upstream(name):
    """What upstream computed in float32 is within rounding of float64, which grows from 3e-6 to 2e-3 in six steps."""
    entry = GOLDEN[f"train_{name}"]
    nets = copies(dict(golden_model(name).named_children()), torch.float64)
    trajectory = REFERENCES[name](nets, golden_batches(name))
    for number, (losses, golden) in enumerate(zip(trajectory, entry["losses"], strict=True)):
        assert {key: loss.item() for key, loss in losses.items()} == pytest.approx(golden, rel=5e-3 if number else 1e-5)
    for label, norms in entry["final_norms"].items():
        weights = nets[f"net{label}"].state_dict()
        for key in (key for key in norms if key.endswith(".weight")):
            assert weights[key].norm().item() == pytest.approx(norms[key], rel=2e-5), f"{label} {key}"
            golden_sum = entry["final_sums"][label][key]
            assert weights[key].sum().item() == pytest.approx(golden_sum, rel=0, abs=0.02), f"{label} {key}"


@pytest.mark.parametrize("name", REFERENCES)
def test_six_steps_in_float64_equal_the_reference(name):
    model = golden_model(name).double()
    nets = copies(dict(model.named_children()), torch.float64)
    batches = golden_batches(name)
    for batch, expected in zip(batches, REFERENCES[name](nets, batches), strict=True):
        losses, _ = model.step(batch)
        assert {key: loss.item() for key, loss in losses.items()} == pytest.approx(
            {key: loss.item() for key, loss in expected.items()}, rel=1e-6
        )
        # Not the gradients: those of biases before an instance norm are nothing but rounding.
        wanted = dict(nn.ModuleDict(nets).named_parameters())
        torch.testing.assert_close(dict(model.named_parameters()), wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", REFERENCES)
def test_a_step_in_float32_is_as_exact_as_plain_pytorch(name):
    """From the weights before each step of the float64 trajectory, so that rounding does not grow from step to step."""
    nets = copies(dict(golden_model(name).named_children()), torch.float64)
    batches = golden_batches(name)
    trajectory = REFERENCES[name](nets, batches)
    made, plain, exact = [], [], []
    for batch, rounded in zip(batches, golden_batches(name, torch.float32), strict=True):
        model = golden_model(name)
        model.load_state_dict(nn.ModuleDict(nets).state_dict())
        for steps, dtype, images in ((plain, torch.float32, rounded), (exact, torch.float64, batch)):
            copied = copies(nets, dtype)
            steps.append((next(REFERENCES[name](copied, [images])), gradients(copied)))
        made.append((model.step(rounded)[0], gradients(dict(model.named_children()))))
        next(trajectory)
    assert_as_exact(made, plain, exact)


@pytest.mark.parametrize("gan_mode", GAN_MODES)
def test_attention_trains_with_every_gan_mode(gan_mode):
    model = training_model("--model", "cycle_gan_attn", "--gan_mode", gan_mode, "--spectral_norm_D")
    for _ in range(2):
        losses, images = model.step(random_batch(2))
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(image.shape == (2, 3, 32, 32) and image.dtype == torch.float32 for image in images.values())
    for net in model.children():
        for block in net.attention.values():
            assert block.gamma.item() != 0


def test_a_cycle_gan_gains_attention_and_its_images_stay_identical():
    plain, attentive = training_model("--model", "cycle_gan"), training_model("--model", "cycle_gan_attn")
    for name, net in plain.named_children():
        missing, unexpected = attentive.get_submodule(name).load_state_dict(net.state_dict(), strict=False)
        assert missing and all(key.startswith("attention.") for key in missing) and not unexpected
    before, after = plain(random_batch()), attentive(random_batch())
    assert all(torch.equal(before[label], after[label]) for label in before)


@pytest.mark.parametrize("gan_mode", GAN_MODES)
def test_paired_training_with_attention_and_every_gan_mode(gan_mode):
    flags = ["--dataroot", ".", "--netG", "unet_128", "--gan_mode", gan_mode, "--pool_size", "2", "--norm", "instance"]
    model = training_model("--model", "pix2pix_attn", *flags)
    generator = torch.Generator().manual_seed(7)
    batch = {side: torch.rand(1, 3, 128, 128, generator=generator) * 2 - 1 for side in "AB"}
    for _ in range(2):
        losses, images = model.step(batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert list(losses)[:3] == ["G_GAN", "G_L1", "D_pair" if gan_mode == "relativistic" else "D_real"]
    assert all(image.shape == (1, 3, 128, 128) for image in images.values())
    assert list(model.netG.attention) == ["down3"]
    assert all(block.gamma.item() != 0 for net in model.children() for block in net.attention.values())


def test_plateau_depends_on_the_loss_of_the_generator():
    model = training_model("--model", "pix2pix", "--dataroot", ".", "--lr_policy", "plateau")
    losses, _ = model.step(random_batch(2))
    model.optimization.end_epoch()
    best = model.optimization.schedulers["G"].best
    assert best == model.optimization.schedulers["D"].best == pytest.approx((losses["G_GAN"] + losses["G_L1"]).item())


def test_the_generator_loss_leaves_no_gradient_on_the_discriminators():
    model = training_model("--model", "cycle_gan")
    x = model(random_batch())
    model.optimization.backward("G", model.gan_loss.generator(model.netD_A, x["real_B"], x["fake_B"]))
    assert all(weight.grad is None for weight in model.netD_A.parameters())


def test_bf16_losses_are_float32_and_close():
    steps = [
        training_model("--model", "cycle_gan_attn", "--precision", p).step(random_batch())[0] for p in ("fp32", "bf16")
    ]
    for name, loss in steps[0].items():
        assert steps[1][name].dtype == torch.float32
        assert steps[1][name].item() == pytest.approx(loss.item(), rel=0.05)


def test_averaged_weights_are_a_network():
    model = training_model("--model", "cycle_gan", "--ema_decay", "0.999")
    start = model.netG_A.model[1].weight.detach().clone()
    model.step(random_batch())
    weight, average = model.netG_A.model[1].weight, model.netG_A_ema.model[1].weight
    torch.testing.assert_close(average, start + 0.9 * (weight - start))
    assert not average.requires_grad


@pytest.mark.parametrize("name", ["cycle_gan_attn", "pix2pix_attn"])
def test_a_step_from_restored_state_is_bit_identical(name):
    flags = ["--model", name, "--dataroot", ".", "--pool_size", "2", "--ema_decay", "0.99", "--lr_policy", "plateau"]
    model = training_model(*flags)
    for _ in range(3):
        model.step(random_batch(2))
    state, weights, random = training_state(model, model.optimization), model.state_dict(), torch.get_rng_state()
    copied = torch.utils._pytree.tree_map(lambda x: x.clone() if torch.is_tensor(x) else x, (state, weights))
    expected, _ = model.step(random_batch(2))

    resumed = training_model(*flags, "--seed", "5")
    load_training_state(resumed, resumed.optimization, copied[0], epoch=1)
    resumed.load_state_dict(copied[1])
    torch.set_rng_state(random)
    losses, _ = resumed.step(random_batch(2))
    assert {name: loss.item() for name, loss in losses.items()} == {n: loss.item() for n, loss in expected.items()}


def test_identity_loss_needs_equal_channels():
    with pytest.raises(ValueError, match="--lambda_identity 0"):
        training_model("--model", "cycle_gan", "--input_nc", "1")
    training_model("--model", "cycle_gan", "--input_nc", "1", "--lambda_identity", "0")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("progress", [0.0, 0.25])
def test_cycle_noise_and_identity_decay_by_their_formula(progress, precision):
    flags = ["--cycle_noise", "0.2", "--identity_decay", "--lambda_identity", "2", "--lr", "1e-9"]
    model, batch = training_model("--model", "cycle_gan", *flags, "--precision", precision), random_batch(2)
    model.optimization.progress = progress
    torch.manual_seed(3)
    losses, images = model.step(batch)
    with torch.no_grad(), model.optimization.autocast():
        torch.manual_seed(3)
        for real, fake, rec, net, cycle, idt in (
            ("real_A", "fake_B", "rec_A", model.netG_B, "cycle_A", "idt_B"),
            ("real_B", "fake_A", "rec_B", model.netG_A, "cycle_B", "idt_A"),
        ):
            back = net(images[fake] + 0.2 * torch.randn_like(images[fake]))
            torch.testing.assert_close(images[rec], back, rtol=0, atol=2e-5 if precision == "fp32" else 0.02)
            expected = {cycle: 10 * (back - images[real]).abs().mean().item()}
            expected[idt] = 10 * 2 * (1 - progress) * (net(images[real]) - images[real]).abs().mean().item()
            assert {name: losses[name].item() for name in expected} == pytest.approx(expected, rel=1e-2)
    assert not torch.allclose(model.netG_B(images["fake_B"]), images["rec_A"], atol=1e-3)


def test_identity_decay_needs_an_identity_loss():
    with pytest.raises(ValueError, match="--identity_decay has no effect with --lambda_identity 0"):
        training_model("--model", "cycle_gan", "--identity_decay", "--lambda_identity", "0")


@pytest.mark.parametrize(
    ("size", "message"), [(30, "multiples of 4"), (8, "netD_A cannot take images of 8x8 pixels: .* fewer layers")]
)
def test_unsupported_sizes_are_refused(size, message):
    with pytest.raises(ValueError, match=message):
        training_model("--model", "cycle_gan").check_sizes([(size, size)])


@pytest.mark.parametrize(
    ("flags", "refused"),
    [
        (["--model", "cycle_gan"], True),
        (["--model", "cycle_gan", "--pool_size", "0"], True),
        (["--model", "cycle_gan", "--pool_size", "0", "--serial_batches"], False),
        (["--model", "cycle_gan", "--pool_size", "0", "--dataset_mode", "aligned"], False),
        (["--model", "pix2pix", "--pool_size", "1"], True),
        (["--model", "pix2pix", "--pool_size", "0"], False),
    ],
)
def test_wgangp_needs_images_of_one_size(flags, refused):
    """Real and fake images have different sizes unless they are pairs and there is no image pool."""
    model = training_model(*flags, "--dataroot", ".", "--preprocess", "none", "--gan_mode", "wgangp")
    model.check_sizes([(32, 32)])
    with pytest.raises(ValueError, match=r"2 sizes here: 32x32, 40x36\. .*one size") if refused else nullcontext():
        model.check_sizes([(40, 36), (32, 32)])
    other = training_model(*flags, "--dataroot", ".", "--preprocess", "none", "--gan_mode", "lsgan")
    other.check_sizes([(40, 36), (32, 32)])


def test_a_step_on_two_sizes_trains_except_with_wgangp():
    batch = {"A": torch.rand(1, 3, 32, 32), "B": torch.rand(1, 3, 36, 40)}
    training_model("--model", "cycle_gan").step(batch)
    with pytest.raises(ValueError, match="40x36 and 32x32 pixels"):
        training_model("--model", "cycle_gan", "--gan_mode", "wgangp").step(batch)


@pytest.mark.parametrize("flags", [["--model", "cycle_gan"], ["--model", "cycle_gan", "--netG", "unet_128"]])
def test_thousands_of_sizes_take_a_few_forward_passes(flags, monkeypatch):
    passes = []
    for cls in (AttentiveChain, UnetGenerator):
        forward = cls.forward
        monkeypatch.setattr(cls, "forward", lambda net, x, f=forward: passes.append(x.shape) or f(net, x))
    model = training_model(*flags)
    stride = 128 if "unet_128" in flags else 4
    sizes = [(stride * width, stride * height) for width in range(8, 108) for height in range(8, 58)]
    assert len(sizes) == 5000
    model.check_sizes(sizes)
    assert 4 <= len(passes) <= 3 * 4
    for bad in ((stride * 50 + 2, stride * 8), (stride * 9, stride * 40 + 1)):
        with pytest.raises(ValueError, match=rf"{bad[0]}x{bad[1]}"):
            model.check_sizes([*sizes, bad])
    assert len(passes) <= 8 * 4


def test_sizes_are_refused_together_if_one_of_them_is_refused_alone():
    """A network refuses a size because of one small side or, with instance norm, because of both."""
    model = BaseModel()
    model.netD = nn.Sequential(nn.Conv2d(3, 4, 4, stride=8), nn.InstanceNorm2d(4))

    def refused(*sizes: tuple[int, int]) -> bool:
        try:
            model.check_sizes(sizes)
        except ValueError:
            return True
        return False

    sizes = list(itertools.product((2, 4, 8, 12, 20), repeat=2))
    alone = {size: refused(size) for size in sizes}
    assert [size for size in sizes if alone[size] and 2 not in size] == [(4, 4), (4, 8), (8, 4), (8, 8)]
    assert refused((4, 20), (20, 4), (8, 8)) and not refused((4, 20), (20, 4), (8, 12))
    for some in itertools.combinations(sizes, 3):
        assert refused(*some) == any(alone[size] for size in some), some


def test_the_other_direction_swaps_generators():
    model = training_model("--model", "cycle_gan")
    assert isinstance(model, CycleGANModel)
    assert model.sources("netG_A", reverse=False) == ["G_A"]
    assert model.sources("netG_A", reverse=True) == ["G_B"]


def test_image_pool():
    torch.manual_seed(0)
    pool = ImagePool(3)
    first = torch.arange(3.0).view(3, 1, 1, 1)
    assert torch.equal(pool.query(first), first), "images pass while the pool fills"
    seen = [pool.query(torch.full((1, 1, 1, 1), float(i))).item() for i in range(3, 203)]
    fresh = sum(value == i for i, value in enumerate(seen, 3))
    assert 70 < fresh < 130, "about half of the results are the image itself"
    assert len(pool.images) == 3
    assert torch.equal(ImagePool(0).query(first), first)


@pytest.mark.parametrize("flags", ["--n_layers_D 4", "--netD pixel --n_layers_D 2"])
def test_a_flag_of_upstream_without_effect_is_reported(flags, capsys):
    training_model("--model", "cycle_gan", *flags.split())
    assert "has no effect without --netD n_layers" in capsys.readouterr().out


def test_lambda_gp_needs_wgangp():
    with pytest.raises(ValueError, match="--lambda_gp has an effect with --gan_mode wgangp only, not with lsgan"):
        training_model("--model", "cycle_gan", "--lambda_gp", "5")


@pytest.mark.parametrize("flags", ["--model cycle_gan --z_dim 64", "--model template --gan_mode hinge"])
def test_flags_of_other_models_are_unknown(flags, capsys):
    with pytest.raises(SystemExit):
        training_model(*flags.split())
    assert f"{flags.split()[2]} is no option of this --model, but of" in capsys.readouterr().err
