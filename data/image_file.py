"""Read images and their sizes; every error names the file and what to do about it."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from data.arrays import EXIF_ORIENTATION, array_kind, array_size, read_array
from data.image_folder import DataError
from util.images import PixelFormat


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong inside into a DataError that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except DataError:
        raise
    except Exception as error:  # the decoders raise a dozen unrelated types for a broken file
        raise DataError(f"Cannot read the image {path} ({error}): replace or remove this file.") from error


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
    with Image.open(path) as file:
        # Pillow scales the 16 bits of a colour PPM to 8 as it reads.
        deep = file.format == "PPM" and isinstance(file.tile[0].args, tuple) and file.tile[0].args[1] > 255
        image = ImageOps.exif_transpose(file)
        image.load()
    if deep or image.mode.startswith(("I", "F")):
        raise DataError(f"{path} has more than 8 bits a channel: convert it to PNG or TIFF, which are read in full.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of the upright image, in pixels, from the file's header alone.

    Raises:
        DataError: the header cannot be read.
    """
    with reading(path):
        kind = array_kind(path)
        if kind in ("npy", "tiff"):
            return array_size(path, kind)
        with Image.open(path) as file:
            width, height = file.size
            return (height, width) if file.getexif().get(EXIF_ORIENTATION, 1) >= 5 else (width, height)


def image_sizes(paths: Iterable[Path]) -> dict[tuple[int, int], Path]:
    """Every size that occurs, (width, height) in pixels, with the first file that has it."""
    sizes: dict[tuple[int, int], Path] = {}
    for path in paths:
        sizes.setdefault(image_size(path), path)
    return sizes


@dataclass(frozen=True, kw_only=True)
class ImageReader:
    """Path -> what a Transform takes: an 8-bit RGB image, or for all other files a tensor (C, H, W) in [-1, 1].

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

    def __call__(self, path: Path) -> Image.Image | Tensor:
        """Read the image, upright."""
        with reading(path):
            if self._is_plain(path):
                return read_rgb(path)
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
            raise DataError(f"{path} has {found} channels, but {self.flag} is {self.channels}.")
        return array

    def _format(self, array: np.ndarray, path: Path) -> PixelFormat:
        try:
            return PixelFormat.of(array, self.value_range)
        except ValueError as error:
            raise DataError(f"{path} {error}") from error
