"""DICOM: images and frames (pydicom), read in their unit and written as derived images.

pydicom is imported in the functions that use it: it is optional and slow to import.
"""

from pathlib import Path
from typing import Any

import numpy as np

DICOM = (".dcm",)  # suffixes
ROUNDED = 65535  # steps of a file for values that are no whole numbers


def frames_of(path: Path) -> int:
    """The number of frames in a DICOM file, from its header."""
    import pydicom

    return int(
        pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["NumberOfFrames"]).get("NumberOfFrames") or 1
    )


def read_dicom(path: Path, frame: int | None = None) -> np.ndarray:
    """The image in a file, or a frame, as (H, W, C): of one channel in its own unit, such as Hounsfield units.

    White is the larger value, also in files whose smaller ones are white (MONOCHROME1), such as many X-rays.

    Raises:
        ValueError: the file has several frames, and none is named.
    """
    import pydicom
    from pydicom.pixels.processing import apply_modality_lut
    from pydicom.pixels.utils import pixel_array

    if frame is None:
        scan = pydicom.dcmread(path)
        if int(scan.get("NumberOfFrames") or 1) > 1:
            raise ValueError(f"it has {scan.NumberOfFrames} frames, which are {path / '0000'} and so on")
        values = apply_modality_lut(white_largest(scan.pixel_array, scan), scan)
    else:
        scan = pydicom.dcmread(path, stop_before_pixels=True)
        stored = white_largest(pixel_array(path, index=frame), scan)
        values = apply_modality_lut(stored, frame_scale(scan, frame))
    if values.dtype.kind == "f" and np.array_equal(values, whole := values.round().astype(np.int32)):
        values = whole
    return np.atleast_3d(values)


def white_largest(stored: np.ndarray, scan: Any) -> np.ndarray:
    """The stored values of a file, mirrored within their range if the smaller ones are white."""
    if scan.get("PhotometricInterpretation") != "MONOCHROME1":
        return stored
    return ~stored if scan.PixelRepresentation else (1 << scan.BitsStored) - 1 - stored


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
    outdated = ["SmallestImagePixelValue", "LargestImagePixelValue", "ModalityLUTSequence", "PixelPaddingValue"]
    stored, slope, intercept = in_16_bits(array, path)
    scan.RescaleSlope, scan.RescaleIntercept = f"{slope:.10g}", f"{intercept:.10g}"
    for groups in (*scan.get("SharedFunctionalGroupsSequence", ()), *scan.get("PerFrameFunctionalGroupsSequence", ())):
        for scale in groups.get("PixelValueTransformationSequence", ()):
            scale.RescaleSlope, scale.RescaleIntercept = scan.RescaleSlope, scan.RescaleIntercept
    scan.Rows, scan.Columns, scan.SamplesPerPixel = *array.shape[-3:-1], 1
    if scan.get("PhotometricInterpretation") == "MONOCHROME1":
        outdated += ("WindowCenter", "WindowWidth", "VOILUTSequence")
    scan.PhotometricInterpretation = "MONOCHROME2"
    if "PresentationLUTShape" in scan:
        scan.PresentationLUTShape = "IDENTITY"
    scan.BitsAllocated, scan.BitsStored, scan.HighBit = 16, 16, 15
    scan.PixelRepresentation = int(stored.dtype == np.int16)
    scan.ImageType = ["DERIVED", "SECONDARY"]
    for name in outdated:
        if name in scan:
            delattr(scan, name)
    scan.SeriesInstanceUID = generate_uid(entropy_srcs=[str(scan.get("SeriesInstanceUID")), str(path.parent)])
    scan.SOPInstanceUID = scan.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    scan.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    scan.PixelData = stored[..., 0].tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    scan.save_as(path)


def in_16_bits(array: np.ndarray, path: Path) -> tuple[np.ndarray, float, float]:
    """Values as uint16 or int16 for the DICOM file `path`, with the slope and the intercept that give the values back.

    Raises:
        ValueError: these are whole numbers that 16 bits cannot hold.
    """
    if array.dtype.kind == "f":
        intercept = float(array.min())
        slope = (float(array.max()) - intercept) / ROUNDED or 1.0
        return ((array - intercept) / slope).round().astype(np.uint16), slope, intercept
    stored = array.astype(np.uint16 if array.min() >= 0 else np.int16)
    if not np.array_equal(stored, array):
        raise ValueError(f"{path}: 16 bits of a DICOM file cannot hold {array.min()} to {array.max()}")
    return stored, 1.0, 0.0
