"""Read images and their sizes; every error names the file and what to do about it."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile
from torch import Tensor
from tqdm import tqdm

from data.arrays import EXIF_ORIENTATION, SIDEWAYS, array_format, array_kind, array_size, open_image, read_array
from data.image_folder import DataError
from util.images import PixelFormat

T = TypeVar("T")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong inside into a DataError that names the file."""
    try:
        yield
    except (DataError, ImportError):  # a library that is not installed is no fault of the file
        raise
    except Exception as error:  # the decoders raise a dozen unrelated types for a broken file
        raise DataError(
            f"Cannot read the image {path} ({error}): replace or remove this file, or add --skip_bad_images.",
            mend=["--skip_bad_images"],
        ) from error


def read_image(path: Path) -> Image.Image:
    """An 8-bit picture as RGB, upright (EXIF orientation applied), transparent parts on white.

    Raises:
        DataError: the file cannot be read, is truncated, or holds more than 8 bits a channel or other channels.
    """
    with reading(path):
        if array_kind(path):
            raise DataError(f"{path} is no 8-bit grey or colour picture: convert it to one for this data set.")
        return read_rgb(path)


def read_rgb(path: Path) -> Image.Image:
    """As `read_image`, for a file that Pillow reads in full; raises what Pillow raises."""
    with open_image(path, verify=True) as file:
        return load_rgb(file, path)


def load_rgb(file: ImageFile, path: Path) -> Image.Image:
    """What `read_rgb` makes of a file that is open."""
    # Pillow scales the 16 bits of a colour PPM to 8 as it reads.
    deep = file.format == "PPM" and isinstance(file.tile[0].args, tuple) and file.tile[0].args[1] > 255
    ImageOps.exif_transpose(file, in_place=True)  # a copy takes as long as decoding
    file.load()
    if deep or file.mode.startswith(("I", "F")):
        raise DataError(f"{path} has more than 8 bits a channel: convert it to PNG or TIFF, which are read in full.")
    return on_white(file)


def read_pixels(path: Path, channels: int) -> Tensor:
    """As `read_rgb`, but (channels, H, W) of uint8: grey (1) or colour (3). Torchcodec saves a third of the time."""
    from torchvision.transforms.v2 import functional as F  # slow to import, and --help does without

    from data.decoders import torchcodec

    with open_image(path, verify=True) as file:
        is_upright = file.getexif().get(EXIF_ORIENTATION, 1) == 1  # the decoder would not look into XMP for it
        if torchcodec is not None and channels == 3 and (file.format, file.mode) == ("JPEG", "RGB") and is_upright:
            # not by its path, for which the decoder would change the filters of warnings: that is not safe in threads
            pixels = torchcodec.decode_jpeg(torch.from_numpy(np.fromfile(path, np.uint8)))
            assert isinstance(pixels, Tensor)
            return pixels
        image = load_rgb(file, path)
    return F.pil_to_tensor(image if channels == 3 else image.convert("L"))


def on_white(image: Image.Image) -> Image.Image:
    """An 8-bit picture of any mode as RGB, transparent parts on white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies in any case


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of the upright image, in pixels, from the file's header alone.

    Raises:
        DataError: the header cannot be read.
    """
    with reading(path):
        kind = array_kind(path)
        if kind in ("npy", "tiff"):
            return array_size(path, kind)
        with open_image(path) as file:
            width, height = file.size
            return (height, width) if file.getexif().get(EXIF_ORIENTATION) in SIDEWAYS else (width, height)


def image_sizes(paths: Sequence[Path]) -> dict[tuple[int, int], Path]:
    """Every size that occurs, (width, height) in pixels, with the first file that has it."""
    sizes: dict[tuple[int, int], Path] = {}
    for path, size in zip(paths, for_each(image_size, paths, "reading sizes"), strict=True):
        sizes.setdefault(size, path)
    return sizes


def describe(path: Path) -> str:
    """Format, mode and depth of a file, such as "PNG RGB" or "TIFF uint16, 4 channels", from its header.

    Raises:
        DataError: the header cannot be read.
    """
    with reading(path):
        kind = array_kind(path)
        if kind in ("npy", "tiff"):
            dtype, channels = array_format(path, kind)
            return f"{kind.upper()} {dtype}, {channels} channel{'' if channels == 1 else 's'}"
        with open_image(path) as file:
            return f"{file.format} {file.mode}{', 16 bits' if kind == 'png' else ''}"


def for_each(function: Callable[[Path], T], paths: Sequence[Path], title: str) -> list[T]:
    """`function` of every path, in their order, several at a time; a bar shows the progress of what takes long."""
    results: list[T] = []
    with (
        ThreadPoolExecutor() as pool,  # the decoders run side by side: they do without Python's lock
        tqdm(total=len(paths), desc=title, unit="file", delay=1, disable=None) as bar,
    ):
        for start in range(0, len(paths), 1000):  # an error waits for no more than these
            for result in pool.map(function, paths[start : start + 1000]):
                results.append(result)
                bar.update()
    return results


@dataclass(frozen=True, kw_only=True)
class ImageReader:
    """Path -> what a Transform takes: (C, H, W) of uint8 for 8-bit pictures, else of float32 in [-1, 1].

    channels: that the network takes. Files of 1 and 3 channels are read for either; others have to match. Transparency
        is a channel of its own where `channels` is 2 or 4, and of files that are not 8-bit; else it is put on white.
    value_range: the values of a file that become -1 and 1; values beyond are clipped. Of no effect on 8-bit files:
        these hold 0..255. None: 0..65535 for uint16, 0..1 for floats that lie in it.
    flag: that set the channels, for messages.

    Raises:
        DataError: the file cannot be read, has other channels, or does not tell the range of its values.
    """

    channels: int = 3
    value_range: tuple[float, float] | None = None
    flag: str = "--input_nc"

    def __call__(self, path: Path) -> Tensor:
        """Read the image, upright."""
        with reading(path):
            if self._is_plain(path):
                return read_pixels(path, self.channels)
            array = self._read(path)
            return self._format(array, path).to_tensor(array)

    def format(self, path: Path) -> PixelFormat:
        """The depth and range of a file, with which results made from it are written."""
        with reading(path):
            return PixelFormat() if self._is_plain(path) else self._format(self._read(path), path)

    def _is_plain(self, path: Path) -> bool:
        return self.channels in (1, 3) and not array_kind(path)

    def _read(self, path: Path) -> np.ndarray:
        array = read_array(path)
        found = array.shape[2]
        if found != self.channels and {found, self.channels} != {1, 3}:
            mend = [self.flag, str(found)] if self.flag.startswith("--") else []
            raise DataError(f"{path} has {found} channels, but {self.flag} is {self.channels}.", mend=mend)
        return array

    def _format(self, array: np.ndarray, path: Path) -> PixelFormat:
        try:
            return PixelFormat.of(array, self.value_range)
        except ValueError as error:
            raise DataError(f"{path} {error}") from error
