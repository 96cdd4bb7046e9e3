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
from display.events import Event, Images, Losses, Metrics, charts
from display.sink import Sink

TIMEOUT = 10.0  # seconds to wait for an answer


class Client(Visdom):
    """A visdom client with a timeout, which raises ConnectionError and prints nothing."""

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
    """Shows curves and images of a run in windows of its own, named by `name` and `display_id`.

    The first events replace the content of the windows, later ones append to it.

    Args:
        client: connection to the server.
        run_dir: folder of the run, which holds its images.
        name: name of the run.
        display_id: number in the names of the windows.
        columns: images per row of one window; 0 or less shows each image in a window of its own.
        size: side of an image in px.
        images_freq: images seen between two updates of images; 0 is never.

    Raises:
        ConnectionError: the server does not answer.
        Stale: somebody closed a window, or there is a new curve.
    """

    def __init__(
        self, client: Client, run_dir: Path, name: str, *, display_id: int, columns: int, size: int, images_freq: int
    ):
        self.client, self.run_dir, self.name, self.window = client, run_dir, name, f"{name}_{display_id}"
        self.columns, self.size, self.images_freq = columns, size, images_freq
        self.curves: dict[str, list[str]] = {}  # title of a chart -> names of its curves

    def show(self, events: Sequence[Event]) -> None:
        """Append all points to the curves at once, and show the last images."""
        if losses := [event for event in events if isinstance(event, Losses)]:
            names = dict.fromkeys(name for event in losses for name in event.values)
            for title, curves in charts(names).items():
                self._add(title, curves, losses)
        if metrics := [event for event in events if isinstance(event, Metrics)]:
            for name in dict.fromkeys(name for event in metrics for name in event.values):
                self._add(f"metric {name}", [name], metrics)
        if updates := [event for event in events if isinstance(event, Images) and self.wants_images(event)]:
            self.images(updates[-1])

    def images(self, event: Images) -> None:
        """Show the images that are still on disk."""
        files = {label: self.run_dir / file for label, file in event.files.items()}
        images = {label: self._read(file) for label, file in files.items() if file.is_file()}
        title = f"{self.name}: epoch {event.epoch}"
        if self.columns > 0 and images:
            grid = make_grid([F.pil_to_tensor(image) for image in images.values()], self.columns, pad_value=255)
            opts = {"title": title, "caption": ", ".join(images)}
            self.client.image(grid.numpy(), win=f"{self.window}_images", opts=opts)
        else:
            for label, image in images.items():
                opts = {"title": f"{title}, {label}"}
                self.client.image(F.pil_to_tensor(image).numpy(), win=f"{self.window}_{label}", opts=opts)

    def _add(self, title: str, names: list[str], events: Sequence[Losses | Metrics]) -> None:
        """Append the points of `events` to the curves of a chart."""
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
        """Return the image of a file, centered in a white square."""
        with Image.open(path) as image:
            return ImageOps.pad(image.convert("RGB"), (self.size, self.size), color="white")
