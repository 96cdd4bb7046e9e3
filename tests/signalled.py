"""train.py, to which a signal comes as soon as it prints a line: python -m tests.signalled self SIGTERM LINE FLAGS.

So a signal meets the same step on a machine of any speed.
"""

import io
import os
import signal
import sys
import time
from typing import TextIO

import train
from util.command import run_command

TARGETS = {"self": os.getpid, "group": lambda: 0, "parent": os.getppid}


class Tripwire(io.TextIOBase):
    """Passes on what is written, and sends `number` to a process once a text begins with `line`."""

    def __init__(self, stream: TextIO, line: str, pid: int, number: int):
        self.stream, self.line, self.pid, self.number = stream, line, pid, number
        self.sent = False

    def write(self, text: str, /) -> int:
        """Write, then signal; what is signalled sees the text first."""
        self.stream.write(text)
        self.stream.flush()
        if text.startswith(self.line) and not self.sent:
            self.sent = True
            send_and_wait(self.pid, self.number)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self.stream.flush()


def send_and_wait(pid: int, number: int) -> None:
    """Send a signal and return when it has arrived: a parent takes a while to pass it on."""
    received = []
    handler = signal.getsignal(number)
    if callable(handler):
        signal.signal(number, lambda *arguments: received.append(handler(*arguments)))
    os.kill(pid, number)
    while not received:
        time.sleep(0.001)
    signal.signal(number, handler)


def main() -> int:
    """Train with the flags that follow the first three arguments. Returns the exit status."""
    target, name, line, *flags = sys.argv[1:]
    sys.stdout = Tripwire(sys.stdout, line, TARGETS[target](), signal.Signals[name])
    return run_command(lambda: train.main(flags))


if __name__ == "__main__":
    sys.exit(main())
