"""A sink on a thread of its own: for a server that may be slow, absent or hanging."""

import logging
import threading
from collections.abc import Callable, Sequence

from display.event_log import EventLog, LogReader
from display.events import Event, Progress
from display.sink import Sink

log = logging.getLogger(__name__)

RETRY = 10.0  # seconds between two attempts to reach a server
GRACE = 5.0  # seconds that the end of training waits for the last events to arrive


class Stale(Exception):
    """The server does not hold what this sink has sent before: send all again."""


class Background(Sink):
    """Lets a sink show the log from a thread, so that training never waits for it.

    The log is the queue: however long the server stays away, memory does not grow and no value is lost; of pictures,
    only the newest are in the log. After a failure a new sink is made, which gets the whole log.

    Args:
        name: of the server, in messages.
        connect: makes the sink. This, and what it makes, raise ConnectionError if the server does not answer.
        hint: what to do about a server that cannot be reached.
    """

    def __init__(self, name: str, connect: Callable[[], Sink], log: EventLog, *, images_freq: int, hint: str):
        self.name, self.connect, self.log, self.hint, self.images_freq = name, connect, log, hint, images_freq
        self.news, self.closing = threading.Event(), threading.Event()
        self.reachable = True
        self.thread = threading.Thread(target=self._run, daemon=True)

    def step(self, at: Progress) -> None:
        """Start with the first step: by then the processes that load data are there, and none inherits the thread."""
        if self.thread.ident is None:
            self.news.set()
            self.thread.start()

    def show(self, events: Sequence[Event]) -> None:
        """Say that the log has more."""
        self.news.set()

    def close(self) -> None:
        """Wait a moment for the last events to arrive."""
        if self.thread.ident is None:
            return
        self.closing.set()
        self.news.set()
        self.thread.join(GRACE)
        if self.reachable and self.thread.is_alive():
            log.warning("%s did not receive everything in time; `python -m scripts.replay` sends it", self.name)

    def _run(self) -> None:
        sink: Sink | None = None
        while True:
            self.news.wait()
            self.news.clear()
            last = self.closing.is_set()
            try:
                if sink is None:
                    sink, reader = self.connect(), LogReader(self.log.path)
                sink.show(reader.read())
                self._tell(reachable=True)
            except Stale:
                sink = None
                self.news.set()
                continue
            except ConnectionError:
                sink = None
                self._tell(reachable=False)
                if not last:
                    self.closing.wait(RETRY)
                    self.news.set()
            if last:
                return

    def _tell(self, *, reachable: bool) -> None:
        if reachable != self.reachable:
            if reachable:
                log.info("%s answers, and has received what it missed", self.name)
            else:
                told = "%s does not answer; training continues, and what it misses is sent when it answers: %s"
                log.warning(told, self.name, self.hint)
            self.reachable = reachable
