"""What a display is told about a run, and what it may do with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Progress:
    """Where a run stands, counted in images."""

    epoch: int  # this one, 1-based, of
    epochs: int
    epoch_images: int  # seen in this epoch, of
    epoch_size: int
    total_images: int  # since the start of the run
    batch_size: int  # of the last step
    step_seconds: float  # computing, per image of the last step
    data_seconds: float  # waiting for data, per image of the last step

    @property
    def images_left(self) -> int:
        """Images until the end of the last epoch."""
        return (self.epochs - self.epoch + 1) * self.epoch_size - self.epoch_images


class Sink:
    """Somewhere to show a run. A subclass overrides what it has a use for.

    `losses_freq` and `images_freq` are the images between two calls of `losses` and of `images`; 0 = never.
    """

    losses_freq = 0
    images_freq = 0

    def step(self, at: Progress) -> None:
        """Called after every step, so it has to be quick."""

    def losses(self, at: Progress, losses: Mapping[str, float]) -> None:
        """Show losses."""

    def images(self, at: Progress, images: Mapping[str, Tensor]) -> None:
        """Show images (N, C, H, W) in [-1, 1]; the first of each batch is enough."""

    def end_epoch(self, at: Progress, pictures: Callable[[], Mapping[str, Tensor]]) -> None:
        """Called after the last step of an epoch, with what makes its pictures."""

    def close(self) -> None:
        """Called once, when training ends or stops."""
