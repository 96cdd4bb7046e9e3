"""Open a page to try generators on your images: python -m scripts.demo. Works offline, on this machine alone.

Without --name and --weights, the page offers the weights that ship.
"""

import argparse
import base64
import collections
import io
import json
import logging
import math
import sys
import threading
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from data.arrays import known_formats
from data.image_file import load_rgb
from data.image_folder import DataError
from display.attention_maps import as_script, overlay
from inference.translator import Translator, as_tensor
from models.networks.any_size import AnySize, fitting_size, visible_cells
from models.networks.attention import SelfAttention2d, attention_blocks, block_inputs
from options import values
from options.choices import DEVICES
from options.parser import script_parser
from scripts.generators import add_generator_flags
from util.command import configure_logging, run_command
from util.device import select_device
from util.images import to_image
from util.paths import ROOT

EXAMPLES = (
    "", "--name mine", "--weights weights/chart_AtoB.safetensors weights/chart_BtoA.safetensors --port 8080"
)  # fmt: skip
PAGE = ROOT / "display" / "pages" / "demo.html"
BUNDLED = sorted((ROOT / "weights").glob("*to*.safetensors"))  # of translations
MAX_BYTES = 2**25  # of an uploaded file
MAX_PIXELS = 2**21  # of an uploaded image
WAITING = 4  # uploads at one time, the one that runs included
REMEMBERED = 4  # results whose attention can be asked for

log = logging.getLogger("scripts.demo")


@dataclass(frozen=True)
class Result:
    """One translation: its image (C, H, W) in [-1, 1] and the inputs (1, C, h, w) of the attention blocks."""

    image: Tensor
    net: nn.Module
    inputs: dict[str, Tensor]


class Refused(Exception):
    """A request that is not served: its message is for the user."""

    def __init__(self, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST):
        super().__init__(message)
        self.status = status


class Demo:
    """Translates uploads, one at a time, and remembers the last few for their attention.

    Args:
        translators: by the name that the page shows.
    """

    def __init__(self, translators: dict[str, Translator]):
        if labels := [name for name, translator in translators.items() if translator.has_labels]:
            raise ValueError(f"{labels[0]}: the demo does not show label maps, use python -m scripts.translate")
        self.translators = translators
        self.results: collections.OrderedDict[str, Result] = collections.OrderedDict()
        self.places = threading.BoundedSemaphore(WAITING)
        self.running = threading.Lock()
        self.count = 0

    def translate(self, content: bytes, name: str) -> dict[str, Any]:
        """Translate an image file. Returns what the page needs: images as data URLs and the attention blocks.

        Raises:
            Refused: the file is no image, too large, or there are too many at one time.
        """
        if name not in self.translators:
            raise Refused(f"there are no weights {name!r}")
        if not self.places.acquire(blocking=False):
            raise Refused(f"{WAITING} images are waiting: try again soon", HTTPStatus.SERVICE_UNAVAILABLE)
        try:
            with self.running:
                return self._translate(read_upload(content), self.translators[name])
        finally:
            self.places.release()

    def _translate(self, image: Image.Image, translator: Translator) -> dict[str, Any]:
        x = as_tensor(image, channels=translator.input_nc)
        with torch.no_grad(), block_inputs(translator.net) as inputs:
            made = translator(x)
        self.count += 1
        key = str(self.count)
        self.results[key] = Result(x, translator.net, dict(inputs))
        while len(self.results) > REMEMBERED:
            self.results.popitem(last=False)
        blocks = {stage: f"gamma {block.gamma.item():.3f}" for stage, block in attention_blocks(translator.net).items()}
        return {"id": key, "before": data_url(to_image(x)), "after": data_url(to_image(made)), "blocks": blocks}

    def attention(self, key: str, stage: str, x: float, y: float) -> Image.Image:
        """The attention map of a block from a point of an image, over the image.

        Args:
            key: the id of a result.
            stage: of the block.
            x, y: the point, as fractions of width and height.

        Raises:
            Refused: the result is forgotten, or there is no such block.
        """
        with self.running:
            result = self.results.get(key)
            if result is None or stage not in result.inputs:
                raise Refused("this result is no longer in memory: translate the image again", HTTPStatus.NOT_FOUND)
            block = attention_blocks(result.net)[stage]
            assert isinstance(block, SelfAttention2d)
            features, size = result.inputs[stage], result.image.shape[1:]
            inner = result.net.net
            if isinstance(inner, AnySize):  # of a network that colors
                inner = inner.net
            assert isinstance(inner, nn.Module)
            cells = visible_cells(inner, size, features.shape[2:])
            padded = fitting_size(inner, size)
            rows, columns = (
                min(max(int(at * side / whole * count), 0), shown - 1)
                for at, side, whole, count, shown in zip((y, x), size, padded, features.shape[2:], cells, strict=True)
            )
            with torch.no_grad():
                weights = block.maps(features, [(rows, columns)])[0, 0, : cells[0], : cells[1]]
            return overlay(result.image, weights, (y, x))


def read_upload(content: bytes) -> Image.Image:
    """The 8-bit image in an uploaded file, upright, transparent parts on white. Nothing is written to a disk.

    Raises:
        Refused: it is no image, damaged or too large.
    """
    try:
        file = Image.open(io.BytesIO(content), formats=known_formats())
        if file.width * file.height > MAX_PIXELS:
            raise Refused(
                f"the image has {file.width}x{file.height} pixels, more than {MAX_PIXELS:,}: use "
                "python -m scripts.translate, with --tile 512 if it is large"
            )
        return load_rgb(file, Path("the image"))
    except Refused:
        raise
    except UnidentifiedImageError as error:
        raise Refused("this file cannot be read as an image: it has no known format") from error
    except DataError as error:
        raise Refused("the image has more than 8 bits per channel: use python -m scripts.translate") from error
    except Exception as error:  # the decoders raise a dozen unrelated types for a broken file
        raise Refused(f"this file cannot be read as an image ({error})") from error


def data_url(image: Image.Image) -> str:
    """An image as a PNG inside a URL."""
    return "data:image/png;base64," + base64.b64encode(as_png(image)).decode()


def as_png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Serves the page, translations and attention maps. No file but the page is readable through it."""

    server: "Server"
    timeout = 30  # seconds of silence that end a connection

    def do_GET(self) -> None:
        """The page, and attention maps."""
        url = urlsplit(self.path)
        if url.path == "/":
            names = as_script(list(self.server.demo.translators))
            self._send(
                PAGE.read_text(encoding="utf-8").replace("__NAMES__", names).encode(), "text/html; charset=utf-8"
            )
        elif url.path == "/attention":
            query = {key: value[0] for key, value in parse_qs(url.query).items()}
            try:
                x, y = float(query["x"]), float(query["y"])
                if not (0 <= x <= 1 and 0 <= y <= 1):
                    raise Refused("x and y have to be fractions from 0 to 1")
                figure = self.server.demo.attention(query["id"], query["block"], x, y)
            except (KeyError, ValueError) as error:
                self._refuse(Refused(f"the request lacks a valid {error}"))
            except Refused as error:
                self._refuse(error)
            else:
                self._send(as_png(figure), "image/png")
        else:
            self._refuse(Refused(f"there is no {url.path}", HTTPStatus.NOT_FOUND))

    def do_POST(self) -> None:
        """Translate the file in the body."""
        url = urlsplit(self.path)
        length = self.headers.get("Content-Length", "")
        size = int(length) if length.isdecimal() else math.inf
        self.close_connection = True
        try:
            if url.path != "/translate":
                raise Refused(f"there is no {url.path}", HTTPStatus.NOT_FOUND)
            if size > MAX_BYTES:
                raise Refused(f"the file has more than {MAX_BYTES // 2**20} MiB", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            name = parse_qs(url.query).get("weights", [""])[0]
            answer = self.server.demo.translate(self.rfile.read(int(size)), name)
        except Refused as error:
            self._refuse(error)
        except ValueError as error:  # the network does not take such an image
            self._refuse(Refused(str(error)))
        except RuntimeError as error:  # such as too little memory: other images may still fit
            log.exception("an image could not be translated")
            self._refuse(Refused(f"the translation failed: {error}", HTTPStatus.INTERNAL_SERVER_ERROR))
        else:
            self._send(json.dumps(answer).encode(), "application/json")

    def _refuse(self, error: Refused) -> None:
        self._send(json.dumps({"error": str(error)}).encode(), "application/json", error.status)

    def _send(self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: they would fill the console."""


class Server(ThreadingHTTPServer):
    """A server of one demo."""

    daemon_threads = True
    request_queue_size = 128  # connections not accepted yet; with the default of 5, uploads at one time can be lost

    def __init__(self, address: tuple[str, int], demo: Demo):
        super().__init__(address, Handler)
        self.demo = demo


def main(argv: list[str] | None = None) -> int:
    """Load the generators and serve the page until Ctrl-C. Returns the exit status."""
    configure_logging()
    args = parse(argv)
    demo = Demo(load_translators(args))
    try:
        server = Server((args.host, args.port), demo)
    except OSError as error:
        raise OSError(f"--host {args.host} --port {args.port}: {error.strerror}; choose another --port") from error
    with server:
        print(f"Open http://{args.host}:{server.server_port} (Ctrl-C ends)", flush=True)
        server.serve_forever()
    return 0


def load_translators(args: argparse.Namespace) -> dict[str, Translator]:
    """The generators of the command line, by the name that the page shows."""
    keywords = {"device": select_device(args.device), "ema": not args.no_ema, "evaluate": args.eval}
    if not args.name:
        paths = args.weights or BUNDLED
        stems = collections.Counter(path.stem for path in paths)
        names = {path: path.stem if stems[path.stem] == 1 else str(path) for path in paths}
        return {name: Translator.load(path, **keywords) for path, name in names.items()}
    run = args.checkpoints_dir / args.name
    found: dict[str, Translator] = {}
    for direction in (args.direction,) if args.direction else ("AtoB", "BtoA"):
        try:
            found[f"{args.name} {direction}"] = Translator.load(run, direction=direction, epoch=args.epoch, **keywords)
        except ValueError as error:
            if args.direction or (direction == "BtoA" and not found):
                raise
            print(f"no {direction}: {error}")
    return found


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = script_parser("python -m scripts.demo", __doc__, *EXAMPLES)
    add = parser.add_argument
    add_generator_flags(parser, several=True)
    add("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine alone)")
    add("--port", type=values.non_negative_int, default=7860, help="0 = any that is free (default: 7860)")
    add("--device", default="auto", choices=DEVICES, help="auto = a GPU if there is one")
    add("--verbose", action="store_true", help="print tracebacks of errors")
    args = parser.parse_args(argv)
    if args.name and args.weights:
        parser.error("--name and --weights exclude each other")
    for flag in ("direction", "epoch", "no_ema"):
        if not args.name and getattr(args, flag) != parser.get_default(flag):
            parser.error(f"--{flag} chooses among the generators of a run: give --name")
    return args


if __name__ == "__main__":
    sys.exit(run_command(main, arguments=()))
