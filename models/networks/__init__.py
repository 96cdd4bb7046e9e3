"""Generators and discriminators by name, and functions that build them from options.

The classes take keywords and need no options.
"""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from models.networks.biggan import BigGANDiscriminator, BigGANGenerator
from models.networks.layers import init_weights, spectral_normalize
from models.networks.patch_heads import PatchHeads
from models.networks.patchgan import NLayerDiscriminator, PixelDiscriminator
from models.networks.projected import ProjectedDiscriminator
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
FEATURE_DISCRIMINATORS: dict[str, Callable[..., nn.Module]] = {
    "projected": ProjectedDiscriminator,
}
NOISE_GENERATORS: dict[str, Callable[..., NoiseGenerator]] = {
    "sagan": SAGANGenerator,
    "sagan_resnet": SAGANResnetGenerator,
    "biggan": BigGANGenerator,
}
IMAGE_DISCRIMINATORS: dict[str, Callable[..., ImageDiscriminator]] = {
    "sagan": SAGANDiscriminator,
    "sagan_resnet": SAGANResnetDiscriminator,
    "biggan": BigGANDiscriminator,
}
# Layers without spectral norm, by their prefix. Those of sagan are as in the well-known PyTorch code; the paper
# normalizes all layers. The vectors of BigGAN's classes are an embedding.
WITHOUT_SPECTRAL_NORM = {"sagan": ("attn", "last"), "biggan": ("classes",)}

log = logging.getLogger(__name__)

T = TypeVar("T")
N = TypeVar("N", bound=nn.Module)


@contextmanager
def from_flags(opt: Any, *flags: str) -> Iterator[None]:
    """Prefix the message of a ValueError with the flags, and their values, that the arguments come from."""
    try:
        yield
    except ValueError as error:
        given = " ".join(f"--{flag} {getattr(opt, flag)}" for flag in flags)
        raise ValueError(f"{given}: {error}") from error


def choose(name: str, table: Mapping[str, T]) -> T:
    """The entry `name` of a table of networks. ValueError with the choices if there is none."""
    if name not in table:
        raise ValueError(f"{name!r} does not suit this model: choose from {', '.join(table)}")
    return table[name]


def stages(flag: str) -> list[str]:
    """Split the value of --attn_G or --attn_D, stages separated by commas; none means no attention."""
    return [] if flag == "none" else [stage.strip() for stage in flag.split(",")]


def build_generator(
    netG: str, input_nc: int, output_nc: int, *, ngf: int, norm: str, no_dropout: bool, resample: str, attn_G: str,
    **keywords: Any,
) -> nn.Module:  # fmt: skip
    """Build a generator from the values of its flags, with PyTorch's default initialization.

    Args:
        netG, input_nc, output_nc, ngf, norm, no_dropout, resample, attn_G: values of these flags.
        keywords: further arguments of the class.

    Returns:
        A network (B, input_nc, H, W) -> (B, output_nc, H, W) in [-1, 1].

    Raises:
        ValueError: a value is unknown or does not fit the others.
    """
    return choose(netG, GENERATORS)(
        input_nc, output_nc, ngf=ngf, norm=norm, dropout=not no_dropout, resample=resample, attention=stages(attn_G),
        **keywords,
    )  # fmt: skip


def define_G(opt: Any, input_nc: int, output_nc: int) -> nn.Module:
    """Build and initialize the generator --netG: (B, input_nc, H, W) -> (B, output_nc, H, W) in [-1, 1].

    Raises:
        ValueError: flags have unknown values or exclude each other.
    """
    checkpointed = {"checkpoint_blocks": True} if opt.is_train and opt.checkpoint_blocks else {}
    if checkpointed and (
        not opt.netG.startswith("resnet") or opt.norm in ("batch", "syncbatch") or opt.spectral_norm_G
    ):
        raise ValueError(
            "--checkpoint_blocks needs --netG resnet_9blocks or resnet_6blocks, without --norm batch or syncbatch and "
            "without --spectral_norm_G, which would update their statistics twice in each step"
        )
    with from_flags(opt, "netG", "ngf", "attn_G"):
        net = build_generator(
            opt.netG, input_nc, output_nc, ngf=opt.ngf, norm=opt.norm, no_dropout=opt.no_dropout,
            resample=opt.resample, attn_G=opt.attn_G, **checkpointed,
        )  # fmt: skip
    return initialize(net, opt, spectral=opt.spectral_norm_G)


def define_D(opt: Any, input_nc: int) -> nn.Module:
    """Build and initialize the discriminator --netD: (B, input_nc, H, W) -> scores (B, 1, h, w), or (B, 4, h, w).

    Raises:
        ValueError: flags have unknown values or exclude each other.
    """
    if opt.netD != "n_layers" and opt.n_layers_D != BASIC_LAYERS:
        log.warning("--n_layers_D %d has no effect without --netD n_layers", opt.n_layers_D)
    if opt.netD in FEATURE_DISCRIMINATORS:
        if opt.given("spectral_norm_D") and not opt.spectral_norm_D:
            raise ValueError(f"--no-spectral_norm_D: --netD {opt.netD} always has spectral norm")
        if opt.batch_head:
            raise ValueError(f"--batch_head {opt.batch_head} needs --netD basic or n_layers, not {opt.netD}")
        return define_projected_D(opt, input_nc, "netD", "attn_D", attention=stages(opt.attn_D))
    own: dict[str, Any] = {} if opt.netD == "pixel" else {"resample": opt.resample}  # pixel resamples nothing
    if opt.batch_head:
        own["batch_head"] = True
        if opt.netD == "pixel":
            raise ValueError(f"--batch_head {opt.batch_head} needs --netD basic or n_layers, not pixel")
    if opt.netD == "n_layers":
        own["n_layers"] = opt.n_layers_D
    with from_flags(opt, "netD", "ndf", "attn_D"):
        make = choose(opt.netD, DISCRIMINATORS)
        net = make(input_nc, ndf=opt.ndf, norm=opt.norm, attention=stages(opt.attn_D), **own)
    return initialize(net, opt, spectral=opt.spectral_norm_D)


def define_projected_D(opt: Any, input_nc: int, *flags: str, attention: Iterable[str] = ()) -> nn.Module:
    """Build and initialize a projected discriminator, with spectral norm: (B, 3, H, W) -> scores (B, 4, h, w).

    Args:
        flags: which asked for it, for messages.
        attention: of the discriminator, which has none.

    Raises:
        ValueError: flags do not suit it, or its pretrained weights are not installed.
    """
    with from_flags(opt, *flags):
        net = ProjectedDiscriminator(input_nc, ndf=opt.ndf, attention=attention)
    return initialize(net, opt, spectral=True)


def define_F(opt: Any, netG: nn.Module) -> tuple[PatchHeads, tuple[int, ...]]:
    """Build and initialize the heads of the contrastive loss of a generator, and choose its layers --nce_layers.

    Returns:
        The heads, and the numbers of the layers of `netG.model` whose features they take.

    Raises:
        ValueError: the generator has no encoder, or it has no such layers.
    """
    if not isinstance(netG, ResnetGenerator):
        raise ValueError(
            f"--netG {opt.netG}: the contrastive loss needs the encoder of a ResNet, such as resnet_9blocks"
        )
    with from_flags(opt, "netG", "resample", "nce_layers"):
        layers = netG.landmarks
        if opt.nce_layers != "default":
            layers = tuple(sorted({int(number) for number in opt.nce_layers.split(",")}))
        if layers[-1] >= netG.encoder:
            raise ValueError(f"layer {layers[-1]}: the encoder of this generator has layers 0 to {netG.encoder - 1}")
    with torch.no_grad():
        image = torch.zeros(1, netG.input_nc, netG.smallest, netG.smallest, device="meta")
        features = copy.deepcopy(netG).to("meta")(image, layers)  # computes shapes only
    heads = PatchHeads([feature.shape[1] for feature in features], nc=opt.netF_nc)
    return initialize(heads, opt, spectral=False), layers


def define_noise_G(opt: Any, output_nc: int) -> NoiseGenerator:
    """Build and initialize SAGAN's generator --netG: (B, z_dim) -> (B, output_nc, crop_size, crop_size) in [-1, 1].

    With classes, it takes (B, z_dim + n_classes).

    Raises:
        ValueError: flags have unknown values or exclude each other.
    """
    own: dict[str, Any] = {"resample": opt.resample} if opt.netG == "sagan" else {}  # the others have one way
    if not own and opt.resample != "deconv":
        raise ValueError(f"--resample {opt.resample} needs --netG sagan: {opt.netG} always doubles by nearest")
    with from_flags(opt, "netG", "crop_size", "z_dim", "ngf", "attn_G"):
        make = choose(opt.netG, NOISE_GENERATORS)
        net = make(
            output_nc, image_size=opt.crop_size, z_dim=opt.z_dim, ngf=opt.ngf, attention=stages(opt.attn_G),
            n_classes=len(opt.class_names), **own,
        )  # fmt: skip
    return initialize(net, opt, spectral=opt.spectral_norm_G, exclude=WITHOUT_SPECTRAL_NORM.get(opt.netG, ()))


def define_image_D(opt: Any, input_nc: int) -> ImageDiscriminator:
    """Build and initialize SAGAN's discriminator --netD: (B, input_nc, crop_size, crop_size) -> scores (B,).

    With classes, it gives each image a score for each of them, (B, n_classes).

    Raises:
        ValueError: flags have unknown values or exclude each other.
    """
    with from_flags(opt, "netD", "crop_size", "ndf", "attn_D"):
        make = choose(opt.netD, IMAGE_DISCRIMINATORS)
        net = make(
            input_nc, image_size=opt.crop_size, ndf=opt.ndf, attention=stages(opt.attn_D),
            minibatch_std=opt.minibatch_std, n_classes=len(opt.class_names),
        )  # fmt: skip
    return initialize(net, opt, spectral=opt.spectral_norm_D, exclude=WITHOUT_SPECTRAL_NORM.get(opt.netD, ()))


def initialize(net: N, opt: Any, *, spectral: bool, exclude: tuple[str, ...] = ()) -> N:
    """Initialize the weights of `net` and return it; with `spectral`, apply `spectral_normalize`."""
    init_weights(net, opt.init_type, opt.init_gain)
    if spectral:
        spectral_normalize(net, exclude)
    return net
