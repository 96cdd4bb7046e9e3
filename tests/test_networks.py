"""The networks against reference values, and where attention may be placed."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.networks import DISCRIMINATORS, GENERATORS
from models.networks.attention import SelfAttention2d, block_inputs
from models.networks.layers import init_weights, norm_layer, spectral_normalise
from models.networks.patchgan import NLayerDiscriminator, PixelDiscriminator
from models.networks.resnet import ResnetGenerator, upsample_layer
from tests.golden.fill import fill

GOLDEN = torch.load(Path(__file__).parent / "golden" / "golden.pt", weights_only=True)


def build_golden(config: dict) -> nn.Module:
    if "netG" in config:
        keywords = {"ngf": config["ngf"], "norm": config["norm"], "dropout": not config["no_dropout"]}
        return GENERATORS[config["netG"]](config["input_nc"], config["output_nc"], **keywords)
    keywords = {"n_layers": config["n_layers_D"]} if config["netD"] == "n_layers" else {}
    return DISCRIMINATORS[config["netD"]](config["input_nc"], ndf=config["ndf"], norm=config["norm"], **keywords)


def golden_networks() -> list[str]:
    known = {**GENERATORS, **DISCRIMINATORS}
    return [
        name
        for name, entry in GOLDEN.items()
        if name.startswith(("G_", "D_")) and entry["config"].get("netG", entry["config"].get("netD")) in known
    ]


@pytest.mark.parametrize("name", golden_networks())
def test_reference_values(name):
    entry = GOLDEN[name]
    net = build_golden(entry["config"]).eval()
    assert {key: list(value.shape) for key, value in net.state_dict().items()} == entry["shapes"]
    assert sum(parameter.numel() for parameter in net.parameters()) == entry["parameters"]
    net.load_state_dict(fill(net.state_dict()))
    with torch.no_grad():
        torch.testing.assert_close(net(entry["input"]), entry["output"], rtol=1e-4, atol=1e-5)


def test_default_networks_have_the_published_number_of_weights():
    assert sum(p.numel() for p in ResnetGenerator(3, 3).parameters()) == 11_378_179
    assert sum(p.numel() for p in NLayerDiscriminator(3).parameters()) == 2_764_737


def test_attention_block_reproduces_the_reference():
    entry = GOLDEN["self_attn"]
    block = SelfAttention2d(entry["channels"])
    block.load_state_dict(fill(block.state_dict()))
    out, attention = block(entry["input"], return_attention=True)
    torch.testing.assert_close(attention, entry["attention"])
    torch.testing.assert_close(out, entry["output"])
    torch.testing.assert_close(block(entry["input"]), entry["output"])


def test_attention_map_is_not_built_unless_asked():
    block = SelfAttention2d(16)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where this kernel, which builds no map, cannot be used
        block(torch.randn(1, 16, 8, 8)).sum().backward()
    assert torch.isfinite(block.gamma.grad)


def test_where_single_points_look_are_rows_of_the_map():
    net = ResnetGenerator(3, 3, ngf=8, n_blocks=2, attention=["block1"])
    x = torch.randn(2, 3, 16, 24)
    with block_inputs(net) as inputs:
        net(x)
        net(x * 2)
    _, maps = net(x, return_attention=True)
    rows = net.attention["block1"].look_from([(0, 5), (3, 2)], inputs["block1"])
    torch.testing.assert_close(rows, torch.stack([maps["block1"][:, 0, 5], maps["block1"][:, 3, 2]], 1))


def test_attention_refuses_widths_it_cannot_split():
    with pytest.raises(ValueError, match="multiple of 8 channels, got 12"):
        SelfAttention2d(12)


@pytest.mark.parametrize("stage", ["down1", "down2", "block1", "bottleneck", "block3", "up1", "up2"])
def test_new_attention_changes_no_pixel(stage):
    plain = ResnetGenerator(3, 3, ngf=8, n_blocks=3)
    attentive = ResnetGenerator(3, 3, ngf=8, n_blocks=3, attention=[stage])
    missing, unexpected = attentive.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(key.startswith("attention.") for key in missing)
    x = torch.randn(2, 3, 32, 28)
    assert torch.equal(plain(x), attentive(x))


def test_several_stages_and_their_maps():
    net = ResnetGenerator(3, 3, ngf=8, n_blocks=6, attention=["down2", "bottleneck", "block3"])
    assert list(net.attention) == ["down2", "block3"], "bottleneck and block3 are one place"
    out, maps = net(torch.randn(1, 3, 16, 24), return_attention=True)
    assert out.shape == (1, 3, 16, 24)
    assert {name: tuple(m.shape) for name, m in maps.items()} == {"down2": (1, 4, 6, 4, 6), "block3": (1, 4, 6, 4, 6)}
    torch.testing.assert_close(maps["block3"].sum((-2, -1)), torch.ones(1, 4, 6))


def test_discriminator_attention_sits_at_stride_8_by_default():
    net = NLayerDiscriminator(3, ndf=8, attention=["bottleneck"])
    _, maps = net(torch.randn(1, 3, 64, 64), return_attention=True)
    assert {name: tuple(m.shape[1:3]) for name, m in maps.items()} == {"layer3": (8, 8)}


def test_wrong_stage_lists_the_right_ones():
    with pytest.raises(ValueError, match=r"'block7'.*down1, down2, block1, block2, bottleneck, up1, up2; or none"):
        ResnetGenerator(3, 3, ngf=8, n_blocks=2, attention=["block7"])
    with pytest.raises(ValueError, match=r"'up1'.*layer1, layer2, layer3, layer4, bottleneck"):
        NLayerDiscriminator(3, ndf=8, attention=["up1"])
    with pytest.raises(ValueError, match="--attn_D none"):
        PixelDiscriminator(3, ndf=8, attention=["layer1"])


def test_resize_convolution_keeps_the_layout_of_the_chain():
    deconv, nearest = (ResnetGenerator(3, 3, ngf=8, n_blocks=1, upsample=name) for name in ("deconv", "nearest"))
    assert deconv.state_dict().keys() == nearest.state_dict().keys()
    assert nearest(torch.randn(1, 3, 20, 16)).shape == (1, 3, 20, 16)
    with pytest.raises(ValueError, match="--upsample bicubic: choose from deconv, nearest"):
        ResnetGenerator(3, 3, ngf=8, upsample="bicubic")


def test_resize_convolution_leaves_no_grid():
    flat = torch.ones(1, 8, 6, 6)
    nearest, deconv = (upsample_layer(name, 8, 8, bias=True)(flat)[..., 2:-2, 2:-2] for name in ("nearest", "deconv"))
    assert nearest.std((-2, -1)).max() < 1e-6
    assert deconv.std((-2, -1)).max() > 1e-3, "what a transposed convolution makes of a flat picture"


@pytest.mark.parametrize("init_type", ["normal", "xavier", "kaiming", "orthogonal"])
def test_initialisations(init_type):
    torch.manual_seed(0)
    net = init_weights(nn.Sequential(nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64)), init_type, 0.02)
    weight = net[0].weight.flatten(1)
    expected = {"normal": 0.02, "xavier": 0.02 * (2 / (2 * 576)) ** 0.5, "kaiming": (2 / 576) ** 0.5}
    if init_type == "orthogonal":
        torch.testing.assert_close(weight @ weight.T, torch.eye(64) * 0.02**2, atol=1e-7, rtol=0)
    else:
        assert weight.std().item() == pytest.approx(expected[init_type], rel=0.03)
    assert not net[0].bias.any()
    assert net[1].weight.mean().item() == pytest.approx(1, abs=0.02)


def test_unknown_names_list_the_choices():
    with pytest.raises(ValueError, match="--norm layer: choose from instance, batch, syncbatch, none"):
        norm_layer("layer")
    with pytest.raises(ValueError, match="--init_type zeros: choose from normal, xavier, kaiming, orthogonal"):
        init_weights(nn.Conv2d(1, 1, 1), "zeros")


def test_spectral_norm_bounds_every_convolution_and_keeps_the_initial_weights():
    torch.manual_seed(0)
    net = init_weights(NLayerDiscriminator(3, ndf=8), "normal", 0.5)
    before = net.model[2].weight.detach().clone()
    spectral_normalise(net)
    for _ in range(30):
        net(torch.randn(1, 3, 32, 32))  # each pass in train mode is one power iteration
    weight = net.eval().model[2].weight.flatten(1)
    assert torch.linalg.matrix_norm(weight, ord=2).item() == pytest.approx(1, abs=0.01)
    torch.testing.assert_close(weight / weight.norm(), before.flatten(1) / before.norm())
    assert torch.equal(net.model[2].weight, net.model[2].weight), "no power iteration in eval mode"
