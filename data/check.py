"""Read every file once before the first step, as its dataset will: for skip_bad_images and the dry run."""

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image
from torch import Tensor

from data.image_file import describe, for_each
from data.image_folder import DataError, MissingLibrary
from data.scans import is_slice
from data.transforms import Transform, whole

log = logging.getLogger(__name__)

Decoded = Image.Image | Tensor
NAMED = 3  # a list names so many files and counts the rest


@dataclass(frozen=True)
class Check:
    """Reads a file and refuses what its dataset would refuse.

    Args:
        read: path -> 8-bit image, or tensor (C, H, W); raises DataError.
        transform: the transform of the dataset.
        part: (width, height) of a file in pixels -> (width, height) of the part that `transform` gets.
    """

    read: Callable[[Path], Decoded]
    transform: Transform
    part: Callable[[tuple[int, int], Path], tuple[int, int]] = whole

    def __call__(self, path: Path) -> Decoded:
        """Read the image. Raises a DataError if it cannot be read or is too small for the transform."""
        image = self.read(path)
        self.transform.output_size(self.part(size_of(image), path), path)
        return image


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The contents of one file; with an `error`, all but `path` is empty."""

    path: Path
    error: DataError | None = None
    kind: str = ""  # format, mode and depth
    size: tuple[int, int] = (0, 0)  # (width, height) in pixels
    flat: bool = False  # all pixels have one color
    file_digest: bytes = b""  # equal for files of equal bytes
    pixel_digest: bytes = b""  # equal for equal pixels


def inspect_files(paths: list[Path], check: Check) -> list[Inspection]:
    """Read all files, several at a time, with a progress bar."""
    return for_each(partial(inspect_file, check=check), paths, "checking images")


def inspect_file(path: Path, check: Check) -> Inspection:
    """Read one file and collect what the dry run reports.

    Raises:
        MissingLibrary: the file needs a library that is not installed.
    """
    try:
        image, kind = check(path), describe(path)
        file_digest = b"" if is_slice(path) else digest(path.read_bytes())
    except MissingLibrary:
        raise
    except DataError as error:
        return Inspection(path=path, error=error)
    except OSError as error:  # deleted since it was read
        return Inspection(path=path, error=DataError(f"Cannot read the image {path} ({error.strerror})."))
    if isinstance(image, Tensor):
        flat = bool((image.amax((1, 2)) == image.amin((1, 2))).all())
        pixels = image.numpy().tobytes()
    else:
        flat = image.getcolors(1) is not None
        pixels = image.tobytes()
    size = size_of(image)
    pixel_digest = digest(f"{size} ".encode() + pixels)
    file_digest = file_digest or pixel_digest
    return Inspection(path=path, kind=kind, size=size, flat=flat, file_digest=file_digest, pixel_digest=pixel_digest)


def summary(images: Sequence[Inspection]) -> str:
    """The number of images, their kinds and sizes."""
    good = [image for image in images if not image.error]
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(image.kind for image in good).most_common())
    sizes = sorted({image.size for image in good}, key=math.prod)
    span = " to ".join("{}x{}".format(*size) for size in dict.fromkeys([*sizes[:1], *sizes[-1:]]))
    return f"{len(good)} of {len(images)} images can be used" + (f": {kinds}; {span} pixels" if good else "")


def duplicates(train: Sequence[Inspection], test: Sequence[Inspection]) -> list[str]:
    """Images of `test` that are in `train` too: equal bytes, or equal pixels in another file."""
    bytes_of = {image.file_digest: image.path for image in train if not image.error}
    pixels_of = {image.pixel_digest: image.path for image in train if not image.error}
    found = []
    for image in test:
        if image.file_digest in bytes_of:
            found.append(f"{image.path} has the bytes of {bytes_of[image.file_digest]}")
        elif image.pixel_digest in pixels_of:
            found.append(f"{image.path} has the pixels of {pixels_of[image.pixel_digest]}")
    return found


def skip_bad(paths: list[Path], check: Callable[[Path], object]) -> tuple[list[Path], list[str]]:
    """Those of `paths` that `check` accepts, and the errors of the others. One warning counts and names these.

    Raises:
        DataError: `check` accepts none.
        MissingLibrary: a file needs a library that is not installed.
    """
    errors = for_each(partial(error_of, check=check), paths, "checking images")
    bad = [str(error) for error in errors if error]
    if len(bad) == len(paths):
        raise DataError(f"None of {len(paths)} images can be used. The first error: {bad[0]}")
    if bad:
        log.warning("%d of %d images are skipped:\n%s", len(bad), len(paths), listing(bad))
    return [path for path, error in zip(paths, errors, strict=True) if not error], bad


def error_of(path: Path, check: Callable[[Path], object]) -> DataError | None:
    """The error that `check` raises for a file, other than MissingLibrary; None if it accepts the file."""
    try:
        check(path)
    except MissingLibrary:
        raise
    except DataError as error:
        return error
    return None


def listing(entries: list[str]) -> str:
    """The first of `entries`, one per line, and the number of the others."""
    more = [f"  and {len(entries) - NAMED} more"] if len(entries) > NAMED else []
    return "\n".join([*(f"  {entry}" for entry in entries[:NAMED]), *more])


def size_of(image: Decoded) -> tuple[int, int]:
    """(width, height) in pixels."""
    return (image.shape[2], image.shape[1]) if isinstance(image, Tensor) else image.size


def digest(content: bytes) -> bytes:
    """A hash of 16 bytes."""
    return hashlib.blake2b(content, digest_size=16).digest()
