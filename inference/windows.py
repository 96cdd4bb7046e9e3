"""Image files that are read and written in windows, so that memory does not grow with the image."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.arrays import EXIF_ORIENTATION, TIFF_STARTS
from data.image_file import reading
from inference.tile_maps import Box
from inference.tiles import Tiled
from inference.translator import Translator, as_tensor
from util.files import atomic
from util.images import PixelFormat, is_viewable, write_array

CACHE = 2**26  # bytes of decoded strips or tiles of a compressed file
ROWS = 256  # of an image of floats whose range is looked for


class TiffImage:
    """A TIFF of one gray or color page, read in windows.

    Args:
        path: see `suits`.
        channels: that the network takes: gray files serve for 3 channels and color files for 1.
        value_range: as in ImageReader.

    Raises:
        DataError: the file is damaged, or its value range is unknown.
    """

    def __init__(self, path: Path, *, channels: int, value_range: tuple[float, float] | None):
        from tifffile import TiffFile  # slow to import, and --help does without

        self.path, self.channels = path, channels
        self.file = TiffFile(path)
        self.page: Any = self.file.pages[0]
        self._decode = functools.lru_cache(self._segments_in(CACHE))(self._decode_segment)
        with reading(path):
            self.format = PixelFormat.of(self._extremes(), value_range)

    @staticmethod
    def suits(path: Path, channels: int) -> bool:
        """Whether a file is a TIFF that can be read in windows: one upright page of 8 bits or more, without alpha."""
        from tifffile import COMPRESSION, PHOTOMETRIC, PLANARCONFIG, TiffFile

        with path.open("rb") as file:
            if file.read(4) not in TIFF_STARTS:
                return False
        with TiffFile(path) as tiff:
            page: Any = tiff.pages[0]
            plain = {PHOTOMETRIC.MINISBLACK: 1, PHOTOMETRIC.RGB: 3}.get(page.photometric)
            schemes = (COMPRESSION.NONE, COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE)  # tifffile decodes these
            return (
                len(tiff.pages) == 1
                and plain == page.samplesperpixel
                and channels in (1, 3)
                and page.dtype is not None
                and page.dtype.kind in "uif"
                and page.compression in schemes
                and page.imagedepth == 1
                and (plain == 1 or page.planarconfig == PLANARCONFIG.CONTIG)
                and page.tags.valueof(EXIF_ORIENTATION, 1) == 1
            )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(1, C, H, W), C as the network takes it."""
        return 1, self.channels, self.page.imagelength, self.page.imagewidth

    def read(self, box: Box) -> Tensor:
        """A window, (1, C, rows, columns) in [-1, 1]."""
        with reading(self.path):
            return as_tensor(self.format.to_tensor(self._pixels(box)), channels=self.channels)[None]

    def close(self) -> None:
        """Close the file."""
        self._decode.cache_clear()
        self.file.close()

    def _pixels(self, box: Box) -> np.ndarray:
        """A window, (rows, columns, samples)."""
        import tifffile

        (top, bottom), (left, right) = box
        if self.page.is_memmappable:
            return np.atleast_3d(np.array(tifffile.memmap(self.path, mode="r")[top:bottom, left:right]))
        made = np.empty((bottom - top, right - left, self.page.samplesperpixel), self.page.dtype)
        height, width = self._segment_size()
        across = -(-self.page.imagewidth // width)
        for row in range(top // height, (bottom - 1) // height + 1):
            for column in range(left // width, (right - 1) // width + 1):
                pixels = self._decode(row * across + column)
                y, x = row * height, column * width
                rows = slice(max(top, y), min(bottom, y + height))
                columns = slice(max(left, x), min(right, x + width))
                part = pixels[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
                made[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = part
        return made

    def _segment_size(self) -> tuple[int, int]:
        """Rows and columns of a strip or a tile of the file."""
        page = self.page
        if page.is_tiled:
            return page.tilelength, page.tilewidth
        return min(page.rowsperstrip, page.imagelength), page.imagewidth

    def _segments_in(self, size: int) -> int:
        """How many decoded strips or tiles `size` bytes hold, at least one."""
        segment = np.prod(self._segment_size()) * self.page.samplesperpixel * self.page.dtype.itemsize
        return max(size // int(segment), 1)

    def _decode_segment(self, index: int) -> np.ndarray:
        """A strip or a tile of the file, (rows, columns, samples)."""
        self.file.filehandle.seek(self.page.dataoffsets[index])
        data = self.file.filehandle.read(self.page.databytecounts[index])
        pixels = self.page.decode(data, index)[0]
        if pixels is None:
            raise ValueError(f"strip {index} is empty")
        return pixels[0]

    def _extremes(self) -> np.ndarray:
        """The smallest and the largest value; of integers, whose range is known or given, no value is read."""
        dtype, width = self.page.dtype, self.page.imagewidth
        if dtype.kind != "f":
            return np.zeros(2, dtype)
        found = []
        for top in range(0, self.page.imagelength, ROWS):
            rows = self._pixels(((top, min(top + ROWS, self.page.imagelength)), (0, width)))
            found += [rows.min(), rows.max()]
        return np.array([np.min(found), np.max(found)], dtype)


class WindowWriter:
    """A file that is written in windows: an uncompressed TIFF; any other kind is put together in memory.

    Args:
        path: of the file, whose folder exists.
        size: (height, width).
        fmt: of the pixels.
    """

    def __init__(self, path: Path, size: tuple[int, int], fmt: PixelFormat):
        self.path, self.size, self.format = path, size, fmt
        self.in_place = path.suffix.lower() in (".tif", ".tiff")
        self.array: np.ndarray | None = None

    def write(self, box: Box, window: Tensor) -> None:
        """Take a window (1, C, rows, columns) in [-1, 1] of the result."""
        import tifffile

        (top, bottom), (left, right) = box
        pixels = self.format.to_array(window[0])
        channels = pixels.shape[2]
        if self.array is None:
            shape: tuple[int, ...] = (*self.size, channels)
            if self.in_place and channels in (1, 3):
                kind = "rgb" if channels == 3 else "minisblack"
                shape = shape[: 3 if channels == 3 else 2]
                tifffile.memmap(self.path, shape=shape, dtype=pixels.dtype, photometric=kind, metadata=None)
                self.array = np.empty(0)
            else:
                self.in_place = False
                self.array = np.empty(shape, pixels.dtype)
        if self.in_place:
            # Mapped anew for each window, so that the memory of this process does not grow with the file.
            file = tifffile.memmap(self.path, mode="r+")
            file[top:bottom, left:right] = pixels if channels == 3 else pixels[..., 0]
        else:
            self.array[top:bottom, left:right] = pixels

    def close(self) -> None:
        """Write what was put together in memory."""
        if not self.in_place and self.array is not None:
            write_array(self.array, self.path, alpha=self.format.alpha)


def translate_file(translator: Translator, source: Path, target: Path, *, is_chosen: bool) -> None:
    """Translate a file in tiles into another. Memory is bounded if both are TIFF.

    Args:
        translator: whose generator runs in tiles.
        source: a TIFF that `TiffImage.suits`.
        target: the result.
        is_chosen: the user named `target`; otherwise its suffix becomes .tif if the file could not hold the result.

    Raises:
        ValueError: files of this suffix do not support the depth or the channels of the result.
    """
    net = translator.net
    assert isinstance(net, Tiled)
    image = TiffImage(source, channels=translator.input_nc, value_range=translator.value_range)
    fmt = translator.result_format(image.format)
    try:
        if target.suffix.lower() not in (".tif", ".tiff", ".npy") and not is_viewable(
            torch.empty(net.output_nc, 1, 1), fmt
        ):
            if is_chosen:
                raise ValueError(
                    f"{target}: {target.suffix} cannot hold {net.output_nc} channels of {fmt.dtype}: use .tif"
                )
            target = target.with_suffix(".tif")
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic(target) as draft:
            writer = WindowWriter(draft, (image.shape[2], image.shape[3]), fmt)
            net.run(image, writer.write)
            writer.close()
    finally:
        image.close()
