"""Networks against reference values, placement of attention, initialization and spectral norm."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.networks import DISCRIMINATORS, GENERATORS, resample
from models.networks.attention import SelfAttention2d, attention_maps, block_inputs
from models.networks.layers import init_weights, norm_layer, spectral_normalize
from models.networks.patchgan import NLayerDiscriminator, PixelDiscriminator
from models.networks.resample import Downsample, ResizeConv2d, Upsample, double_layers
from models.networks.resnet import ResnetGenerator
from models.networks.unet import UnetGenerator
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
def test_outputs_equal_the_reference(name):
    entry = GOLDEN[name]
    net = build_golden(entry["config"]).eval()
    assert {key: list(value.shape) for key, value in net.state_dict().items()} == entry["shapes"]
    assert sum(parameter.numel() for parameter in net.parameters()) == entry["parameters"]
    net.load_state_dict(fill(net.state_dict()))
    net.double()  # the reference ran in float32; its rounding remains, and that of the weights by `fill`
    with torch.no_grad():
        torch.testing.assert_close(net(entry["input"].double()), entry["output"].double(), rtol=1e-4, atol=5e-5)


def test_default_networks_have_as_many_weights_as_upstream():
    assert sum(p.numel() for p in ResnetGenerator(3, 3).parameters()) == 11_378_179
    assert sum(p.numel() for p in NLayerDiscriminator(3).parameters()) == 2_764_737


def test_attention_equals_the_reference():
    entry = GOLDEN["self_attn"]
    block = SelfAttention2d(entry["channels"])
    block.load_state_dict(fill(block.state_dict()))
    x, expected, attention = (entry[key].double() for key in ("input", "output", "attention"))
    out = block.double()(x)
    torch.testing.assert_close(block.weights(x), attention, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_maps_of_query_positions_are_rows_of_the_weights():
    net = ResnetGenerator(3, 3, ngf=8, n_blocks=2, attention=["block1"])
    x = torch.randn(2, 3, 16, 24)
    with block_inputs(net) as inputs:
        net(x)
        net(x * 2)
    out, maps = attention_maps(net, x)
    assert torch.equal(out, net(x))
    rows = net.attention["block1"].maps(inputs["block1"], [(0, 5), (3, 2)])
    torch.testing.assert_close(rows.flatten(2), maps["block1"][:, [0 * 6 + 5, 3 * 6 + 2]])


def test_attention_refuses_other_channels_than_multiples_of_8():
    with pytest.raises(ValueError, match="channels=12 is not a multiple of 8"):
        SelfAttention2d(12)


@pytest.mark.parametrize("stage", ["down1", "down2", "block1", "bottleneck", "block3", "up1", "up2"])
def test_new_attention_does_not_change_the_output(stage):
    plain = ResnetGenerator(3, 3, ngf=8, n_blocks=3)
    attentive = ResnetGenerator(3, 3, ngf=8, n_blocks=3, attention=[stage])
    missing, unexpected = attentive.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(key.startswith("attention.") for key in missing)
    x = torch.randn(2, 3, 32, 28)
    assert torch.equal(plain(x), attentive(x))


UNET_STAGES = [f"{way}{depth}" for way in ("down", "up") for depth in range(1, 7)]


@pytest.mark.parametrize("stage", UNET_STAGES)
def test_new_attention_does_not_change_the_output_of_a_unet(stage):
    keywords = {"n_downs": 7, "ngf": 8, "norm": "instance"}
    plain, attentive = UnetGenerator(3, 3, **keywords), UnetGenerator(3, 3, **keywords, attention=[stage])
    missing, unexpected = attentive.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and missing and all(key.startswith(f"attention.{stage}.") for key in missing)
    x = torch.randn(2, 3, 128, 128)
    assert torch.equal(plain(x), attentive(x))


def test_attention_of_a_unet_acts_at_its_stage():
    stages = [f"{way}{depth}" for way in ("down", "up") for depth in range(1, 5)]
    net = UnetGenerator(3, 3, n_downs=5, ngf=8, norm="instance", attention=["bottleneck", *stages])
    assert set(net.attention) == set(stages), "bottleneck is down3: 32 x 32 positions at 256 px"
    sizes = {}
    for stage, block in net.attention.items():
        block.register_forward_pre_hook(lambda _, args, stage=stage: sizes.update({stage: tuple(args[0].shape[2:])}))
    x = torch.randn(1, 3, 32, 64)
    before = net(x)
    assert list(sizes) == ["down1", "down2", "down3", "down4", "up4", "up3", "up2", "up1"]
    assert sizes == {stage: (32 // 2 ** int(stage[-1]), 64 // 2 ** int(stage[-1])) for stage in stages}
    for block in net.attention.values():
        torch.nn.init.constant_(block.gamma, 0.5)
        after = net(x)
        assert not torch.equal(before, after)
        before = after


def test_a_copied_unet_has_attention_of_its_own():
    net = UnetGenerator(3, 3, n_downs=7, ngf=8, norm="instance", attention=["up2"]).requires_grad_(False)
    twin, x = copy.deepcopy(net), torch.randn(1, 3, 128, 128)
    before = net(x)
    twin.attention["up2"].gamma.fill_(1)
    assert torch.equal(net(x), before)
    assert not torch.equal(twin(x), before)


def test_attention_at_several_stages():
    net = ResnetGenerator(3, 3, ngf=8, n_blocks=6, attention=["down2", "bottleneck", "block3"])
    assert list(net.attention) == ["down2", "block3"], "bottleneck and block3 are the same stage"
    out, maps = attention_maps(net, torch.randn(1, 3, 16, 24))
    assert out.shape == (1, 3, 16, 24)
    assert {name: tuple(m.shape) for name, m in maps.items()} == {"down2": (1, 24, 24), "block3": (1, 24, 24)}
    torch.testing.assert_close(maps["block3"].sum(-1), torch.ones(1, 24))


def test_bottleneck_of_the_discriminator_has_stride_8():
    net = NLayerDiscriminator(3, ndf=8, attention=["bottleneck"])
    _, maps = attention_maps(net, torch.randn(1, 3, 64, 64))
    assert {name: m.shape[1] for name, m in maps.items()} == {"layer3": 8 * 8}


def test_unknown_stages_list_the_choices():
    choices = "down1, down2, block1, block2, up1, up2, bottleneck"
    with pytest.raises(ValueError, match=f"attention='block7': choose from {choices}$"):
        ResnetGenerator(3, 3, ngf=8, n_blocks=2, attention=["block7"])
    with pytest.raises(ValueError, match=r"'up1'.*layer1, layer2, layer3, layer4, bottleneck"):
        NLayerDiscriminator(3, ndf=8, attention=["up1"])
    with pytest.raises(ValueError, match=r"attention='block1': choose from down1, .*, up1, bottleneck$"):
        UnetGenerator(3, 3, n_downs=7, ngf=8, attention=["block1"])
    with pytest.raises(ValueError, match="a discriminator of single pixels"):
        PixelDiscriminator(3, ndf=8, attention=["layer1"])


def test_resize_convolution_keeps_state_dict_keys():
    deconv, nearest = (ResnetGenerator(3, 3, ngf=8, n_blocks=1, resample=name) for name in ("deconv", "nearest"))
    assert deconv.state_dict().keys() == nearest.state_dict().keys()
    assert nearest(torch.randn(1, 3, 20, 16)).shape == (1, 3, 20, 16)
    with pytest.raises(ValueError, match="resample='bicubic': choose from deconv, nearest, blur"):
        ResnetGenerator(3, 3, ngf=8, resample="bicubic")


@pytest.mark.parametrize("shape", [(2, 5, 6, 4), (1, 5, 1, 3), (3, 5, 2, 1)])
def test_resize_convolution_by_its_formula(shape):
    """Double, reflect, convolve: outputs and gradients."""
    x = torch.randn(*shape, dtype=torch.double, requires_grad=True)
    layer = ResizeConv2d(5, 3).double()
    doubled = F.pad(x.repeat_interleave(2, 2).repeat_interleave(2, 3), (1, 1, 1, 1), mode="reflect")
    expected, made = F.conv2d(doubled, layer.weight, layer.bias), layer(x)
    torch.testing.assert_close(made, expected)
    upstream = torch.randn_like(made)
    inputs = (x, layer.weight, layer.bias)
    torch.testing.assert_close(*(torch.autograd.grad(out, inputs, upstream) for out in (made, expected)))


def test_resizing_makes_no_checkerboard():
    flat = torch.ones(1, 8, 6, 6)
    for name in ("nearest", "blur", "deconv"):
        made = nn.Sequential(*double_layers(name, 8, 8, bias=True))(flat)[..., 2:-2, 2:-2]
        spread = made.std((-2, -1)).max()
        assert spread > 1e-3 if name == "deconv" else spread < 1e-6, "a transposed convolution makes one"


@pytest.mark.parametrize("largest", [0, 512])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_blurring_layers_by_their_formula(precision, largest, monkeypatch):
    """Blur and keep every second pixel; spread pixels out and blur. The kernels are CUT's."""
    monkeypatch.setattr(resample, "LARGEST_SIDE", largest)
    x = torch.randn(2, 3, 7, 6).to(precision)
    tolerance = {"rtol": 0, "atol": 0.03 if precision == torch.bfloat16 else 1e-6}
    half, double = Downsample(3), Upsample(3)
    assert {key: tuple(value.shape) for key, value in half.state_dict().items()} == {"filt": (3, 1, 3, 3)}
    assert {key: tuple(value.shape) for key, value in double.state_dict().items()} == {"filt": (3, 1, 4, 4)}
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        halved, doubled = half(x), double(x)
    assert halved.dtype == doubled.dtype == precision

    x = x.float()
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
    weights = {(row, column): w * v / 16 for row, w in enumerate((1, 2, 1)) for column, v in enumerate((1, 2, 1))}
    blurred = sum(weight * padded[..., row : row + 7, column : column + 6] for (row, column), weight in weights.items())
    torch.testing.assert_close(halved.float(), blurred[..., ::2, ::2], **tolerance)
    torch.testing.assert_close(half.filt[1, 0], torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16)

    line = torch.tensor([1.0, 3, 3, 1])
    torch.testing.assert_close(double.filt[1, 0], torch.outer(line, line) / 16)
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    spread = nn.functional.conv_transpose2d(padded, double.filt, stride=2, groups=3)
    torch.testing.assert_close(doubled.float(), spread[..., 3:-3, 3:-3], **tolerance)


# The layers with weights or a kernel in CUT's networks with their default flags: (index, kernel, shape).
CUT_G = ["1 (4, 3, 7, 7)", "4 (8, 4, 3, 3)", "7 filt (8, 1, 3, 3)", "8 (16, 8, 3, 3)", "11 filt (16, 1, 3, 3)"]
CUT_G += ["14 filt (16, 1, 4, 4)", "15 (8, 16, 3, 3)", "18 filt (8, 1, 4, 4)", "19 (4, 8, 3, 3)", "23 (3, 4, 7, 7)"]
CUT_D = ["0 (4, 3, 4, 4)", "2 filt (4, 1, 3, 3)", "3 (8, 4, 4, 4)", "6 filt (8, 1, 3, 3)", "7 (16, 8, 4, 4)"]
CUT_D += ["10 filt (16, 1, 3, 3)", "11 (32, 16, 4, 4)", "14 (1, 32, 4, 4)"]


def test_blurring_networks_have_the_keys_of_cut():
    def layers(net):
        shapes = {key.removeprefix("model."): tuple(value.shape) for key, value in net.state_dict().items()}
        kept = {key: shape for key, shape in shapes.items() if "conv_block" not in key and not key.endswith("bias")}
        return [f"{key.replace('.weight', '').replace('.', ' ')} {shape}" for key, shape in kept.items()]

    G = ResnetGenerator(3, 3, ngf=4, n_blocks=2, resample="blur")
    D = NLayerDiscriminator(3, ndf=4, resample="blur")
    assert layers(G) == CUT_G and layers(D) == CUT_D
    assert G(torch.rand(1, 3, 20, 16)).shape == (1, 3, 20, 16)
    for side in (32, 36, 70, 128):
        assert (
            D(torch.rand(1, 3, side, side)).shape == NLayerDiscriminator(3, ndf=4)(torch.rand(1, 3, side, side)).shape
        )


def test_a_blurring_generator_moves_with_its_input():
    """Shifted by 1 pixel, the image of a network without blur differs much more."""
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    errors = {}
    for name in ("deconv", "blur"):
        torch.manual_seed(0)
        net = init_weights(ResnetGenerator(3, 3, ngf=8, n_blocks=1, norm="none", resample=name), "xavier", 1.0).eval()
        with torch.no_grad():
            here, there = net(x)[..., 16:48, 16:48], net(x.roll(1, 3))[..., 16:48, 17:49]
        errors[name] = ((here - there).std() / here.std()).item()
    assert errors["blur"] < errors["deconv"] / 2


def test_blur_in_a_unet():
    net = UnetGenerator(3, 3, n_downs=5, ngf=8, norm="instance", resample="blur", attention=["down1", "up2"])
    assert net(torch.rand(1, 3, 32, 64)).shape == (1, 3, 32, 64)
    assert sum(isinstance(layer, Downsample) for layer in net.modules()) == 5
    assert sum(isinstance(layer, Upsample) for layer in net.modules()) == 5


@pytest.mark.parametrize("init_type", ["normal", "xavier", "kaiming", "orthogonal"])
def test_initialization(init_type):
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
    with pytest.raises(ValueError, match="norm='layer': choose from instance, batch, syncbatch, none"):
        norm_layer("layer")
    with pytest.raises(ValueError, match="init_type='zeros': choose from normal, xavier, kaiming, orthogonal"):
        init_weights(nn.Conv2d(1, 1, 1), "zeros")


def test_spectral_norm_bounds_every_convolution_and_keeps_the_initial_weights():
    torch.manual_seed(0)
    net = init_weights(NLayerDiscriminator(3, ndf=8), "normal", 0.5)
    before = net.model[2].weight.detach().clone()
    spectral_normalize(net)
    for _ in range(30):
        net(torch.randn(1, 3, 32, 32))  # each pass in train mode is one power iteration
    weight = net.eval().model[2].weight.flatten(1)
    assert torch.linalg.matrix_norm(weight, ord=2).item() == pytest.approx(1, abs=0.01)
    torch.testing.assert_close(weight / weight.norm(), before.flatten(1) / before.norm())
    assert torch.equal(net.model[2].weight, net.model[2].weight), "no power iteration in eval mode"
