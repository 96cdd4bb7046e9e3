"""Every file read once before the first step, as its data set will read it: for --skip_bad_images and --dry_run."""

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
from data.transforms import Transform, whole

log = logging.getLogger(__name__)

Picture = Image.Image | Tensor
NAMED = 3  # files that a list names before it only counts


@dataclass(frozen=True)
class Check:
    """Reads a file and refuses what its data set would refuse.

    read: path -> 8-bit image, or tensor (C, H, W); raises DataError.
    part: from the (width, height) of the file, in pixels, to that of what `transform` gets.
    """

    read: Callable[[Path], Picture]
    transform: Transform
    part: Callable[[tuple[int, int], Path], tuple[int, int]] = whole

    def __call__(self, path: Path) -> Picture:
        """The image. DataError if it cannot be read, or is too small for the transform."""
        image = self.read(path)
        self.transform.output_size(self.part(size_of(image), path), path)
        return image


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What is in one file; all but `path` is empty where `error` is not."""

    path: Path
    error: DataError | None = None
    kind: str = ""  # format, mode and depth
    size: tuple[int, int] = (0, 0)  # (width, height) in pixels
    flat: bool = False  # one colour all over
    file_digest: bytes = b""  # equal for files of equal bytes
    pixel_digest: bytes = b""  # equal for equal pixels


def inspect_files(paths: list[Path], check: Check) -> list[Inspection]:
    """Read all files, several at a time, with a progress bar."""
    return for_each(partial(inspect_file, check=check), paths, "checking pictures")


def inspect_file(path: Path, check: Check) -> Inspection:
    """Read one file, and find out what --dry_run tells about it.

    Raises:
        MissingLibrary: the file needs a library that is not installed.
    """
    try:
        image, kind = check(path), describe(path)
        file_digest = digest(path.read_bytes())
    except MissingLibrary:
        raise
    except DataError as error:
        return Inspection(path=path, error=error)
    except OSError as error:  # it has gone since it was read
        return Inspection(path=path, error=DataError(f"Cannot read the image {path} ({error.strerror})."))
    if isinstance(image, Tensor):
        flat = bool((image.amax((1, 2)) == image.amin((1, 2))).all())
        pixels = image.numpy().tobytes()
    else:
        flat = image.getcolors(1) is not None
        pixels = image.tobytes()
    size = size_of(image)
    pixel_digest = digest(f"{size} ".encode() + pixels)
    return Inspection(path=path, kind=kind, size=size, flat=flat, file_digest=file_digest, pixel_digest=pixel_digest)


def summary(pictures: Sequence[Inspection]) -> str:
    """How many pictures there are, of which kinds and sizes."""
    good = [picture for picture in pictures if not picture.error]
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(picture.kind for picture in good).most_common())
    sizes = sorted({picture.size for picture in good}, key=math.prod)
    span = " to ".join("{}x{}".format(*size) for size in dict.fromkeys([*sizes[:1], *sizes[-1:]]))
    return f"{len(good)} of {len(pictures)} pictures can be used" + (f": {kinds}; {span} pixels" if good else "")


def duplicates(train: Sequence[Inspection], test: Sequence[Inspection]) -> list[str]:
    """Which pictures of `test` are in `train` too, with the same bytes or in another file of the same pixels."""
    bytes_of = {picture.file_digest: picture.path for picture in train if not picture.error}
    pixels_of = {picture.pixel_digest: picture.path for picture in train if not picture.error}
    found = []
    for picture in test:
        if picture.file_digest in bytes_of:
            found.append(f"{picture.path} has the bytes of {bytes_of[picture.file_digest]}")
        elif picture.pixel_digest in pixels_of:
            found.append(f"{picture.path} has the pixels of {pixels_of[picture.pixel_digest]}")
    return found


def leave_out_bad(paths: list[Path], check: Callable[[Path], object]) -> list[Path]:
    """Those of `paths` that `check` finds no fault with; a line on the console counts and names the others.

    Raises:
        DataError: none is left.
        MissingLibrary: a file needs a library that is not installed.
    """
    errors = for_each(partial(fault, check=check), paths, "checking pictures")
    bad = [error for error in errors if error]
    if len(bad) == len(paths):
        raise DataError(f"--skip_bad_images leaves none of {len(paths)} pictures, the first for this: {bad[0]}")
    if bad:
        log.warning("%d of %d images are left out:\n%s", len(bad), len(paths), listing(bad))
    return [path for path, error in zip(paths, errors, strict=True) if not error]


def fault(path: Path, check: Callable[[Path], object]) -> str:
    """What is wrong with a file, without advice; empty if nothing is."""
    try:
        check(path)
    except MissingLibrary:
        raise
    except DataError as error:
        return str(error).rsplit(": ", 1)[0]
    return ""


def listing(entries: list[str]) -> str:
    """The first of `entries`, one a line, and how many more there are."""
    more = [f"  and {len(entries) - NAMED} more"] if len(entries) > NAMED else []
    return "\n".join([*(f"  {entry}" for entry in entries[:NAMED]), *more])


def size_of(image: Picture) -> tuple[int, int]:
    """(width, height) in pixels."""
    return (image.shape[2], image.shape[1]) if isinstance(image, Tensor) else image.size


def digest(content: bytes) -> bytes:
    """16 bytes that differ for different contents."""
    return hashlib.blake2b(content, digest_size=16).digest()
