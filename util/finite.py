"""Losses that are no numbers any more, noticed before anything of them is saved."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from util import distributed


class NotFiniteError(ValueError):
    """A loss or a weight is nan or infinite."""


@contextmanager
def agreed() -> Iterator[None]:
    """Of several processes that leave this context, all raise NotFiniteError if one does."""
    here = ""
    try:
        yield
    except NotFiniteError as error:
        here = str(error)
    if distributed.largest(bool(here)):
        everywhere = [text for text in distributed.gather(here) if text]  # empty but in process 0
        raise NotFiniteError("; ".join(everywhere) or here or "something in another process is not finite")


class LossGuard:
    """Raises NotFiniteError for a step whose losses are not all finite, of several processes in all at once.

    On a CPU it does so at once. A GPU is not waited for: its losses are copied in the background and looked at in the
    next step, or by `settle`, which comes before a save.
    """

    def __init__(self) -> None:
        self.pending: tuple[list[str], Sequence[str], Tensor, torch.cuda.Event | None] | None = None

    def check(self, losses: Mapping[str, Tensor], files: Sequence[str]) -> None:
        """To call after every step, with its losses (scalars) and the files of its pictures."""
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        copied = torch.cuda.Event() if values.is_cuda else None
        current = list(losses), files, values.to("cpu", non_blocking=values.is_cuda), copied
        if copied:
            copied.record()
        self.settle()
        self.pending = current
        if not copied:
            self.settle()

    def settle(self) -> None:
        """Wait for the last losses and judge them."""
        if self.pending is None:
            return
        names, files, values, copied = self.pending
        self.pending = None
        if copied:
            copied.synchronize()
        numbers = zip(names, values.tolist(), strict=True)
        with agreed():
            if found := [f"{name} is {value}" for name, value in numbers if not math.isfinite(value)]:
                raise NotFiniteError(f"{', '.join(found)} in the step on {', '.join(files)}")
