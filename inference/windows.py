"""Image files that are read and written in windows, so that memory does not grow with the image."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.arrays import EXIF_ORIENTATION, TIFF_STARTS
from data.geotiff import GDAL_NODATA, GEOTIFF, Window, WriteWindow, check_nodata, geotiff_writer, is_missing
from data.image_file import reading
from data.scans import is_scan_of, scan_suffix
from inference.tile_maps import Box
from inference.tiles import Tiled
from inference.translator import Translator, as_tensor
from util.files import atomic, check_kept
from util.images import PixelFormat, check_finite, is_viewable, write_array

CACHE = 2**26  # bytes of decoded strips or tiles of a compressed file
SCENE_CACHE = 2**28  # bytes that GDAL keeps of the files that it reads and writes; its default is 5% of the machine
ROWS = 256  # of an image of floats whose range is looked for


class WindowedFile(ABC):
    """A file that is read in windows.

    Args:
        path: see `suits`.
        channels: that the network takes: gray files serve for 3 channels and color files for 1.
        value_range: as in ImageReader.

    Attributes:
        shape: (1, C, H, W), C as the network takes it.
        extremes: the smallest and the largest value; zeros if `format` does not depend on them.
        format: of the pixels.
        close: a function that closes the file.

    Raises:
        DataError: the file is damaged, or its value range is unknown.
    """

    def __init__(self, path: Path, *, channels: int, value_range: tuple[float, float] | None):
        self.path, self.channels = path, channels
        with reading(path), ExitStack() as opened:
            self.shape = 1, channels, *self._open(opened)
            self.extremes = self._extremes(value_range)
            self.format = PixelFormat.of(self.extremes, value_range)
            self.close = opened.pop_all().close

    @staticmethod
    @abstractmethod
    def suits(path: Path, channels: int) -> bool:
        """Whether a file can be read in windows for a network of so many channels."""

    @abstractmethod
    def _open(self, opened: ExitStack) -> tuple[int, int]:
        """Open the file, with what closes it on `opened`, and return (H, W)."""

    @abstractmethod
    def _extremes(self, value_range: tuple[float, float] | None) -> np.ndarray:
        """See `extremes`."""

    @abstractmethod
    def _pixels(self, box: Box) -> np.ndarray:
        """A window, (rows, columns, samples)."""

    def read(self, box: Box) -> Tensor:
        """A window, (1, C, rows, columns) in [-1, 1]."""
        with reading(self.path):
            return as_tensor(self.format.to_tensor(self._pixels(box)), channels=self.channels)[None]


class TiffImage(WindowedFile):
    """A TIFF of one gray or color page."""

    def _open(self, opened: ExitStack) -> tuple[int, int]:
        from tifffile import TiffFile  # slow to import, and --help does without

        self.file = opened.enter_context(TiffFile(self.path))
        page: Any = self.file.pages[0]
        self.page = page
        self._decode = functools.lru_cache(self._segments_in(CACHE))(self._decode_segment)
        opened.callback(self._decode.cache_clear)
        return page.imagelength, page.imagewidth

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
                and GDAL_NODATA not in page.tags  # a GeoTIFF, while rasterio is not installed
            )

    def _pixels(self, box: Box) -> np.ndarray:
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

    def _extremes(self, value_range: tuple[float, float] | None) -> np.ndarray:
        """See WindowedFile; of integers whose range is known, no value is read."""
        dtype, width = self.page.dtype, self.page.imagewidth
        if is_range_known(dtype, value_range):
            return np.zeros(2, dtype)
        found = []
        for top in range(0, self.page.imagelength, ROWS):
            rows = self._pixels(((top, min(top + ROWS, self.page.imagelength)), (0, width)))
            found += [rows.min(), rows.max()]
        return np.array([np.min(found), np.max(found)], dtype)


class Scene(WindowedFile):
    """A GeoTIFF, read by rasterio. Pixels without data get the smallest valid value of the image.

    Attributes:
        has_missing: there are pixels without data.
    """

    def _open(self, opened: ExitStack) -> tuple[int, int]:
        import rasterio  # optional and slow to import

        opened.enter_context(rasterio.Env(GDAL_CACHEMAX=SCENE_CACHE))
        self.file = opened.enter_context(rasterio.open(self.path))
        self.nodata = self.file.nodata
        self.has_missing = False
        return self.file.height, self.file.width

    @staticmethod
    def suits(path: Path, channels: int) -> bool:
        """Whether a GeoTIFF can be read in windows: one upright image of numbers, with bands for the network."""
        from tifffile import PHOTOMETRIC, TiffFile

        with TiffFile(path) as tiff:
            pages: Any = tiff.pages
            page = pages.first
            return (
                [page.index for page in pages if not (page.is_reduced or page.is_mask)] == [0]
                and page.photometric in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB)
                and (page.samplesperpixel == channels or {page.samplesperpixel, channels} == {1, 3})
                and page.dtype is not None
                and page.dtype.kind in "uif"
                and page.tags.valueof(EXIF_ORIENTATION, 1) == 1
            )

    def _pixels(self, box: Box) -> np.ndarray:
        bands = self.file.read(window=box)
        bands[is_missing(bands, self.nodata)] = self.extremes[0]
        return bands.transpose(1, 2, 0)

    def writer(self, path: Path, channels: int, fmt: PixelFormat) -> AbstractContextManager[WriteWindow]:
        """See `geotiff_writer`. Raises ValueError at once if results cannot hold what marks pixels without data."""
        if self.has_missing:
            check_nodata(self.path, self.nodata, fmt.dtype)
        return geotiff_writer(path, self.path, channels=channels, dtype=fmt.dtype)

    def _extremes(self, value_range: tuple[float, float] | None) -> np.ndarray:
        """See WindowedFile: of valid values; of integers without missing pixels, as in TiffImage."""
        dtype = np.dtype(self.file.dtypes[0])
        if self.nodata is None and is_range_known(dtype, value_range):
            return np.zeros(2, dtype)
        found = []
        for _, window in self.file.block_windows(1):
            bands = self.file.read(window=window)
            missing = is_missing(bands, self.nodata)
            self.has_missing = self.has_missing or bool(missing.any())
            if not missing.all():
                found += [bands[~missing].min(), bands[~missing].max()]
        return np.array([np.min(found), np.max(found)] if found else [self.nodata] * 2, dtype)


def is_range_known(dtype: np.dtype, value_range: tuple[float, float] | None) -> bool:
    """Whether PixelFormat.of takes a file without a look at its values, which may be as large as the file."""
    return dtype.kind != "f" and (value_range is not None or dtype in (np.uint8, np.uint16))


@contextmanager
def tiff_writer(path: Path, shape: tuple[int, int, int], fmt: PixelFormat) -> Iterator[WriteWindow]:
    """A function that writes windows of a new file: an uncompressed TIFF. Any other kind is put together in memory.

    Args:
        path: of the file, whose folder exists.
        shape: (H, W, C).
        fmt: of the pixels.
    """
    import tifffile

    channels = shape[2]
    if path.suffix.lower() in GEOTIFF and channels in (1, 3):
        plain, kind = (shape, "rgb") if channels == 3 else (shape[:2], "minisblack")
        tifffile.memmap(path, shape=plain, dtype=fmt.dtype, photometric=kind, metadata=None)

        def write(window: Window, array: np.ndarray) -> None:
            # Mapped anew for each window, so that the memory of this process does not grow with the file.
            file, (rows, columns) = tifffile.memmap(path, mode="r+"), window
            file[slice(*rows), slice(*columns)] = array if channels == 3 else array[..., 0]

        yield write
    else:
        whole = np.empty(shape, fmt.dtype)

        def write(window: Window, array: np.ndarray) -> None:
            rows, columns = window
            whole[slice(*rows), slice(*columns)] = array

        yield write
        write_array(whole, path, alpha=fmt.alpha)


def open_windows(translator: Translator, path: Path) -> WindowedFile | None:
    """Open a file to be translated in windows. None if it has to be read whole.

    That is the case for all files if the generator does not run in tiles, or translates label maps.
    """
    kind = scan_suffix(path)
    if not isinstance(translator.net, Tiled) or translator.has_labels or kind not in ("", ".tif"):
        return None
    reader: type[WindowedFile] = Scene if kind else TiffImage
    if not reader.suits(path, translator.input_nc):
        return None
    return reader(path, channels=translator.input_nc, value_range=translator.value_range)


def translate_windows(translator: Translator, image: WindowedFile, target: Path, *, is_chosen: bool) -> None:
    """Translate a file in tiles into another. Memory is bounded if the result is a TIFF.

    Args:
        translator: whose generator runs in tiles.
        image: the file.
        target: the result. That of a GeoTIFF is a GeoTIFF if it is named so.
        is_chosen: the user named `target`; otherwise its suffix becomes .tif if the file could not hold the result.

    Raises:
        ValueError: files of this suffix do not support the depth or the channels of the result; or its depth does not
            support what marks pixels without data; the result would replace the file, or is not finite.
    """
    net, fmt = translator.net, translator.result_format(image.format)
    assert isinstance(net, Tiled)
    if target.suffix.lower() not in (*GEOTIFF, ".npy") and not is_viewable(torch.empty(net.output_nc, 1, 1), fmt):
        if is_chosen:
            raise ValueError(f"{target}: {target.suffix} cannot hold {net.output_nc} channels of {fmt.dtype}: use .tif")
        target = target.with_suffix(".tif")
        check_kept(image.path, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic(target) as draft:
        if isinstance(image, Scene) and is_scan_of(image.path, target):
            writer = image.writer(draft, net.output_nc, fmt)
        else:
            writer = tiff_writer(draft, (image.shape[2], image.shape[3], net.output_nc), fmt)
        with writer as write:

            def write_tile(box: Box, tile: Tensor) -> None:
                check_finite(tile, str(image.path))
                write(box, fmt.to_array(tile[0]))

            net.run(image, write_tile)
