"""The console: a progress bar for each epoch, and lines of losses, which loss_log.txt keeps."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tqdm import tqdm

from util.display.sink import Progress, Sink

BAR = "{desc} {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} {rate_noinv_fmt}{postfix}"


class ConsoleSink(Sink):
    """Prints a line of losses every `losses_freq` images and appends it to `log`; on a terminal, draws a bar below.

    Where stderr is not a terminal there is no bar: a log file gets lines without control characters.
    """

    def __init__(self, log: Path, *, losses_freq: int):
        self.losses_freq = losses_freq
        self.log = log
        self.bar: tqdm | None = None
        self.start: tuple[float, int] | None = None  # seconds and images at the first step
        self.last_losses = ""
        self._append(f"================ Training Loss ({time.strftime('%c')}) ================")

    def step(self, at: Progress) -> None:
        """Move the bar."""
        if self.start is None:
            self.start = time.monotonic(), at.total_images
        if self.bar is None:
            self.bar = tqdm(
                desc=f"epoch {at.epoch}/{at.epochs}", total=at.epoch_size, initial=at.epoch_images, unit=" images",
                bar_format=BAR, dynamic_ncols=True, disable=None,
            )  # fmt: skip
        else:
            self.bar.set_postfix_str(f"{self._time_left(at)} left  {self.last_losses}", refresh=False)
            self.bar.update(at.epoch_images - self.bar.n)

    def losses(self, at: Progress, losses: Mapping[str, float]) -> None:
        """Print and log a line in upstream's format."""
        where = f"epoch: {at.epoch}, iters: {at.epoch_images}"
        line = f"({where}, time: {at.step_seconds:.3f}, data: {at.data_seconds:.3f})"
        line = " ".join([line, *(f"{name}: {value:.3f}" for name, value in losses.items())])
        tqdm.write(line)
        self._append(line)
        self.last_losses = " ".join(f"{name} {value:.2f}" for name, value in losses.items())

    def end_epoch(self, at: Progress, pictures: Callable) -> None:
        """Leave the full bar as the epoch's line."""
        self.close()

    def close(self) -> None:
        """Finish the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _time_left(self, at: Progress) -> str:
        """Of the whole run, at the mean pace since the start, which includes saving and showing."""
        assert self.start is not None
        seconds, images = self.start
        pace = (time.monotonic() - seconds) / (at.total_images - images)
        return tqdm.format_interval(pace * at.images_left)

    def _append(self, line: str) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
