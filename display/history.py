"""The curves of a run, read from its log."""

from pathlib import Path

from display.event_log import LogReader
from display.events import Losses


class History:
    """The curves in the log at `path`; each `read` adds the new events.

    Attributes:
        curves: name of a value -> (images seen, values), in the order of the run.
        ends: epoch -> images seen at its last event.
    """

    def __init__(self, path: Path):
        self.log = LogReader(path)
        self.curves: dict[str, tuple[list[int], list[float]]] = {}
        self.ends: dict[int, int] = {}

    def read(self) -> None:
        """Add the events since the last call; a missing log has none."""
        for event in self.log.read():
            if isinstance(event, Losses):
                self.ends[event.epoch] = event.images
                for name, value in event.values.items():
                    images, values = self.curves.setdefault(name, ([], []))
                    images.append(event.images)
                    values.append(value)
