"""Images of classes: class of an image, conditional networks against their formulas, training, and test.py."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import test as testing
from data.classes import choose_classes, class_of, class_of_made, number_classes, sample_name
from data.image_folder import DataError
from models.losses import GAN_MODES, ClassDiscriminator, GANLoss
from models.networks import IMAGE_DISCRIMINATORS, NOISE_GENERATORS
from models.networks.infer import infer_network
from models.networks.layers import ConditionalBatchNorm2d
from options.base_options import read_saved
from options.train_options import TrainOptions
from tests.conftest import draw_shapes
from tests.helpers import assert_equal_checkpoints, build_training_model
from tests.test_cli import train

BODY, ACCESSORY = r"^(\d+)-", r"-(-?\d+)-\d+$"  # of the names of datasets/cats


@pytest.mark.parametrize(
    ("rule", "name", "found"),
    [
        ("folder", "cat/old/1.png", "cat"),
        (BODY, "03-0-01-6-13-5.jpg", "03"),
        (ACCESSORY, "03-0-01-6-13-5.jpg", "13"),
        (ACCESSORY, "03-0-02-0--1-5.jpg", "-1"),
        ("(cat|dog)", "x/my dog.png", "dog"),
    ],
)
def test_the_class_of_an_image(rule, name, found):
    assert class_of(Path("root", name), Path("root"), rule) == found


@pytest.mark.parametrize(("rule", "message"), [("folder", "no folder of a class"), (BODY, "no class in its name")])
def test_images_without_a_class_are_named(rule, message):
    with pytest.raises(DataError, match=f"root/cat.png .*{message}|cat.png lies in {message}"):
        class_of(Path("root/cat.png"), Path("root"), rule)


def test_the_class_of_a_made_image():
    names = ["03", "a.b", "-1"]
    for name in names:
        assert class_of_made(Path("root", f"{sample_name(12345, name)}.png"), Path("root"), "folder", names) == name
    assert class_of_made(Path("root/03/seed0001.png"), Path("root"), "folder", names) == "03"
    assert class_of_made(Path("root/03-1.png"), Path("root"), BODY, names) == "03"
    with pytest.raises(DataError, match=r"seed1000_dog.png is of the class 'dog'\. The real images are of 03, "):
        class_of_made(Path("root/seed1000_dog.png"), Path("root"), BODY, names)


def test_classes_are_numbered_and_chosen():
    assert number_classes(["b", "a", "b"], []) == (["a", "b"], [1, 0, 1])
    assert number_classes(["b"], ["b", "a"]) == (["b", "a"], [0])
    assert choose_classes("b,0", ["a", "b"]) == [1, 0]
    assert choose_classes("", ["a", "b"]) == [0, 1]
    assert choose_classes("0", ["1", "0"]) == [1], "names come first"
    with pytest.raises(DataError, match="images of the class 'c', which is none of class_names=a b"):
        number_classes(["c"], ["a", "b"])
    with pytest.raises(DataError, match="all images are of the class 'a'"):
        number_classes(["a", "a"], [])
    with pytest.raises(DataError, match=r"there is no class 'c'\. Choose from a, b"):
        choose_classes("a,c", ["a", "b"])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_conditional_batch_norm_by_its_formula(dtype, tolerance):
    norm = ConditionalBatchNorm2d(4, 3)
    for weight in norm.parameters():
        nn.init.normal_(weight)
    x, classes = torch.randn(6, 4, 5, 5) * 3 + 1, torch.softmax(torch.randn(6, 3), 1)
    made = norm(x.to(dtype), classes)
    rounded = x.to(dtype).double()
    mean, variance = rounded.mean((0, 2, 3), keepdim=True), rounded.var((0, 2, 3), correction=0, keepdim=True)
    scale, shift = (torch.einsum("bk,kc->bc", classes.double(), w.double())[..., None, None] for w in norm.parameters())
    expected = (rounded - mean) / (variance + 1e-5).sqrt() * scale + shift
    torch.testing.assert_close(made.double(), expected, rtol=tolerance, atol=tolerance)
    assert made.dtype == dtype and norm.num_batches_tracked == 1
    torch.testing.assert_close(norm.running_mean.double(), 0.1 * mean.flatten(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", IMAGE_DISCRIMINATORS)
@pytest.mark.parametrize("minibatch_std", [False, True])
def test_scores_are_those_of_a_projection_discriminator(name, minibatch_std):
    keywords = {"image_size": 32, "ndf": 8, "minibatch_std": minibatch_std}
    net = IMAGE_DISCRIMINATORS[name](3, n_classes=5, **keywords).double()
    plain = IMAGE_DISCRIMINATORS[name](3, **keywords).double()
    weights = net.state_dict()
    plain.load_state_dict({key: value for key, value in weights.items() if key != "last.classes.weight"})
    images, seen = torch.rand(3, 3, 32, 32).double() * 2 - 1, []
    plain.last.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    without = plain(images)
    phi = seen[0].clamp(min=0).sum((2, 3))
    expected = without[:, None] + phi @ weights["last.classes.weight"].T
    torch.testing.assert_close(net(images), expected)


def test_a_loss_compares_scores_of_the_classes_of_the_images():
    scores = {"real": torch.randn(2, 3), "fake": torch.randn(4, 3)}
    real, fake = torch.zeros(2, 1, 1, 1), torch.ones(4, 1, 1, 1)
    net = ClassDiscriminator(
        lambda images: scores["fake" if images.flatten()[0] else "real"][: len(images)],
        {"real": torch.tensor([2, 0]), "fake": torch.tensor([1, 1, 0, 2])},
    )
    terms = GANLoss("hinge").discriminator(net, real, fake)
    on_real = [scores["real"][0, 2].item(), scores["real"][1, 0].item()]
    on_fake = [scores["fake"][image, number].item() for image, number in enumerate((1, 1, 0, 2))]
    assert terms["real"].item() == pytest.approx(sum(max(1 - score, 0) for score in on_real) / 2)
    assert terms["fake"].item() == pytest.approx(sum(max(1 + score, 0) for score in on_fake) / 4)
    pairs = zip(on_real, on_fake, strict=False)  # a last batch has fewer real images
    expected = sum(math.log1p(math.exp(real - fake)) for real, fake in pairs) / 2
    assert GANLoss("relativistic").generator(net, real, fake).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", NOISE_GENERATORS)
def test_generators_of_classes_make_other_images_of_each(name):
    net = NOISE_GENERATORS[name](3, image_size=32, z_dim=4, ngf=8, n_classes=3)
    for weight in net.parameters():
        if weight.shape[0] == 3 and weight.dim() == 2:
            nn.init.normal_(weight)
    inputs = torch.cat([torch.randn(1, 4).expand(3, -1), torch.eye(3)], 1)
    first, second, third = net.eval()(inputs)
    assert not torch.allclose(first, second) and not torch.allclose(second, third)
    assert infer_network(net.state_dict())["class_names"] == ["0", "1", "2"]


@pytest.mark.parametrize("name", ["sagan", "sagan_resnet"])
def test_classes_of_sagan_start_equal(name):
    net = NOISE_GENERATORS[name](3, image_size=32, z_dim=4, ngf=8, n_classes=3)
    plain = NOISE_GENERATORS[name](3, image_size=32, z_dim=4, ngf=8)
    assert net.state_dict().keys() == plain.state_dict().keys()
    z = torch.randn(1, 4).expand(3, -1)
    inputs = torch.cat([z, torch.eye(3)], 1)
    first, second, _ = net.eval()(inputs)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(net(inputs)[:1], plain_images(plain, net, z[:1]))


def plain_images(plain: nn.Module, net: nn.Module, z: torch.Tensor) -> torch.Tensor:
    """Images of the network without classes that has the weights of class 0."""
    expected = plain.state_dict()
    weights = {k: v[0] if v.shape != expected[k].shape else v for k, v in net.state_dict().items()}
    plain.load_state_dict(weights)
    return plain.eval()(z)


@pytest.fixture(scope="module")
def animals(tmp_path_factory) -> Path:
    """Three images of each of two classes, by folder and by name."""
    root = tmp_path_factory.mktemp("animals")
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for number in range(3):
            draw_shapes(f"{name}{number}").save(root / name / f"{name}_{number}.png")
    return root


def test_metrics_are_measured_on_samples_of_the_classes_of_real_images():
    flags = ["--model", "sagan", "--dataroot", ".", "--crop_size", "32", "--ngf", "8", "--ndf", "8", "--z_dim", "4"]
    opt = TrainOptions().parse([*flags, "--class_of", "folder"]).replaced(class_names=["a", "b", "c"])
    model = build_training_model(opt).eval()
    batch = {"A": torch.zeros(2, 3, 32, 32), "class": torch.tensor([2, 0]), "index": [7, 8]}
    noise = torch.stack([torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in (7, 8)])
    one_hot = torch.tensor([[0.0, 0, 1], [1, 0, 0]])
    with torch.no_grad():
        torch.testing.assert_close(
            model.measured(batch, cycle=False)["fake_B"], model.netG(torch.cat([noise, one_hot], 1))
        )


@pytest.mark.parametrize("mode", GAN_MODES)
def test_fake_images_have_the_classes_of_the_real_ones(mode):
    """A relativistic loss, which compares them one by one, compares images of one class."""
    flags = ["--model", "sagan", "--dataroot", ".", "--crop_size", "32", "--ngf", "8", "--ndf", "8", "--z_dim", "4"]
    opt = TrainOptions().parse([*flags, "--class_of", "folder", "--batch_size", "6", "--gan_mode", mode])
    model = build_training_model(opt.replaced(class_names=["a", "b", "c"]))
    real = torch.tensor([2, 0, 0, 2])
    drawn = model.draw_classes(real)
    assert drawn.shape == (6,) and set(drawn.tolist()) <= {0, 2}
    if mode == "relativistic":
        assert drawn.tolist() == [2, 0, 0, 2, 2, 0]


FLAGS = ["--model", "sagan", "--netG", "sagan", "--batch_size", "4", "--n_epochs_decay", "0", "--no_html"]


@pytest.mark.parametrize("network", NOISE_GENERATORS)
def test_a_run_with_classes_resumes_and_makes_images_of_them(network, animals, tmp_path):
    flags = ["--dataroot", animals, *FLAGS, "--n_epochs", "2", "--class_of", "^([a-z]+)_"]
    flags += ["--netG", network, "--netD", network]
    whole = train(tmp_path / "whole", *flags)
    run_dir = train(tmp_path, *flags, "--max_minutes", "0.00001")
    train(tmp_path, *flags, "--continue_train", "--max_minutes", "0.00001")
    train(tmp_path, *flags, "--continue_train", "--max_minutes", "0")
    assert_equal_checkpoints(whole, run_dir)
    assert read_saved(run_dir)["class_names"] == ["cat", "dog"]

    results = tmp_path / "results"
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--results_dir", str(results)]
    assert testing.main([*places, "--seeds", "0,5", "--classes", "dog,0"]) == 0
    names = {path.name for path in results.rglob("seed*_sample.png")}
    assert names == {f"seed{seed}_{name}_sample.png" for seed in ("0000", "0005") for name in ("cat", "dog")}
    page = next(results.rglob("index.html")).read_text()
    assert all(title in page for title in ("classes: dog, cat", "interpolation between classes"))
    assert testing.main([*places, "--samples_only", "--num_test", "4"]) == 0
    samples = {path.name for path in results.rglob("samples_latest/*.png")}
    assert samples == {f"seed000{seed}_{name}.png" for seed in (0, 1) for name in ("cat", "dog")}
    with pytest.raises(DataError, match=r"no class 'bird'\. Choose from cat, dog"):
        testing.main([*places, "--classes", "bird"])


def test_classes_by_folder_train_with_other_networks(animals, tmp_path):
    flags = ["--dataroot", animals, *FLAGS, "--netG", "sagan_resnet", "--netD", "sagan_resnet", "--n_epochs", "1"]
    flags += ["--class_of", "folder", "--gan_mode", "relativistic", "--lambda_r1", "1", "--minibatch_std"]
    run_dir = train(tmp_path, *flags, "--precision", "bf16", "--health_freq", "1", "--class_names", "dog", "cat")
    weights = torch.load(run_dir / "latest_net_D.pth", weights_only=True)
    assert any(key.startswith("last.classes.") and value.shape[0] == 2 for key, value in weights.items())
    assert read_saved(run_dir)["class_names"] == ["dog", "cat"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--class_of", "^([a-z]+)_", "--class_names", "cat"], "images of the class 'dog'"),
        (["--class_names", "cat", "dog"], "--class_names needs --class_of"),
    ],
)
def test_classes_that_do_not_fit_the_images(animals, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, "--dataroot", animals, *FLAGS, *flags)


def test_a_rule_is_folder_or_has_one_group(animals, tmp_path, capsys):
    for rule in ("cat", "(a)(b)", "("):
        with pytest.raises(SystemExit):
            train(tmp_path, "--dataroot", animals, *FLAGS, "--class_of", rule)
        assert "--class_of" in capsys.readouterr().err
