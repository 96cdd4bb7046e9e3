"""The curves of a run, read from its log."""

from pathlib import Path

from display.event_log import LogReader
from display.events import Losses, Metrics


class History:
    """The curves in the log at `path`; each `read` adds the new events.

    Attributes:
        curves: name of a value -> (images seen, values), in the order of the run.
        metrics: the same for the figures of --metrics.
        note: by which features and on what the last ones were measured.
        ends: epoch -> images seen at its last event.
    """

    def __init__(self, path: Path):
        self.log = LogReader(path)
        self.curves: dict[str, tuple[list[int], list[float]]] = {}
        self.metrics: dict[str, tuple[list[int], list[float]]] = {}
        self.note = ""
        self.ends: dict[int, int] = {}

    def read(self) -> None:
        """Add the events since the last call; a missing log has none."""
        for event in self.log.read():
            match event:
                case Losses():
                    self.ends[event.epoch] = event.images
                    curves = self.curves
                case Metrics():
                    self.note, curves = event.note, self.metrics
                case _:
                    continue
            for name, value in event.values.items():
                images, values = curves.setdefault(name, ([], []))
                images.append(event.images)
                values.append(value)
