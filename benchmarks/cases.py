"""What is measured: each case makes a step, which the worker times."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import plain
from models import create_model
from models.compiling import compile_networks
from models.networks.attention import attend
from options.train_options import TrainOptions
from util.device import keep_freed_memory


@dataclass
class Case:
    """A step, and how many items (pictures) it works on."""

    step: Callable[[], object]
    items: int = 1
    prepare: Callable[[], object] = lambda: None  # after the first step, whose operations are counted


def plain_cycle_gan(*, size: int, blocks: int) -> Case:
    """The step of CycleGAN in plain PyTorch, one picture of each domain."""
    return Case(plain.cycle_gan_step(size, 64, blocks, 1))


def plain_sagan(*, batch: int) -> Case:
    """The step of SAGAN in plain PyTorch, at 64 px."""
    return Case(plain.sagan_step(batch), items=batch)


def training(*, model: str, size: int, batch: int = 1, flags: Sequence[str] = (), compiled: bool = False) -> Case:
    """A step of train.py with these flags, on random pictures."""
    keep_freed_memory()
    opt = TrainOptions().parse(["--model", model, *flags])
    net = create_model(opt)
    net.prepare_training(opt)
    images = {side: torch.rand(batch, 3, size, size) * 2 - 1 for side in "AB"}
    prepare = (lambda: compile_networks(net, steps=1_000_000, sizes=1)) if compiled else lambda: None
    return Case(lambda: net.step(images), items=batch, prepare=prepare)


def plain_attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention by two matrix products."""
    return torch.bmm(torch.softmax(torch.bmm(query, key.transpose(1, 2)), dim=-1), value)


def attention(*, positions: int, channels: int, ours: bool) -> Case:
    """Attention alone, forward and backward, in float32."""
    if ours:
        keep_freed_memory()
    query, key = (torch.randn(1, positions, channels // 8, requires_grad=True) for _ in "qk")
    value = torch.randn(1, positions, channels, requires_grad=True)
    function = attend if ours else plain_attend
    return Case(lambda: function(query, key, value).sum().backward())


def convolution(*, precision: str) -> Case:
    """One large convolution, the measure of what the machine can do: 256 channels, 64 x 64 positions, four pictures."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    x = torch.randn(4, 256, 66, 66, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return Case(lambda: F.conv2d(x, weight))


CASES: dict[str, Callable[..., Case]] = {
    function.__name__: function for function in (plain_cycle_gan, plain_sagan, training, attention, convolution)
}
