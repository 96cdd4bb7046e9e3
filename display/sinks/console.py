"""The console: lines of losses, and a progress bar."""

import logging
import time

from tqdm import tqdm

from display.events import Losses, Progress, charts
from display.sink import Sink
from display.sinks.loss_log import loss_line

log = logging.getLogger(__name__)

BAR = "{desc} {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} {rate_noinv_fmt}{postfix}"


class ConsoleSink(Sink):
    """Prints a line for all losses; on a terminal, draws a bar below for each epoch.

    Where stderr is not a terminal there is no bar: a log file gets lines without control characters.
    """

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.start_at: tuple[float, int] | None = None  # seconds and images at the first step
        self.last_losses = ""

    def step(self, at: Progress) -> None:
        """Move the bar; leave the full one as the epoch's line."""
        if self.start_at is None:
            self.start_at = time.monotonic(), at.images
        if self.bar is None:
            self.bar = tqdm(
                desc=f"epoch {at.epoch}/{at.epochs}", total=at.epoch_size, initial=at.epoch_images, unit=" images",
                bar_format=BAR, dynamic_ncols=True, disable=None,
            )  # fmt: skip
        else:
            self.bar.set_postfix_str(f"{self._time_left(at)} left  {self.last_losses}", refresh=False)
            self.bar.update(at.epoch_images - self.bar.n)
        if at.epoch_ended:
            self.close()

    def losses(self, event: Losses) -> None:
        """Print a line in upstream's format."""
        log.info("%s", loss_line(event))
        names = charts(event.values).get("losses", [])
        self.last_losses = " ".join(f"{name} {event.values[name]:.2f}" for name in names)

    def close(self) -> None:
        """Finish the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _time_left(self, at: Progress) -> str:
        """Of the whole run, at the mean pace since the start, which includes saving and showing."""
        assert self.start_at is not None
        seconds, images = self.start_at
        pace = (time.monotonic() - seconds) / (at.images - images)
        return tqdm.format_interval(pace * at.images_left)
