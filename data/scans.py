"""Scans: DICOM (pydicom), NIfTI volumes (nibabel) and GeoTIFF (rasterio), read as images and written back as scans.

The libraries are imported in the functions that use them: they are optional and slow to import.

A slice of a volume is a path below that of its file: brain.nii.gz/0012 is slice 12 along the last axis,
brain.nii.gz/0-0012 along the first, heart.dcm/0012 a frame.
"""

import functools
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from util.files import atomic
from util.images import MAX_CHANNELS

log = logging.getLogger(__name__)

NIFTI, DICOM = (".nii", ".nii.gz"), (".dcm",)
# suffixes that can be read -> the library that reads them
LIBRARIES = dict.fromkeys(NIFTI, "nibabel") | dict.fromkeys(DICOM, "pydicom")
READABLE = tuple(suffix for suffix, library in LIBRARIES.items() if find_spec(library))
GEO_KEYS, GEO_SCALE, GEO_TRANSFORM, GDAL_NODATA = 34735, 33550, 34264, 42113  # tags of a GeoTIFF
SLICE = re.compile(r"(?:([01])-)?(\d+)")  # the name of a slice: its axis, if it is not the last one, and its index
LAST = 2  # axis of a volume
ROUNDED = 65535  # steps of a DICOM file for values that are no whole numbers

Window = tuple[tuple[int, int], tuple[int, int]]  # first and end of rows, and of columns
WriteWindow = Callable[[Window, np.ndarray], None]  # takes a window (H, W, C)


def has_suffix(path: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether the name of a file ends in one of the suffixes, in small letters or capitals."""
    return path.name.lower().endswith(suffixes)


def is_slice(path: Path) -> bool:
    """Whether a path is a slice of a volume, or a frame of a DICOM file."""
    return has_suffix(path.parent, NIFTI + DICOM) and bool(SLICE.fullmatch(path.name)) and path.parent.is_file()


def place_of(path: Path) -> tuple[int, int]:
    """The axis and the index of a slice."""
    found = SLICE.fullmatch(path.name)
    assert found is not None
    return int(found[1] or LAST), int(found[2])


def file_of(path: Path) -> Path:
    """The file that holds an image: the volume of a slice, else the path itself."""
    return path.parent if is_slice(path) else path


def slices_of(path: Path, axis: int = LAST) -> list[Path]:
    """The slices of a volume along an axis, or the frames of a DICOM file, in order.

    The path itself for other files, for a DICOM file of one frame, and for a file that cannot be read.
    """
    try:
        if has_suffix(path, DICOM):
            return [path / f"{index:04d}" for index in range(frames)] if (frames := frames_of(path)) > 1 else [path]
        count = volume(path).shape[axis] if has_suffix(path, NIFTI) else 0
    except Exception:  # the libraries raise a dozen types for a damaged file: reading it names the file
        return [path]
    prefix = "" if axis == LAST else f"{axis}-"
    return [path / f"{prefix}{index:04d}" for index in range(count)] or [path]


def volume(path: Path) -> Any:
    """The nibabel image in a file, with values still on disk: 3 axes, or 4 with channels last.

    Raises:
        ValueError: it has other axes.
    """
    return _volume(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _volume(path: Path, changed: int) -> Any:
    import nibabel

    image: Any = nibabel.load(path)
    if len(image.shape) not in (3, 4) or (len(image.shape) == 4 and image.shape[3] > MAX_CHANNELS):
        raise ValueError(f"its shape is {image.shape}, not (X, Y, Z) or (X, Y, Z, C) with C up to {MAX_CHANNELS}")
    return image


@functools.lru_cache(maxsize=2)
def _values(path: Path, changed: int) -> np.ndarray:
    """All values of a volume, scaled as the file says: packed files can be read as a whole only."""
    return np.asanyarray(_volume(path, changed).dataobj)


def slice_shape(path: Path) -> tuple[int, int, int]:
    """(height, width, channels) of a slice, from the header of its volume."""
    sides, (axis, _) = list(volume(path.parent).shape), place_of(path)
    del sides[axis]
    return sides[1], sides[0], sides[2] if len(sides) > 2 else 1


def read_slice(path: Path) -> np.ndarray:
    """A slice as (H, W, C): the first of its axes in the volume to the right, the second upwards."""
    values, (axis, index) = _values(path.parent, path.parent.stat().st_mtime_ns), place_of(path)
    return np.atleast_3d(np.moveaxis(values, axis, 0)[index]).swapaxes(0, 1)[::-1]


def frames_of(path: Path) -> int:
    """The number of frames in a DICOM file, from its header."""
    import pydicom

    return int(
        pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["NumberOfFrames"]).get("NumberOfFrames") or 1
    )


def read_dicom(path: Path) -> np.ndarray:
    """The image in a DICOM file, or a frame, as (H, W, C): of one channel in its own unit, such as Hounsfield units.

    Raises:
        ValueError: the file has several frames, and the path names none.
    """
    import pydicom
    from pydicom.pixels.processing import apply_modality_lut
    from pydicom.pixels.utils import pixel_array

    if is_slice(path):
        index = place_of(path)[1]
        scan = pydicom.dcmread(path.parent, stop_before_pixels=True)
        values = apply_modality_lut(pixel_array(path.parent, index=index), frame_scale(scan, index))
    else:
        scan = pydicom.dcmread(path)
        if int(scan.get("NumberOfFrames") or 1) > 1:
            raise ValueError(f"it has {scan.NumberOfFrames} frames, which are {path / '0000'} and so on")
        values = apply_modality_lut(scan.pixel_array, scan)
    if values.dtype.kind == "f" and np.array_equal(values, whole := values.round().astype(np.int32)):
        values = whole
    return np.atleast_3d(values)


def frame_scale(scan: Any, index: int) -> Any:
    """The dataset with slope and intercept of a frame: its own, that of all frames, or the whole one."""
    for name, at in (("PerFrameFunctionalGroupsSequence", index), ("SharedFunctionalGroupsSequence", 0)):
        groups = scan.get(name)
        if groups and (scales := groups[at].get("PixelValueTransformationSequence")):
            return scales[0]
    return scan


def is_dicom(start: bytes) -> bool:
    """Whether the first 132 bytes are those of a DICOM file."""
    return start[128:132] == b"DICM"


def write_dicom(array: np.ndarray, path: Path, source: Path) -> None:
    """Write (H, W, 1) as the DICOM file `source` with other pixels, as a derived image of a series of its own.

    The pixels of a file of several frames are (frames, H, W, 1).

    Whole numbers are kept; others are rounded to 65,535 steps between the smallest and the largest.

    Raises:
        ValueError: the array has several channels, or whole numbers that 16 bits cannot hold.
    """
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    if array.shape[-1] != 1:
        raise ValueError(f"{path}: a DICOM file of one channel cannot hold {array.shape[-1]}")
    scan = pydicom.dcmread(source)
    slope, intercept = 1.0, 0.0
    if array.dtype.kind == "f":
        intercept = float(array.min())
        slope = (float(array.max()) - intercept) / ROUNDED or 1.0
        stored = ((array - intercept) / slope).round().astype(np.uint16)
    else:
        stored = array.astype(np.uint16 if array.min() >= 0 else np.int16)
        if not np.array_equal(stored, array):
            raise ValueError(f"{path}: 16 bits of a DICOM file cannot hold {array.min()} to {array.max()}")
    scan.RescaleSlope, scan.RescaleIntercept = f"{slope:.10g}", f"{intercept:.10g}"
    for groups in (*scan.get("SharedFunctionalGroupsSequence", ()), *scan.get("PerFrameFunctionalGroupsSequence", ())):
        for scale in groups.get("PixelValueTransformationSequence", ()):
            scale.RescaleSlope, scale.RescaleIntercept = scan.RescaleSlope, scan.RescaleIntercept
    scan.Rows, scan.Columns, scan.SamplesPerPixel = *array.shape[-3:-1], 1
    scan.PhotometricInterpretation = "MONOCHROME2"
    scan.BitsAllocated, scan.BitsStored, scan.HighBit = 16, 16, 15
    scan.PixelRepresentation = int(stored.dtype == np.int16)
    scan.ImageType = ["DERIVED", "SECONDARY"]
    for outdated in ("SmallestImagePixelValue", "LargestImagePixelValue", "ModalityLUTSequence", "PixelPaddingValue"):
        if outdated in scan:
            delattr(scan, outdated)
    scan.SeriesInstanceUID = generate_uid(entropy_srcs=[str(scan.get("SeriesInstanceUID")), str(path.parent)])
    scan.SOPInstanceUID = scan.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    scan.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    scan.PixelData = stored[..., 0].tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    scan.save_as(path)


def is_georeferenced(path: Path) -> bool:
    """Whether a file is a GeoTIFF: with a georeference or a value for pixels without data."""
    if not has_suffix(path, (".tif", ".tiff")):
        return False
    from tifffile import TiffFile

    with TiffFile(path) as tiff:
        return any(tag in tiff.pages.first.tags for tag in (GEO_KEYS, GEO_SCALE, GEO_TRANSFORM, GDAL_NODATA))


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
        holds = nodata is not None and rasterio.dtypes.can_cast_dtype([nodata], dtype)
        with rasterio.open(
            path, "w", driver="GTiff", height=scene.height, width=scene.width, count=channels, dtype=dtype,
            crs=scene.crs, transform=scene.transform, nodata=nodata if holds else None,
        ) as made:  # fmt: skip

            def write(window: Window, array: np.ndarray) -> None:
                missing = is_missing(scene.read(window=window), nodata).all(0)
                if missing.any():
                    check_nodata(source, nodata, dtype)
                    array = array.copy()
                    array[missing] = nodata
                made.write(array.transpose(2, 0, 1), window=window)

            yield write


def check_nodata(source: Path, nodata: float, dtype: str) -> None:
    """Raise ValueError if results of a dtype cannot hold the value of pixels without data in a GeoTIFF."""
    import rasterio

    if not rasterio.dtypes.can_cast_dtype([nodata], dtype):
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


def scan_suffix(source: Path) -> str:
    """The suffix of a scan that is made from an image, such as .nii.gz; empty if the image is no scan."""
    if has_suffix(file_of(source), DICOM):
        return ".dcm"
    if is_slice(source):
        return next(suffix for suffix in reversed(NIFTI) if has_suffix(source.parent, (suffix,)))
    return ".tif" if find_spec("rasterio") and is_georeferenced(source) else ""


def is_scan_of(source: Path, target: Path) -> bool:
    """Whether `target` is the name of a scan of the kind that the image `source` is."""
    kind = scan_suffix(source)
    alike = NIFTI if kind in NIFTI else {".tif": (".tif", ".tiff"), ".dcm": DICOM}.get(kind, ())
    return has_suffix(target, alike)


class ScanWriter:
    """Writes results of scans as scans: slices into volumes, DICOM as DICOM, GeoTIFF with its georeference.

    Call `close` after the last result.
    """

    def __init__(self) -> None:
        self.resized = 0  # results that are no scans, since they have other sizes than their files
        # (volume, its slices, result) -> index -> the result of a slice
        self.slices: dict[tuple[Path, int, Path], dict[int, np.ndarray]] = {}

    def add(self, source: Path, array: np.ndarray, target: Path) -> None:
        """Write the result (H, W, C) for `source` to `target`; a slice is kept until its volume is complete."""
        if is_slice(source):
            axis, index = place_of(source)
            slices = self.slices.setdefault((source.parent, axis, target), {})
            slices[index] = array
            if len(slices) == len(slices_of(source.parent, axis)):
                del self.slices[source.parent, axis, target]
                made = [slices[index] for index in sorted(slices)]
                if has_suffix(source.parent, DICOM):
                    write_dicom(np.stack(made), target, source.parent)
                else:
                    write_volume(made, target, source.parent, axis)
        elif scan_suffix(source) == ".dcm":
            write_dicom(array, target, source)
        else:
            write_geotiff(array, target, source)

    def close(self) -> None:
        """Name what is not written: volumes of which slices are missing, and results of other sizes."""
        if self.resized:
            log.warning(
                "%d results are not written as scans, since they have other sizes than their files: --preprocess none "
                "keeps them",
                self.resized,
            )
        for (source, axis, target), slices in self.slices.items():
            count = len(slices_of(source, axis))
            log.warning("%s is not written: %d of the %d slices of %s were made", target, len(slices), count, source)


def write_volume(slices: Sequence[np.ndarray], path: Path, source: Path, axis: int) -> None:
    """Write slices (H, W, C) along an axis as a volume with the header of `source`.

    Raises:
        ValueError: the slices have another size.
    """
    import nibabel

    original = volume(source)
    values = np.stack([array[::-1].swapaxes(0, 1) for array in slices], axis)
    if values.shape[:3] != original.shape[:3]:
        sizes = ["x".join(map(str, shape[:3])) for shape in (original.shape, values.shape)]
        raise ValueError(f"{path}: {source} has {sizes[0]} voxels, the results of its slices {sizes[1]}")
    values = values[..., 0] if values.shape[3] == 1 else values
    dtype = np.float32 if values.dtype == np.float16 else values.dtype
    header = original.header.copy()
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(type(original)(values.astype(dtype), original.affine, header), path)
