"""Shared by several test files: models in training, batches, and the comparison of steps."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import create_model
from models.base_model import BaseModel
from options.train_options import TrainOptions
from training.optimization import create_optimization

TINY = ["--netG", "resnet_6blocks", "--ngf", "8", "--ndf", "8", "--crop_size", "32", "--load_size", "32"]

PATIENCE = 300.0  # seconds until a process that hangs fails a test; no test depends on speed

# The machine may have fewer cores than a test has workers.
more_workers_than_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes")


def build_training_model(opt: Any) -> BaseModel:
    """A model prepared for training from parsed options, with weights from --seed."""
    torch.manual_seed(opt.seed)
    model = create_model(opt)
    model.prepare_training(opt, create_optimization(opt, model.device))
    return model


def training_model(*flags: str) -> BaseModel:
    """A model prepared for training with tiny networks for 32x32 pixels and these flags."""
    return build_training_model(TrainOptions().parse([*TINY, *flags]))


def random_batch(size: int = 1) -> dict[str, Tensor]:
    """Images A and B, (size, 3, 32, 32) in [-1, 1], the same in each call."""
    generator = torch.Generator().manual_seed(7)
    return {side: torch.rand(size, 3, 32, 32, generator=generator) * 2 - 1 for side in "AB"}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Create floating-point tensors, such as weights and noise, in `dtype` inside this context."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def gradients(nets: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The gradients of each network as a float64 vector. All weights need to have one."""
    vectors = {}
    for name, net in nets.items():
        grads = [weight.grad for weight in net.parameters()]
        vectors[name] = torch.cat([grad.detach().double().flatten() for grad in grads if grad is not None])
        assert len(vectors[name]) == sum(weight.numel() for weight in net.parameters()), f"{name} lacks gradients"
    return vectors


Step = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]  # losses, and gradients as `gradients` returns them


def assert_as_exact(made: Sequence[Step], plain: Sequence[Step], exact: Sequence[Step]) -> None:
    """Assert that float32 steps `made` are as close to float64 steps `exact` as `plain` float32 steps are.

    The tolerance is 10 times the error of `plain`, which depends on the kernels of the processor. For gradients the
    median of the steps counts, since a gradient changes as a whole if rounding moves an activation across 0.
    """
    for kind, distance, summary in (("losses", loss_error, max), ("gradients", gradient_error, statistics.median)):
        by_made, by_plain = (
            summary(distance(step, other) for step, other in zip(steps, exact, strict=True)) for steps in (made, plain)
        )
        assert 0 < by_plain < 1e-3, kind
        assert by_made < 10 * by_plain, kind


def loss_error(step: Step, exact: Step) -> float:
    """The largest relative error among the losses."""
    assert step[0].keys() == exact[0].keys()
    return max(abs(step[0][name].item() / loss.item() - 1) for name, loss in exact[0].items())


def gradient_error(step: Step, exact: Step) -> float:
    """The largest relative error among the gradients of the networks."""
    return max(((step[1][name] - vector).norm() / vector.norm()).item() for name, vector in exact[1].items())


def all_tensors(content) -> list[torch.Tensor]:
    """Every tensor and number in nested dicts and lists, in order."""
    if isinstance(content, dict):
        return [tensor for key in content for tensor in all_tensors(content[key])]
    if isinstance(content, list | tuple):
        return [tensor for value in content for tensor in all_tensors(value)]
    return [torch.as_tensor(content)] if isinstance(content, torch.Tensor | int | float) else []


def assert_equal_checkpoints(first: Path, second: Path) -> None:
    """All latest_*.pth of two runs are bit-identical; only their flags may differ."""
    names = sorted(path.name for path in first.glob("latest_*.pth"))
    assert names == sorted(path.name for path in second.glob("latest_*.pth"))
    for name in names:
        contents = [torch.load(run / name, weights_only=True) for run in (first, second)]
        a, b = (all_tensors({key: content[key] for key in content if key != "options"}) for content in contents)
        assert len(a) == len(b)
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True)), name
