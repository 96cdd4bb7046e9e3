"""The page of a run in training: the pictures of every epoch, newest first."""

import re
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from util.display.events import Event, Images
from util.display.sink import Sink
from util.html import CAPTIONS, SMALL, Card, write_page


class PageSink(Sink):
    """Writes `folder`/index.html with the pictures epoch%03d_{label}.png that the log has left in `folder`/images.

    The page is made anew from the images on disk, so the epochs before a run was continued stay on it.

    Args:
        folder: CKPT/NAME/web.
        name: of the run.
        names: of the domains of real_A and real_B.
        size: side of a picture in px, at most.
    """

    epoch_images = True

    def __init__(self, folder: Path, name: str, *, names: tuple[str, str], size: int, images_freq: int):
        self.folder, self.name, self.names, self.size = folder, name, names, size
        self.images_freq = images_freq

    def show(self, events: Sequence[Event]) -> None:
        """Write the page once for all pictures."""
        super().show([event for event in events if isinstance(event, Images)][-1:])

    def images(self, event: Images) -> None:
        """Write the page."""
        notes = {
            "run": self.name,
            "epoch": f"{event.epoch} of {event.epochs}",
            "images seen": f"{event.images:,}",
            "updated": time.strftime("%Y-%m-%d %H:%M"),
        }
        small = all(_width(self.folder.parent / file) <= SMALL for file in event.pictures.values())
        write_page(
            self.folder / "index.html", f"{self.name} · training", self._cards(event.epoch), notes=notes,
            size=self.size, small=small,
        )  # fmt: skip

    def _cards(self, last_epoch: int) -> list[Card]:
        """One for each epoch on disk. Later epochs than this one are left over from an earlier run of this name."""
        order = {label: place for place, label in enumerate(CAPTIONS)}
        files: dict[int, list[tuple[int, str]]] = defaultdict(list)
        for path in (self.folder / "images").iterdir():
            match = re.fullmatch(r"epoch(\d+)_(.+)\.png", path.name)
            if match and int(match[1]) <= last_epoch:
                files[int(match[1])].append((order.get(match[2], len(order)), match[2]))
        cards = []
        for epoch in sorted(files, reverse=True):
            card = Card(f"epoch {epoch}")
            for _, label in sorted(files[epoch]):
                card.add(label, f"images/epoch{epoch:03d}_{label}.png", self.names)
            cards.append(card)
        return cards


def _width(path: Path) -> int:
    with Image.open(path) as image:
        return image.width
