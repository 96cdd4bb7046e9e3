"""The numbers of a run, as its event log holds them."""

import json
from pathlib import Path


class History:
    """The curves in an events.jsonl; each `read` goes on where the last one ended.

    Attributes:
        curves: name of a number -> (images seen, values), in the order of the run.
        ends: epoch -> images seen when it was last heard of.
        last: the last event of kind losses, or an empty dict.
    """

    def __init__(self, path: Path):
        self.path = path
        self._start()

    def _start(self) -> None:
        self.offset = 0
        self.curves: dict[str, tuple[list[int], list[float]]] = {}
        self.ends: dict[int, int] = {}
        self.last: dict = {}

    def read(self) -> None:
        """Take in the events that have come, or all if the log was cut; without a log there are none."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            if file.seek(0, 2) < self.offset:
                self._start()
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # still being written
                self.offset += len(line)
                event = json.loads(line)
                if event["kind"] == "losses":
                    self._take(event)

    def _take(self, event: dict) -> None:
        self.ends[event["epoch"]] = event["images"]
        self.last = event
        for name, value in event["values"].items():
            images, values = self.curves.setdefault(name, ([], []))
            images.append(event["images"])
            values.append(value)
