"""The log of a run, CKPT/NAME/events.jsonl and its images: the one source of everything that is shown."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from display.attention_maps import AttentionMap, save_attention
from display.events import Event, Images, Progress, from_json, to_json
from util.files import atomic
from util.images import save_image

FILE = "events.jsonl"
IMAGES = "web/images"


class EventLog:
    """Writes the log of the run in the folder `run_dir`."""

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self.path = run_dir / FILE

    def write(self, event: Event) -> None:
        """Append an event."""
        with self.path.open("a", encoding="ascii") as file:
            file.write(to_json(event) + "\n")

    def save_images(self, at: Progress, images: Mapping[str, Tensor]) -> dict[str, str]:
        """Write the first image of each batch, in place of those of this epoch.

        Args:
            images: label -> (B, C, H, W) in [-1, 1].

        Returns:
            label -> file, relative to the folder of the run.
        """
        files = {label: f"{IMAGES}/epoch{at.epoch:03d}_{label}.png" for label in images}
        for label, batch in images.items():
            with atomic(self.run_dir / files[label]) as path:  # a sink may be reading the last one
                save_image(batch[0], path)
        return files

    def save_attention(self, at: Progress, maps: Sequence[AttentionMap]) -> str:
        """Write attention maps for the viewer as a script. Returns its path, or "" if there are no maps."""
        file = f"{IMAGES}/epoch{at.epoch:03d}_attention.js"
        if not maps:
            (self.run_dir / file).unlink(missing_ok=True)  # of an earlier run of this name
            return ""
        save_attention(self.run_dir / file, maps)
        return file

    def start_over(self) -> None:
        """Rename the log of an earlier run of this name, and remove its images."""
        if self.path.exists():
            self.path.replace(self.path.with_name("events.old.jsonl"))
        for pattern in ("epoch[0-9]*_*.png", "epoch[0-9]*_attention.js"):
            for path in (self.run_dir / IMAGES).glob(pattern):
                path.unlink()

    def truncate(self, after: Progress) -> float:
        """Remove events after a position with their images: a run that resumes there creates them again.

        A line that was half written when the run was killed is removed too.

        Returns:
            The seconds of training up to the position.
        """
        position = after.epoch, after.epoch_images
        events = LogReader(self.path).read()
        kept = [event for event in events if (event.epoch, event.epoch_images) <= position]
        text = "".join(f"{to_json(event)}\n" for event in kept)
        with atomic(self.path) as path:
            path.write_text(text, encoding="ascii")
        for file in _files(events) - _files(kept):
            (self.run_dir / IMAGES / Path(file).name).unlink(missing_ok=True)  # nothing elsewhere, whatever it says
        return max((event.seconds for event in kept), default=0.0)


class LogReader:
    """Reads a log while it grows."""

    def __init__(self, path: Path):
        self.path, self.offset = path, 0

    def read(self) -> list[Event]:
        """Return the events since the last call. An unfinished last line is left for the next call.

        Raises:
            ValueError: a line is damaged.
        """
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self.offset)
            lines = file.read()
        lines = lines[: lines.rfind(b"\n") + 1]
        self.offset += len(lines)
        try:
            return [from_json(line) for line in lines.splitlines()]
        except ValueError as error:
            raise ValueError(f"{self.path} is damaged: {error}. Remove the line.") from error


def _files(events: list[Event]) -> set[str]:
    """Return the files of images and attention maps that events name."""
    shown = [event for event in events if isinstance(event, Images)]
    return {file for event in shown for file in (*event.files.values(), event.attention) if file}
