"""Generators and discriminators by name, built from the options; each class also works alone, by keywords."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from torch import nn

from models.networks.layers import init_weights, spectral_normalise
from models.networks.patchgan import NLayerDiscriminator, PixelDiscriminator
from models.networks.resnet import ResnetGenerator
from models.networks.sagan import (
    ImageDiscriminator,
    NoiseGenerator,
    SAGANDiscriminator,
    SAGANGenerator,
    SAGANResnetDiscriminator,
    SAGANResnetGenerator,
)
from models.networks.unet import UnetGenerator

GENERATORS: dict[str, Callable[..., nn.Module]] = {
    "resnet_9blocks": partial(ResnetGenerator, n_blocks=9),
    "resnet_6blocks": partial(ResnetGenerator, n_blocks=6),
    "unet_256": partial(UnetGenerator, n_downs=8),
    "unet_128": partial(UnetGenerator, n_downs=7),
}
BASIC_LAYERS = 3
DISCRIMINATORS: dict[str, Callable[..., nn.Module]] = {
    "basic": partial(NLayerDiscriminator, n_layers=BASIC_LAYERS),
    "n_layers": NLayerDiscriminator,
    "pixel": PixelDiscriminator,
}
NOISE_GENERATORS: dict[str, Callable[..., NoiseGenerator]] = {
    "sagan": SAGANGenerator,
    "sagan_resnet": SAGANResnetGenerator,
}
IMAGE_DISCRIMINATORS: dict[str, Callable[..., ImageDiscriminator]] = {
    "sagan": SAGANDiscriminator,
    "sagan_resnet": SAGANResnetDiscriminator,
}
# SAGAN's public PyTorch code normalises the trunk alone; the paper's networks are normalised throughout.
WITHOUT_SPECTRAL_NORM = {"sagan": ("attn", "last")}

T = TypeVar("T")


def choose(flag: str, name: str, table: Mapping[str, T]) -> T:
    """The entry `name` of a table of networks; ValueError, with the choices, if this kind of model has no such one."""
    if name not in table:
        raise ValueError(f"{flag} {name}: this --model takes {', '.join(table)}")
    return table[name]


def stages(flag: str) -> list[str]:
    """The stage names in the value of --attn_G or --attn_D: separated by commas, `none` for no attention."""
    return [] if flag == "none" else [stage.strip() for stage in flag.split(",")]


def define_G(opt: Any, input_nc: int, output_nc: int) -> nn.Module:
    """Build and initialise the generator that --netG names: (B, input_nc, H, W) -> (B, output_nc, H, W) in [-1, 1]."""
    if opt.given("z_dim"):
        raise ValueError("--z_dim is for networks that make pictures from noise, as --model sagan does: leave it out")
    checkpointed = {"checkpoint_blocks": True} if opt.is_train and opt.checkpoint_blocks else {}
    if checkpointed and (
        not opt.netG.startswith("resnet") or opt.norm in ("batch", "syncbatch") or opt.spectral_norm_G
    ):
        raise ValueError(
            "--checkpoint_blocks is for --netG resnet..., without batch norm and --spectral_norm_G, which would count "
            "twice what is computed twice: leave it out"
        )
    net = choose("--netG", opt.netG, GENERATORS)(
        input_nc,
        output_nc,
        ngf=opt.ngf,
        norm=opt.norm,
        dropout=not opt.no_dropout,
        upsample=opt.upsample,
        attention=stages(opt.attn_G),
        **checkpointed,
    )
    init_weights(net, opt.init_type, opt.init_gain)
    return spectral_normalise(net) if opt.spectral_norm_G else net


def define_D(opt: Any, input_nc: int) -> nn.Module:
    """Build and initialise the discriminator that --netD names: (B, input_nc, H, W) -> (B, 1, h, w) scores."""
    n_layers = {"n_layers": opt.n_layers_D} if opt.netD == "n_layers" else {}
    if not n_layers and opt.given("n_layers_D") and opt.n_layers_D != BASIC_LAYERS:
        raise ValueError(f"--n_layers_D {opt.n_layers_D} is for --netD n_layers: add it, or leave --n_layers_D out")
    make = choose("--netD", opt.netD, DISCRIMINATORS)
    net = make(input_nc, ndf=opt.ndf, norm=opt.norm, attention=stages(opt.attn_D), **n_layers)
    init_weights(net, opt.init_type, opt.init_gain)
    return spectral_normalise(net) if opt.spectral_norm_D else net


def define_noise_G(opt: Any, output_nc: int) -> NoiseGenerator:
    """Build and initialise the generator that --netG names: (B, z_dim) -> (B, output_nc, S, S) in [-1, 1]."""
    make = choose("--netG", opt.netG, NOISE_GENERATORS)
    net = make(output_nc, image_size=opt.crop_size, z_dim=opt.z_dim, ngf=opt.ngf, attention=stages(opt.attn_G))
    init_weights(net, opt.init_type, opt.init_gain)
    if opt.spectral_norm_G:
        spectral_normalise(net, WITHOUT_SPECTRAL_NORM.get(opt.netG, ()))
    return net


def define_image_D(opt: Any, input_nc: int) -> ImageDiscriminator:
    """Build and initialise the discriminator that --netD names: (B, input_nc, S, S) -> (B,) scores."""
    make = choose("--netD", opt.netD, IMAGE_DISCRIMINATORS)
    net = make(input_nc, image_size=opt.crop_size, ndf=opt.ndf, attention=stages(opt.attn_D))
    init_weights(net, opt.init_type, opt.init_gain)
    if opt.spectral_norm_D:
        spectral_normalise(net, WITHOUT_SPECTRAL_NORM.get(opt.netD, ()))
    return net
