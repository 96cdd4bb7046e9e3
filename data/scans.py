"""Scans, which are read as images and whose results come back as scans: DICOM, NIfTI and GeoTIFF.

A slice of a volume is a path below that of its file: brain.nii.gz/0012 is slice 12 along the last axis,
brain.nii.gz/0-0012 along the first, heart.dcm/0012 a frame.
"""

import logging
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from data.dicom import DICOM, frames_of, read_dicom, write_dicom
from data.geotiff import GEOTIFF, is_georeferenced, write_geotiff
from data.nifti import NIFTI, read_slice, slice_shape, volume, write_volume

log = logging.getLogger(__name__)

# suffixes that can be read -> the library that reads them
LIBRARIES = dict.fromkeys(NIFTI, "nibabel") | dict.fromkeys(DICOM, "pydicom")
READABLE = tuple(suffix for suffix, library in LIBRARIES.items() if find_spec(library))
SLICE = re.compile(r"(?:([01])-)?(\d+)")  # the name of a slice: its axis, if it is not the last one, and its index
LAST = 2  # axis of a volume


def has_suffix(path: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether the name of a file ends in one of the suffixes, in small letters or capitals."""
    return path.name.lower().endswith(suffixes)


def is_slice(path: Path) -> bool:
    """Whether a path is a slice of a volume, or a frame of a DICOM file."""
    return has_suffix(path.parent, NIFTI + DICOM) and bool(SLICE.fullmatch(path.name)) and path.parent.is_file()


def is_volume(path: Path) -> bool:
    """Whether the name of a file is that of a NIfTI volume."""
    return has_suffix(path, NIFTI)


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
        count = volume(path).shape[axis] if is_volume(path) else 0
    except Exception:  # the libraries raise a dozen types for a damaged file: reading it names the file
        return [path]
    prefix = "" if axis == LAST else f"{axis}-"
    return [path / f"{prefix}{index:04d}" for index in range(count)] or [path]


def read_scan(path: Path) -> np.ndarray:
    """A slice of a volume, or the image or a frame of a DICOM file, as (H, W, C)."""
    if not is_slice(path):
        return read_dicom(path)
    axis, index = place_of(path)
    return read_slice(path.parent, axis, index) if is_volume(path.parent) else read_dicom(path.parent, index)


def scan_size(path: Path) -> tuple[int, int]:
    """(width, height) of a scan that `read_scan` reads; of a slice of a volume, from the header alone."""
    header_only = is_slice(path) and is_volume(path.parent)
    height, width, _ = slice_shape(path.parent, place_of(path)[0]) if header_only else read_scan(path).shape
    return width, height


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
    alike = NIFTI if kind in NIFTI else {".tif": GEOTIFF, ".dcm": DICOM}.get(kind, ())
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
