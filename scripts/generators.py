"""The flags by which scripts choose a trained generator, and what they write about it."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from inference.hub import local_file
from inference.portable import Portable
from inference.trained import Trained, find_source
from inference.translator import Translator
from models.networks.any_size import AnySize
from models.networks.infer import infer_generator
from options import values

# of sagan's generator
NOISE_FLAGS = ("netG", "crop_size", "input_nc", "ngf", "z_dim", "attn_G", "resample", "class_names")


def add_generator_flags(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add --name, --weights and what chooses among the weights of a run.

    Args:
        several: the script takes both directions of a run, or several files of weights.
    """
    add = parser.add_argument_group("generator").add_argument
    add("--name", type=values.plain_name, help="name of the run with the generator")
    text = "a .pth or .safetensors file of a generator, or hf://OWNER/NAME on the Hugging Face Hub, instead of a run"
    if several:
        add("--weights", type=Path, nargs="+", metavar="FILE", help=f"{text}; several are possible")
    else:
        add("--weights", type=Path, metavar="FILE", help=text)
    add("--checkpoints_dir", type=Path, default=Path("checkpoints"), help="folder of all runs (default: checkpoints)")
    text = f"direction of the translation (default: {'both' if several else 'as trained'})"
    add("--direction", choices=("AtoB", "BtoA"), help=text)
    text = "weights of the run: latest, best, or the number of an epoch (default: latest)"
    add("--epoch", type=values.plain_name, default="latest", help=text)
    add("--no_ema", action="store_true", help="the trained weights, not their average, if the run has both")
    add("--eval", action="store_true", help="running statistics in batch norm, no dropout")


def check_generator(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a parser error unless either --name or --weights is given."""
    if (args.name is None) == (args.weights is None):
        parser.error("name a trained generator: either a run by --name, or a file by --weights")


def is_sagan(args: argparse.Namespace) -> bool:
    """Whether the chosen generator is one of sagan, which makes images from noise.

    Raises:
        ValueError: see `find_source`.
    """
    source = local_file(args.weights or args.checkpoints_dir / args.name)
    file = source if source.is_file() else None
    return find_source(source.parent if file else source, args.epoch, file=file).flags.get("model") == "sagan"


def load_translator(args: argparse.Namespace, **keywords: Any) -> Translator:
    """The chosen generator.

    Args:
        args: with --name or --weights.
        keywords: of `Translator.load`.

    Raises:
        ValueError: see `Translator.load`.
    """
    source = args.weights or args.checkpoints_dir / args.name
    choice = {"direction": args.direction, "epoch": args.epoch, "ema": not args.no_ema, "evaluate": args.eval}
    return Translator.load(source, **choice, **keywords)


def load_for_export(args: argparse.Namespace) -> tuple[Translator, AnySize]:
    """The chosen generator on the CPU, without dropout, and its network.

    Raises:
        ValueError: see `Translator.load`; or the network cannot be exported.
    """
    translator = load_translator(args, device="cpu")
    net = translator.net
    if not isinstance(net, AnySize):
        name = args.weights or args.name
        raise ValueError(f"{name}: networks that color, or take images of one size, cannot be exported")
    return without_dropout(translator), net


def without_dropout(translator: Translator) -> Translator:
    """The same translator, whose results are no longer random: upstream's test mode keeps dropout on."""
    for module in translator.net.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    return translator


def describe(translator: Translator, net: Portable, args: argparse.Namespace, *, dtype: str = "fp32") -> dict[str, Any]:
    """What a file of the generator says about itself, see `inference.export.read_notes`."""
    network = {"no_dropout": True} | infer_generator(net.net.state_dict())
    return {
        "source": args.name or args.weights.name,
        "network": network,
        "input_nc": network["input_nc"],
        "output_nc": network["output_nc"],
        "image_range": [-1, 1],
        "value_range": translator.value_range,
        "output_range": translator.output_range,
        "output_format": translator.output_format and dataclasses.asdict(translator.output_format),
        "domains": translator.domains,
        "classes": translator.classes,
        "slice_axis": translator.slice_axis,
        "stride": net.net.stride,
        "norm_statistics": "running" if args.eval else "of the image, or of the batch",
        "dtype": dtype,
    }


def describe_noise(trained: Trained, *, dtype: str) -> dict[str, Any]:
    """What a file of a generator of sagan, with plain weights, says about itself: all that test.py needs, and more."""
    opt, fmt = trained.opt, trained.formats.get("A")
    return {
        "source": opt.name,
        "network": {flag: getattr(opt, flag) for flag in NOISE_FLAGS} | {"spectral_norm_G": False},
        "z_dim": opt.z_dim,
        "classes": opt.class_names,
        "image_size": opt.crop_size,
        "output_nc": opt.input_nc,
        "image_range": [-1, 1],
        "output_format": fmt and dataclasses.asdict(fmt),
        "dtype": dtype,
    }
