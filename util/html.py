"""Pages of pictures: the results of a test, and the page of a run in training."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from urllib.parse import quote

from dominate import document
from dominate import tags as h
from dominate.util import raw
from torch import Tensor

from util.attention import AttentionMap, overlay
from util.images import PixelFormat, save_image, save_result

CSS = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
SMALL = 96  # px; below, a picture is shown much enlarged

# Label -> how the picture came about, in the order of the training page.
CAPTIONS = {
    "real_A": "{A}",
    "fake_B": "{A} → {B}",
    "rec_A": "{A} → {B} → {A}",
    "idt_B": "{A} → {A}",
    "real_B": "{B}",
    "fake_A": "{B} → {A}",
    "rec_B": "{B} → {A} → {B}",
    "idt_A": "{B} → {B}",
    "real": "{A}",
    "fake": "{A} → {B}",
}


@dataclass(frozen=True)
class Figure:
    """A picture of a page."""

    path: str  # from the page's folder
    caption: str
    alt: str


@dataclass
class Group:
    """Pictures side by side; below them captioned strips of smaller ones."""

    figures: list[Figure] = field(default_factory=list)
    strips: list[tuple[str, list[Figure]]] = field(default_factory=list)


@dataclass
class Card:
    """What stands under one heading, a test image or an epoch: a group for each domain that pictures start in."""

    title: str
    groups: dict[str, Group] = field(default_factory=dict)
    wide: bool = False  # takes the whole width of the page

    def add(self, label: str, path: str, names: tuple[str, str]) -> None:
        """Put a picture beside the others that start in its domain."""
        caption = CAPTIONS.get(label, label).format(A=names[0], B=names[1])
        group = self.groups.setdefault(source(label), Group())
        group.figures.append(Figure(path, caption, f"{self.title}: {caption}"))


def source(label: str) -> str:
    """The domain that a picture started in: A for real_A, fake_B and rec_A; "" if the label is not known."""
    return CAPTIONS[label][1] if label in CAPTIONS else ""


class ResultsPage:
    """The results of a test: `add` the pictures made from each image, then `save`.

    Args:
        folder: takes index.html and images/{stem}_{label}.png, with a .tif beside it where 8 bits are not enough.
        title: of the page.
        names: of the domains of real_A and real_B: B, A when the run went from B to A.
        notes: facts and figures for the top of the page.
        size: side of a picture in px, at most.
        formats: "A", "B" -> the depth and range to write pictures of that domain in; 8-bit where left out.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        *,
        names: tuple[str, str] = ("A", "B"),
        notes: Mapping[str, str] = MappingProxyType({}),
        size: int = 256,
        formats: Mapping[str, PixelFormat] = MappingProxyType({}),
    ):
        self.formats = formats
        self.folder, self.title, self.names, self.notes, self.size = folder, title, names, dict(notes), size
        self.cards: list[Card] = []
        self.small = True

    def add(self, stem: str, images: Mapping[str, Tensor], attention: Iterable[AttentionMap] = ()) -> None:
        """Write the pictures of one test image and remember them for the page.

        Args:
            stem: name of the image without its suffix; may hold sub-folders.
            images: label -> (C, H, W) in [-1, 1], shown in this order.
            attention: maps to show, each over one of `images`.

        Raises:
            ValueError: `stem` leads out of the folder.
        """
        if PurePosixPath(stem).is_absolute() or ".." in PurePosixPath(stem).parts:
            raise ValueError(f"the name of a result leads out of {self.folder}: {stem}")
        card = Card(stem)
        for label, image in images.items():
            path = f"images/{stem}_{label}.png"
            save_image(image, self.folder / path)
            fmt = self.formats.get("B" if label.endswith("_B") else "A", PixelFormat())
            save_result(image, self.folder / f"images/{stem}_{label}", fmt)
            card.add(label, path, self.names)
            self.small &= image.shape[-1] <= SMALL
        for block in attention:
            figures = []
            for number, (point, weights) in enumerate(zip(block.points, block.weights, strict=True), start=1):
                path = f"images/{stem}_attention_{block.network}_{block.stage}_{number}.png"
                overlay(images[block.over], weights, point).save(self.folder / path)
                alt = f"{stem}: where {block.network} looks from point {number}, {block.stage}"
                figures.append(Figure(path, "", alt))
            caption = f"{block.network}, {block.stage}: where the ringed point looks; the brighter, the more"
            card.groups[source(block.over)].strips.append((caption, figures))
        self.cards.append(card)

    def add_overview(self, caption: str, picture: Tensor) -> None:
        """Put a picture (C, H, W) in [-1, 1] of all results at the top of the page."""
        path = f"images/{caption}.png"
        save_image(picture, self.folder / path)
        self.cards.append(Card(caption, {"": Group([Figure(path, "", caption)])}, wide=True))

    def save(self) -> None:
        """Write index.html."""
        path = self.folder / "index.html"
        write_page(path, self.title, self.cards, notes=self.notes, size=self.size, small=self.small)


def write_page(
    path: Path, title: str, cards: Sequence[Card], *, notes: Mapping[str, str], size: int, small: bool
) -> None:
    """Write a page that needs no other file than its pictures, under a temporary name first.

    Names come from files and flags, so all of them go through dominate, which shows them as text.

    Args:
        size: side of a picture in px, at most.
        small: show the pixels of the pictures, which are enlarged, instead of blurring them.
    """
    page = document(title=title)
    page.set_attribute("lang", "en")
    with page.head:
        h.meta(charset="utf-8")
        h.meta(name="viewport", content="width=device-width, initial-scale=1")
        h.link(rel="icon", href="data:,")
        h.style(raw(CSS))
    most = max((sum(len(group.figures) for group in card.groups.values()) for card in cards), default=1)
    with page.body:
        with h.header():
            h.h1(title)
            h.span(f"{sum(not card.wide for card in cards):,} shown", cls="count")
        with h.dl(cls="notes"):
            for term, value in notes.items():
                h.div(h.dt(term), h.dd(value))
        style = f"--size: {size}px; --pictures: {most}"
        h.main((_article(card) for card in cards), cls="small" if small else "", style=style)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(page.render(), encoding="utf-8", errors="replace")
    temporary.replace(path)


def _article(card: Card) -> h.html_tag:
    """The dominate tags of a card."""
    anchor = _url(card.title)
    groups = h.div(cls="groups")
    for group in card.groups.values():
        strips = [h.section(h.p(caption), _strip(figures), cls="attention") for caption, figures in group.strips]
        groups.add(h.div(_strip(group.figures), strips, cls="group", style=f"--n: {len(group.figures)}"))
    cls = "wide" if card.wide else ""
    return h.article(h.h2(h.a(card.title, href=f"#{anchor}")), groups, id=anchor, cls=cls)


def _strip(figures: Sequence[Figure]) -> h.html_tag:
    strip = h.div(cls="strip")
    for figure in figures:
        picture = h.img(src=_url(figure.path), alt=figure.alt, loading="lazy", decoding="async")
        strip.add(h.figure(picture, h.figcaption(figure.caption)) if figure.caption else h.figure(picture))
    return strip


def _url(path: str) -> str:
    """A relative URL of any file name, also of one that is not valid UTF-8."""
    return quote(os.fsencode(path))
