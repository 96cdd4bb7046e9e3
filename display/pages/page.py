"""Parts of all pages: cards of images, in HTML files that open from disk without a server."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import torch
from dominate import document
from dominate import tags as h
from dominate.util import raw

from display.attention_maps import as_script, heat_colors
from util.files import atomic

CSS = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
JS = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
SMALL = 96  # px; smaller images are scaled up a lot on the page

# Label -> the domain that the image comes from, and how it came about; in the order of the training page.
CAPTIONS = {
    "real_A": ("A", "{A}"),
    "fake_B": ("A", "{A} → {B}"),
    "fake_B_rgb": ("A", "{A} → {B}, in color"),
    "rec_A": ("A", "{A} → {B} → {A}"),
    "idt_B": ("A", "{A} → {A}"),
    "real_B": ("B", "{B}"),
    "real_B_rgb": ("B", "{B}, in color"),
    "fake_A": ("B", "{B} → {A}"),
    "rec_B": ("B", "{B} → {A} → {B}"),
    "idt_A": ("B", "{B} → {B}"),
    "samples": ("A", "samples"),
    "sample": ("A", "first sample"),
    "real": ("A", "{A}"),
    "fake": ("A", "{A} → {B}"),
}
ATTENTION = re.compile(r"attention_(G(?:_[AB])?)_(.+)")  # a label: network, stage


@dataclass(frozen=True)
class Figure:
    """An image on a page."""

    label: str
    path: str  # relative to the page's folder
    caption: str
    alt: str


@dataclass
class Card:
    """The images under one heading, a test image or an epoch, in a group per domain that they come from."""

    title: str
    groups: dict[str, list[Figure]] = field(default_factory=dict)
    wide: bool = False  # as wide as the page
    attention: str = ""  # path of the script for the viewer, relative to the page's folder
    scores: Mapping[str, float] = field(default_factory=dict)  # to sort and filter by
    remark: str = ""  # beside the heading

    def add(self, label: str, path: str, names: tuple[str, str]) -> None:
        """Add an image to the group of its domain, with the caption of its label."""
        self.add_figure(source(label), label, path, label_caption(label, names))

    def add_figure(self, group: str, label: str, path: str, caption: str) -> None:
        """Append an image to a group."""
        figure = Figure(label, path, caption, f"{self.title}: {caption}")
        self.groups.setdefault(group, []).append(figure)

    def rows(self) -> list[list[Figure]]:
        """Return the groups. A second group of one image, the ground truth of a pair, joins the first one."""
        match list(self.groups.values()):
            case [[real, fake, *others], [truth]]:
                return [[real, fake, truth, *others]]
            case groups:
                return groups


def source(label: str) -> str:
    """Return the domain that an image comes from: A for real_A, fake_B and the attention of G_A; "" if unknown."""
    if match := ATTENTION.fullmatch(label):
        return "B" if match[1].endswith("_B") else "A"
    return CAPTIONS[label][0] if label in CAPTIONS else ""


def label_caption(label: str, names: tuple[str, str]) -> str:
    """Return the caption of a label, with the names of the domains; an unknown label is its own caption."""
    if match := ATTENTION.fullmatch(label):
        return attention_caption(*match.groups())
    return CAPTIONS[label][1].format(A=names[0], B=names[1]) if label in CAPTIONS else label


def sort_key(label: str) -> tuple[float, str]:
    """Return the key that puts labels in the order of CAPTIONS, with attention after the images it is drawn over."""
    labels = list(CAPTIONS)
    if ATTENTION.fullmatch(label):
        return labels.index("sample") + 0.5, label
    return labels.index(label) if label in CAPTIONS else len(labels), label


def attention_caption(network: str, stage: str) -> str:
    """Return the caption of the figure of an attention block."""
    return f"attention of {network} at {stage}"


def new_page(title: str) -> document:
    """Create a page with an empty body.

    Names come from files and flags, so all of them go through dominate or `as_script`, which escape them.
    """
    page = document(title=title)
    page.set_attribute("lang", "en")
    with page.head:
        h.meta(charset="utf-8")
        h.meta(name="viewport", content="width=device-width, initial-scale=1")
        h.link(rel="icon", href="data:,")
        h.style(raw(CSS))
    return page


def finish_page(page: document, path: Path, *, script: Path, data: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Add the scripts to a page and write it. The page needs no other files than its images and their attention maps.

    Args:
        script: file with the JavaScript of this kind of page, run after the viewer's.
        data: values for the scripts.
    """
    heat = (heat_colors(torch.linspace(0, 1, 256)[None])[:, 0].T * 255).round().int().tolist()
    page.body.add(h.script(raw(as_script({"heat": heat, **data})), type="application/json", id="data"))
    page.body.add(h.script(raw(JS)))
    page.body.add(h.script(raw(script.read_text(encoding="utf-8"))))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as draft:
        draft.write_text(page.render(pretty=False), encoding="utf-8", errors="replace")


def add_header(title: str, count: str) -> None:
    """Add the line at the top, which does not scroll. Call it and the functions below inside a dominate tag."""
    with h.header():
        h.h1(title)
        h.span(count, cls="count", role="status")


def add_notes(notes: Mapping[str, str]) -> None:
    """Add facts and figures: term -> value."""
    h.dl((h.div(h.dt(term), h.dd(value)) for term, value in notes.items()), cls="notes")


def add_cards(cards: Sequence[Card], *, size: int, small: bool) -> None:
    """Add cards, in as many columns as there is room for.

    Args:
        size: maximum side of an image in px.
        small: the images are scaled up; show their pixels instead of interpolating.
    """
    most = max((sum(map(len, card.groups.values())) for card in cards), default=1)
    style = f"--size: {size}px; --images: {most}"
    h.main((article(card) for card in cards), cls="small" if small else "", style=style)


def article(card: Card) -> h.html_tag:
    """Return the dominate tags of a card."""
    anchor = url(card.title)
    tag = h.article(id=anchor, cls="wide" if card.wide else "")
    with tag:
        with h.div(cls="heading"):
            h.h2(h.a(card.title, href=f"#{anchor}"))
            h.span(card.remark, cls="remark")
            if not card.wide:
                h.button("View", type="button", cls="view", aria_label=f"View {card.title}")
        add_groups(card)
    if card.attention:
        tag["data-attention"] = url(card.attention)
    if card.scores:
        # JSON has no infinity, the PSNR of a perfect image
        scores = {name: min(value, 1e9) for name, value in card.scores.items()}
        tag["data-scores"] = json.dumps(scores, allow_nan=False)
    return tag


def add_groups(card: Card) -> None:
    """Add the images of a card."""
    with h.div(cls="groups"):
        for figures in card.rows():
            with h.div(cls="strip", style=f"--n: {len(figures)}"):
                for figure in figures:
                    image = h.img(src=url(figure.path), alt=figure.alt, loading="lazy", decoding="async")
                    caption = [h.figcaption(figure.caption)] if figure.caption else []
                    h.figure(image, *caption, data_label=figure.label)


def url(path: str) -> str:
    """Return the relative URL of any file name, valid UTF-8 or not."""
    return quote(os.fsencode(path))
