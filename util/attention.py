"""Pictures of where an attention block looks."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.attention import attention_blocks, block_inputs
from models.networks.sizes import visible_cells
from util.images import grid, to_image

SIDE = 192  # px; smaller pictures are enlarged, so that the marker is crisp
MARKER = "#35e0ff"  # the one bright hue that neither maps nor the heat colours have


@dataclass(frozen=True)
class AttentionMap:
    """Where one attention block of a network looked, in one picture or in a batch of them."""

    network: str  # G_A
    stage: str  # the block's place: bottleneck
    over: str  # label of the picture to show it over: real_A
    points: Sequence[tuple[int, int]]  # cells (row, column)
    weights: Tensor  # (..., len(points), h, w): where each of the points looked


def query_points(height: int, width: int) -> list[tuple[int, int]]:
    """Four cells (row, column), at the centres of the quarters of a map; fewer where these fall together."""
    return sorted({(row * height // 4, column * width // 4) for row in (1, 3) for column in (1, 3)})


@contextmanager
def watch(networks: Mapping[str, tuple[str, nn.Module]]) -> Iterator[list[AttentionMap]]:
    """Inside, run the networks; afterwards, the list holds where all their blocks looked in the first run of each.

    Args:
        networks: name -> (label of the picture to show its maps over, network).
    """
    maps: list[AttentionMap] = []
    sizes: dict[str, torch.Size] = {}

    def keep_size(name: str, _net: nn.Module, args: tuple[Tensor, ...]) -> None:
        sizes.setdefault(name, args[0].shape[2:])

    with ExitStack() as stack:
        for name, (_, net) in networks.items():  # first of all, before what does not fit is padded
            stack.callback(net.register_forward_pre_hook(partial(keep_size, name), prepend=True).remove)
        inputs = {name: stack.enter_context(block_inputs(net)) for name, (_, net) in networks.items()}
        yield maps
    for name, (over, net) in networks.items():
        for stage, block in attention_blocks(net).items():
            x = inputs[name][stage]
            height, width = visible_cells(net, sizes[name], x.shape[2:])
            points = query_points(height, width)
            weights = block.look_from(points, x)[..., :height, :width]
            maps.append(AttentionMap(name, stage, over, points, weights))


def overlays(image: Tensor, attention: AttentionMap) -> Tensor:
    """The overlays of all points of a map of one picture, (C, H, W) in [-1, 1], in a square: (3, H', W') in [-1, 1]."""
    from torchvision.transforms.v2 import functional as TF  # slow to import

    pictures = [
        TF.pil_to_tensor(overlay(image, weights, point)) / 127.5 - 1
        for point, weights in zip(attention.points, attention.weights, strict=True)
    ]
    return grid(torch.stack(pictures))


def overlay(image: Tensor, weights: Tensor, point: tuple[int, int]) -> Image.Image:
    """A heat map over the picture, grey and dimmed, with a ring around the point that looks.

    Args:
        image: (C, H, W) in [-1, 1].
        weights: (h, w), not negative; the largest becomes the brightest colour.
        point: the cell (row, column) of `weights` that looks.
    """
    from torchvision.transforms.v2 import functional as TF  # slow to import, and --help does without

    height, width = image.shape[1:]
    enlarge = max(1, math.ceil(SIDE / min(height, width)))
    size = (height * enlarge, width * enlarge)
    weights = weights.detach().cpu().float()[None, None]
    heat = F.interpolate(weights / weights.max().clamp(min=1e-12), size, mode="bicubic").clamp(0, 1)[0, 0]
    grey = ImageOps.autocontrast(to_image(image).convert("L").resize(size[::-1], Image.Resampling.BICUBIC))
    dimmed = TF.pil_to_tensor(grey) / 255 * 0.6
    opacity = 0.85 * heat
    picture = TF.to_pil_image(dimmed * (1 - opacity) + heat_colours(0.85 * heat) * opacity)
    row, column = ((cell + 0.5) / cells for cell, cells in zip(point, weights.shape[2:], strict=True))
    return _with_ring(picture, x=column * size[1], y=row * size[0])


def heat_colours(values: Tensor) -> Tensor:
    """Colours (3, H, W) in [0, 1], whose brightness grows evenly with `values`, (H, W) in [0, 1]: black, red, white.

    The cubehelix of Green 2011, A colour scheme for the display of astronomical intensity images,
    https://arxiv.org/abs/1108.5083, here with start 0, half a rotation and hue 1.8.
    """
    angle, amplitude = math.pi * values, 1.8 * values * (1 - values) / 2
    directions = torch.tensor([[-0.14861, 1.78277], [-0.29227, -0.90649], [1.97294, 0.0]])
    helix = torch.einsum("cd,dhw->chw", directions, torch.stack([angle.cos(), angle.sin()]))
    return (values + amplitude * helix).clamp(0, 1)


def _with_ring(picture: Image.Image, *, x: float, y: float) -> Image.Image:
    """Draw at four times the size and shrink, since Pillow's lines are not smooth."""
    large = 4
    mask = Image.new("L", (picture.width * large, picture.height * large))
    unit = min(picture.size) / 64
    for colour, radius, line in (("black", 3.9 * unit, 2.6 * unit), (MARKER, 3.5 * unit, 1.6 * unit)):
        mask.paste(0, (0, 0, *mask.size))
        box = [(centre + side * radius) * large for side in (-1, 1) for centre in (x, y)]
        ImageDraw.Draw(mask).ellipse(box, outline=255, width=round(line * large))
        picture.paste(colour, mask=mask.resize(picture.size, Image.Resampling.BOX))
    return picture
