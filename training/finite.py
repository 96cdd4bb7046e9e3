"""Non-finite losses and weights, found before any of them is saved."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from util import distributed


class NotFiniteError(ValueError):
    """A loss or a weight is NaN or infinite."""


@contextmanager
def all_or_none() -> Iterator[None]:
    """If a NotFiniteError leaves this context in one process, it leaves it in all of them."""
    here = ""
    try:
        yield
    except NotFiniteError as error:
        here = str(error)
    if distributed.all_reduce_max(bool(here)):
        everywhere = [text for text in distributed.gather(here) if text]  # empty but on rank 0
        raise NotFiniteError("; ".join(everywhere) or here or "something in another process is not finite")


class LossGuard:
    """Raises NotFiniteError, in all processes at once, for a step whose losses are not all finite.

    On a CPU it does so at once. A GPU is not waited for: its losses are copied asynchronously and checked in the next
    step, or by `settle`, which comes before a checkpoint.
    """

    def __init__(self) -> None:
        self.pending: tuple[list[str], Sequence[str], Tensor, torch.cuda.Event | None] | None = None

    def check(self, losses: Mapping[str, Tensor], files: Sequence[str]) -> None:
        """Call it after every step, with its losses (scalars) and the files of its images."""
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        on_cpu = values.to("cpu", non_blocking=values.is_cuda)
        # on the stream of the losses' device, which need not be the current one
        copied = torch.cuda.current_stream(values.device).record_event() if values.is_cuda else None
        self.settle()
        self.pending = list(losses), files, on_cpu, copied
        if copied is None:
            self.settle()

    def settle(self) -> None:
        """Wait for the last losses and check them."""
        if self.pending is None:
            return
        names, files, values, copied = self.pending
        self.pending = None
        if copied is not None:
            copied.synchronize()
        numbers = zip(names, values.tolist(), strict=True)
        with all_or_none():
            if found := [f"{name} is {value}" for name, value in numbers if not math.isfinite(value)]:
                raise NotFiniteError(f"{', '.join(found)} in the step on {', '.join(files)}")
