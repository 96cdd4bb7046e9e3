"""The base class of models, and the interfaces between models, their optimization and the pages."""

import copy
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from data.base_dataset import BaseDataset
from models.feature_queue import FeatureQueue
from models.image_pool import ImagePool
from models.networks.attention import SelfAttention2d, attention_blocks
from util import distributed
from util.errors import RemediedError

Images = dict[str, Tensor]
Losses = dict[str, Tensor]


class Optimization(Protocol):
    """The part of `training.optimization.Optimization` that models call.

    Attributes:
        updates: training steps so far, those before the run was resumed included.
        progress: of the run in the current step, in [0, 1].
    """

    updates: int
    progress: float

    def add(self, name: str, nets: Iterable[nn.Module], *, lr: float) -> None:
        """Create the optimizer `name` for the weights of `nets`, with the initial learning rate `lr`."""

    def add_averages(self, model: nn.Module, *names: str) -> None:
        """Keep moving averages of the named networks as children `{name}_ema`, if the run has a decay for them."""

    def autocast(self) -> AbstractContextManager[Any]:
        """A context for forward passes in the precision of the run."""

    def backward(self, name: str, *losses: Tensor, share: float = 1.0) -> None:
        """Accumulate the gradients of losses (scalars) of a micro-batch for the weights of one optimizer only."""

    def update(self, name: str) -> None:
        """Step the optimizer `name` with the accumulated gradients."""

    def end_step(self) -> None:
        """Update the averages. A model calls it at the end of each training step."""


@dataclass(frozen=True)
class MicroBatch:
    """Some images of a batch, for passes that fit into memory (gradient accumulation).

    Attributes:
        batch: as the data loader returns it.
        share: of these images in the whole batch.
    """

    batch: dict
    share: float


@dataclass(frozen=True)
class AttentionView:
    """A network whose attention maps appear on pages.

    Attributes:
        net: the network, with or without attention blocks.
        over: label of the image under its attention maps.
        inputs: returns the input of the network, given the images that `preview` or `forward` returned.
    """

    net: nn.Module
    over: str
    inputs: Callable[[Images], Tensor]

    @classmethod
    def on(cls, net: nn.Module, *labels: str) -> "AttentionView":
        """The view of a network whose input is the images `labels`, concatenated by channel; the last one is shown."""
        return cls(net, labels[-1], lambda images: torch.cat([images[label] for label in labels], 1))


@dataclass(frozen=True)
class GeneratorView:
    """A generator as the checks of `training.health` see it: by labels of the images that `step` returned.

    Attributes:
        fake: the images that it made.
        real: real images of the same domain; for paired data, the truth of `fake`.
        source: the images that it translated, if these and `fake` show the same kind of values, else "".
        paired: whether `real` is the truth.
        score: images, and the label of those to score -> the logits of the discriminator; None without one.
        back: the generator that translates `fake` back; None without one.
    """

    fake: str
    real: str
    source: str = ""
    paired: bool = False
    score: Callable[[Images, str], Tensor] | None = None
    back: nn.Module | None = None


class BaseModel(nn.Module):
    """A set of networks with a training step.

    Each child module is a network, and its name is the name of its file: netG_A is saved as latest_net_G_A.pth. A
    subclass defines four methods. `__init__(opt)` builds the networks for inference, `prepare_training(opt,
    optimization)` builds the rest, `forward` runs inference and `step` a training step.

    Attributes:
        results_title: title of the results page, a format string of the names of domains A and B.
        test_dataset_mode: the default --dataset_mode of test.py, if it is not the one of training.
        unused_flags: shared flags that the model does not read. The parser refuses them.
        optimization: set by `prepare_training`.
        pools: the image pools, by name. Checkpoints contain them.
        queues: the feature queues of discriminators with a batch head, by name. Checkpoints contain them.
        one_size_reason: why all images of training need one size, as the start of a message; empty if they do not.
    """

    results_title = "{A} → {B}"
    test_dataset_mode = ""
    unused_flags: tuple[str, ...] = ()
    one_size_reason = ""

    optimization: Optimization
    micro_batch_size: int | None = None  # if --accumulate splits batches

    def __init__(self) -> None:
        super().__init__()
        self.pools: dict[str, ImagePool] = {}
        self.queues: dict[str, FeatureQueue] = {}
        self._attention: dict[str, SelfAttention2d] | None = None  # by the name of its gamma

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """Add the flags and defaults of the model to the parser and return it."""
        return parser

    def add_discriminators(self, opt: Any) -> None:
        """Build the discriminators, if the model has any, on its device. test.py shows their attention."""

    def prepare_training(self, opt: Any, optimization: Optimization) -> None:
        """Build discriminators and losses and add optimizers. The model is on its device; subclasses call super first.

        Raises:
            ValueError: flags do not suit the model.
        """
        # The number of batches in the last step depends on a process's own images, and each is a round of all_reduces.
        if opt.accumulate > 1 and opt.norm == "syncbatch" and distributed.world_size() > 1:
            raise ValueError(
                f"--accumulate {opt.accumulate} and --norm syncbatch do not work together in several processes: "
                "use --norm instance or batch, or --accumulate 1"
            )
        self.optimization = optimization
        self.micro_batch_size = opt.batch_size if opt.accumulate > 1 else None

    def micro_batches(self, batch: dict) -> list[MicroBatch]:
        """Split a batch of the data loader into those that --accumulate asks for; one by default.

        A step passes the share of each to `optimization.backward`, so that the gradients are those of the batch.
        """
        if self.micro_batch_size is None:
            return [MicroBatch(batch, 1.0)]
        total, size = len(next(iter(batch.values()))), self.micro_batch_size
        slices = [slice(first, min(first + size, total)) for first in range(0, total, size)]
        return [
            MicroBatch({name: values[each] for name, values in batch.items()}, (each.stop - each.start) / total)
            for each in slices
        ]

    def step(self, batch: dict) -> tuple[Losses, Images]:
        """Run a training step on a batch of the data loader.

        Returns:
            The losses (scalars) and the images (B, C, H, W) in [-1, 1] to show, by label, all detached.
        """
        raise TypeError(f"{type(self).__name__} cannot be trained")

    def gammas(self) -> Losses:
        """The gamma of each attention block, to log with the losses, by names such as gamma_G_A_block5."""
        if self._attention is None:  # looking for them takes as long as a small kernel for each layer
            self._attention = {
                f"gamma_{name.removeprefix('net')}_{stage}": block
                for name, net in self.named_children()
                if not name.endswith("_ema")
                for stage, block in attention_blocks(net).items()
            }
        return {name: block.gamma.detach()[0] for name, block in self._attention.items()}

    def preview(self, images: Images) -> Images:
        """Turn the images that `step` returned into those to show: (N, C, H, W) in [-1, 1], by label.

        Only rank 0 calls it, so it must not draw random numbers.
        """
        return images

    def measured(self, batch: dict, *, cycle: bool) -> Images:
        """Images (B, C, H, W) in [-1, 1] for metrics: fake_B, and real_A, real_B, rec_A if the model has them.

        The networks are in eval mode, and no gradients are recorded.

        Args:
            batch: of the data loader, and under "index" the numbers of its samples.
            cycle: whether rec_A is asked for.
        """
        return self(batch)

    def overview(self, dataset: BaseDataset) -> Images:
        """Figures of a whole dataset for the top of the results page: caption -> (C, H, W) in [-1, 1]."""
        return {}

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return next(self.parameters()).device

    def inputs(self, batch: dict, *names: str) -> list[Tensor]:
        """The named tensors of a batch, such as images (B, C, H, W) in [-1, 1], on the device of the model.

        Raises:
            ValueError: the batch lacks one of them.
        """
        if missing := [name for name in names if name not in batch]:
            raise ValueError(f"this model needs {', '.join(missing)} in each sample: choose another --dataset_mode")
        return [batch[name].to(self.device, non_blocking=True) for name in names]

    def summary(self, *, verbose: bool = False) -> str:
        """A text with the number of weights of each network and, with `verbose`, its layers."""
        lines = []
        for name, net in self.named_children():
            weights = sum(parameter.numel() for parameter in net.parameters())
            lines += [f"{name}: {weights / 1e6:.3f} M weights", *([str(net)] if verbose else [])]
        return "\n".join([*lines, f"computing on {self.device}"])

    def example_input(self, name: str, size: tuple[int, int], *, batch_size: int = 1) -> Tensor | None:
        """A blank input for the network `name`: (batch_size, C, height, width), where `size` is (width, height).

        None for a network that takes neither images nor noise, such as the heads of cut.
        """
        net = self.get_submodule(name)
        first = next(weight for weight in net.parameters() if weight.dim() == 4)
        channels = getattr(net, "input_nc", first.shape[1])
        return torch.zeros(batch_size, channels, size[1], size[0])

    def check_sizes(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Check that the networks accept images of these sizes (width, height).

        The networks run on the meta device, which computes shapes only, and only on `representative_sizes`.

        Raises:
            ValueError: a network does not accept a size, or training needs images of one size.
        """
        sizes = sorted(set(sizes))
        if self.one_size_reason and len(sizes) > 1:
            shown = ", ".join(f"{width}x{height}" for width, height in sizes[:3])
            raise RemediedError(
                f"{self.one_size_reason}, which have {len(sizes)} sizes here: {shown}"
                f"{', ...' if len(sizes) > 3 else ''}. It needs images of one size.",
                remedy={"preprocess": "resize_and_crop"},
            )
        for name, net in self.named_children():
            meta_net = copy.deepcopy(net).to("meta")
            advice = (
                "use --preprocess resize_and_crop; --crop_size: multiples of 4 for ResNets, of 128 or 256 for U-Nets"
            )
            if name.startswith(("netD", "netP")):
                advice = "use larger ones, or fewer layers: --netD n_layers --n_layers_D 1"
            for width, height in representative_sizes(sizes, getattr(net, "stride", 1)):
                if (example := self.example_input(name, (width, height))) is None:
                    break
                try:
                    made = meta_net(example.to("meta")).shape[2:]
                    if 0 in made:  # an error of its own since torch 2.7
                        raise ValueError("no pixel is left")
                except (RuntimeError, ValueError) as error:
                    raise ValueError(
                        f"{name} cannot take images of {width}x{height} pixels: {advice} ({error})"
                    ) from error
                if name.startswith("netG") and made != (height, width):
                    raise ValueError(f"{name} makes {made[1]}x{made[0]} pixels of {width}x{height}: {advice}")

    def sources(self, name: str, *, reverse: bool) -> list[str]:
        """Labels of the files that may contain the weights of network `name`, best first.

        Args:
            name: of a child module, such as netG_A.
            reverse: the requested direction is not the one of training.

        Raises:
            ValueError: the model has one direction only.
        """
        if reverse:
            raise ValueError("this model translates in one direction only, that of its training: omit --direction")
        return [name.removeprefix("net")]

    def attention_views(self) -> dict[str, AttentionView]:
        """Views of the networks built so far whose attention maps appear on pages, by the name shown there."""
        return {}

    def generator_views(self) -> dict[str, GeneratorView]:
        """Views of the generators in training, by name, such as G_A, for the checks of `training.health`."""
        return {}


def average_losses(losses: Sequence[tuple[float, Losses]]) -> Losses:
    """The losses of a batch from those of its micro-batches, as (share, losses)."""
    (_, first), *others = losses
    if not others:
        return first
    return {name: torch.stack([each[name].detach() * share for share, each in losses]).sum() for name in first}


def representative_sizes(sizes: Iterable[tuple[int, int]], stride: int) -> list[tuple[int, int]]:
    """Choose the sizes (width, height) that a network has to accept so that it accepts all of `sizes`.

    Whether a network accepts a size depends on the remainders of the sides modulo its stride. Among equal remainders, a
    network that accepts a size accepts larger ones. So the smallest size of each class decides: by width, by height,
    and by the longer side, since instance norm fails for a feature map of a single position.
    """
    alike: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for width, height in sorted(sizes):
        alike.setdefault((width % stride, height % stride), []).append((width, height))
    orders: list[Callable[[tuple[int, int]], int]] = [lambda size: size[0], lambda size: size[1], max]
    return list(dict.fromkeys(min(group, key=order) for group in alike.values() for order in orders))
