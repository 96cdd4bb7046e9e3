"""Attention maps for people: data for the viewer of the pages, and figures."""

import base64
import dataclasses
import itertools
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F

from models.base_model import AttentionView, BaseModel
from models.networks.any_size import AnySize, visible_cells
from models.networks.attention import SelfAttention2d, attention_blocks, block_inputs
from models.networks.layers import evaluating
from util.device import autocast
from util.images import to_image

MAX_QUERIES = 16  # query positions per side: with these two limits a block takes 0.2 MB on disk
MAX_KEYS = 32  # cells of a map per side
CHUNK = 64  # query positions per computation; the full map of one has as many weights as the feature map has positions

MIN_SIDE = 192  # px; smaller images are upsampled, so that the marker is crisp
MARKER = "#35e0ff"  # the one bright hue that neither gray images nor the heat colors have


@dataclass(frozen=True)
class AttentionMap:
    """The attention of one block of a network from a grid of query positions, for one image or a batch.

    Attributes:
        network: name of the network, such as G_A.
        stage: stage of the network that has the block, such as block5.
        over: label of the image to show the map over, such as real_A.
        gamma: factor of the block's output.
        cells: rows and columns of the feature map.
        positions: query positions (row, column), an even grid, row by row.
        weights: attention weights (..., len(positions), h, w); 1 is uniform attention.
        entropy: entropy (..., len(positions)) of the exact weights in bits; log2 of the cells is uniform attention.
    """

    network: str
    stage: str
    over: str
    gamma: float
    cells: tuple[int, int]
    positions: Sequence[tuple[int, int]]
    weights: Tensor
    entropy: Tensor

    def __getitem__(self, index: int) -> "AttentionMap":
        """Return the maps of one image of a batch."""
        return dataclasses.replace(self, weights=self.weights[index], entropy=self.entropy[index])

    @property
    def uniformity(self) -> float:
        """The mean entropy as a fraction of that of uniform attention."""
        return self.entropy.mean().item() / math.log2(self.cells[0] * self.cells[1])

    def figure(self, image: Tensor) -> Image.Image:
        """Draw the map of the query position with the lowest entropy over `image`, (C, H, W) in [-1, 1]."""
        sharpest = int(self.entropy.argmin())
        row, column = self.positions[sharpest]
        position = (row + 0.5) / self.cells[0], (column + 0.5) / self.cells[1]
        return overlay(image, self.weights[sharpest], position)

    def viewer_data(self) -> dict[str, Any]:
        """Return the maps of one image for the viewer, ready for JSON: weights in 8 bits, relative to each maximum."""
        maxima = self.weights.flatten(1).amax(1)
        levels = (self.weights / maxima.clamp(min=1e-12)[:, None, None] * 255).round().byte()
        return {
            "network": self.network,
            "stage": self.stage,
            "over": self.over,
            "gamma": self.gamma,
            "cells": self.cells,
            "queries": [min(side, MAX_QUERIES) for side in self.cells],
            "keys": list(self.weights.shape[1:]),
            "entropy": [round(bits, 3) for bits in self.entropy.tolist()],
            "most": [round(weight, 3) for weight in maxima.tolist()],
            "weights": base64.b64encode(zlib.compress(levels.cpu().numpy().tobytes(), 9)).decode(),
        }


class AttentionRecorder:
    """Records the inputs of attention blocks during forward passes, and computes the attention maps.

    A context manager: run the networks inside it, then call `maps`.

    Args:
        views: name -> network, and the image to show its maps over.
    """

    def __init__(self, views: Mapping[str, AttentionView]):
        self.views = views
        self.sizes: dict[str, torch.Size] = {}  # of the input of each network, in its first forward pass
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
        """Run the networks that have not run yet on `images`, (B, C, H, W) in [-1, 1]."""
        for name, view in self.views.items():
            if name not in self.sizes:
                view.net(view.inputs(dict(images)))

    def maps(self) -> list[AttentionMap]:
        """Return the attention maps of all blocks in the first forward pass of each network."""
        maps = []
        for name, view in self.views.items():
            for stage, block in attention_blocks(view.net).items():
                x = self.inputs[name][stage].detach().to(block.gamma.dtype)  # autocast may have made it half precision
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
    """Compute the attention maps of a model's networks for the first of `images`, as a batch of one.

    The networks run in eval mode and return to their modes. The random state and buffers do not change.

    Args:
        images: (B, C, H, W) in [-1, 1], as `model.preview` returns them.
        precision: fp32, bf16 or fp16.
    """
    with evaluating(model):
        with autocast(model.device, precision), AttentionRecorder(model.attention_views()) as recorder:
            recorder.run_missing({label: image[:1] for label, image in images.items()})
        return recorder.maps()


def even_grid(height: int, width: int, maximum: int = MAX_QUERIES) -> list[tuple[int, int]]:
    """Return an even grid of cells (row, column) of height x width cells, row by row; `maximum` limits each side."""
    rows, columns = (
        [int((number + 0.5) * side / min(side, maximum)) for number in range(min(side, maximum))]
        for side in (height, width)
    )
    return list(itertools.product(rows, columns))


@torch.no_grad()
def _grid_maps(
    block: SelfAttention2d, x: Tensor, positions: Sequence[tuple[int, int]], cells: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Compute the weights and entropy of an AttentionMap.

    Args:
        x: input of the block, (B, C, H, W).
        cells: rows and columns of x that the map covers, from the upper left; the rest is padding.
    """
    height, width = cells
    maps, entropies = [], []
    for start in range(0, len(positions), CHUNK):
        weights = block.maps(x, positions[start : start + CHUNK]).float()[..., :height, :width]
        weights = weights / weights.sum((2, 3), keepdim=True)
        entropies.append(torch.special.entr(weights).sum((2, 3)) / math.log(2))
        size = min(height, MAX_KEYS), min(width, MAX_KEYS)
        maps.append(F.adaptive_avg_pool2d(weights * (height * width), size))
    return torch.cat(maps, 1), torch.cat(entropies, 1)


def overlay(image: Tensor, weights: Tensor, position: tuple[float, float]) -> Image.Image:
    """Draw a heat map over a gray, dimmed image, with a ring at the query position.

    Args:
        image: (C, H, W) in [-1, 1].
        weights: (h, w), non-negative; the maximum gets the brightest color.
        position: query position as fractions of height and width: (0, 0) is the upper left corner, (1, 1) the lower
            right.
    """
    from torchvision.transforms.v2 import functional as TF  # slow to import, and --help does without

    height, width = image.shape[1:]
    scale = max(1, math.ceil(MIN_SIDE / min(height, width)))
    size = (height * scale, width * scale)
    weights = weights.detach().cpu().float()[None, None]
    heat = F.interpolate(weights / weights.max().clamp(min=1e-12), size, mode="bicubic").clamp(0, 1)[0, 0]
    gray = ImageOps.autocontrast(to_image(image).convert("L").resize(size[::-1], Image.Resampling.BICUBIC))
    dimmed = TF.pil_to_tensor(gray) / 255 * 0.6
    opacity = 0.85 * heat
    figure = TF.to_pil_image(dimmed * (1 - opacity) + heat_colors(0.85 * heat) * opacity)
    return _with_ring(figure, x=position[1] * size[1], y=position[0] * size[0])


def heat_colors(values: Tensor) -> Tensor:
    """Map `values`, (H, W) in [0, 1], to colors (3, H, W) in [0, 1] of evenly growing brightness: black, red, white.

    Reference:
        Cubehelix of Green 2011, A colour scheme for the display of astronomical intensity images,
        https://arxiv.org/abs/1108.5083, with start 0, half a rotation and hue 1.8.
    """
    angle, amplitude = math.pi * values, 1.8 * values * (1 - values) / 2
    directions = torch.tensor([[-0.14861, 1.78277], [-0.29227, -0.90649], [1.97294, 0.0]])
    helix = torch.einsum("cd,dhw->chw", directions, torch.stack([angle.cos(), angle.sin()]))
    return (values + amplitude * helix).clamp(0, 1)


def _with_ring(image: Image.Image, *, x: float, y: float) -> Image.Image:
    """Draw a ring on `image` in place. It is drawn at four times the size, since Pillow's lines are not smooth."""
    scale = 4
    mask = Image.new("L", (image.width * scale, image.height * scale))
    unit = min(image.size) / 64
    for color, radius, line in (("black", 3.9 * unit, 2.6 * unit), (MARKER, 3.5 * unit, 1.6 * unit)):
        mask.paste(0, (0, 0, *mask.size))
        box = [(center + side * radius) * scale for side in (-1, 1) for center in (x, y)]
        ImageDraw.Draw(mask).ellipse(box, outline=255, width=round(line * scale))
        image.paste(color, mask=mask.resize(image.size, Image.Resampling.BOX))
    return image


def attention_label(block: AttentionMap) -> str:
    """Return the label of the figure of a generator's attention block."""
    return f"attention_{block.network}_{block.stage}"


def save_attention(path: Path, maps: Iterable[AttentionMap]) -> None:
    """Write the maps of one image as a script for the viewer: a page on disk may load scripts, but no data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"attention({as_script([block.viewer_data() for block in maps])});\n", encoding="ascii")


def as_script(data: Any) -> str:
    """Return `data` as a JavaScript expression without tags, whatever the names in it: nothing ends a script early."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
