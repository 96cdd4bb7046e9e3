"""What the pages have in common: cards of pictures, and files that open from disk without a server."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import torch
from dominate import document
from dominate import tags as h
from dominate.util import raw

from display.attention_maps import AttentionMap, heat_colours
from util.files import atomic

CSS = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
JS = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
SMALL = 96  # px; below, a picture is shown much enlarged

# Label -> how the picture came about, in the order of the training page.
CAPTIONS = {
    "real_A": "{A}",
    "fake_B": "{A} → {B}",
    "fake_B_rgb": "{A} → {B}, in colour",
    "rec_A": "{A} → {B} → {A}",
    "idt_B": "{A} → {A}",
    "real_B": "{B}",
    "real_B_rgb": "{B}, in colour",
    "fake_A": "{B} → {A}",
    "rec_B": "{B} → {A} → {B}",
    "idt_A": "{B} → {B}",
    "real": "{A}",
    "fake": "{A} → {B}",
}


@dataclass(frozen=True)
class Figure:
    """A picture of a page."""

    label: str
    path: str  # from the page's folder
    caption: str
    alt: str


@dataclass
class Card:
    """What stands under one heading, a test image or an epoch: a group for each domain that pictures start in."""

    title: str
    groups: dict[str, list[Figure]] = field(default_factory=dict)
    wide: bool = False  # takes the whole width of the page
    attention: str = ""  # path of the script with what the viewer shows, from the page's folder
    scores: Mapping[str, float] = field(default_factory=dict)  # to sort and filter by
    remark: str = ""  # beside the heading

    def add(self, label: str, path: str, names: tuple[str, str]) -> None:
        """Put a picture beside the others that start in its domain."""
        caption = CAPTIONS.get(label, label).format(A=names[0], B=names[1])
        self.add_figure(source(label), label, path, caption)

    def add_figure(self, group: str, label: str, path: str, caption: str) -> None:
        """Put a picture at the end of a group."""
        figure = Figure(label, path, caption, f"{self.title}: {caption}")
        self.groups.setdefault(group, []).append(figure)

    def rows(self) -> list[list[Figure]]:
        """The groups; a second one of a single picture, the truth of a pair, stands beside the translation."""
        match list(self.groups.values()):
            case [[real, fake, *more], [truth]]:
                return [[real, fake, truth, *more]]
            case groups:
                return groups


def source(label: str) -> str:
    """The domain that a picture started in: A for real_A, fake_B and rec_A; "" if the label is not known."""
    return CAPTIONS[label][1] if label in CAPTIONS else ""


def save_attention(path: Path, maps: Iterable[AttentionMap]) -> None:
    """Write maps of one picture as a script for the viewer, since a page on disk may load scripts, but no data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"attention({as_script([block.viewer_data() for block in maps])});\n", encoding="ascii")


def as_script(data: Any) -> str:
    """JSON that is a JavaScript expression and holds no tag, whatever the names in it: nothing ends a script early."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def new_page(title: str) -> document:
    """A page without a body.

    Names come from files and flags, so all of them go through dominate or `as_script`, which show them as text.
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
    """Write the page under a temporary name first; beside it, it needs nothing but its pictures and their attention.

    Args:
        script: the file of what this page does beside showing the viewer.
        data: what that is told.
    """
    heat = (heat_colours(torch.linspace(0, 1, 256)[None])[:, 0].T * 255).round().int().tolist()
    page.body.add(h.script(raw(as_script({"heat": heat, **data})), type="application/json", id="data"))
    page.body.add(h.script(raw(JS)))
    page.body.add(h.script(raw(script.read_text(encoding="utf-8"))))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as draft:
        draft.write_text(page.render(pretty=False), encoding="utf-8", errors="replace")


def add_header(title: str, count: str) -> None:
    """The line that stays at the top of the page while it scrolls. To call, as those below, inside a dominate tag."""
    with h.header():
        h.h1(title)
        h.span(count, cls="count", role="status")


def add_notes(notes: Mapping[str, str]) -> None:
    """Facts and figures, a term each."""
    h.dl((h.div(h.dt(term), h.dd(value)) for term, value in notes.items()), cls="notes")


def add_cards(cards: Sequence[Card], *, size: int, small: bool) -> None:
    """The cards, in as many columns as there is room for.

    Args:
        size: side of a picture in px, at most.
        small: show the pixels of the pictures, which are enlarged, instead of blurring them.
    """
    most = max((sum(map(len, card.groups.values())) for card in cards), default=1)
    style = f"--size: {size}px; --pictures: {most}"
    h.main((article(card) for card in cards), cls="small" if small else "", style=style)


def article(card: Card) -> h.html_tag:
    """The dominate tags of a card."""
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
        # JSON knows no infinity, the PSNR of a perfect picture
        tag["data-scores"] = json.dumps({name: min(value, 1e9) for name, value in card.scores.items()})
    return tag


def add_groups(card: Card) -> None:
    """The pictures of a card."""
    with h.div(cls="groups"):
        for figures in card.rows():
            with h.div(cls="strip", style=f"--n: {len(figures)}"):
                for figure in figures:
                    picture = h.img(src=url(figure.path), alt=figure.alt, loading="lazy", decoding="async")
                    caption = [h.figcaption(figure.caption)] if figure.caption else []
                    h.figure(picture, *caption, data_label=figure.label)


def url(path: str) -> str:
    """A relative URL of any file name, also of one that is not valid UTF-8."""
    return quote(os.fsencode(path))
