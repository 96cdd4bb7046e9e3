"""Infer the flags of a network from the names and shapes of its weights."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.networks import DISCRIMINATORS, GENERATORS, IMAGE_DISCRIMINATORS, NOISE_GENERATORS
from models.networks.biggan import EMBEDDING, WIDTHS_D, WIDTHS_G
from models.networks.layers import NORMS
from models.networks.patch_heads import PatchHeads
from models.networks.resample import RESAMPLINGS
from models.networks.sagan import SIZES

# The flags that `infer_generator` returns.
GENERATOR_FLAGS = frozenset(
    ("netG", "input_nc", "output_nc", "ngf", "norm", "no_dropout", "resample", "attn_G", "spectral_norm_G")
)

# projects whose networks differ from all here -> parts of names that tell them
FOREIGN = {
    "joliGEN (a ResNet of encoder and decoder)": (".encoder.model.", ".decoder.model."),
    "CUT with other layers than its default, such as --no_antialias_up": (".filt", ".conv_block."),
}

UVCGAN2_QUEUE = 3  # images, in the queues of its batch head

Flags = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


def infer_generator(weights: Mapping[str, Tensor]) -> Flags:
    """Infer the flags of a generator, those in GENERATOR_FLAGS.

    Args:
        weights: name -> tensor, as `models.weights.read_weights` returns them.

    Returns:
        Flag -> value; without no_dropout for a U-Net, whose weights are the same with and without dropout.

    Raises:
        ValueError: no generator has these names and shapes.
    """
    shapes = _plain_shapes(weights)
    matches = [flags for flags, candidate in _generators(shapes) if candidate == shapes]
    if not matches:
        raise ValueError(
            f"these are not the weights of a generator of images, {' or '.join(GENERATORS)}, but {described(weights)}"
        )
    if len({flags["no_dropout"] for flags in matches}) > 1:
        del matches[0]["no_dropout"]
    return matches[0] | _extras(weights, "G")


def infer_discriminator(weights: Mapping[str, Tensor]) -> Flags:
    """Infer the flags of a discriminator; see `infer_generator`.

    Raises:
        ValueError: no discriminator has these names and shapes.
    """
    shapes = _plain_shapes(weights)
    if "across_channels0" in shapes:
        return {"netD": "projected", "input_nc": 3, "ndf": shapes["across_channels0"][0]}
    for flags, candidate in _discriminators(shapes):
        if candidate == shapes:
            return flags | _extras(weights, "D")
    raise ValueError(f"these are not the weights of a discriminator: it is none of {', '.join(DISCRIMINATORS)}")


def infer_sagan(weights: Mapping[str, Tensor]) -> Flags:
    """Infer the flags of a SAGAN generator or discriminator, without those of attention; see `infer_generator`.

    Raises:
        ValueError: no network of SAGAN has these names and shapes.
    """
    shapes = _plain_shapes(weights)
    for flags, candidate in _sagans(shapes):
        if candidate == shapes:
            return flags
    raise ValueError(f"these are not the weights of SAGAN: it is none of {', '.join(NOISE_GENERATORS)}")


def infer_heads(weights: Mapping[str, Tensor]) -> Flags:
    """Infer the flags of the heads of a contrastive loss; see `infer_generator`.

    Raises:
        ValueError: no heads have these names and shapes.
    """
    shapes = _plain_shapes(weights)
    inputs = [shape[1] for key, shape in shapes.items() if key.endswith(".0.weight") and len(shape) == 2]
    if inputs:
        nc = next(iter(shapes.values()))[0]
        if _shapes(PatchHeads, widths=tuple(inputs), nc=nc) == shapes:
            return {"netF_nc": nc}
    raise ValueError("these are not the weights of the heads of a contrastive loss, such as CUT's netF")


def differing_flags(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """A message on the flags in which a file with the weights `found` differs from a network with `expected`."""
    there, here = infer_network(found), infer_network(expected)
    if not there:
        return f"The file does not fit any generator or discriminator: it is {foreign(found)}"
    if ("netG" in there, "netD" in there) != ("netG" in here, "netD" in here):
        return f"The file looks like {as_text(there)}"
    ignored = {flag for flag in ("attn_G", "attn_D") if there.get(flag) == "none"}  # networks may gain attention
    ignored |= {"no_dropout"} - (there.keys() & here)  # weights do not always show it
    other = [flag for flag in (there | here) if flag not in ignored and there.get(flag) != here.get(flag)]
    if not other:
        return f"Both look like {as_text(there)}"
    file, flags = (
        ", ".join(as_text({flag: side[flag]}) if flag in side else f"no {flag}" for flag in other)
        for side in (there, here)
    )
    return f"The file looks like {file}; the network has {flags}"


def as_text(flags: Mapping[str, Any]) -> str:
    """Flags as arguments: netG=resnet_6blocks, no_dropout=True."""
    return ", ".join(f"{flag}={value}" for flag, value in flags.items())


def infer_network(weights: Mapping[str, Tensor]) -> Flags:
    """Infer the flags of a network of any model. Empty if the weights fit none."""
    for infer in (infer_generator, infer_discriminator, infer_sagan, infer_heads):
        try:
            return infer(weights)
        except ValueError:
            continue  # the next function may know it
    return {}


def described(weights: Mapping[str, Tensor]) -> str:
    """What weights are that are not those of a generator of images, in words."""
    for infer, what in ((infer_discriminator, "a discriminator"), (infer_sagan, "a network of SAGAN")):
        try:
            return f"of {what}: {as_text(infer(weights))}"
        except ValueError:
            continue  # the next function may know it
    return foreign(weights)


def foreign(weights: Mapping[str, Tensor]) -> str:
    """What weights are that fit no network here: the project they come from, or their names and shapes."""
    for origin, parts in FOREIGN.items():
        if all(any(part in f".{key}" for key in weights) for part in parts):
            return f"of {origin}, which cannot be loaded here"
    shown = ", ".join(f"{key} {tuple(weight.shape)}" for key, weight in list(weights.items())[:3])
    return f"something unknown with {len(weights)} tensors: {shown}{', ...' if len(weights) > 3 else ''}"


def _generators(shapes: Shapes) -> Iterator[tuple[Flags, Shapes]]:
    """Flags and shapes of all generators with the widths of the first and last of `shapes`."""
    convolutions = [shape for shape in shapes.values() if len(shape) == 4]
    biases = [shape for key, shape in shapes.items() if key.endswith(".bias")]
    if not convolutions or not biases:
        return
    (ngf, input_nc, *_), (output_nc, *_) = convolutions[0], biases[-1]
    for netG, norm, no_dropout, resample in itertools.product(GENERATORS, NORMS, (True, False), RESAMPLINGS):
        widths = {"input_nc": input_nc, "output_nc": output_nc, "ngf": ngf}
        flags = {"netG": netG, **widths, "norm": norm, "no_dropout": no_dropout, "resample": resample}
        yield flags, _shapes(GENERATORS[netG], **widths, norm=norm, dropout=not no_dropout, resample=resample)


def _discriminators(shapes: Shapes) -> Iterator[tuple[Flags, Shapes]]:
    """Flags and shapes of all discriminators with the width of the first of `shapes` and as many convolutions."""
    batch_head = "head.1.weight" in shapes
    body = {key: shape for key, shape in shapes.items() if not key.startswith("head.") and not key.endswith(".filt")}
    convolutions = [shape for shape in body.values() if len(shape) == 4]
    if len(convolutions) < (2 if batch_head else 3):
        return
    (ndf, input_nc, *_), n_layers = convolutions[0], len(convolutions) - (1 if batch_head else 2)
    for netD, norm, resample in itertools.product(DISCRIMINATORS, NORMS, ("deconv", "blur")):
        own: Flags = {} if netD == "pixel" else {"resample": resample}
        keywords = {"batch_head": True} if batch_head and own else {}
        depth = {"n_layers": n_layers} if netD == "n_layers" else {}
        arguments = {"input_nc": input_nc, "ndf": ndf, "norm": norm, **own}
        flags = {"netD": netD, **arguments} | ({"n_layers_D": n_layers} if depth else {})
        if keywords:
            flags["batch_head"] = UVCGAN2_QUEUE  # weights do not show the length
        yield flags, _shapes(DISCRIMINATORS[netD], **arguments, **depth, **keywords)


def _sagans(shapes: Shapes) -> Iterator[tuple[Flags, Shapes]]:
    """Flags and shapes of all networks of SAGAN with the widths of the first and last of `shapes`."""
    first, linear = shapes.get("l1.0.weight"), shapes.get("linear.1.weight")
    by_class = [shapes.get(key, ()) for key in ("l1.1.weight", "block1.residual.0.weight", "last.classes.weight")]
    n_classes = next((shape[0] for shape in by_class if len(shape) == 2), 0)
    n_classes = shapes.get("classes.weight", (0, n_classes))[1]
    in_blocks = [shape[1] for key, shape in shapes.items() if key.endswith(".residual.0.scale.weight")]  # of biggan
    classes = {"n_classes": n_classes} if n_classes else {}
    first_of_D = first or shapes.get("block1.residual.1.weight")
    for size in SIZES:
        for resample, key in {"deconv": "last.0.weight", "nearest": "last.0.weight", "blur": "last.1.weight"}.items():
            if first and key in shapes:
                ngf, nc = shapes[key][:2] if resample == "deconv" else shapes[key][1::-1]
                widths = {"z_dim": first[0], "ngf": ngf, "resample": resample, **classes}
                yield _noise_generator("sagan", size, nc, widths)
        if linear and "last.2.weight" in shapes:
            nc, ngf = shapes["last.2.weight"][:2]
            yield _noise_generator("sagan_resnet", size, nc, {"z_dim": linear[1], "ngf": ngf, **classes})
            if len(in_blocks) == len(WIDTHS_G[size]) - 1:
                z_dim = linear[1] + sum(in_blocks) - (len(in_blocks) * EMBEDDING if n_classes else 0)
                widths = {"z_dim": z_dim, "ngf": max(ngf // WIDTHS_G[size][-1], 1), **classes}
                yield _noise_generator("biggan", size, nc, widths)
        for netD, minibatch_std in itertools.product(IMAGE_DISCRIMINATORS, (False, True)):
            if first_of_D is None:
                break
            ndf, nc = first_of_D[:2]
            ndf = max(ndf // WIDTHS_D[size][0], 1) if netD == "biggan" else ndf
            widths = {"input_nc": nc, "ndf": ndf, "minibatch_std": minibatch_std}
            candidate = _shapes(IMAGE_DISCRIMINATORS[netD], image_size=size, attention=(), **widths, **classes)
            yield {"netD": netD, "crop_size": size, **widths, **class_flags(n_classes)}, candidate


def _noise_generator(netG: str, size: int, nc: int, widths: dict[str, Any]) -> tuple[Flags, Shapes]:
    shapes = _shapes(NOISE_GENERATORS[netG], output_nc=nc, image_size=size, attention=(), **widths)
    n_classes = widths.pop("n_classes", 0)
    return {"netG": netG, "crop_size": size, "input_nc": nc, **widths, **class_flags(n_classes)}, shapes


def class_flags(n_classes: int) -> Flags:
    """The flag of the names of classes, which weights do not show: numbers instead. Empty without classes."""
    return {"class_names": [str(number) for number in range(n_classes)]} if n_classes else {}


@functools.cache
def _shapes(network: Callable[..., nn.Module], **keywords: Any) -> Shapes:
    """The shapes of the weights of a network, which is built on the meta device: name -> shape."""
    with torch.device("meta"):
        net = network(**keywords)
    return {key: tuple(weight.shape) for key, weight in net.state_dict().items()}


def _plain_shapes(weights: Mapping[str, Tensor]) -> Shapes:
    """The shapes of weights without those of attention and spectral norm, in the order of layers: name -> shape."""
    shapes = {
        key.replace("parametrizations.weight.original", "weight"): tuple(weight.shape)
        for key, weight in weights.items()
        if not key.startswith(("attention.", "attn")) and not key.endswith(("parametrizations.weight.0._u", ".0._v"))
    }
    return dict(sorted(shapes.items(), key=lambda item: _layer_order(item[0])))


def _layer_order(key: str) -> list[tuple[int, str]]:
    """A sort key that puts model.4 before model.10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in key.split(".")]


def _extras(weights: Mapping[str, Tensor], network: str) -> Flags:
    """The flags of attention and spectral norm."""
    blocks = [key.split(".")[1] for key in weights if key.startswith("attention.") and key.endswith(".gamma")]
    normalized = any(".parametrizations.weight." in key for key in weights)
    return {f"attn_{network}": ",".join(blocks) or "none", f"spectral_norm_{network}": normalized}
