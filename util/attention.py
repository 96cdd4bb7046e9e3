"""Where attention blocks look: maps for the viewer of the pages, pictures of them, and exact maps."""

import base64
import dataclasses
import itertools
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.attention import SelfAttention2d, attention_blocks, block_inputs
from models.networks.sizes import visible_cells
from util.images import to_image

QUERIES = 16  # points asked along each side of a map, at most: with these numbers a block takes 0.2 MB on disk
KEYS = 32  # cells along each side of where they look, at most
AT_ONCE = 64  # points; an exact row of a map has as many weights as the picture has positions

SIDE = 192  # px; smaller pictures are enlarged, so that the marker is crisp
MARKER = "#35e0ff"  # the one bright hue that neither maps nor the heat colours have


@dataclass(frozen=True)
class AttentionMap:
    """Where one attention block of a network looked, in one picture or in a batch of them."""

    network: str  # G_A
    stage: str  # the block's place: block5
    over: str  # label of the picture to show it over: real_A
    gamma: float  # what the block's result is multiplied with
    cells: tuple[int, int]  # rows and columns of the feature map
    points: Sequence[tuple[int, int]]  # the cells (row, column) that were asked: an even grid, row by row
    weights: Tensor  # (..., len(points), h, w): where each looked; 1 = as much as if it looked everywhere alike
    entropy: Tensor  # (..., len(points)) in bits, of the exact weights; log2 of the cells = looks everywhere alike

    def __getitem__(self, index: int) -> "AttentionMap":
        """That of one picture of a batch."""
        return dataclasses.replace(self, weights=self.weights[index], entropy=self.entropy[index])

    def picture(self, image: Tensor) -> Image.Image:
        """The map over `image`, (C, H, W) in [-1, 1], from the point that looks most at single places."""
        sharpest = int(self.entropy.argmin())
        row, column = self.points[sharpest]
        at = (row + 0.5) / self.cells[0], (column + 0.5) / self.cells[1]
        return overlay(image, self.weights[sharpest], at)

    def viewer_data(self) -> dict[str, Any]:
        """What the viewer of a page needs of one picture's map, for JSON: weights in 8 bits of the most of each row."""
        most = self.weights.flatten(1).amax(1)
        levels = (self.weights / most.clamp(min=1e-12)[:, None, None] * 255).round().byte()
        return {
            "network": self.network,
            "stage": self.stage,
            "over": self.over,
            "gamma": self.gamma,
            "cells": self.cells,
            "queries": [min(side, QUERIES) for side in self.cells],
            "keys": list(self.weights.shape[1:]),
            "entropy": [round(bits, 3) for bits in self.entropy.tolist()],
            "most": [round(weight, 3) for weight in most.tolist()],
            "weights": base64.b64encode(zlib.compress(levels.cpu().numpy().tobytes(), 9)).decode(),
        }


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
        if any(net._compiled_call_impl for _, net in networks.values()):  # which would not call the hooks
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for name, (_, net) in networks.items():  # first of all, before what does not fit is padded
            stack.callback(net.register_forward_pre_hook(partial(keep_size, name), prepend=True).remove)
        inputs = {name: stack.enter_context(block_inputs(net)) for name, (_, net) in networks.items()}
        yield maps
    for name, (over, net) in networks.items():
        for stage, block in attention_blocks(net).items():
            x = inputs[name][stage].detach()
            cells = visible_cells(net, sizes[name], x.shape[2:])
            points = even_grid(*cells)
            weights, entropy = _look(block, x, points, cells)
            maps.append(AttentionMap(name, stage, over, block.gamma.item(), cells, points, weights, entropy))


@torch.no_grad()
def exact_maps(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Where every position of every attention block of `net` looks when it is given `x`, as the block computes it.

    Args:
        net: any network with attention, such as the generators and discriminators of models.networks.
        x: what it takes: pictures (B, C, H, W) in [-1, 1], or noise (B, z_dim).

    Returns:
        Name of the block -> (B, h, w, h, w), where [b, i, j] sums to 1: the picture of where position (i, j) looks. It
        has (h * w)^2 values: 64 x 64 positions, the middle of a ResNet generator at 256 px, take 67 MB.
    """
    with block_inputs(net) as inputs:
        net(x)
    maps = {}
    for name, block in attention_blocks(net).items():
        height, width = inputs[name].shape[2:]
        points = even_grid(height, width, most=max(height, width))
        maps[name] = block.look_from(points, inputs[name]).unflatten(1, (height, width))
    return maps


def even_grid(height: int, width: int, most: int = QUERIES) -> list[tuple[int, int]]:
    """The middle cells (row, column) of a grid over height x width cells, row by row; `most` a side at most."""
    rows, columns = (
        [int((number + 0.5) * side / min(side, most)) for number in range(min(side, most))] for side in (height, width)
    )
    return list(itertools.product(rows, columns))


@torch.no_grad()
def _look(
    block: SelfAttention2d, x: Tensor, points: Sequence[tuple[int, int]], cells: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Weights and entropy of an AttentionMap, for x of (B, C, H, W), whose first `cells` rows and columns count."""
    height, width = cells
    maps, entropies = [], []
    for start in range(0, len(points), AT_ONCE):
        weights = block.look_from(points[start : start + AT_ONCE], x).float()[..., :height, :width]
        weights = weights / weights.sum((2, 3), keepdim=True)
        entropies.append(torch.special.entr(weights).sum((2, 3)) / math.log(2))
        maps.append(F.adaptive_avg_pool2d(weights * (height * width), (min(height, KEYS), min(width, KEYS))))
    return torch.cat(maps, 1), torch.cat(entropies, 1)


def overlay(image: Tensor, weights: Tensor, at: tuple[float, float]) -> Image.Image:
    """A heat map over the picture, grey and dimmed, with a ring around the point that looks.

    Args:
        image: (C, H, W) in [-1, 1].
        weights: (h, w), not negative; the largest becomes the brightest colour.
        at: where the point is, as parts of height and width: (0, 0) is the upper left corner, (1, 1) the lower right.
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
    return _with_ring(picture, x=at[1] * size[1], y=at[0] * size[0])


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
