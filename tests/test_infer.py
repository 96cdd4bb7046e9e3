"""Flags inferred from weights, for all generators and discriminators."""

import itertools
import random

import pytest
import torch

from models.networks import DISCRIMINATORS, GENERATORS, build_generator
from models.networks.infer import differing_flags, infer_discriminator, infer_generator, infer_network
from models.networks.layers import spectral_normalize
from models.networks.resample import RESAMPLINGS
from tests.golden.fill import fill
from tests.test_networks import GOLDEN, build_golden, golden_networks


def generator(flags: dict):
    arguments = {"no_dropout": True} | flags
    spectral = arguments.pop("spectral_norm_G")
    net = build_generator(**arguments)
    return spectral_normalize(net) if spectral else net


@pytest.mark.parametrize("ngf", [8, 16])
@pytest.mark.parametrize("netG", GENERATORS)
def test_every_generator_is_inferred_and_loads(netG, ngf, tmp_path):
    draw = random.Random(netG)
    for norm, no_dropout, resample in itertools.product(("instance", "batch", "none"), (True, False), RESAMPLINGS):
        input_nc, output_nc = draw.choice([(3, 3), (1, 2), (5, 1), (3, 1)])
        flags = {
            "netG": netG, "input_nc": input_nc, "output_nc": output_nc, "ngf": ngf, "norm": norm,
            "no_dropout": no_dropout, "resample": resample, "spectral_norm_G": draw.random() < 0.3,
            "attn_G": draw.choice(("none", "block3", "down2,block2,up1")) if netG.startswith("resnet") else "none",
        }  # fmt: skip
        torch.save(generator(flags).state_dict(), tmp_path / "net.pth")
        weights = torch.load(tmp_path / "net.pth", weights_only=True)
        inferred = infer_generator(weights)
        if netG.startswith("unet"):
            del flags["no_dropout"]  # the weights are the same
        assert inferred == flags
        generator(inferred).load_state_dict(weights)


@pytest.mark.parametrize("name", golden_networks())
def test_reference_networks_are_inferred(name):
    config = GOLDEN[name]["config"]
    weights = fill(build_golden(config).state_dict())
    flags = infer_network(weights)
    if name.startswith("G_unet"):
        assert "no_dropout" not in flags
    if config.get("netD") == "n_layers":
        assert flags["n_layers_D"] == config["n_layers_D"]
    shared = config.keys() & flags.keys() - {"n_layers_D", "output_nc" if "netD" in config else ""}
    assert {flag: flags[flag] for flag in shared} == {flag: config[flag] for flag in shared}


@pytest.mark.parametrize("netD", DISCRIMINATORS)
@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize("resample", ["deconv", "blur"])
def test_every_discriminator_is_inferred(netD, norm, resample):
    depth = {"n_layers": 4} if netD == "n_layers" else {}
    own = {} if netD == "pixel" else {"resample": resample}
    net = spectral_normalize(DISCRIMINATORS[netD](6, ndf=16, norm=norm, **own, **depth))
    flags = {"netD": netD, "input_nc": 6, "ndf": 16, "norm": norm, **own} | ({"n_layers_D": 4} if depth else {})
    assert infer_discriminator(net.state_dict()) == flags | {"attn_D": "none", "spectral_norm_D": True}
    if netD != "pixel":
        net = DISCRIMINATORS[netD](6, ndf=16, norm=norm, **own, **depth, batch_head=True)
        flags |= {"attn_D": "none", "spectral_norm_D": False, "batch_head": 3}
        assert infer_discriminator(net.state_dict()) == flags


def test_the_order_of_weights_in_a_file_does_not_matter():
    weights = GENERATORS["resnet_9blocks"](2, 1, ngf=8).state_dict()
    assert infer_generator(dict(sorted(weights.items()))) == infer_generator(weights)


@pytest.mark.parametrize(
    "weights", [{}, {"a": torch.zeros(1)}, {"w": torch.zeros(4, 3, 3, 3), "b.bias": torch.zeros(2)}]
)
def test_other_weights_are_refused(weights):
    with pytest.raises(
        ValueError, match=r"not the weights of a generator of images, resnet_9blocks or .* but something unknown"
    ):
        infer_generator(weights)
    with pytest.raises(ValueError, match="not the weights of a discriminator: it is none of basic"):
        infer_discriminator(weights)
    assert infer_network(weights) == {}


def test_differences_are_listed_as_arguments():
    def resnet(**keywords):
        return GENERATORS["resnet_6blocks"](3, 3, **{"ngf": 8, **keywords}).state_dict()

    text = differing_flags(resnet(dropout=True), resnet())
    assert text == "The file looks like no_dropout=False; the network has no_dropout=True"
    assert "looks like ngf=16, norm=batch; the network has ngf=8, norm=instance" in differing_flags(
        resnet(ngf=16, norm="batch"), resnet(attention=["up1"])
    )
    assert "attn_G=block2; the network has attn_G=none" in differing_flags(resnet(attention=["block2"]), resnet())
    patchgan = DISCRIMINATORS["basic"](3, ndf=8).state_dict()
    assert differing_flags(patchgan, resnet()).startswith("The file looks like netD=basic")
    with_head = DISCRIMINATORS["basic"](3, ndf=8, batch_head=True).state_dict()
    assert differing_flags(patchgan, with_head) == "The file looks like no batch_head; the network has batch_head=3"
    assert "does not fit any generator" in differing_flags({"x": torch.zeros(1)}, resnet())
