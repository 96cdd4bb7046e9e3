"""Visdom: curves and current images in a browser."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as F
from torchvision.utils import make_grid
from visdom import Visdom

from display.background import Stale
from display.events import Event, Images, Losses, charts
from display.sink import Sink

TIMEOUT = 10.0  # seconds to wait for an answer


class Client(Visdom):
    """A visdom client that waits for no answer for ever, and raises ConnectionError without printing anything."""

    def __init__(self, server: str, port: int, env: str):
        super().__init__(server=server, port=port, env=env, raise_exceptions=True, use_incoming_socket=False)

    def win_exists(self, win: str, env: str | None = None) -> bool:
        """Whether the server has the window."""
        answer: str = self._win_exists_wrap(win, env)  # type: ignore[attr-defined] # missing in visdom's stubs
        return answer == "true"

    def _handle_post(self, url: str, data: str | None = None) -> str:
        session = self.session  # type: ignore[attr-defined] # missing too
        response = session.post(url, data=data, timeout=TIMEOUT)
        response.raise_for_status()
        return str(response.text)


class VisdomSink(Sink):
    """Curves and images of a run in windows of its own, named by `name` and `display_id`.

    The first events replace what is in the windows, the others add to it. Raises ConnectionError when the server does
    not answer, and Stale when somebody has closed a window.

    Args:
        run_dir: folder of the run, where its pictures are.
        columns: pictures in a row of one window; 0 or less = a window for each picture.
        size: side of a picture in px.
        images_freq: images between two updates of pictures; 0 = never.
    """

    def __init__(
        self, client: Client, run_dir: Path, name: str, *, display_id: int, columns: int, size: int, images_freq: int
    ):
        self.client, self.run_dir, self.name, self.window = client, run_dir, name, f"{name}_{display_id}"
        self.columns, self.size, self.images_freq = columns, size, images_freq
        self.curves: dict[str, list[str]] = {}  # title of a chart -> names of its curves

    def show(self, events: Sequence[Event]) -> None:
        """Add all points to the curves at once, and show the last of the pictures."""
        if losses := [event for event in events if isinstance(event, Losses)]:
            names = dict.fromkeys(name for event in losses for name in event.values)
            for title, curves in charts(names).items():
                self._add(title, curves, losses)
        if pictures := [event for event in events if isinstance(event, Images) and self.wants_images(event)]:
            self.images(pictures[-1])

    def images(self, event: Images) -> None:
        """Replace the current images by those that are still on disk."""
        files = {label: self.run_dir / file for label, file in event.pictures.items()}
        pictures = {label: self._read(file) for label, file in files.items() if file.is_file()}
        title = f"{self.name}: epoch {event.epoch}"
        if self.columns > 0 and pictures:
            grid = make_grid([F.pil_to_tensor(picture) for picture in pictures.values()], self.columns, pad_value=255)
            opts = {"title": title, "caption": ", ".join(pictures)}
            self.client.image(grid.numpy(), win=f"{self.window}_images", opts=opts)
        else:
            for label, picture in pictures.items():
                opts = {"title": f"{title}, {label}"}
                self.client.image(F.pil_to_tensor(picture).numpy(), win=f"{self.window}_{label}", opts=opts)

    def _add(self, title: str, names: list[str], events: Sequence[Losses]) -> None:
        """Add the points of `events` to the curves of a chart."""
        window = f"{self.window}_{title.split(',')[0].replace(' ', '_')}"
        known = self.curves.setdefault(title, names)
        if known is not names and (set(names) - set(known) or not self.client.win_exists(window)):
            raise Stale(title)
        self.client.line(
            X=np.array([event.epochs_seen for event in events]),
            Y=np.array([[event.values.get(name, math.nan) for name in known] for event in events]),
            win=window,
            update=None if known is names else "append",
            opts={"title": f"{self.name}: {title}", "legend": known, "xlabel": "epoch", "ylabel": title},
        )

    def _read(self, path: Path) -> Image.Image:
        """The picture of a file, in the middle of a white square."""
        with Image.open(path) as image:
            return ImageOps.pad(image.convert("RGB"), (self.size, self.size), color="white")
