"""The console: lines of losses, and a progress bar."""

import logging
import time

from tqdm import tqdm

from display.events import Health, Losses, Metrics, Progress, charts
from display.sink import Sink
from display.sinks.loss_log import loss_line
from training.meter import in_words

log = logging.getLogger(__name__)

BAR = "{desc} {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} {rate_noinv_fmt}{postfix}"


class ConsoleSink(Sink):
    """Logs a line per event with losses; on a terminal, draws a progress bar per epoch below them.

    There is no bar where stderr is not a terminal: a log file gets lines without control characters.
    """

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.start_at: tuple[float, float] | None = None  # seconds and share of the run at the first step
        self.last_losses = ""

    def step(self, at: Progress) -> None:
        """Move the bar. The full bar of an epoch stays on the terminal."""
        if self.start_at is None:
            self.start_at = time.monotonic(), at.done
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
        """Log a line in upstream's format."""
        log.info("%s", loss_line(event))
        names = charts(event.values).get("losses", [])
        self.last_losses = " ".join(f"{name} {event.values[name]:.2f}" for name in names)

    def metrics(self, event: Metrics) -> None:
        """Log a line."""
        best = f"; the best {event.best} so far is kept as --epoch best" if event.is_best else ""
        position = f"(epoch: {event.epoch}, iters: {event.epoch_images})"
        log.info("%s %s; %s%s", position, in_words(event.values), event.note, best)

    def health(self, event: Health) -> None:
        """Log a warning that stands out, or that it is over."""
        if event.over:
            log.info("health: %s is over%s", event.check, f" ({event.subject})" if event.subject else "")
        else:
            log.warning("health: %s. %s %s", event.check, event.sentence, event.advice)

    def close(self) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _time_left(self, at: Progress) -> str:
        """Return the time left for the whole run, at the mean throughput since the start, with saving and showing."""
        assert self.start_at is not None
        seconds, done = self.start_at
        return tqdm.format_interval((time.monotonic() - seconds) / (at.done - done) * (1 - at.done))
