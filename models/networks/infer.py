"""Which flags describe a network, found from the names and shapes of its weights alone."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.networks import DISCRIMINATORS, GENERATORS, IMAGE_DISCRIMINATORS, NOISE_GENERATORS
from models.networks.layers import NORMS
from models.networks.resnet import UPSAMPLINGS
from models.networks.sagan import SIZES

# All that `infer_generator` may find.
GENERATOR_FLAGS = frozenset(
    ("netG", "input_nc", "output_nc", "ngf", "norm", "no_dropout", "upsample", "attn_G", "spectral_norm_G")
)

Flags = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


def infer_generator(weights: Mapping[str, Tensor]) -> Flags:
    """The flags of the generator that `weights` (as `models.weights.read_weights` gives them) belong to.

    All flags that `define_G` builds a network from, input_nc and output_nc among them; but not no_dropout for a U-Net,
    in which dropout leaves no trace.

    Raises:
        ValueError: no generator has these names and shapes.
    """
    shapes = _plain_shapes(weights)
    matches = [flags for flags, those in _generators(shapes) if those == shapes]
    if not matches:
        raise ValueError(f"no generator has these weights: --netG knows {', '.join(GENERATORS)}")
    if len({flags["no_dropout"] for flags in matches}) > 1:
        del matches[0]["no_dropout"]
    return matches[0] | _extras(weights, "G")


def infer_discriminator(weights: Mapping[str, Tensor]) -> Flags:
    """The flags of the discriminator that `weights` belong to, as `infer_generator` finds those of a generator."""
    shapes = _plain_shapes(weights)
    for flags, those in _discriminators(shapes):
        if those == shapes:
            return flags | _extras(weights, "D")
    raise ValueError(f"no discriminator has these weights: --netD knows {', '.join(DISCRIMINATORS)}")


def infer_sagan(weights: Mapping[str, Tensor]) -> Flags:
    """The flags of the SAGAN generator or discriminator that `weights` belong to; where its attention is, is left open.

    Raises:
        ValueError: no network of SAGAN has these names and shapes.
    """
    shapes = _plain_shapes(weights)
    for flags, those in _sagans(shapes):
        if those == shapes:
            return flags
    raise ValueError(f"no network of SAGAN has these weights: --netG and --netD know {', '.join(NOISE_GENERATORS)}")


def differing_flags(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What to tell a user whose file holds the weights `found` where a network has `expected`."""
    there, here = infer_network(found), infer_network(expected)
    if not there:
        return "No network that --netG or --netD knows has the weights of this file"
    if ("netG" in there, "netD" in there) != ("netG" in here, "netD" in here):
        return f"The file looks like {as_text(there)}"
    other = {flag for flag in there.keys() & here if there[flag] != here[flag]}
    other -= {flag for flag in ("attn_G", "attn_D") if there.get(flag) == "none"}  # networks may gain attention
    if not other:
        return f"Both look like {as_text(there)}"
    file, flags = (as_text({flag: side[flag] for flag in there if flag in other}) for side in (there, here))
    return f"The file looks like {file}; the flags say {flags}"


def as_text(flags: Mapping[str, Any]) -> str:
    """Flags as they are typed: --netG resnet_6blocks --no_dropout; a switch that is off is "without --no_dropout"."""
    words = []
    for flag, value in flags.items():
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"without --{flag}")
        else:
            words.append(f"--{flag} {value}")
    return " ".join(words)


def infer_network(weights: Mapping[str, Tensor]) -> Flags:
    """The flags of the generator or discriminator that `weights` belong to; none if it is neither."""
    for infer in (infer_generator, infer_discriminator, infer_sagan):
        try:
            return infer(weights)
        except ValueError:
            continue  # it may be the other
    return {}


def _generators(shapes: Shapes) -> Iterator[tuple[Flags, Shapes]]:
    """Every generator as wide as the first and last of `shapes`, by its flags."""
    convolutions = [shape for shape in shapes.values() if len(shape) == 4]
    biases = [shape for key, shape in shapes.items() if key.endswith(".bias")]
    if not convolutions or not biases:
        return
    (ngf, input_nc, *_), (output_nc, *_) = convolutions[0], biases[-1]
    for netG, norm, no_dropout, upsample in itertools.product(GENERATORS, NORMS, (True, False), UPSAMPLINGS):
        widths = {"input_nc": input_nc, "output_nc": output_nc, "ngf": ngf}
        flags = {"netG": netG, **widths, "norm": norm, "no_dropout": no_dropout, "upsample": upsample}
        yield flags, _shapes(GENERATORS[netG], **widths, norm=norm, dropout=not no_dropout, upsample=upsample)


def _discriminators(shapes: Shapes) -> Iterator[tuple[Flags, Shapes]]:
    """Every discriminator as wide as the first of `shapes`, and as deep as there are convolutions."""
    convolutions = [shape for shape in shapes.values() if len(shape) == 4]
    if len(convolutions) < 3:
        return
    (ndf, input_nc, *_), n_layers = convolutions[0], len(convolutions) - 2
    for netD, norm in itertools.product(DISCRIMINATORS, NORMS):
        flags = {"netD": netD, "input_nc": input_nc, "ndf": ndf, "norm": norm}
        if netD == "n_layers":
            yield (
                flags | {"n_layers_D": n_layers},
                _shapes(DISCRIMINATORS[netD], input_nc=input_nc, ndf=ndf, norm=norm, n_layers=n_layers),
            )
        else:
            yield flags, _shapes(DISCRIMINATORS[netD], input_nc=input_nc, ndf=ndf, norm=norm)


def _sagans(shapes: Shapes) -> Iterator[tuple[Flags, Shapes]]:
    """Every network of SAGAN as wide as the first and last of `shapes`, without attention."""
    transposed, linear = shapes.get("l1.0.weight"), shapes.get("linear.1.weight")
    image = transposed or shapes.get("block1.residual.1.weight")
    for size in SIZES:
        if transposed and "last.0.weight" in shapes:
            ngf, nc = shapes["last.0.weight"][:2]
            yield _noise_generator("sagan", size, nc, {"z_dim": transposed[0], "ngf": ngf})
        if linear and "last.2.weight" in shapes:
            nc, ngf = shapes["last.2.weight"][:2]
            yield _noise_generator("sagan_resnet", size, nc, {"z_dim": linear[1], "ngf": ngf})
        for netD in IMAGE_DISCRIMINATORS:
            if image is None:
                break
            ndf, nc = image[:2]
            those = _shapes(IMAGE_DISCRIMINATORS[netD], input_nc=nc, image_size=size, ndf=ndf, attention=())
            yield {"netD": netD, "crop_size": size, "input_nc": nc, "ndf": ndf}, those


def _noise_generator(netG: str, size: int, nc: int, widths: dict[str, int]) -> tuple[Flags, Shapes]:
    shapes = _shapes(NOISE_GENERATORS[netG], output_nc=nc, image_size=size, attention=(), **widths)
    return {"netG": netG, "crop_size": size, "input_nc": nc, **widths}, shapes


@functools.cache
def _shapes(network: Callable[..., nn.Module], **keywords: Any) -> Shapes:
    """Name -> shape of the weights of a network that is built for this, without memory for them."""
    with torch.device("meta"):
        net = network(**keywords)
    return {key: tuple(weight.shape) for key, weight in net.state_dict().items()}


def _plain_shapes(weights: Mapping[str, Tensor]) -> Shapes:
    """Name -> shape, from first layer to last, as if there were neither attention nor spectral norm."""
    shapes = {
        key.replace("parametrizations.weight.original", "weight"): tuple(weight.shape)
        for key, weight in weights.items()
        if not key.startswith(("attention.", "attn")) and not key.endswith(("parametrizations.weight.0._u", ".0._v"))
    }
    return dict(sorted(shapes.items(), key=lambda item: _place(item[0])))


def _place(key: str) -> list[tuple[int, str]]:
    """Sorts model.4 before model.10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in key.split(".")]


def _extras(weights: Mapping[str, Tensor], network: str) -> Flags:
    """Attention and spectral norm, which sit beside the plain layers."""
    blocks = [key.split(".")[1] for key in weights if key.startswith("attention.") and key.endswith(".gamma")]
    normalised = any(".parametrizations.weight." in key for key in weights)
    return {f"attn_{network}": ",".join(blocks) or "none", f"spectral_norm_{network}": normalised}
