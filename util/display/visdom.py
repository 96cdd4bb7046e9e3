"""Visdom: loss curves and current images in a browser, while a server is there to take them."""

import logging
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

from PIL import ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.utils import make_grid
from tqdm import tqdm
from visdom import Visdom

from util.display.sink import Progress, Sink
from util.images import to_image

TIMEOUT = 3.0  # seconds that training may lose, once, to a server that does not answer

logging.getLogger("visdom").setLevel(logging.ERROR)  # it warns about every new session


class Client(Visdom):
    """A visdom client that neither waits for ever nor takes an error page for success."""

    def _handle_post(self, url: str, data: str | None = None) -> str:
        session = self.session  # type: ignore[attr-defined] # missing in visdom's stubs
        response = session.post(url, data=data, timeout=TIMEOUT)
        response.raise_for_status()
        return str(response.text)


def connect(server: str, port: int, env: str) -> Client | None:
    """A client of the visdom server at `server` (a URL or host), or None and a line on the console if none answers."""
    host = urlsplit(server if "//" in server else f"//{server}").hostname
    try:
        socket.create_connection((host, port), timeout=TIMEOUT).close()
        return Client(server=server, port=port, env=env, raise_exceptions=True, use_incoming_socket=False)
    except OSError:
        tqdm.write(
            f"visdom not reachable at {server}:{port}: start it with `python -m visdom.server -port {port}`, "
            "or --display_id 0 to silence this"
        )
        return None


class VisdomSink(Sink):
    """Curves and images of a run in windows of its own, named by `name` and `display_id`.

    Args:
        client: a connected client.
        columns: pictures in a row of one window; 0 or less = a window for each picture.
        size: side of a picture in px.
        append: go on with the curves that are there, as a continued run does, instead of starting new ones.
    """

    def __init__(
        self, client: Visdom, name: str, *, display_id: int, columns: int, size: int, append: bool, losses_freq: int,
        images_freq: int,
    ):  # fmt: skip
        self.client, self.name, self.window = client, name, f"{name}_{display_id}"
        self.columns, self.size, self.append = columns, size, append
        self.losses_freq, self.images_freq = losses_freq, images_freq

    def losses(self, at: Progress, losses: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        with self._off_on_error():
            self.client.line(
                X=[at.epoch - 1 + at.epoch_images / at.epoch_size],
                Y=[list(losses.values())],
                win=f"{self.window}_losses",
                update="append" if self.append else None,
                opts={"title": f"{self.name}: losses", "legend": list(losses), "xlabel": "epoch", "ylabel": "loss"},
            )
            self.append = True

    def images(self, at: Progress, images: Mapping[str, Tensor]) -> None:
        """Replace the current images."""
        box = (self.size, self.size)
        pictures = {
            label: F.pil_to_tensor(ImageOps.pad(to_image(batch[0]).convert("RGB"), box, color="white"))
            for label, batch in images.items()
        }
        title = f"{self.name}: epoch {at.epoch}"
        with self._off_on_error():
            if self.columns > 0:
                grid = make_grid(list(pictures.values()), nrow=self.columns, pad_value=255)
                opts = {"title": title, "caption": ", ".join(pictures)}
                self.client.image(grid.numpy(), win=f"{self.window}_images", opts=opts)
            else:
                for label, picture in pictures.items():
                    self.client.image(
                        picture.numpy(), win=f"{self.window}_{label}", opts={"title": f"{title}, {label}"}
                    )

    @contextmanager
    def _off_on_error(self) -> Iterator[None]:
        try:
            yield
        except ConnectionError:
            tqdm.write("visdom does not answer any more: training goes on without it")
            self.losses_freq = self.images_freq = 0
