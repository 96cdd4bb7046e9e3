"""The results page of test.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from dominate import tags as h
from torch import Tensor

from display.attention_maps import AttentionMap, save_attention
from display.pages.page import (
    SMALL,
    Card,
    Figure,
    add_cards,
    add_header,
    add_notes,
    attention_caption,
    finish_page,
    new_page,
    source,
)
from util.images import (
    COMPRESSION,
    PixelFormat,
    in_color,
    is_viewable,
    save_file,
    save_image,
    save_result,
    to_image,
)

# Similarity of a result and its ground truth: name -> (format of a value, whether higher is better).
SCORES = {"L1": ("{:.1f} of 255", False), "PSNR": ("{:.1f} dB", True), "SSIM": ("{:.3f}", True)}


class ResultsPage:
    """The page with the results of a test: `add` the results of each image, then `save`.

    Args:
        folder: where to write index.html and images/{stem}_{label}.png, with a .tif where 8 bits are not enough.
        title: title of the page.
        names: names of the domains of real_A and real_B: B, A if the model was trained from B to A.
        notes: facts and figures for the top of the page.
        size: maximum side of an image in px.
        formats: label -> format of the images; 8-bit by default.
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

    def add(
        self,
        stem: str,
        images: Mapping[str, Tensor],
        attention: Sequence[AttentionMap] = (),
        scores: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Write the results of one test image and put them on the page.

        Args:
            stem: name of the image without suffix; may contain folders.
            images: label -> (C, H, W) in [-1, 1], shown in this order.
            attention: maps for the viewer, each over one of `images`; the first of each domain is a figure too.
            scores: similarity to the ground truth, if there is one: some of SCORES.

        Raises:
            ValueError: `stem` leads out of the folder.
        """
        if PurePosixPath(stem).is_absolute() or ".." in PurePosixPath(stem).parts:
            raise ValueError(f"the name of a result leads out of {self.folder}: {stem}")
        card = Card(stem, scores=scores, remark=scores_text(scores))
        shown = in_color(images, self.formats)
        for label, image in images.items():
            path = f"images/{stem}_{label}.png"
            fmt = self.formats.get(label, PixelFormat())
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            if fmt.classes and is_viewable(image, fmt):
                save_image(image, self.folder / path, fmt)
            else:
                save_file(to_image(shown[label], alpha=fmt.alpha), self.folder / path)
            save_result(image, self.folder / f"images/{stem}_{label}", fmt)
            card.add(label, path, self.names)
            self.small &= image.shape[-1] <= SMALL
        for domain, block in {source(block.over): block for block in reversed(attention)}.items():
            label = f"attention_{block.network}"
            path = f"images/{stem}_{label}.png"
            block.figure(shown[block.over]).save(self.folder / path, compress_level=COMPRESSION)
            card.add_figure(domain, label, path, attention_caption(block.network, block.stage))
        if attention:
            card.attention = f"images/{stem}_attention.js"
            save_attention(self.folder / card.attention, attention)
        self.cards.append(card)

    def add_overview(self, caption: str, figure: Tensor) -> None:
        """Add a figure of all results, (C, H, W) in [-1, 1]."""
        path = f"images/{caption}.png"
        save_image(figure, self.folder / path)
        self.cards.append(Card(caption, {"": [Figure(caption, path, "", caption)]}, wide=True))

    def save(self) -> None:
        """Write index.html."""
        scores = [card.scores for card in self.cards if card.scores]
        means = {name: sum(card[name] for card in scores) / len(scores) for name in (scores[0] if scores else ())}
        notes = dict(self.notes)
        if means:
            a, b = self.names
            notes[f"{a} → {b} against the {b} of the same name"] = f"{scores_text(means)}; {len(scores):,} images"
        page = new_page(self.title)
        with page.body:
            add_header(self.title, f"{sum(not card.wide for card in self.cards):,} shown")
            add_notes(notes)
            with h.form(cls="toolbar", role="search"):
                hint = "Filter by name, or SSIM>0.3" if means else "Filter by name"
                h.input_(type="search", name="filter", placeholder=hint, aria_label=hint)
                with h.select(name="order", aria_label="Order"):
                    h.option("in test order", value="")
                    h.option("by name", value="name")
                    for name in means:
                        signs = ("-", "+") if SCORES[name][1] else ("+", "-")
                        for rank, sign in zip(("best", "worst"), signs, strict=True):
                            h.option(f"{rank} {name} first", value=sign + name)
                h.span("/ filter · J, K next, previous · Enter view", cls="keys")
            add_cards(self.cards, size=self.size, small=self.small)
        finish_page(page, self.folder / "index.html", script=Path(__file__).with_name("results.js"))


def scores_text(scores: Mapping[str, float]) -> str:
    """Return the scores with their units: L1 45.2 of 255 · SSIM 0.310."""
    return " · ".join(f"{name} {SCORES[name][0].format(value)}" for name, value in scores.items())
