"""The page of a run in training: progress, curves, and the images of every epoch in a timeline."""

import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from dominate import tags as h
from PIL import Image
from tqdm import tqdm

from display.event_log import FILE
from display.events import End, Event, Images, Metrics, Start
from display.history import Episode, History
from display.pages.charts import add_charts
from display.pages.page import (
    ATTENTION,
    SMALL,
    Card,
    add_cards,
    add_groups,
    add_header,
    add_notes,
    finish_page,
    new_page,
    sort_key,
)
from display.sink import Sink

REFRESH = 30  # seconds between two reloads of an open page


class Template(h.html_tag):
    """The HTML template element, for epochs with other labels than the last one. dominate lacks it."""

    tagname = "template"


class PageSink(Sink):
    """Writes the page of a run, `folder`/index.html.

    Each time it is written from the log and from its files epoch%03d_{label}.png and epoch%03d_attention.js in
    `folder`/images, so a resumed run keeps its earlier epochs and curves.

    Args:
        folder: CKPT/NAME/web.
        name: name of the run.
        names: names of the domains of real_A and real_B.
        size: maximum side of an image in px.
        images_freq: images seen between two updates; 0 is at the end of each epoch only.
        command: command that resumes the run.
    """

    epoch_images = True

    def __init__(
        self, folder: Path, name: str, *, names: tuple[str, str], size: int, images_freq: int,
        command: str = "",
    ):  # fmt: skip
        self.folder, self.name, self.names, self.size = folder, name, names, size
        self.images_freq = images_freq
        self.command = command
        self.options: dict[str, object] = {}
        self.history = History(folder.parent / FILE)

    def show(self, events: Sequence[Event]) -> None:
        """Write the page once for all images and metrics."""
        starts, news = ([event for event in events if isinstance(event, kind)] for kind in (Start, Images | Metrics))
        super().show([*starts[-1:], *news[-1:], *(event for event in events[-1:] if isinstance(event, End))])

    def start(self, event: Start) -> None:
        """Keep the options to list them."""
        self.options = event.options

    def images(self, event: Images) -> None:
        """Write the page."""
        self.write(event, running=True)

    def metrics(self, event: Metrics) -> None:
        """Write the page."""
        self.write(event, running=True)

    def end(self, event: End) -> None:
        """Write the page for the last time. It no longer reloads."""
        self.write(event, running=False)

    def write(self, at: Event, *, running: bool) -> None:
        """Write index.html if there are images.

        While the run is `running`, an open page reloads every REFRESH seconds.
        """
        self.history.read()
        cards = self._cards()
        if not cards:
            return
        figures = [figure for figures in cards[-1].groups.values() for figure in figures]
        images = [figure for figure in figures if not ATTENTION.fullmatch(figure.label)]  # attention is drawn upsampled
        small = all(_width(self.folder / image.path) <= SMALL for image in images)
        kinds = list(dict.fromkeys(_kind(card) for card in cards))
        page = new_page(f"{self.name} · training")
        if running:
            page.head.add(h.noscript(h.meta(http_equiv="refresh", content=str(REFRESH))))
        with page.body:
            add_header(f"{self.name} · training", f"epoch {min(at.epoch, at.epochs)} of {at.epochs}")
            h.progress(value=f"{at.done:.4f}", max=1, aria_label=f"{at.done:.0%} done")
            add_notes(self._notes(at, running=running))
            if self.history.ongoing:
                _add_findings(self.history.ongoing)
            if self.history.curves or self.history.metrics:
                add_charts(self.history.curves, self.history.metrics)
            _add_timeline(len(cards))
            add_cards(cards[-1:], size=self.size, small=small)
            for kind in kinds:
                with Template(cls="kind"):
                    add_groups(next(card for card in cards if _kind(card) == kind))
            _add_about(self.command, self.options)
        epochs = [[int(card.title.split()[1]), kinds.index(_kind(card)), int(bool(card.attention))] for card in cards]
        data = {"epochs": epochs, "ends": self.history.ends, "refresh": REFRESH if running else 0}
        finish_page(page, self.folder / "index.html", script=Path(__file__).with_name("training.js"), data=data)

    def _notes(self, at: Event, *, running: bool) -> dict[str, str]:
        """Return facts and figures for the top of the page."""
        notes = {"run": self.name, "images seen": f"{at.images:,}", "time so far": tqdm.format_interval(at.seconds)}
        if at.done and running:
            notes["time left"] = tqdm.format_interval(at.seconds / at.done * (1 - at.done))
        for name, text in (("images_per_second", "{:.3g}"), ("peak_memory_mb", "{:,.0f} MB")):
            if name in self.history.curves:
                notes[name.removesuffix("_mb").replace("_", " ")] = text.format(self.history.curves[name][1][-1])
        if self.history.note:
            notes["metrics"] = self.history.note
        return notes | {"updated" if running else "ended": time.strftime("%Y-%m-%d %H:%M")}

    def _cards(self) -> list[Card]:
        """Return a card per epoch on disk."""
        labels: dict[int, list[str]] = defaultdict(list)
        scripts = set()
        for path in (self.folder / "images").glob("epoch*"):
            match = re.fullmatch(r"epoch(\d+)_(.+)\.(png|js)", path.name)
            if match:
                if match[3] == "js":
                    scripts.add(int(match[1]))
                else:
                    labels[int(match[1])].append(match[2])
        cards = []
        for epoch in sorted(labels):
            stem = f"images/epoch{epoch:03d}"
            card = Card(f"epoch {epoch}", attention=f"{stem}_attention.js" if epoch in scripts else "")
            for label in sorted(labels[epoch], key=sort_key):
                card.add(label, f"{stem}_{label}.png", self.names)
            cards.append(card)
        return cards


def _add_findings(findings: Sequence[Episode]) -> None:
    with h.section(cls="health", aria_label="health"):
        for finding in findings:
            event = finding.begin
            with h.p():
                h.b(event.check)
                h.span(f"{event.sentence} {event.advice}")
                h.small(f"since epoch {event.epoch}, image {event.images:,}")


def _add_timeline(count: int) -> None:
    last = str(count - 1)  # dominate drops attributes that are the number 0
    with h.form(cls="timeline"):
        h.label("Epoch", html_for="epoch")
        h.input_(type="range", id="epoch", name="epoch", min="0", max=last, value=last, autocomplete="off")
        h.button("Play", type="button", cls="play", aria_pressed="false")


def _add_about(command: str, options: Mapping[str, object]) -> None:
    with h.section(cls="about"):
        if command:
            h.h2("To resume this run")
            h.pre(h.code(command))
        with h.details():
            h.summary(f"Options ({len(options)})")
            add_notes({flag: str(value) for flag, value in options.items()})


def _kind(card: Card) -> tuple[str, ...]:
    """Return the labels of an epoch. They differ within a run that gained attention or another loss."""
    return tuple(figure.label for figures in card.groups.values() for figure in figures)


def _width(path: Path) -> int:
    with Image.open(path) as image:
        return image.width
