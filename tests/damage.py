"""Damage image files with a seeded mutator and check how each is read: python -m tests.damage 1000."""

import random
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from data.check import Check
from data.image_file import ImageReader, image_size
from data.image_folder import DataError
from data.transforms import Transform
from tests.conftest import draw_shapes

READ = Check(ImageReader(), Transform(preprocess="none", flip=False, multiple=1))
JPEG_ERROR = 20.0  # of 255, on average, that compression may change
T = Image.Transpose
UPRIGHT = {
    2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_270, 7: T.TRANSVERSE,
    8: T.ROTATE_90,
}  # fmt: skip


@dataclass
class Damaged:
    """A file and its allowed outcome: `pixels`, (H, W, 3) in 0..255, an error, or either."""

    path: Path
    pixels: np.ndarray | None  # None: any valid image
    may_load: bool
    may_fail: bool
    tolerance: float = 1.0  # mean difference from `pixels`


def write(rng: random.Random, path: Path) -> tuple[np.ndarray, float]:
    """Write an undamaged image in the format of the suffix. Returns its pixels and the tolerance for reading them."""
    image = draw_shapes(str(rng.random()), (rng.randrange(24, 80), rng.randrange(24, 80)))
    pixels = np.asarray(image)
    if path.suffix == ".npy":
        dtype = rng.choice(["uint8", "uint16", "float32"])
        scale = {"uint8": 1, "uint16": 257, "float32": 1 / 255}[dtype]
        np.save(path, (pixels.astype(np.float64) * scale).astype(dtype))
    elif path.suffix == ".tif" and rng.random() < 0.4:
        tifffile.imwrite(path, pixels.astype(np.uint16) * 257, photometric="rgb", compression=rng.choice([None, "lzw"]))
    elif path.suffix == ".tif":
        image.save(path, compression=rng.choice([None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"]))
    else:
        image.save(path, quality=95, progressive=rng.random() < 0.3)
    return pixels, JPEG_ERROR if path.suffix in (".jpg", ".tif") else 1.0


def truncated(rng: random.Random, path: Path) -> Damaged:
    pixels, tolerance = write(rng, path)
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])
    return Damaged(path, pixels, True, True, tolerance)  # the missing part may be a trailer


def empty(rng: random.Random, path: Path) -> Damaged:
    path.write_bytes(b"")
    return Damaged(path, None, False, True)


def garbage(rng: random.Random, path: Path) -> Damaged:
    path.write_bytes(rng.choice([rng.randbytes(500), b"<html>404</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\0" * 4096]))
    return Damaged(path, None, False, True)


def flipped(rng: random.Random, path: Path) -> Damaged:
    pixels, _ = write(rng, path)
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 4, 50])):
        content[int(len(content) * rng.random() ** 2)] ^= 1 << rng.randrange(8)  # more often near the header
    path.write_bytes(content)
    return Damaged(path, pixels if path.suffix == ".png" else None, True, True)  # others have no checksums


def zeroed(rng: random.Random, path: Path) -> Damaged:
    pixels, _ = write(rng, path)
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content))
    length = min(rng.choice([4, 64, 4096]), len(content) - start)
    content[start : start + length] = bytes(length)
    path.write_bytes(content)
    return Damaged(path, pixels if path.suffix == ".png" else None, True, True)


def huge(rng: random.Random, path: Path) -> Damaged:
    write(rng, path)
    side = rng.choice([9_000, 10_000, 40_000, 65_000])
    content = bytearray(path.read_bytes())
    if path.suffix == ".png":
        content[16:24] = struct.pack(">II", side, side)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    elif path.suffix == ".jpg":
        frame = next(at for marker in (b"\xff\xc0", b"\xff\xc2") if (at := content.find(marker)) > 0)
        content[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    path.write_bytes(content)
    if path.suffix == ".npy":
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (side, side)})
    elif path.suffix == ".tif":
        with tifffile.TiffFile(path, mode="r+") as tiff:
            for tag in ("ImageWidth", "ImageLength"):
                tiff.pages.first.tags[tag].overwrite(side)
    return Damaged(path, None, False, True)


def palette(rng: random.Random, path: Path) -> Damaged:
    write(rng, path)
    image = draw_shapes(str(rng.random())).quantize(rng.choice([2, 16, 256]))
    image.save(path, "TIFF" if path.suffix == ".tif" else "PNG")
    return Damaged(path, np.asarray(image.convert("RGB")), True, False)


def cmyk(rng: random.Random, path: Path) -> Damaged:
    image = draw_shapes(str(rng.random())).convert("CMYK")
    image.save(path, "JPEG" if path.suffix == ".jpg" else "TIFF", quality=95)
    return Damaged(path, np.asarray(image.convert("RGB")), True, False, JPEG_ERROR)


def alpha(rng: random.Random, path: Path) -> Damaged:
    image = draw_shapes(str(rng.random()))
    opacity = np.tile(np.linspace(0, 255, image.width).astype(np.uint8), (image.height, 1))
    pixels = np.asarray(image)
    Image.fromarray(np.dstack([pixels, opacity])).save(path, "TIFF" if path.suffix == ".tif" else "PNG")
    share = opacity[..., None] / 255
    return Damaged(path, pixels * share + 255 * (1 - share), True, False)


def bits(rng: random.Random, path: Path) -> Damaged:
    image = draw_shapes(str(rng.random())).convert("1")
    image.save(path, "TIFF" if path.suffix == ".tif" else "PNG")
    return Damaged(path, np.asarray(image.convert("RGB")), True, False)


def rotated(rng: random.Random, path: Path) -> Damaged:
    image = draw_shapes(str(rng.random()))
    exif = Image.Exif()
    exif[0x0112] = orientation = rng.choice(list(UPRIGHT))
    image.save(path, {".jpg": "JPEG", ".tif": "TIFF"}.get(path.suffix, "PNG"), exif=exif)
    return Damaged(path, np.asarray(image.transpose(UPRIGHT[orientation])), True, False, JPEG_ERROR)


def renamed(rng: random.Random, path: Path) -> Damaged:
    pixels, tolerance = write(rng, path)
    other = path.with_name(f"{path.stem}_renamed{rng.choice(['.png', '.jpg', '.tif', '.npy', '.bmp', '.ppm'])}")
    return Damaged(path.rename(other), pixels, True, False, tolerance)


KINDS: tuple[Callable[[random.Random, Path], Damaged], ...] = (
    truncated, flipped, zeroed, empty, garbage, huge, palette, cmyk, alpha, bits, rotated, renamed,
)  # fmt: skip


def outcome(damaged: Damaged) -> str:
    """ "loaded" or "refused"; AssertionError if it is neither, or not what it should be."""
    try:
        image_size(damaged.path)
    except DataError as error:
        assert str(damaged.path) in str(error)
    try:
        image = READ(damaged.path)
    except DataError as error:
        assert str(damaged.path) in str(error), error
        assert damaged.may_fail, error
        return "refused"
    assert damaged.may_load, f"{damaged.path} is not an image, but was loaded"
    tensor = READ.transform(image)
    assert tensor.shape[0] == 3 and tensor.isfinite().all() and tensor.abs().max() <= 1
    if damaged.pixels is not None:
        pixels = tensor.permute(1, 2, 0).add(1).mul(127.5).numpy()
        assert pixels.shape == damaged.pixels.shape
        assert np.abs(pixels - damaged.pixels).mean() <= damaged.tolerance, f"{damaged.path} has other pixels"
    return "loaded"


def main(count: int, seed: int) -> None:
    """Damage and read `count` files. Prints the count of each kind and outcome, the longest time and peak memory."""
    ends: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            rng = random.Random(f"{seed} {number}")
            kind = KINDS[number % len(KINDS)]
            damaged = kind(rng, Path(folder, f"{number}_{kind.__name__}{rng.choice(['.png', '.jpg', '.tif', '.npy'])}"))
            started = time.perf_counter()
            ends[f"{kind.__name__} {outcome(damaged)}"] += 1
            slowest = max(slowest, time.perf_counter() - started)
    for end, times in sorted(ends.items()):
        print(f"{end} {times}")
    print(f"total {count}")
    print(f"slowest {slowest:.2f}")
    print(f"memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
