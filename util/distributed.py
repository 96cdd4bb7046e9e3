"""Distributed training in processes started by torchrun. Without torchrun, world_size is 1 and nothing communicates."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.torch_version import TorchVersion

# The others notice at once when a process is killed, since its connections close. The timeout is for a process that
# hangs or a machine that is gone. It has to be longer than rank 0 takes to write a checkpoint to a slow disk.
TIMEOUT = timedelta(minutes=10)

# Errors of this process, not of others. The second is of a kernel, and new in PyTorch 2.8.
OWN_ERRORS = (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))

T = TypeVar("T")
N = TypeVar("N", int, float)


def world_size() -> int:
    """The number of processes, on all machines."""
    return _from_torchrun("WORLD_SIZE", 1)


def rank() -> int:
    """The number of this process, from 0."""
    return _from_torchrun("RANK", 0)


def local_world_size() -> int:
    """The number of processes on this machine."""
    return _from_torchrun("LOCAL_WORLD_SIZE", 1)


def local_rank() -> int:
    """The number of this process among those on its machine, from 0."""
    return _from_torchrun("LOCAL_RANK", 0)


def is_main() -> bool:
    """Whether this process is the one that prints and writes files."""
    return rank() == 0


def launcher() -> str:
    """The command that starts a script in as many processes: python, or torchrun with its flags."""
    if world_size() == 1:
        return "python"
    machines = f"--nnodes={world_size() // local_world_size()} " if world_size() > local_world_size() else ""
    return f"torchrun {machines}--nproc_per_node={local_world_size()}"


def setup(device: torch.device) -> None:
    """Wait for all processes and connect them: nccl for tensors on GPUs, gloo for tensors on CPUs.

    All processes see the files that rank 0 has written before.

    Raises:
        ConnectionError: the processes do not find each other.
        ValueError: the device does not support several processes.
    """
    if world_size() == 1:
        return
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {device} does not support several processes: use the CPU, or one process")
    with _connected():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)


def setup_alone() -> None:
    """Start a group of this process alone, so that a dry run can take a training step."""
    if world_size() > 1:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]


def shutdown() -> None:
    """Leave the process group."""
    if not dist.is_initialized():
        return
    backend = None
    if TorchVersion(torch.__version__) < "2.8":
        # destroy_process_group holds the GIL while it joins gloo's threads, and these may wait for the GIL to free a
        # tensor: a deadlock (https://github.com/pytorch/pytorch/pull/154976). Deleting the backend, which ends the
        # threads, releases the GIL.
        assert dist.group.WORLD is not None
        backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    dist.destroy_process_group()
    del backend


def broadcast(model: nn.Module) -> None:
    """Copy the weights and buffers of rank 0 to all processes."""
    if world_size() > 1:
        with _connected():
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)


def all_reduce(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor, in place, by its sum over all processes, bit-identical in all of them."""
    if world_size() > 1:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _connected():
            dist.all_reduce(flat)
        sums = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(list(tensors), [part.view_as(to) for part, to in zip(sums, tensors, strict=True)])


def average(values: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The mean of each scalar over all processes, weighted by their shares, whose sum is 1."""
    scaled = torch.stack([value.detach().float() for value in values.values()]) * share
    all_reduce([scaled])
    return dict(zip(values, scaled.unbind(), strict=True))


def all_reduce_max(value: N) -> N:
    """The maximum of `value` over all processes."""
    if world_size() == 1:
        return value
    number = torch.tensor(value, dtype=torch.float64)
    with _connected():
        dist.all_reduce(number, dist.ReduceOp.MAX)
    return type(value)(number.item())


def gather(value: T) -> list[T]:
    """The values of all processes, by rank, on rank 0; an empty list elsewhere. Tensors should be on the CPU."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with _connected():
        dist.gather_object(value, values if is_main() else None)
    return values if is_main() else []


def _from_torchrun(variable: str, otherwise: int) -> int:
    # cluster schedulers set variables of the same names with other meanings
    return int(os.environ[variable]) if dist.is_torchelastic_launched() else otherwise


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except OWN_ERRORS:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConnectionError(f"another process has ended or does not answer ({reason})") from error
