"""A sink on a thread of its own: for a server that may be slow, absent or hanging."""

import logging
import threading
from collections.abc import Callable, Sequence

from display.event_log import EventLog, LogReader
from display.events import Event, Progress
from display.sink import Sink

log = logging.getLogger(__name__)

RETRY = 10.0  # seconds between two attempts to reach a server
REPLAY = "`python -m scripts.replay` sends everything again."
GRACE = 5.0  # seconds that the end of training waits for the last events to arrive


class Stale(Exception):
    """The server has lost what this sink sent before, so everything has to be sent again."""


class Background(Sink):
    """Runs a sink in a thread that reads the log, so that training never waits for it.

    The log is the queue: memory does not grow while the server is absent, and no value is lost. The log keeps only the
    newest images. After a failure a new sink gets the whole log.

    Args:
        name: name of the server in messages.
        connect: creates the sink. It and the sink raise ConnectionError if the server does not answer.
        log: log of the run.
        images_freq: images seen between two updates of images; 0 is never.
        hint: what to do about a server that cannot be reached.
    """

    def __init__(self, name: str, connect: Callable[[], Sink], log: EventLog, *, images_freq: int, hint: str):
        self.name, self.connect, self.log, self.hint, self.images_freq = name, connect, log, hint, images_freq
        self.new_events, self.closing = threading.Event(), threading.Event()
        self.reachable = True
        self.thread = threading.Thread(target=self._run, daemon=True)

    def step(self, at: Progress) -> None:
        """Start the thread at the first step: the data loader has forked its workers by then, so none inherits it."""
        if self.thread.ident is None:
            self.new_events.set()
            self.thread.start()

    def show(self, events: Sequence[Event]) -> None:
        """Tell the thread that the log has new events."""
        self.new_events.set()

    def close(self) -> None:
        """Wait up to GRACE seconds for the last events to arrive."""
        if self.thread.ident is None:
            return
        self.closing.set()
        self.new_events.set()
        self.thread.join(GRACE)
        if self.reachable and self.thread.is_alive():
            log.warning("%s did not receive everything in time. %s", self.name, REPLAY)

    def _run(self) -> None:
        sink: Sink | None = None
        while True:
            self.new_events.wait()
            self.new_events.clear()
            last = self.closing.is_set()
            try:
                if sink is None:
                    sink, reader = self.connect(), LogReader(self.log.path)
                sink.show(reader.read())
                self._report(reachable=True)
            except Stale:
                sink = None
                self.new_events.set()
                continue
            except ConnectionError:
                sink = None
                self._report(reachable=False)
                if not last:
                    self.closing.wait(RETRY)
                    self.new_events.set()
            except Exception:  # of a library or a damaged log; nobody waits for this thread, so it has to be shown here
                log.exception("%s shows nothing more. Training continues. %s", self.name, REPLAY)
                return
            if last:
                return

    def _report(self, *, reachable: bool) -> None:
        if reachable == self.reachable:
            return
        if reachable:
            log.info("%s answers and has received everything", self.name)
        else:
            log.warning(
                "%s does not answer. Training continues; the server gets everything when it answers: %s",
                self.name, self.hint,
            )  # fmt: skip
        self.reachable = reachable
