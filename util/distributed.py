"""Several processes that train one model, started by torchrun; without torchrun there is one, and nothing here acts."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

# A process that is killed closes its connections, which the others notice at once. This is for one that is stuck, or a
# machine that is gone: longer than process 0 may take to save on a slow disk while the others wait for it.
TIMEOUT = timedelta(minutes=10)

T = TypeVar("T")


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
    """What to type before the name of a script to start as many processes as there are."""
    if world_size() == 1:
        return "python"
    machines = f"--nnodes={world_size() // local_world_size()} " if world_size() > local_world_size() else ""
    return f"torchrun {machines}--nproc_per_node={local_world_size()}"


def setup(device: torch.device) -> None:
    """Wait for all processes and connect them: tensors on GPUs by nccl, others by gloo.

    What process 0 has done before, the others see.

    Raises:
        ConnectionError: they do not come together.
        ValueError: the processes cannot work on such a device.
    """
    if world_size() == 1:
        return
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"several processes cannot share the device {device}: use --device cpu, or one process")
    with _together():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)


def setup_alone() -> None:
    """Let this process try what is meant for all: sums over them are its own."""
    if world_size() > 1:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]


def shutdown() -> None:
    """Take leave of the other processes, once all is done."""
    if dist.is_initialized():
        dist.destroy_process_group()


def broadcast(model: nn.Module) -> None:
    """Give all processes the weights and buffers of process 0."""
    if world_size() > 1:
        with _together():
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)


def all_reduce(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor, in place, by its sum over all processes: the same bits in all of them."""
    if world_size() > 1:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _together():
            dist.all_reduce(flat)
        sums = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(list(tensors), [part.view_as(to) for part, to in zip(sums, tensors, strict=True)])


def average(values: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The mean of each scalar over all processes, weighed by their shares, which add up to 1."""
    together = torch.stack([value.detach().float() for value in values.values()]) * share
    all_reduce([together])
    return dict(zip(values, together.unbind(), strict=True))


def all_reduce_max(value: int) -> int:
    """The largest of the numbers that the processes give."""
    if world_size() == 1:
        return value
    number = torch.tensor(value)
    with _together():
        dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number)


def gather(value: T) -> list[T]:
    """The values of all processes, by rank, in process 0; an empty list in the others. Tensors should be on the CPU."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with _together():
        dist.gather_object(value, values if is_main() else None)
    return values if is_main() else []


def _from_torchrun(variable: str, otherwise: int) -> int:
    # other programs, such as schedulers of clusters, set variables of the same names with other meanings
    return int(os.environ[variable]) if dist.is_torchelastic_launched() else otherwise


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConnectionError(f"another process has ended, or does not answer ({reason})") from error
