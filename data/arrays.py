"""Image files that Pillow does not read in full: 16 bits, floats, any number of channels, in PNG, TIFF and .npy.

tifffile is imported in the functions that use it: it is slow to import, and --help does without.
"""

import functools
import stat
from enum import IntEnum
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile

from data.dicom import is_dicom
from data.geotiff import GDAL_NODATA, nodata_value, without_nodata
from data.image_folder import MissingLibrary
from data.scans import is_slice, is_volume, read_scan, scan_size
from util import label_maps
from util.images import MAX_CHANNELS

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

EXIF_ORIENTATION = 0x0112
SIDEWAYS = range(5, 9)  # orientations that swap width and height
MAX_BYTES = 2**30  # of one image in memory
# formats that Pillow decodes itself, whatever the suffix; for others, such as EPS, it starts a program
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "JPEG2000", "AVIF", "HEIF")
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


ArrayKind = Literal["npy", "tiff", "nifti", "dicom"]  # which Pillow does not open


def array_kind(path: Path) -> Literal["", "png"] | ArrayKind:
    """The kind of a file by its content; "" for 8-bit gray and color images, which Pillow reads in full."""
    if is_slice(path):
        return "nifti" if is_volume(path.parent) else "dicom"
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a file but a folder, a device or a pipe")
    with path.open("rb", buffering=0) as file:
        start = file.read(132)
    if is_dicom(start):
        return "dicom"
    if start.startswith(b"\x93NUMPY"):
        return "npy"
    if start.startswith(b"\x89PNG"):
        return "png" if start[24:25] == b"\x10" else ""
    if start[:4] in TIFF_STARTS:
        from tifffile import TiffFile

        with TiffFile(path) as tiff:
            return "" if is_plain(channel_pages(tiff)) else "tiff"
    return ""


def is_plain(pages: list["TiffPage"]) -> bool:
    """Whether a TIFF is one page of gray or color in at most 8 bits, with or without transparency."""
    from tifffile import EXTRASAMPLE, PHOTOMETRIC

    page = pages[0]
    color_samples: dict[int, int] = {
        PHOTOMETRIC.RGB: 3, PHOTOMETRIC.YCBCR: 3, PHOTOMETRIC.CIELAB: 3, PHOTOMETRIC.SEPARATED: 4,
    }  # fmt: skip
    extra = page.samplesperpixel - color_samples.get(page.photometric, 1)
    alpha = (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA)
    transparency = [sample in alpha for sample in page.extrasamples]
    first = [page.index for page in pages] == [0]
    return first and page.dtype in (np.bool_, np.uint8) and extra == len(transparency) <= 1 and all(transparency)


def known_formats() -> list[str]:
    """The formats that Pillow may open: FORMATS, with HEIF if its library is installed."""
    register_heif()
    return [name for name in FORMATS if name in Image.OPEN or name != "HEIF"]


def open_image(path: Path, *, verify: bool = False) -> ImageFile:
    """Open the image in a file with Pillow, without decoding it. `verify` first compares the checksums of a PNG.

    Raises:
        ValueError: it has too many pixels, or more than its bytes can hold.
        OSError: it is not an image.
        SyntaxError: a checksum is wrong. Pillow would decode such a file to other pixels.
    """
    file = Image.open(path, formats=known_formats())
    try:
        check_size(file.width, file.height, len(file.getbands()))
        # Pillow fills a truncated JPEG with gray; a bit encodes at most one block of 64 pixels
        if file.format in ("JPEG", "MPO") and file.width * file.height > 64 * 8 * 2 * path.stat().st_size:
            raise ValueError(f"it has {file.width}x{file.height} pixels, more than its bytes can hold")
        if verify and file.format == "PNG":
            with Image.open(path, formats=["PNG"]) as again:
                again.verify()
    except BaseException:
        file.close()
        raise
    return file


@functools.cache
def register_heif() -> None:
    """Let Pillow read HEIC and HEIF, if pillow-heif is installed."""
    if find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()


def array_format(path: Path, kind: ArrayKind) -> tuple[str, int]:
    """The dtype and the number of channels, from the header alone where that is possible."""
    if kind != "tiff":
        array = map_npy(path) if kind == "npy" else read_array(path)
        return array.dtype.name, array.shape[2]
    from tifffile import TiffFile

    with TiffFile(path) as tiff:
        pages = channel_pages(tiff)
        return str(pages[0].dtype), len(pages) * pages[0].samplesperpixel


def has_alpha(path: Path) -> bool:
    """Whether the last channel of `read_array` is opacity, from the header alone."""
    kind = array_kind(path)
    if kind in ("npy", "nifti", "dicom"):
        return False
    if kind == "tiff":
        from tifffile import EXTRASAMPLE, TiffFile

        with TiffFile(path) as tiff:
            samples = channel_pages(tiff)[0].extrasamples
        return bool(samples) and samples[-1] in (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA)
    with open_image(path) as file:
        keyed = file.mode == "P" or kind == "png"  # where a transparent color becomes a channel
        return file.mode in ("LA", "RGBA") or (keyed and file.has_transparency_data)


def frame_count(path: Path) -> int:
    """The number of frames of an animation, of which the first is read; 1 for all other files."""
    if array_kind(path):
        return 1
    with open_image(path) as file:
        return 1 if file.format in ("MPO", "TIFF") else getattr(file, "n_frames", 1)


def array_size(path: Path, kind: ArrayKind) -> tuple[int, int]:
    """(width, height) of the upright image in pixels, from the header alone.

    Raises:
        ValueError: the file is damaged, has too many pixels, or its layout is ambiguous.
    """
    if kind == "npy":
        height, width = map_npy(path).shape[:2]
        return width, height
    if kind in ("nifti", "dicom"):
        return scan_size(path)
    from tifffile import TiffFile

    with TiffFile(path) as tiff:
        page = channel_pages(tiff)[0]
        size = page.imagewidth, page.imagelength
        return size[::-1] if page.tags.valueof(EXIF_ORIENTATION) in SIDEWAYS else size


def read_array(path: Path) -> np.ndarray:
    """The upright image as (H, W, C) in the dtype of the file; 1-bit values become 0 and 255.

    Palette images become color. White is the larger value.

    Raises:
        ValueError: the file is damaged, has too many pixels, holds no numbers, or its layout is ambiguous.
    """
    kind = array_kind(path)
    if kind == "npy":
        array = np.array(map_npy(path))
    elif kind == "tiff":
        array = read_tiff(path)
    elif kind in ("nifti", "dicom"):
        array = read_scan(path)
    else:
        with open_image(path, verify=True) as file:
            has_color_key = "transparency" in file.info
            if kind == "png" and (has_color_key or file.mode != "I;16"):  # Pillow reads I;16 in full
                from data.decoders import decode_png  # slow to import

                array = decode_png(path, has_color_key=has_color_key)
                array = upright(array, file.getexif().get(EXIF_ORIENTATION, 1))
            else:
                array = read_bands(file)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    if array.dtype.kind not in "uif" or array.dtype.itemsize > 8:
        raise ValueError(f"pixels cannot have the dtype {array.dtype}: save integers or floats of at most 64 bits")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def read_label_map(path: Path) -> tuple[np.ndarray, label_maps.Palette | None]:
    """The upright label map as (H, W, C): of a palette image the indices, and the palette.

    Raises:
        ValueError: as `read_array`, or there are transparent pixels.
    """
    if array_kind(path):
        return read_array(path), None
    with open_image(path, verify=True) as file:
        return label_maps.pixels(ImageOps.exif_transpose(file))


def read_bands(file: Image.Image) -> np.ndarray:
    """All channels of an image that Pillow opened, (H, W, C) of uint8; of uint16 if its mode is I;16."""
    image = ImageOps.exif_transpose(file)
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    return np.atleast_3d(np.asarray(image))


def map_npy(path: Path) -> np.ndarray:
    """Map the array in the file as (H, W, C). The channel axis is the only one of at most 16.

    Raises:
        ValueError: it holds Python objects, which are never loaded, or its layout is ambiguous.
    """
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    shape = array.shape
    if array.ndim == 2:
        array = array[:, :, None]
    elif array.ndim != 3 or 0 in shape or (shape[0] <= MAX_CHANNELS) == (shape[2] <= MAX_CHANNELS):
        wanted = f"(H, W), (H, W, C) or (C, H, W) with C from 1 to {MAX_CHANNELS} and larger sides"
        raise ValueError(f"its shape {shape} is not {wanted}")
    elif shape[0] <= MAX_CHANNELS:
        array = array.transpose(1, 2, 0)
    check_size(array.shape[1], array.shape[0], array.shape[2] * array.itemsize)
    return array


def read_tiff(path: Path) -> np.ndarray:
    """The pages of a TIFF as (H, W, C): the samples of one page, or several pages of one sample each."""
    from tifffile import PHOTOMETRIC, TiffFile

    with TiffFile(path) as tiff:
        pages = channel_pages(tiff)
        first = pages[0]
        if len(pages) > 1:
            array = np.stack([decode_page(page, path) for page in pages], axis=-1)
        else:
            array = np.atleast_3d(decode_page(first, path))
            array = np.moveaxis(array, 0, -1) if first.axes == "SYX" else array
        array = without_nodata(array, nodata_value(first.tags.valueof(GDAL_NODATA)))
        if first.photometric == PHOTOMETRIC.MINISWHITE and array.dtype.kind == "u":
            array = np.invert(array)
        return upright(array, first.tags.valueof(EXIF_ORIENTATION, 1))


def decode_page(page: "TiffPage", path: Path) -> np.ndarray:
    """The pixels of one page of `path`.

    Raises:
        MissingLibrary: tifffile needs imagecodecs for this kind of page, and it is not installed.
    """
    from tifffile import TIFF

    from data.decoders import imagecodecs  # slow to import

    if imagecodecs is not None:
        return page.asarray()
    schemes = ((page.compression, TIFF.DECOMPRESSORS), (page.predictor, TIFF.UNPREDICTORS))
    # tifffile leaves an unknown number as it is: the file is damaged, and tifffile reports it
    known = [(value, decoders) for value, decoders in schemes if isinstance(value, IntEnum)]
    names = " ".join(value.name for value, _ in known)
    missing = MissingLibrary.of(path, f"a TIFF with {page.bitspersample} bits per sample and the encoding {names}")
    if any(value not in decoders for value, decoders in known):
        raise missing
    try:
        return page.asarray()
    except (NotImplementedError, ImportError) as error:  # tifffile's own decoders do not cover every value
        raise missing from error


def channel_pages(tiff: "TiffFile") -> list["TiffPage"]:
    """The pages of the image, without thumbnails and masks.

    Raises:
        ValueError: they cannot be the channels of one image.
    """
    from tifffile import PHOTOMETRIC, TiffPage

    images = (page for page in tiff.pages if isinstance(page, TiffPage) and not (page.is_reduced or page.is_mask))
    pages = list(islice(images, MAX_CHANNELS + 1))
    if not pages or len(pages) > MAX_CHANNELS:
        raise ValueError(f"it has {'no page' if not pages else f'more than {MAX_CHANNELS} pages'}")
    first = pages[0]
    samples = len(pages) * first.samplesperpixel
    check_size(first.imagewidth, first.imagelength, samples * (first.dtype.itemsize if first.dtype else 1))
    alike = all((page.shape, page.dtype) == (first.shape, first.dtype) for page in pages)
    if len(pages) > 1 and not (alike and first.samplesperpixel == 1 and first.photometric != PHOTOMETRIC.PALETTE):
        raise ValueError("its pages are not channels: several pages have to be gray, of one size and one dtype")
    if first.imagedepth > 1 or first.samplesperpixel > MAX_CHANNELS:
        raise ValueError(f"it has slices or more than {MAX_CHANNELS} channels: save channels as pages")
    return pages


def check_size(width: int, height: int, pixel_bytes: int) -> None:
    """Refuse an image without pixels or larger than Pillow reads without a warning: a short header can claim any size.

    Raises:
        ValueError: the size is out of range.
    """
    most = Image.MAX_IMAGE_PIXELS
    if min(width, height) < 1 or (most and width * height > most):
        raise ValueError(f"it has {width}x{height} pixels; 1 to {most:,} can be read")
    if width * height * pixel_bytes > MAX_BYTES:
        raise ValueError(f"its {width}x{height} pixels of {pixel_bytes} bytes take more than {MAX_BYTES / 2**30:g} GiB")


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate and flip (H, W, C) by the EXIF orientation, 1 to 8.

    Reference: https://www.cipa.jp/std/documents/e/DC-008-2012_E.pdf
    """
    if orientation in SIDEWAYS:
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return np.ascontiguousarray(array)
