"""The page of a run in training: how far it is, its curves, and the pictures of every epoch in a time line."""

import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from dominate import tags as h
from torch import Tensor
from tqdm import tqdm

from util.attention import AttentionMap
from util.display.charts import add_charts
from util.display.history import History
from util.display.sink import Progress, Sink
from util.images import save_image
from util.page import (
    CAPTIONS,
    SMALL,
    Card,
    add_cards,
    add_groups,
    add_header,
    add_notes,
    finish_page,
    new_page,
    save_attention,
)

Attention = Callable[[dict[str, Tensor]], list[AttentionMap]]

REFRESH = 30  # seconds between two looks of an open page at its file


class Template(h.html_tag):
    """What a script fills in, for epochs with other pictures than the last one; dominate has no tag for it."""

    tagname = "template"


class PageSink(Sink):
    """Writes `folder`/images/epoch%03d_{label}.png, epoch%03d_attention.js and `folder`/index.html.

    The page is made anew from the files on disk and from events.jsonl beside `folder`: epochs and curves from before
    the run was continued stay on it.

    Args:
        folder: CKPT/NAME/web.
        name: of the run.
        names: of the domains of real_A and real_B.
        size: side of a picture in px, at most.
        attention: images, batches as in `Sink.images` -> where networks look in the first of them.
        options: flag -> value, to list.
        command: what continues the run.
    """

    def __init__(
        self, folder: Path, name: str, *, names: tuple[str, str], size: int, images_freq: int,
        attention: Attention = lambda images: [], options: Mapping[str, object] = MappingProxyType({}),
        command: str = "",
    ):  # fmt: skip
        self.folder, self.name, self.names, self.size = folder, name, names, size
        self.images_freq = images_freq
        self.attention, self.options, self.command = attention, dict(options), command
        self.history = History(folder.parent / "events.jsonl")
        self.at: Progress | None = None
        self.small = False

    def images(self, at: Progress, images: Mapping[str, Tensor]) -> None:
        """Save the first of each batch, in place of those shown for this epoch, where attention looks, and the page."""
        for label, batch in images.items():
            save_image(batch[0], self.folder / "images" / f"epoch{at.epoch:03d}_{label}.png")
        script = self.folder / "images" / f"epoch{at.epoch:03d}_attention.js"
        script.unlink(missing_ok=True)  # of an earlier run of this name
        if maps := self.attention(dict(images)):
            save_attention(script, [block[0] for block in maps])
        self.at, self.small = at, all(batch.shape[-1] <= SMALL for batch in images.values())
        self.write(at, running=True)

    def end_epoch(self, at: Progress, pictures: Callable[[], Mapping[str, Tensor]]) -> None:
        """Show the epoch as it ended."""
        self.images(at, pictures())

    def close(self) -> None:
        """Write the page for the last time: from now on it stays as it is."""
        if self.at is not None:
            self.write(self.at, running=False)

    def write(self, at: Progress, *, running: bool) -> None:
        """Write index.html; while the run is `running`, an open page looks for a new one every REFRESH seconds."""
        self.history.read()
        cards = self._cards(at.epoch)
        kinds = list(dict.fromkeys(_kind(card) for card in cards))
        page = new_page(f"{self.name} · training")
        if running:
            page.head.add(h.noscript(h.meta(http_equiv="refresh", content=str(REFRESH))))
        done = 1 - at.images_left / (at.epochs * at.epoch_size)
        with page.body:
            add_header(f"{self.name} · training", f"epoch {at.epoch} of {at.epochs}")
            h.progress(value=f"{done:.4f}", max=1, aria_label=f"{done:.0%} done")
            add_notes(self._notes(at, done, running=running))
            if self.history.curves:
                add_charts(self.history.curves)
            _add_time_line(len(cards))
            add_cards(cards[-1:], size=self.size, small=self.small)
            for kind in kinds:
                with Template(cls="kind"):
                    add_groups(next(card for card in cards if _kind(card) == kind))
            _add_about(self.command, self.options)
        epochs = [[int(card.title.split()[1]), kinds.index(_kind(card)), int(bool(card.attention))] for card in cards]
        data = {"epochs": epochs, "ends": self.history.ends, "refresh": REFRESH if running else 0}
        finish_page(page, self.folder / "index.html", script=Path(__file__).with_name("training.js"), data=data)

    def _notes(self, at: Progress, done: float, *, running: bool) -> dict[str, str]:
        """Facts and figures for the top of the page."""
        values, seconds = self.history.last.get("values", {}), self.history.last.get("seconds", 0)
        notes = {"run": self.name, "images seen": f"{at.total_images:,}"}
        if seconds and done:
            notes["time so far"] = tqdm.format_interval(seconds)
        if seconds and done and running:
            notes["time left"] = tqdm.format_interval(seconds / done * (1 - done))
        for name, text in (("images_per_second", "{:.3g}"), ("peak_memory_mb", "{:,.0f} MB")):
            if name in values:
                notes[name.removesuffix("_mb").replace("_", " ")] = text.format(values[name])
        return notes | {"updated" if running else "ended": time.strftime("%Y-%m-%d %H:%M")}

    def _cards(self, last_epoch: int) -> list[Card]:
        """One for each epoch on disk. Later epochs than this one are left over from an earlier run of this name."""
        order = {label: place for place, label in enumerate(CAPTIONS)}
        labels: dict[int, list[tuple[int, str]]] = defaultdict(list)
        scripts = set()
        for path in (self.folder / "images").iterdir():
            match = re.fullmatch(r"epoch(\d+)_(.+)\.(png|js)", path.name)
            if match and int(match[1]) <= last_epoch:
                if match[3] == "js":
                    scripts.add(int(match[1]))
                else:
                    labels[int(match[1])].append((order.get(match[2], len(order)), match[2]))
        cards = []
        for epoch in sorted(labels):
            stem = f"images/epoch{epoch:03d}"
            card = Card(f"epoch {epoch}", attention=f"{stem}_attention.js" if epoch in scripts else "")
            for _, label in sorted(labels[epoch]):
                card.add(label, f"{stem}_{label}.png", self.names)
            cards.append(card)
        return cards


def _add_time_line(count: int) -> None:
    last = str(count - 1)  # dominate leaves attributes of 0 out
    with h.form(cls="time"):
        h.label("Epoch", html_for="epoch")
        h.input_(type="range", id="epoch", name="epoch", min="0", max=last, value=last, autocomplete="off")
        h.button("Play", type="button", cls="play", aria_pressed="false")


def _add_about(command: str, options: Mapping[str, object]) -> None:
    with h.section(cls="about"):
        if command:
            h.h2("To continue this run")
            h.pre(h.code(command))
        with h.details():
            h.summary(f"Options ({len(options)})")
            add_notes({flag: str(value) for flag, value in options.items()})


def _kind(card: Card) -> tuple[str, ...]:
    """What pictures an epoch has: those of a run that gained attention or another loss differ."""
    return tuple(figure.label for figures in card.groups.values() for figure in figures)
