"""Detect losses and weights that are not finite, before they are saved."""

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
    """Raise a NotFiniteError that one process raises in this context in all processes."""
    here = ""
    try:
        yield
    except NotFiniteError as error:
        here = str(error)
    if distributed.all_reduce_max(bool(here)):
        everywhere = [text for text in distributed.gather(here) if text]  # empty but on rank 0
        raise NotFiniteError("; ".join(everywhere) or here or "losses or weights in another process are not finite")


class LossGuard:
    """Raises NotFiniteError in all processes if a loss is not finite.

    Losses on a CPU are checked at once. Losses on a GPU are copied asynchronously and checked in the next step, or by
    `settle` before a checkpoint, so a step does not wait for the GPU.
    """

    def __init__(self) -> None:
        self.pending: tuple[list[str], Sequence[str], Tensor, torch.cuda.Event | None] | None = None

    def check(self, losses: Mapping[str, Tensor], files: Sequence[str]) -> None:
        """Check the losses (scalars) of a step; on a GPU, those of the step before.

        Args:
            losses: name -> loss.
            files: the images of the step, for the message.

        Raises:
            NotFiniteError: a loss is NaN or infinite.
        """
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        on_cpu = values.to("cpu", non_blocking=values.is_cuda)
        # The stream of the losses' device, which may not be the current device.
        copied = torch.cuda.current_stream(values.device).record_event() if values.is_cuda else None
        self.settle()
        self.pending = list(losses), files, on_cpu, copied
        if copied is None:
            self.settle()

    def settle(self) -> None:
        """Wait for the losses of the last step and check them.

        Raises:
            NotFiniteError: a loss is NaN or infinite.
        """
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
