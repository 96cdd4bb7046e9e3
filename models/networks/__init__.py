"""Generators and discriminators by name, built from the options. Each class also works alone, with keywords."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from torch import nn

from models.networks.layers import init_weights, spectral_normalize
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
# SAGAN's well-known PyTorch code normalizes the trunk alone, the paper's networks are normalized throughout.
WITHOUT_SPECTRAL_NORM = {"sagan": ("attn", "last")}

log = logging.getLogger(__name__)

T = TypeVar("T")
N = TypeVar("N", bound=nn.Module)


@contextmanager
def from_flags(opt: Any, *flags: str) -> Iterator[None]:
    """Let a ValueError about an argument begin with the flags that the arguments come from."""
    try:
        yield
    except ValueError as error:
        given = " ".join(f"--{flag} {getattr(opt, flag)}" for flag in flags)
        raise ValueError(f"{given}: {error}") from error


def choose(name: str, table: Mapping[str, T]) -> T:
    """The entry `name` of a table of networks; ValueError, with the choices, if this kind of model has no such one."""
    if name not in table:
        raise ValueError(f"{name!r} is not for this --model: choose from {', '.join(table)}")
    return table[name]


def stages(flag: str) -> list[str]:
    """The stage names in the value of --attn_G or --attn_D: separated by commas, `none` for no attention."""
    return [] if flag == "none" else [stage.strip() for stage in flag.split(",")]


def build_generator(
    netG: str, input_nc: int, output_nc: int, *, ngf: int, norm: str, no_dropout: bool, upsample: str, attn_G: str,
    **keywords: Any,
) -> nn.Module:  # fmt: skip
    """Build the generator that the values of these flags describe, with PyTorch's initial weights.

    Args:
        keywords: for the class of the generator.

    Returns:
        (B, input_nc, H, W) -> (B, output_nc, H, W) in [-1, 1].

    Raises:
        ValueError: there is no such generator, or it does not take these values.
    """
    return choose(netG, GENERATORS)(
        input_nc, output_nc, ngf=ngf, norm=norm, dropout=not no_dropout, upsample=upsample, attention=stages(attn_G),
        **keywords,
    )  # fmt: skip


def define_G(opt: Any, input_nc: int, output_nc: int) -> nn.Module:
    """Build and initialize the generator that --netG names: (B, input_nc, H, W) -> (B, output_nc, H, W) in [-1, 1]."""
    checkpointed = {"checkpoint_blocks": True} if opt.is_train and opt.checkpoint_blocks else {}
    if checkpointed and (
        not opt.netG.startswith("resnet") or opt.norm in ("batch", "syncbatch") or opt.spectral_norm_G
    ):
        raise ValueError(
            "--checkpoint_blocks is for --netG resnet..., without batch norm and --spectral_norm_G, which would count "
            "twice what is computed twice: leave it out"
        )
    with from_flags(opt, "netG", "ngf", "attn_G"):
        net = build_generator(
            opt.netG, input_nc, output_nc, ngf=opt.ngf, norm=opt.norm, no_dropout=opt.no_dropout,
            upsample=opt.upsample, attn_G=opt.attn_G, **checkpointed,
        )  # fmt: skip
    return initialize(net, opt, spectral=opt.spectral_norm_G)


def define_D(opt: Any, input_nc: int) -> nn.Module:
    """Build and initialize the discriminator that --netD names: (B, input_nc, H, W) -> (B, 1, h, w) scores."""
    n_layers = {"n_layers": opt.n_layers_D} if opt.netD == "n_layers" else {}
    if not n_layers and opt.n_layers_D != BASIC_LAYERS:
        log.warning("--n_layers_D %d has no effect without --netD n_layers", opt.n_layers_D)
    with from_flags(opt, "netD", "ndf", "attn_D"):
        make = choose(opt.netD, DISCRIMINATORS)
        net = make(input_nc, ndf=opt.ndf, norm=opt.norm, attention=stages(opt.attn_D), **n_layers)
    return initialize(net, opt, spectral=opt.spectral_norm_D)


def define_noise_G(opt: Any, output_nc: int) -> NoiseGenerator:
    """Build and initialize the generator that --netG names: (B, z_dim) -> (B, output_nc, S, S) in [-1, 1]."""
    with from_flags(opt, "netG", "crop_size", "ngf", "attn_G"):
        make = choose(opt.netG, NOISE_GENERATORS)
        net = make(output_nc, image_size=opt.crop_size, z_dim=opt.z_dim, ngf=opt.ngf, attention=stages(opt.attn_G))
    return initialize(net, opt, spectral=opt.spectral_norm_G, leave_out=WITHOUT_SPECTRAL_NORM.get(opt.netG, ()))


def define_image_D(opt: Any, input_nc: int) -> ImageDiscriminator:
    """Build and initialize the discriminator that --netD names: (B, input_nc, S, S) -> (B,) scores."""
    with from_flags(opt, "netD", "crop_size", "ndf", "attn_D"):
        make = choose(opt.netD, IMAGE_DISCRIMINATORS)
        net = make(input_nc, image_size=opt.crop_size, ndf=opt.ndf, attention=stages(opt.attn_D))
    return initialize(net, opt, spectral=opt.spectral_norm_D, leave_out=WITHOUT_SPECTRAL_NORM.get(opt.netD, ()))


def initialize(net: N, opt: Any, *, spectral: bool, leave_out: tuple[str, ...] = ()) -> N:
    """Initialize the weights of `net`, apply spectral normalization if asked for, and return it."""
    init_weights(net, opt.init_type, opt.init_gain)
    if spectral:
        spectral_normalize(net, leave_out)
    return net
