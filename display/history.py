"""The curves of a run and the findings about its health, read from its log."""

from dataclasses import dataclass
from pathlib import Path

from display.event_log import LogReader
from display.events import Health, Losses, Metrics


@dataclass
class Episode:
    """A finding about the health of a run: its first event, and the one that ends it, if it is over."""

    begin: Health
    end: Health | None = None


class History:
    """The curves and findings in the log at `path`; each `read` adds the new events.

    Attributes:
        curves: name of a value -> (images seen, values), in the order of the run.
        metrics: the same for the figures of --metrics.
        note: by which features and on what the last ones were measured.
        ends: epoch -> images seen at its last event.
        findings: about the health of the run, in the order of their beginning.
    """

    def __init__(self, path: Path):
        self.log = LogReader(path)
        self.curves: dict[str, tuple[list[int], list[float]]] = {}
        self.metrics: dict[str, tuple[list[int], list[float]]] = {}
        self.note = ""
        self.ends: dict[int, int] = {}
        self.findings: list[Episode] = []

    @property
    def ongoing(self) -> list[Episode]:
        """The findings that are not over."""
        return [finding for finding in self.findings if finding.end is None]

    def read(self) -> None:
        """Add the events since the last call; a missing log has none."""
        for event in self.log.read():
            match event:
                case Losses():
                    self.ends[event.epoch] = event.images
                    add_values(self.curves, event)
                case Metrics():
                    self.note = event.note
                    add_values(self.metrics, event)
                case Health() if event.over:
                    self._end(event)
                case Health():
                    self.findings.append(Episode(event))

    def _end(self, event: Health) -> None:
        for finding in self.ongoing:
            if (finding.begin.check, finding.begin.subject) == (event.check, event.subject):
                finding.end = event


def add_values(curves: dict[str, tuple[list[int], list[float]]], event: Losses | Metrics) -> None:
    """Add the values of an event to the curves of their names."""
    for name, value in event.values.items():
        images, values = curves.setdefault(name, ([], []))
        images.append(event.images)
        values.append(value)
