"""SAGAN: networks against the reference, the training step, images on pages, and noise."""

import copy
import itertools

import pytest
import torch
from PIL import Image, ImageChops
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

import test as testing
import train as training
from data import create_dataset
from data.noise_dataset import truncate
from models.base_model import BaseModel
from models.losses import GAN_MODES
from models.networks import IMAGE_DISCRIMINATORS, NOISE_GENERATORS, define_image_D, define_noise_G
from models.networks.attention import SelfAttention2d, attention_maps
from models.networks.infer import infer_network
from models.networks.layers import MinibatchStd, init_weights, run_together, spectral_normalize
from models.networks.resample import RESAMPLINGS
from models.networks.sagan import (
    SIZES,
    SAGANDiscriminator,
    SAGANGenerator,
)
from models.sagan_model import interpolate
from options.test_options import TestOptions
from options.train_options import TrainOptions
from tests.conftest import draw_shapes
from tests.golden.fill import fill
from tests.helpers import build_training_model, default_dtype
from tests.test_networks import GOLDEN

TINY = ["--model", "sagan", "--crop_size", "32", "--load_size", "32", "--ngf", "8", "--ndf", "8", "--batch_size", "4"]
NETWORKS = {"sagan_G": SAGANGenerator, "sagan_D": SAGANDiscriminator}


def training_model(*flags: str) -> BaseModel:
    return build_training_model(TrainOptions().parse([*TINY, *flags]))


def batch(size: int = 4, channels: int = 3) -> dict:
    return {"A": torch.rand(size, channels, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1}


# ---- networks


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_equal_the_reference(name):
    entry, net = GOLDEN[name], NETWORKS[name]().eval()
    assert [child for child, _ in net.named_children()] == ["l1", "l2", "l3", "attn1", "l4", "attn2", "last"]
    assert sum(weight.numel() for weight in net.parameters()) == entry["parameters"]
    assert {key: list(value.shape) for key, value in net.state_dict().items()} == {
        key: list(shape) for key, shape in entry["shapes"].items()
    }
    net.load_state_dict(fill(net.state_dict()))
    net.double()  # the reference ran in float32, whose rounding remains
    out, maps = attention_maps(net, entry["input"].double())
    torch.testing.assert_close(out, entry["output"].double(), rtol=1e-5, atol=1e-5)
    for number in (1, 2):
        attention, rows = maps[f"attn{number}"], entry[f"attention{number}_rows"].double()
        assert list(attention.shape) == list(entry[f"attention{number}_shape"])
        step = attention.shape[1] // rows.shape[1]
        assert any(
            torch.allclose(attention[:, start::step][:, : rows.shape[1]], rows, atol=1e-6) for start in range(step)
        )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NOISE_GENERATORS)
def test_generators_and_discriminators_of_every_size(size, channels, name):
    G = NOISE_GENERATORS[name](channels, image_size=size, ngf=8, z_dim=7)
    D = IMAGE_DISCRIMINATORS[name](channels, image_size=size, ndf=8)
    images = G(torch.randn(2, 7))
    assert images.shape == (2, channels, size, size)
    assert images.abs().max() <= 1
    assert D(images).shape == (2,)
    assert any(isinstance(layer, SelfAttention2d) for layer in G)
    assert any(isinstance(layer, SelfAttention2d) for layer in D)


def test_unknown_sizes_and_stages_are_refused():
    with pytest.raises(ValueError, match="image_size=48: choose from 32, 64, 128, 256"):
        SAGANGenerator(image_size=48)
    with pytest.raises(ValueError, match=r"attention='l9': choose from l1, l2, l3, l4, default$"):
        SAGANDiscriminator(attention=["l9"])


def test_pooled_attention_by_its_definition():
    block = SelfAttention2d(16, pooled=True)
    block.gamma.data.fill_(0.5)
    x = torch.randn(2, 16, 6, 4)
    out, attention = block(x), block.weights(x)
    assert attention.shape == (2, 24, 6)
    weights = {name: weight.squeeze() for name, weight in block.named_parameters()}
    key = torch.nn.functional.max_pool2d(torch.einsum("oc,bchw->bohw", weights["key_conv.weight"], x), 2).flatten(2)
    value = torch.nn.functional.max_pool2d(torch.einsum("oc,bchw->bohw", weights["value_conv.weight"], x), 2).flatten(2)
    query = torch.einsum("oc,bchw->bohw", weights["query_conv.weight"], x).flatten(2)
    attended = torch.einsum("bij,bcj->bci", torch.softmax(torch.einsum("bci,bcj->bij", query, key), -1), value)
    expected = x + 0.5 * torch.einsum("oc,bci->boi", weights["out_conv.weight"], attended).view_as(x)
    torch.testing.assert_close(out, expected)
    maps = block.maps(x, [(0, 0), (3, 1)])
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 2))
    torch.testing.assert_close(maps[:, 1, ::2, ::2].flatten(1) * 4, attention[:, 3 * 4 + 1])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("normalize", [False, True])
def test_flags_are_inferred_from_weights(size, normalize):
    for name, make in NOISE_GENERATORS.items():
        net = make(1, image_size=size, z_dim=7, ngf=8)
        weights = (spectral_normalize(net) if normalize else net).state_dict()
        flags = {"netG": name, "crop_size": size, "input_nc": 1, "z_dim": 7, "ngf": 8}
        assert infer_network(weights) == flags | ({"resample": "deconv"} if name == "sagan" else {})
    for resample in RESAMPLINGS:
        net = SAGANGenerator(1, image_size=size, z_dim=7, ngf=8, resample=resample)
        weights = (spectral_normalize(net) if normalize else net).state_dict()
        assert infer_network(weights)["resample"] == resample
    for (name, make), std in itertools.product(IMAGE_DISCRIMINATORS.items(), (False, True)):
        net = make(3, image_size=size, ndf=16, minibatch_std=std)
        weights = (spectral_normalize(net) if normalize else net).state_dict()
        name = "sagan_resnet" if (name, size) == ("biggan", 128) else name  # which are the same network
        flags = {"netD": name, "crop_size": size, "input_nc": 3, "ndf": 16, "minibatch_std": std}
        assert infer_network(weights) == flags


@pytest.mark.parametrize(("size", "groups"), [(1, [1]), (3, [3]), (7, [7]), (8, [4, 4]), (9, [5, 4])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_minibatch_std_by_its_formula(size, groups, dtype):
    x = torch.randn(size, 3, 4, 5).to(dtype).requires_grad_()
    out = MinibatchStd()(x)
    assert out.dtype == dtype and torch.equal(out[:, :3], x)
    expected, start = [], 0
    for count in groups:
        group = x[start : start + count].double()
        spread = (group - group.sum(0) / count).square().sum(0).div(count).sqrt().mean()
        expected += [spread.item()] * count
        start += count
    tolerance = {"rtol": 0, "atol": 0.01} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 2e-4}
    wanted = torch.tensor(expected)[:, None, None].expand(-1, 4, 5)
    torch.testing.assert_close(out[:, 3].float(), wanted, **tolerance)
    out.float().sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("make", IMAGE_DISCRIMINATORS.values(), ids=IMAGE_DISCRIMINATORS)
def test_minibatch_std_changes_the_last_stage_alone(make):
    plain, net = make(image_size=32, ndf=8), make(image_size=32, ndf=8, minibatch_std=True)
    changed = {key for key, _ in set_of_shapes(net) ^ set_of_shapes(plain)}
    assert changed and all(key.startswith("last.") for key in changed)
    images = torch.rand(2, 3, 32, 32)
    scores, _ = run_together(net, images, images.flip(1))
    torch.testing.assert_close(scores, net(images), msg="real and fake images are in one group")
    assert not torch.allclose(net(images[:1]), net(images)[:1], rtol=1e-6, atol=1e-7)


def set_of_shapes(net: nn.Module) -> set[tuple[str, torch.Size]]:
    return {(key, value.shape) for key, value in net.state_dict().items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_minibatch_std_trains_without_spectral_norm_and_with_penalties(precision):
    flags = ["--minibatch_std", "--no-spectral_norm_G", "--no-spectral_norm_D", "--gan_mode", "relativistic"]
    model = training_model(*flags, "--lambda_r1", "2", "--lambda_r2", "2", "--precision", precision)
    before = model.netD.last[1].weight.detach().clone()
    for size in (4, 1):
        losses, _ = model.step(batch(size))
    assert all(loss.isfinite() for loss in losses.values())
    assert (model.netD.last[1].weight != before)[:, -1].all(), "it learns from the spread"


# ---- spectral norm


def test_spectral_norm_is_in_the_layers_of_the_reference():
    for net in (training_model().netG, training_model().netD):
        normalized = {name for name, layer in net.named_modules() if is_parametrized(layer)}
        assert normalized == {"l1.0", "l2.0", "l3.0"}
    model = training_model("--netG", "sagan_resnet", "--netD", "sagan_resnet", "--no-spectral_norm_D")
    weighted = [layer for layer in model.netG.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert weighted and all(is_parametrized(layer) for layer in weighted)
    assert not any(is_parametrized(layer) for layer in model.netD.modules())


def test_spectral_norm_of_transposed_convolutions():
    net = spectral_normalize(init_weights(SAGANGenerator(ngf=8, z_dim=16), "normal", 0.5), ("attn", "last"))
    for _ in range(200):
        net(torch.randn(1, 16))  # each pass is one power iteration
    weight = net.l2[0].weight  # (in, out, 4, 4): a transposed convolution
    largest = torch.linalg.matrix_norm(weight.transpose(0, 1).flatten(1), 2)
    assert largest.item() == pytest.approx(1, abs=1e-3)


def test_networks_do_not_change_in_eval_mode_and_copies_are_equal():
    model = training_model("--ema_decay", "0.9")
    model.step(batch())
    net = model.netG.eval()
    z = torch.randn(2, 128)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    expected = net(z)
    assert torch.equal(net(z), expected)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(copy.deepcopy(net)(z), expected)
    loaded = training_model("--seed", "9").netG.eval()
    loaded.load_state_dict(net.state_dict())
    assert torch.equal(loaded(z), expected)


# ---- step


def test_each_loss_has_gradients_for_its_own_network_only():
    model = training_model("--lr_G", "0.001", "--lr_D", "0.002")
    assert [model.optimization.optimizers[name].param_groups[0]["lr"] for name in ("G", "D")] == [0.001, 0.002]
    assert model.optimization.optimizers["G"].param_groups[0]["betas"] == (0.0, 0.9)
    loss = model.gan_loss.generator(model.augmented_scores, batch()["A"], model.netG(model.noise()))
    model.optimization.backward("G", loss)
    assert all(weight.grad is None for weight in model.netD.parameters())
    assert all(weight.grad is not None for weight in model.netG.parameters())
    model = training_model()
    fake = model.netG(model.noise())
    terms = model.gan_loss.discriminator(model.augmented_scores, batch()["A"], fake)
    model.optimization.backward("D", model.gan_loss.total(terms))
    assert all(weight.grad is None for weight in model.netG.parameters())


@pytest.mark.parametrize("gan_mode", GAN_MODES)
def test_every_gan_mode_trains_on_whole_and_partial_batches(gan_mode):
    model = training_model("--gan_mode", gan_mode, "--d_steps", "2", "--diffaugment", "color,translation,cutout")
    for size in (4, 1):
        losses, images = model.step(batch(size))
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert images["fake"].shape == (4, 3, 32, 32)
    assert losses["gamma_G_attn1"] == model.netG.attn1.gamma != 0
    assert model.netG.l1[1].num_batches_tracked == 2 * 3


def test_d_steps_update_the_discriminator_more_often():
    model = training_model("--d_steps", "3")
    model.step(batch())
    steps = {name: int(next(iter(opt.state.values()))["step"]) for name, opt in model.optimization.optimizers.items()}
    assert steps == {"G": 1, "D": 3}


def test_a_step_equals_plain_pytorch():
    with default_dtype(torch.float64):
        model = training_model("--diffaugment", "none", "--ema_decay", "0")
        reference = copy.deepcopy(model)
        torch.manual_seed(5)
        losses, _ = model.step(batch())

        torch.manual_seed(5)
        G, D, real = reference.netG, reference.netD, batch()["A"]
        optimizer_G, optimizer_D = (
            torch.optim.Adam(net.parameters(), rate, (0.0, 0.9), foreach=False) for net, rate in ((G, 1e-4), (D, 4e-4))
        )
        with torch.no_grad():
            fake = G(torch.randn(4, 128))
        loss_D = torch.relu(1 - D(real)).mean() + torch.relu(1 + D(fake)).mean()
        loss_D.backward()
        optimizer_D.step()
        D.requires_grad_(False)
        loss_G = -D(G(torch.randn(4, 128))).mean()
        loss_G.backward()
        optimizer_G.step()
    assert losses["D"].item() == pytest.approx(loss_D.item(), rel=1e-6)
    assert losses["G"].item() == pytest.approx(loss_G.item(), rel=1e-6)
    made, wanted = dict(model.named_parameters()), dict(reference.named_parameters())
    torch.testing.assert_close(made, wanted, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        *({name: x.grad for name, x in nets.items()} for nets in (made, wanted)), rtol=1e-6, atol=1e-12
    )


@pytest.mark.parametrize("flags", [["--norm", "batch"], ["--n_layers_D", "2"], ["--pool_size", "5"]])
def test_flags_that_sagan_does_not_read_are_refused(flags, capsys):
    with pytest.raises(SystemExit):
        training_model(*flags)
    assert f"{flags[0]} is not an option of --model sagan: omit it" in capsys.readouterr().err


def test_networks_of_other_models_are_refused():
    opt = TrainOptions().parse([*TINY, "--netG", "unet_128", "--netD", "pixel"])
    choices = "does not suit this model: choose from sagan, sagan_resnet, biggan"
    with pytest.raises(ValueError, match=f"--netG unet_128 .*: 'unet_128' {choices}"):
        define_noise_G(opt, 3)
    with pytest.raises(ValueError, match=f"--netD pixel .*: 'pixel' {choices}"):
        define_image_D(opt, 3)


@pytest.mark.parametrize("resample", ["nearest", "blur"])
def test_resampling_replaces_the_transposed_convolutions(resample):
    model = training_model("--resample", resample)
    doubling = [layer for layer in model.netG.modules() if isinstance(layer, torch.nn.ConvTranspose2d)]
    assert [layer.stride for layer in doubling] == [(1, 1)]  # of l1, from the noise
    images = model.netG(model.noise())
    assert images.shape == (model.batch_size, 3, 32, 32)
    opt = TrainOptions().parse([*TINY, "--resample", resample, "--netG", "sagan_resnet"])
    with pytest.raises(ValueError, match=f"--resample {resample} needs --netG sagan: sagan_resnet always"):
        define_noise_G(opt, 3)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="have 40x32 pixels after preprocessing, but sagan was built for 32x32"):
        training_model().check_sizes([(32, 32), (40, 32)])


# ---- images on pages


def test_preview_shows_the_averaged_generator_and_changes_no_state():
    model = training_model("--ema_decay", "0.5")
    _, images = model.step(batch())
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    shown = model.preview(images)
    assert list(shown) == ["samples", "sample", "real"]
    assert shown["samples"].shape == (1, 3, 8 * 34 + 2, 8 * 34 + 2)
    first = shown["samples"][0, :, 2:34, 2:34]
    torch.testing.assert_close(first, model.netG_ema(model.fixed_noise)[0])
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.netG.training
    assert torch.equal(model.preview(images)["samples"], shown["samples"])


def test_interpolation_keeps_norms_and_ends():
    start, end = torch.randn(2, 128, generator=torch.Generator().manual_seed(1))
    path = interpolate(start, end, 5)
    torch.testing.assert_close(path[0], start)
    torch.testing.assert_close(path[-1], end)
    assert path.norm(dim=1).min() > 0.9 * min(start.norm(), end.norm())
    torch.testing.assert_close(interpolate(start, start, 3), start.expand(3, -1))


# ---- noise


def test_truncation_keeps_the_order_and_limits_values():
    z = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    cut = truncate(z, 0.7)
    assert cut.abs().max() <= 0.7
    assert torch.equal(cut.argsort(), z.argsort())
    expected = nn.init.trunc_normal_(torch.empty(10_000), a=-0.7, b=0.7).std()
    assert cut.std().item() == pytest.approx(expected.item(), rel=0.05)
    assert torch.equal(truncate(z, 0), z)


def test_a_seed_gives_the_same_image_in_any_set(capsys):
    def noise(*flags: str) -> dict:
        loader = create_dataset(TestOptions().parse(["--model", "sagan", "--dataset_mode", "noise", *flags]))
        return {path: z for b in loader for path, z in zip(b["A_paths"], b["z"], strict=True)}

    five = noise("--num_test", "5")
    assert list(five) == ["seed0000", "seed0001", "seed0002", "seed0003", "seed0004"]
    some = noise("--seeds", "7,2-3", "--batch_size", "2")
    assert list(some) == ["seed0007", "seed0002", "seed0003"]
    assert torch.equal(some["seed0002"], five["seed0002"])
    assert len(noise()) == 64
    for flags in (["--dataroot", "x"], ["--seed", "1"], ["--max_dataset_size", "9"], ["--value_range", "0,9"]):
        with pytest.raises(SystemExit):
            noise(*flags)
        assert f"{flags[0]} is not an option of --dataset_mode noise" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seeds", "message"), [("9223372036854775808", "below 2**63"), ("5,0-99999", "at most 100,000")]
)
def test_seeds_that_are_too_large_or_too_many_are_refused(seeds, message, capsys):
    with pytest.raises(SystemExit):
        TestOptions().parse(["--model", "sagan", "--dataset_mode", "noise", "--seeds", seeds])
    assert message in capsys.readouterr().err


def test_training_and_testing_on_images_of_several_sizes_and_modes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, size, mode in (("a/tall", (30, 70), "L"), ("a/b/wide", (80, 33), "RGBA"), ("c", (50, 50), "P")):
        path = tmp_path / "faces" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_shapes(name, size).convert(mode).save(path)
    flags = ["--dataroot", "faces", "--name", "odd", "--batch_size", "8", "--z_dim", "6", "--input_nc", "1"]
    epochs = ["--n_epochs", "2", "--n_epochs_decay", "0", "--print_freq", "1", "--display_id", "0", "--device", "cpu"]
    assert training.main([*TINY, *flags, *epochs]) == 0
    assert len(list((tmp_path / "checkpoints/odd/web/images").glob("epoch002_*.png"))) == 4
    log = (tmp_path / "checkpoints/odd/loss_log.txt").read_text()
    assert "gamma_G_attn1" in log and "nan" not in log
    assert testing.main(["--name", "odd", "--seeds", "4,9", "--truncation", "1"]) == 0
    images = {path.name for path in (tmp_path / "results/odd/test_latest/images").iterdir()}
    assert {"samples.png", "interpolation.png", "seed0004_sample.png", "seed0009_sample.png"} <= images
    assert "latest_net_G_ema.pth" in (tmp_path / "results/odd/test_latest/index.html").read_text()


def test_images_are_loaded_in_the_size_of_the_networks():
    for flags, size in (("--crop_size 128", 128), ("--crop_size 32", 32), ("--crop_size 32 --load_size 40", 40)):
        assert TrainOptions().parse(["--model", "sagan", *flags.split()]).load_size == size


def test_samples_only_writes_the_images_of_the_page_and_nothing_else(tmp_path):
    draw_shapes("a").save(tmp_path / "a.png")
    run = ["--name", "run", "--checkpoints_dir", str(tmp_path / "checkpoints")]
    flags = ["--dataroot", str(tmp_path), "--n_epochs", "1", "--n_epochs_decay", "0", "--display_id", "0"]
    assert training.main([*run, *TINY, *flags, "--device", "cpu"]) == 0
    results = tmp_path / "results"
    place = [*run, "--results_dir", str(results), "--device", "cpu"]
    samples = results / "run" / "samples_latest"
    samples.mkdir(parents=True)
    (samples / "seed9999.png").write_bytes(b"of an earlier call")
    assert testing.main([*place, "--samples_only", "--seeds", "3,5", "--batch_size", "2"]) == 0
    assert sorted(path.name for path in samples.iterdir()) == ["seed0003.png", "seed0005.png"]
    assert [path.name for path in (results / "run").iterdir()] == ["samples_latest"]
    assert testing.main([*place, "--seeds", "5"]) == 0
    with (
        Image.open(samples / "seed0005.png") as image,
        Image.open(results / "run" / "test_latest" / "images" / "seed0005_sample.png") as other,
    ):
        difference = ImageChops.difference(image, other)
    assert all(high <= 1 for _, high in difference.getextrema()), "batches differ by rounding"
