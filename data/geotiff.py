"""GeoTIFF: its georeference and its pixels without data (rasterio), and files written with those of their source.

tifffile and rasterio, which is optional, are imported in the functions that use them: they are slow to import.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from util.files import atomic

GEOTIFF = (".tif", ".tiff")  # suffixes
GEO_KEYS, GEO_SCALE, GEO_TRANSFORM, GDAL_NODATA = 34735, 33550, 34264, 42113  # tags

Window = tuple[tuple[int, int], tuple[int, int]]  # first and end of rows, and of columns
WriteWindow = Callable[[Window, np.ndarray], None]  # takes a window (H, W, C)


def is_georeferenced(path: Path) -> bool:
    """Whether a file is a GeoTIFF: with a georeference or a value for pixels without data."""
    if not path.name.lower().endswith(GEOTIFF):
        return False
    from tifffile import TiffFile, TiffFileError

    try:
        with TiffFile(path) as tiff:
            return any(tag in tiff.pages.first.tags for tag in (GEO_KEYS, GEO_SCALE, GEO_TRANSFORM, GDAL_NODATA))
    except TiffFileError:  # of another format, or damaged: reading it says so
        return False


def nodata_value(tag: object) -> float | None:
    """The value for pixels without data in a GeoTIFF, from its tag GDAL_NODATA; None if there is no such tag."""
    return None if tag is None else float(str(tag).strip("\0 "))


def without_nodata(array: np.ndarray, nodata: float | None) -> np.ndarray:
    """An image with the smallest valid value in place of those without data; `nodata` may be NaN."""
    missing = is_missing(array, nodata)
    if not missing.any() or missing.all():
        return array
    filled = array.copy()
    filled[missing] = array[~missing].min()
    return filled


def is_missing(array: np.ndarray, nodata: float | None) -> np.ndarray:
    """Where an array has no data."""
    if nodata is None:
        return np.zeros(array.shape, bool)
    return np.isnan(array) if np.isnan(nodata) else array == nodata


@contextmanager
def geotiff_writer(path: Path, source: Path, *, channels: int, dtype: str) -> Iterator[WriteWindow]:
    """A function that writes windows of a new GeoTIFF with the size and the georeference of `source`.

    Pixels without data in `source` have none in the new file. Memory does not grow with the file.

    Raises:
        ValueError: the function, if the dtype cannot hold the value for pixels without data.
    """
    import rasterio

    with rasterio.open(source) as scene:
        nodata = scene.nodata
        with rasterio.open(
            path, "w", driver="GTiff", height=scene.height, width=scene.width, count=channels, dtype=dtype,
            crs=scene.crs, transform=scene.transform, nodata=nodata if can_hold(dtype, nodata) else None,
        ) as made:  # fmt: skip

            def write(window: Window, array: np.ndarray) -> None:
                missing = is_missing(scene.read(window=window), nodata).all(0)
                if missing.any():
                    check_nodata(source, nodata, dtype)
                    array = array.copy()
                    array[missing] = nodata
                made.write(array.transpose(2, 0, 1), window=window)

            yield write


def can_hold(dtype: str, nodata: float | None) -> bool:
    """Whether results of a dtype can hold the value of pixels without data, if there is one."""
    from rasterio.dtypes import can_cast_dtype

    return nodata is None or can_cast_dtype([nodata], dtype)


def check_nodata(source: Path, nodata: float | None, dtype: str) -> None:
    """Raise ValueError if results of a dtype cannot hold the value of pixels without data in a GeoTIFF."""
    if not can_hold(dtype, nodata):
        raise ValueError(f"{dtype} cannot hold {nodata:g}, which marks pixels without data in {source}")


def write_geotiff(array: np.ndarray, path: Path, source: Path) -> None:
    """Write (H, W, C) as `geotiff_writer` does.

    Raises:
        ValueError: the size is another one, or the dtype cannot hold the value for pixels without data.
    """
    import rasterio

    height, width, channels = array.shape
    with rasterio.open(source) as scene:
        if scene.shape != (height, width):
            raise ValueError(f"{path}: {source} has {scene.width}x{scene.height} pixels, its result {width}x{height}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as draft, geotiff_writer(draft, source, channels=channels, dtype=array.dtype.name) as write:
        write(((0, height), (0, width)), array)
