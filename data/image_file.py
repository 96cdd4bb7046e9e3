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

from data.arrays import (
    EXIF_ORIENTATION,
    SIDEWAYS,
    array_format,
    array_kind,
    array_size,
    has_alpha,
    open_image,
    read_array,
    read_label_map,
)
from data.geotiff import GDAL_NODATA, nodata_value, without_nodata
from data.image_folder import DataError
from util.images import WITH_ALPHA, PixelFormat
from util.label_maps import to_numbers

T = TypeVar("T")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn any error inside into a DataError that names the file."""
    try:
        yield
    except (DataError, ImportError):  # a missing library is not the file's fault
        raise
    except Exception as error:  # the decoders raise a dozen unrelated types for a broken file
        raise DataError(
            f"Cannot read the image {path} ({error}): replace or remove this file.", remedy={"skip_bad_images": True}
        ) from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn a ValueError inside about the content of a file into a DataError that begins with the file."""
    try:
        yield
    except ValueError as error:
        raise DataError(f"{path} {error}") from error


def read_image(path: Path) -> Image.Image:
    """An 8-bit image as RGB, upright (EXIF orientation applied), transparent parts on white.

    Raises:
        DataError: the file cannot be read, is truncated, or has more than 8 bits per channel or other channels.
    """
    with reading(path):
        if array_kind(path):
            raise DataError(f"{path} is not an 8-bit gray or color image: convert it to one for this dataset.")
        return read_rgb(path)


def read_rgb(path: Path) -> Image.Image:
    """Read like `read_image` a file that Pillow reads in full. Pillow's errors pass through."""
    with open_image(path, verify=True) as file:
        return load_rgb(file, path)


def load_rgb(file: ImageFile, path: Path) -> Image.Image:
    """Read an open file as `read_rgb` does."""
    # Pillow scales a color PPM from 16 to 8 bits while reading
    deep = file.format == "PPM" and isinstance(file.tile[0].args, tuple) and file.tile[0].args[1] > 255
    ImageOps.exif_transpose(file, in_place=True)  # a copy takes as long as decoding
    file.load()
    if deep or file.mode.startswith(("I", "F")):
        raise DataError(f"{path} has more than 8 bits per channel: convert it to PNG or TIFF, which are read in full.")
    nodata = nodata_value(getattr(file, "tag_v2", {}).get(GDAL_NODATA))  # only TIFF has such tags
    if nodata is not None and file.mode in ("L", "RGB"):
        return on_white(Image.fromarray(without_nodata(np.asarray(file), nodata)))
    return on_white(file)


def read_pixels(path: Path, channels: int) -> Tensor:
    """Read like `read_rgb`, but as (channels, H, W) of uint8: gray (1) or color (3).

    torchcodec takes two thirds of the time of Pillow.
    """
    from torchvision.transforms.v2 import functional as F  # slow to import, and --help does without

    from data.decoders import torchcodec

    with open_image(path, verify=True) as file:
        is_upright = file.getexif().get(EXIF_ORIENTATION, 1) == 1  # Pillow also looks in XMP; torchcodec does not
        if torchcodec is not None and channels == 3 and (file.format, file.mode) == ("JPEG", "RGB") and is_upright:
            # not by path: the decoder would change the warning filters, which is not thread-safe
            pixels = torchcodec.decode_jpeg(torch.from_numpy(np.fromfile(path, np.uint8)))
            assert isinstance(pixels, Tensor)
            return pixels
        image = load_rgb(file, path)
    return F.pil_to_tensor(image if channels == 3 else image.convert("L"))


def on_white(image: Image.Image) -> Image.Image:
    """An 8-bit image of any mode as RGB, transparent parts on white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")  # convert always copies


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of the upright image, in pixels, from the file's header alone.

    Raises:
        DataError: the header cannot be read.
    """
    with reading(path):
        kind = array_kind(path)
        if kind != "" and kind != "png":
            return array_size(path, kind)
        with open_image(path) as file:
            width, height = file.size
            return (height, width) if file.getexif().get(EXIF_ORIENTATION) in SIDEWAYS else (width, height)


def image_sizes(paths: Sequence[Path]) -> dict[tuple[int, int], Path]:
    """Every size that occurs, (width, height) in pixels, and the first file that has it."""
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
        if kind != "" and kind != "png":
            dtype, channels = array_format(path, kind)
            return f"{kind.upper()} {dtype}, {channels} channel{'' if channels == 1 else 's'}"
        with open_image(path) as file:
            return f"{file.format} {file.mode}{', 16 bits' if kind == 'png' else ''}"


def for_each(function: Callable[[Path], T], paths: Sequence[Path], title: str) -> list[T]:
    """Apply `function` to every path in threads. Results keep the order; a bar shows the progress of slow calls."""
    results: list[T] = []
    with (
        ThreadPoolExecutor() as pool,  # the decoders release the GIL
        tqdm(total=len(paths), desc=title, unit="file", delay=1, disable=None) as bar,
    ):
        for start in range(0, len(paths), 1000):  # an error waits for at most these
            for result in pool.map(function, paths[start : start + 1000]):
                results.append(result)
                bar.update()
    return results


@dataclass(frozen=True, kw_only=True)
class ImageReader:
    """Reads a file for a Transform: (C, H, W) of uint8 for 8-bit images, else of float32 in [-1, 1].

    Of label maps, it reads the numbers of their classes, (1, H, W) of NUMBERS.

    Args:
        channels: channels that the network takes. Gray files serve for 3 channels and color files for 1; other numbers
            have to match. Transparency is a channel if `channels` is 2 or 4 and in files of more than 8 bits; in all
            others it becomes white.
        value_range: values of a file that become -1 and 1; values outside are clipped. None: 0 to 65535 for uint16,
            0 to 1 for floats inside it. 8-bit files always hold 0 to 255.
        arguments: names of the arguments that set `channels`, for the remedy of an error.
        classes: of label maps, see PixelFormat; empty for all other images.

    Raises:
        DataError: the file cannot be read, has other channels or classes, or its value range is unknown.
    """

    channels: int = 3
    value_range: tuple[float, float] | None = None
    arguments: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __call__(self, path: Path) -> Tensor:
        """Read the image, upright."""
        with reading(path):
            if self.classes:
                array, palette = read_label_map(path)
                with naming(path):
                    return to_numbers(array, self.classes, palette)[None]
            if self._is_plain(path):
                return read_pixels(path, self.channels)
            array = self._read(path)
            return self._format(array, path).to_tensor(array)

    def format(self, path: Path) -> PixelFormat:
        """The depth and value range of a file, in which its results are written."""
        if self.classes:
            return PixelFormat(classes=self.classes)
        with reading(path):
            return PixelFormat() if self._is_plain(path) else self._format(self._read(path), path)

    def _is_plain(self, path: Path) -> bool:
        return self.channels in (1, 3) and not array_kind(path)

    def _read(self, path: Path) -> np.ndarray:
        array = read_array(path)
        found = array.shape[2]
        if found != self.channels and {found, self.channels} != {1, 3}:
            remedy = dict.fromkeys(self.arguments, found)
            raise DataError(f"{path} has {found} channels, but the network takes {self.channels}.", remedy=remedy)
        return array

    def _format(self, array: np.ndarray, path: Path) -> PixelFormat:
        with naming(path):
            return PixelFormat.of(array, self.value_range, alpha=array.shape[2] in WITH_ALPHA and has_alpha(path))
