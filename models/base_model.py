"""What all models share: their networks, what a training step is given, and what pages show."""

import copy
from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from data.base_dataset import BaseDataset
from models.image_pool import ImagePool
from models.networks.attention import attention_blocks

Images = dict[str, Tensor]
Losses = dict[str, Tensor]


class Optimization(Protocol):
    """What a model needs of a `training.optimization.Optimization`."""

    def add(self, name: str, nets: Iterable[nn.Module], *, lr: float) -> None:
        """Create the optimizer `name` for the weights of `nets`."""

    def add_averages(self, model: nn.Module, *names: str) -> None:
        """Keep moving averages of the named networks as children `{name}_ema`, if the run asks for them."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""

    def backward(self, name: str, *losses: Tensor) -> None:
        """Accumulate the gradients of losses for the weights of one optimizer alone."""

    def update(self, name: str) -> None:
        """Step the optimizer `name`."""

    def end_step(self) -> None:
        """Update the averages; to call at the end of each training step."""


@dataclass(frozen=True)
class AttentionView:
    """A network whose attention pages show.

    net: with attention blocks or without.
    over: label of the image to show its attention maps over.
    inputs: from the images that `preview` returned, or `forward`, to the input of the network.
    """

    net: nn.Module
    over: str
    inputs: Callable[[Images], Tensor]

    @classmethod
    def on(cls, net: nn.Module, *labels: str) -> "AttentionView":
        """The view of a network that takes the images `labels`, joined along the channels; shown over the last one."""
        return cls(net, labels[-1], lambda images: torch.cat([images[label] for label in labels], 1))


class BaseModel(nn.Module):
    """A set of networks, and how one training step is computed.

    Every child module is a network, saved under its own name: netG_A is latest_net_G_A.pth. `__init__(opt)` builds what
    inference needs and `prepare_training(opt, optimization)` the rest. A subclass writes these two, `forward` and
    `step`.
    """

    results_title = "{A} → {B}"  # of the results page, with the names of the domains filled in
    test_dataset_mode = ""  # for test.py, where it is not the one of training
    unused_flags: tuple[str, ...] = ()  # shared flags that this model does not read; the parser refuses them
    mixes_images = False  # training mixes pixels of different images (wgangp), so they need one size

    optimization: Optimization

    def __init__(self) -> None:
        super().__init__()
        self.pools: dict[str, ImagePool] = {}

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """Add the model's own flags and defaults to the parser and return it."""
        return parser

    def add_discriminators(self, opt: Any) -> None:
        """Build the discriminators, if the model has any, on its device; testing shows their attention."""

    def prepare_training(self, opt: Any, optimization: Optimization) -> None:
        """Build discriminators and losses, and add optimizers; subclasses call this first, on the training device."""
        self.optimization = optimization

    def step(self, batch: dict) -> tuple[Losses, Images]:
        """One training step on a batch of the loader. Returns losses (scalars) and images (B, C, H, W) in [-1, 1]."""
        raise TypeError(f"{type(self).__name__} cannot be trained")

    def gammas(self) -> Losses:
        """The gamma of each attention block, to log beside the losses: gamma_G_A_block5 and so on."""
        return {
            f"gamma_{name.removeprefix('net')}_{stage}": block.gamma.detach()[0]
            for name, net in self.named_children()
            if not name.endswith("_ema")
            for stage, block in attention_blocks(net).items()
        }

    def preview(self, images: Images) -> Images:
        """The images (N, C, H, W) in [-1, 1] to show for a step that returned `images`.

        Draws no random numbers. Of several processes only rank 0 calls it.
        """
        return images

    def overview(self, dataset: BaseDataset) -> Images:
        """Figures (C, H, W) in [-1, 1] of a whole dataset for the top of the results page: caption -> figure."""
        return {}

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return next(self.parameters()).device

    def inputs(self, batch: dict, *names: str) -> list[Tensor]:
        """The named images of a batch, (B, C, H, W) in [-1, 1], on the model's device."""
        if missing := [name for name in names if name not in batch]:
            raise ValueError(
                f"{type(self).__name__} needs {', '.join(missing)} from its data: choose another --dataset_mode"
            )
        return [batch[name].to(self.device, non_blocking=True) for name in names]

    def summary(self, *, verbose: bool = False) -> str:
        """A line for each network with its number of weights; with `verbose`, its layers."""
        lines = []
        for name, net in self.named_children():
            weights = sum(parameter.numel() for parameter in net.parameters())
            lines += [f"{name}: {weights / 1e6:.3f} M weights", *([str(net)] if verbose else [])]
        return "\n".join([*lines, f"computing on {self.device}"])

    def example_input(self, name: str, size: tuple[int, int], *, batch_size: int = 1) -> Tensor:
        """A blank input for the network `name`: (batch_size, C, height, width) for images of `size` (width, height)."""
        channels = next(weight for weight in self.get_submodule(name).parameters() if weight.dim() == 4).shape[1]
        return torch.zeros(batch_size, channels, size[1], size[0])

    def check_sizes(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Raise ValueError if a network cannot take images of these (width, height).

        Only shapes are computed, and only for the sizes that `representatives` chooses.
        """
        sizes = sorted(set(sizes))
        if self.mixes_images and len(sizes) > 1:
            shown = ", ".join(f"{width}x{height}" for width, height in sizes[:3])
            raise ValueError(
                f"--gan_mode wgangp mixes real and fake images, but these have {len(sizes)} sizes: {shown}"
                f"{', ...' if len(sizes) > 3 else ''}. Use --preprocess resize_and_crop or another --gan_mode"
            )
        for name, net in self.named_children():
            shapes_only = copy.deepcopy(net).to("meta")
            advice = (
                "use --preprocess resize_and_crop; --crop_size: multiples of 4 for ResNets, of 128 or 256 for U-Nets"
            )
            if name.startswith("netD"):
                advice = "use larger ones, or fewer layers: --netD n_layers --n_layers_D 1"
            for width, height in representatives(sizes, getattr(net, "stride", 1)):
                try:
                    made = shapes_only(self.example_input(name, (width, height)).to("meta")).shape[2:]
                except (RuntimeError, ValueError) as error:
                    raise ValueError(
                        f"{name} cannot take images of {width}x{height} pixels: {advice} ({error})"
                    ) from error
                if name.startswith("netG") and made != (height, width):
                    raise ValueError(f"{name} makes {made[1]}x{made[0]} pixels of {width}x{height}: {advice}")

    def sources(self, name: str, *, reverse: bool) -> list[str]:
        """Labels of the files that may hold the weights of network `name`, best first.

        `reverse` asks for the other direction than the run was trained in; ValueError if there is none.
        """
        if reverse:
            raise ValueError(f"{type(self).__name__} translates in one direction: leave out --direction")
        return [name.removeprefix("net")]

    def attention_views(self) -> dict[str, AttentionView]:
        """The networks, as far as they are built, whose attention pages show: name there -> view."""
        return {}


def representatives(sizes: Iterable[tuple[int, int]], stride: int) -> list[tuple[int, int]]:
    """The sizes (width, height) that a network has to take so that it takes all of `sizes`.

    What a network makes of a side depends on its remainder by the network's `stride`, and otherwise a longer side is
    never worse. So it is enough to try the smallest of each remainder: by width, by height, and by the longer side,
    which matters to instance norm, as it needs more than one position.
    """
    alike: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for width, height in sorted(sizes):
        alike.setdefault((width % stride, height % stride), []).append((width, height))
    orders: list[Callable[[tuple[int, int]], int]] = [lambda size: size[0], lambda size: size[1], max]
    return list(dict.fromkeys(min(group, key=order) for group in alike.values() for order in orders))
