"""The numbers of a run, as its log holds them."""

from pathlib import Path

from display.event_log import LogReader
from display.events import Losses


class History:
    """The curves in the log at `path`; each `read` goes on where the last one ended.

    Attributes:
        curves: name of a number -> (images seen, values), in the order of the run.
        ends: epoch -> images seen when it was last heard of.
    """

    def __init__(self, path: Path):
        self.log = LogReader(path)
        self.curves: dict[str, tuple[list[int], list[float]]] = {}
        self.ends: dict[int, int] = {}

    def read(self) -> None:
        """Take in the events that have come; without a log there are none."""
        for event in self.log.read():
            if isinstance(event, Losses):
                self.ends[event.epoch] = event.images
                for name, value in event.values.items():
                    images, values = self.curves.setdefault(name, ([], []))
                    images.append(event.images)
                    values.append(value)
