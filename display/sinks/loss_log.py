"""loss_log.txt, in upstream's format."""

import re
from datetime import datetime
from pathlib import Path

from display.event_log import FILE, LogReader
from display.events import Losses, Progress, Start, charts
from display.sink import Sink
from util.files import atomic

POSITION = re.compile(r"\(epoch: (\d+), iters: (\d+),")


class LossLogSink(Sink):
    """Appends a header per start of training, and a line per event with losses."""

    def __init__(self, path: Path):
        self.path = path

    def start(self, event: Start) -> None:
        """Write the header. A resumed run first removes the lines from after its position."""
        if event.resumed:
            self.truncate(event)
        self._append(header(event))

    def losses(self, event: Losses) -> None:
        """Write a line."""
        self._append(loss_line(event))

    def truncate(self, after: Progress) -> None:
        """Remove lines from after a position, and one that was half written when the run was killed.

        Lines of an earlier run of this name stay: they stand above the header of the first start in the log.
        """
        if not self.path.exists():  # the user may have moved it
            return
        lines = self.path.read_text(encoding="utf-8", errors="surrogateescape").splitlines(keepends=True)
        first = next((event for event in LogReader(self.path.with_name(FILE)).read() if isinstance(event, Start)), None)
        headers = [number for number, line in enumerate(lines) if first and line == f"{header(first)}\n"]
        own = headers[-1] if headers else 0
        kept = lines[:own] + [line for line in lines[own:] if line.endswith("\n") and not _is_after(line, after)]
        with atomic(self.path) as path:
            path.write_text("".join(kept), encoding="utf-8", errors="surrogateescape")

    def _append(self, line: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def header(event: Start) -> str:
    """Return the line above the losses since a start."""
    return f"================ Training Loss ({datetime.fromisoformat(event.time):%c}) ================"


def loss_line(event: Losses) -> str:
    """Return a line with losses and gammas."""
    position = f"epoch: {event.epoch}, iters: {event.epoch_images}"
    line = f"({position}, time: {event.step_seconds:.3f}, data: {event.data_seconds:.3f})"
    shown = charts(event.values)
    names = shown.get("losses", []) + shown.get("gammas", [])
    return " ".join([line, *(f"{name}: {event.values[name]:.3f}" for name in names)])


def _is_after(line: str, position: Progress) -> bool:
    match = POSITION.match(line)
    return match is not None and (int(match[1]), int(match[2])) > (position.epoch, position.epoch_images)
