"""Ctrl-C, SIGTERM and closed terminals as requests to stop after the current step; output without a reader."""

import errno
import io
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
ONE_REQUEST = 2.0  # seconds; schedulers signal all processes of a job, and torchrun forwards its own signals too


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Inside the context, the first SIGINT, SIGTERM or SIGHUP interrupts nothing: its number is added to the list.

    A later signal has its usual effect, unless it follows so closely that it belongs to the same request. Signals that
    are ignored (by nohup) stay ignored. Only the main thread may handle signals: in another one, nothing changes.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        log.info("not in the main thread: signals do not stop this run, --max_minutes does")
        yield received
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    since = 0.0

    def receive(number: int, frame: object) -> None:
        nonlocal since
        if not received:
            since = time.monotonic()
            received.append(number)
            log.info("\n%s: finishing this step and saving", signal.Signals(number).name)
        elif time.monotonic() - since > ONE_REQUEST:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Output(io.TextIOWrapper):
    """A stream that discards output without a reader: a run outlives its terminal and a `| tee` that Ctrl-C ends."""

    @classmethod
    def like(cls, stream: io.TextIOWrapper) -> "Output":
        """Write where `stream` writes, including text that is not valid Unicode, such as some file names."""
        return cls(
            stream.buffer, encoding=stream.encoding, errors="backslashreplace",
            line_buffering=stream.line_buffering, write_through=stream.write_through,
        )  # fmt: skip

    def write(self, text: str, /) -> int:
        """Write `text`, if there is a reader."""
        with self._reader_may_be_gone():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if there is a reader."""
        with self._reader_may_be_gone():
            super().flush()

    @contextmanager
    def _reader_may_be_gone(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # at exit the interpreter flushes what is left in the stream
            os.close(nowhere)
