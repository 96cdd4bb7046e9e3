"""The page of a run in training: the pictures of every epoch, newest first."""

import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from util.display.sink import Progress, Sink
from util.html import CAPTIONS, SMALL, Card, write_page
from util.images import save_image


class PageSink(Sink):
    """Writes `folder`/images/epoch%03d_{label}.png and `folder`/index.html.

    The page is made anew from the images on disk, so the epochs before a run was continued stay on it.

    Args:
        folder: CKPT/NAME/web.
        name: of the run.
        names: of the domains of real_A and real_B.
        size: side of a picture in px, at most.
    """

    def __init__(self, folder: Path, name: str, *, names: tuple[str, str], size: int, images_freq: int):
        self.folder, self.name, self.names, self.size = folder, name, names, size
        self.images_freq = images_freq

    def images(self, at: Progress, images: Mapping[str, Tensor]) -> None:
        """Save the first image of each batch, in place of those shown for this epoch, and the page."""
        for label, batch in images.items():
            save_image(batch[0], self.folder / "images" / f"epoch{at.epoch:03d}_{label}.png")
        notes = {
            "run": self.name,
            "epoch": f"{at.epoch} of {at.epochs}",
            "images seen": f"{at.total_images:,}",
            "updated": time.strftime("%Y-%m-%d %H:%M"),
        }
        write_page(
            self.folder / "index.html", f"{self.name} · training", self._cards(at.epoch), notes=notes, size=self.size,
            small=all(batch.shape[-1] <= SMALL for batch in images.values()),
        )  # fmt: skip

    def end_epoch(self, at: Progress, pictures: Callable[[], Mapping[str, Tensor]]) -> None:
        """Show the epoch as it ended."""
        self.images(at, pictures())

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
