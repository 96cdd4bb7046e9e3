"""Attention maps for people: data for the viewer of the pages, and figures."""

import base64
import dataclasses
import itertools
import math
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F

from models.base_model import AttentionView, BaseModel
from models.networks.any_size import AnySize, visible_cells
from models.networks.attention import SelfAttention2d, attention_blocks, block_inputs
from util.device import autocast
from util.images import to_image

QUERIES = 16  # query positions along each side, at most: with these numbers a block takes 0.2 MB on disk
KEYS = 32  # cells along each side of a map, at most
AT_ONCE = 64  # query positions; the full map of one has as many weights as the feature map has positions

SIDE = 192  # px; smaller images are enlarged, so that the marker is crisp
MARKER = "#35e0ff"  # the one bright hue that neither maps nor the heat colors have


@dataclass(frozen=True)
class AttentionMap:
    """The attention of one block of a network from a grid of query positions, for one image or a batch of them."""

    network: str  # G_A
    stage: str  # of the block: block5
    over: str  # label of the image to show it over: real_A
    gamma: float  # factor of the block's result
    cells: tuple[int, int]  # rows and columns of the feature map
    positions: Sequence[tuple[int, int]]  # query positions (row, column): an even grid, row by row
    weights: Tensor  # (..., len(positions), h, w): attention weights; 1 = uniform attention
    entropy: Tensor  # (..., len(positions)) in bits, of the exact weights; log2 of the cells = uniform attention

    def __getitem__(self, index: int) -> "AttentionMap":
        """The maps of one image of a batch."""
        return dataclasses.replace(self, weights=self.weights[index], entropy=self.entropy[index])

    def figure(self, image: Tensor) -> Image.Image:
        """The map over `image`, (C, H, W) in [-1, 1], of the query position with the most concentrated attention."""
        sharpest = int(self.entropy.argmin())
        row, column = self.positions[sharpest]
        at = (row + 0.5) / self.cells[0], (column + 0.5) / self.cells[1]
        return overlay(image, self.weights[sharpest], at)

    def viewer_data(self) -> dict[str, Any]:
        """What the viewer of a page needs of one image's maps, for JSON: weights in 8 bits of each map's maximum."""
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


class Watch:
    """Records the inputs of the attention blocks of networks while these run, and computes their maps.

    A context manager: networks run inside it, `maps` is called afterwards.

    Args:
        views: name -> network, and the image to show its maps over.
    """

    def __init__(self, views: Mapping[str, AttentionView]):
        self.views = views
        self.sizes: dict[str, torch.Size] = {}  # of the input of each network, in its first run
        self.inputs: dict[str, dict[str, Tensor]] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for name, view in self.views.items():
                self.inputs[name] = stack.enter_context(block_inputs(view.net))
                stack.callback(view.net.register_forward_pre_hook(partial(self._keep_size, name)).remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def run_missing(self, images: Mapping[str, Tensor]) -> None:
        """Run the networks that have not run yet, on images (B, C, H, W) in [-1, 1]."""
        for name, view in self.views.items():
            if name not in self.sizes:
                view.net(view.inputs(dict(images)))

    def maps(self) -> list[AttentionMap]:
        """The attention maps of all blocks in the first run of each network."""
        maps = []
        for name, view in self.views.items():
            for stage, block in attention_blocks(view.net).items():
                x = self.inputs[name][stage].detach().to(block.gamma.dtype)  # it may be from an autocast context
                net = view.net.net if isinstance(view.net, AnySize) else view.net
                cells = visible_cells(net, self.sizes[name], x.shape[2:])
                positions = even_grid(*cells)
                weights, entropy = _grid_maps(block, x, positions, cells)
                maps.append(
                    AttentionMap(name, stage, view.over, block.gamma.item(), cells, positions, weights, entropy)
                )
        return maps

    def _keep_size(self, name: str, _net: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.sizes.setdefault(name, args[0].shape[2:])


@torch.no_grad()
def attention_of(model: BaseModel, images: Mapping[str, Tensor], precision: str = "fp32") -> list[AttentionMap]:
    """The attention maps of a model's networks on the first of `images`, as batches of one.

    The networks run in eval mode: no random number is drawn and no state changes.

    Args:
        images: (B, C, H, W) in [-1, 1], as `model.preview` returned them.
        precision: fp32, bf16 or fp16.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        with autocast(model.device, precision), Watch(model.eval().attention_views()) as watch:
            watch.run_missing({label: image[:1] for label, image in images.items()})
        return watch.maps()
    finally:
        for module, training in modes.items():
            module.training = training


def even_grid(height: int, width: int, most: int = QUERIES) -> list[tuple[int, int]]:
    """The middle cells (row, column) of a grid over height x width cells, row by row; `most` a side at most."""
    rows, columns = (
        [int((number + 0.5) * side / min(side, most)) for number in range(min(side, most))] for side in (height, width)
    )
    return list(itertools.product(rows, columns))


@torch.no_grad()
def _grid_maps(
    block: SelfAttention2d, x: Tensor, positions: Sequence[tuple[int, int]], cells: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Weights and entropy of an AttentionMap, for x of (B, C, H, W), whose first `cells` rows and columns count."""
    height, width = cells
    maps, entropies = [], []
    for start in range(0, len(positions), AT_ONCE):
        weights = block.maps(x, positions[start : start + AT_ONCE]).float()[..., :height, :width]
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
