"""Files of more than 8 bits or of many channels: no bit is lost, and ambiguous or hostile files are refused."""

import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from data.arrays import array_kind, array_size, read_array, upright
from data.image_file import image_size, read_image
from data.image_folder import DataError
from tests.test_architecture import run_python


def values(*shape, dtype="uint16"):
    """Random numbers over the whole range of an integer dtype, or in 0..1."""
    random = np.random.default_rng(0).random(shape)
    return (random * np.iinfo(dtype).max if np.dtype(dtype).kind in "ui" else random).astype(dtype)


def write_png(
    path: Path, array: np.ndarray, size: tuple[int, int] | None = None, key: np.ndarray | None = None
) -> None:
    """A PNG of 16 bits, (H, W, C), of which the color `key` is transparent; its header can claim another size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", *(size or (width, height)), 16, color_type, 0, 0, 0)
    transparency = b"" if key is None else chunk(b"tRNS", key.astype(">u2").tobytes())
    body = chunk(b"IHDR", header) + transparency + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def write_tiff(path: Path, array: np.ndarray, **keywords) -> None:
    tifffile.imwrite(path, array, **{"photometric": "minisblack", "metadata": None} | keywords)


def test_libraries_that_are_slow_to_import_wait_for_a_file():
    modules = run_python("import sys, train, datasets.combine_A_and_B, scripts.translate; print(*sys.modules)").split()
    assert "data.arrays" in modules and "training.checkpoints" in modules
    assert not {"tifffile", "filelock", "torchvision.transforms", "imagecodecs", "torchcodec"} & set(modules)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png(channels, tmp_path):
    array = values(20, 30, channels)
    write_png(tmp_path / "a.png", array)
    assert array_kind(tmp_path / "a.png") == "png"
    assert np.array_equal(read_array(tmp_path / "a.png"), array)
    assert image_size(tmp_path / "a.png") == (30, 20)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "int32", "float16", "float32", "float64"])
@pytest.mark.parametrize(
    ("stored", "keywords"),
    [
        ("H W", {}),
        ("H W", {"byteorder": ">", "bigtiff": True, "compression": "zlib", "predictor": False}),
        ("H W 3", {"photometric": "rgb"}),
        ("3 H W", {"photometric": "rgb", "planarconfig": "separate"}),
        ("H W 5", {"planarconfig": "contig"}),
        ("5 H W", {"planarconfig": "separate"}),
        ("5 H W", {}),  # pages
        ("16 H W", {}),
    ],
)
def test_tiff(stored, keywords, dtype, tmp_path):
    array = values(*(int(side) for side in stored.replace("H", "20").replace("W", "30").split()), dtype=dtype)
    write_tiff(tmp_path / "a.tif", array, **keywords)
    assert array_kind(tmp_path / "a.tif") == "tiff"
    assert image_size(tmp_path / "a.tif") == array_size(tmp_path / "a.tif", "tiff") == (30, 20)
    read = read_array(tmp_path / "a.tif")
    wanted = np.moveaxis(array, 0, -1) if stored.endswith("W") and array.ndim == 3 else np.atleast_3d(array)
    assert read.dtype == array.dtype and read.dtype.isnative
    assert np.array_equal(read, wanted)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_pillow_reads_8_bit_tiff(mode, tmp_path):
    Image.new("RGB", (30, 20), (200, 100, 50)).convert(mode).save(tmp_path / "a.tif")
    assert array_kind(tmp_path / "a.tif") == ""
    assert read_image(tmp_path / "a.tif").size == (30, 20)


def test_8_bit_channels_that_pillow_would_drop(tmp_path):
    array = values(20, 30, 5, dtype="uint8")
    write_tiff(tmp_path / "a.tif", array, photometric="rgb", planarconfig="contig")
    with Image.open(tmp_path / "a.tif") as file:
        assert len(file.getbands()) == 3
    assert np.array_equal(read_array(tmp_path / "a.tif"), array)


def test_thumbnails_are_not_channels(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(values(20, 30), photometric="minisblack")
        tiff.write(values(10, 15), photometric="minisblack", subfiletype=1)
    assert np.array_equal(read_array(tmp_path / "a.tif")[..., 0], values(20, 30))


def test_white_is_the_larger_value(tmp_path):
    write_tiff(tmp_path / "a.tif", values(20, 30), photometric="miniswhite")
    assert np.array_equal(read_array(tmp_path / "a.tif")[..., 0], 65535 - values(20, 30))


def test_bits_become_black_and_white(tmp_path):
    np.save(tmp_path / "a.npy", np.eye(20, dtype=bool))
    assert np.array_equal(read_array(tmp_path / "a.npy")[..., 0], np.eye(20, dtype=np.uint8) * 255)


@pytest.mark.parametrize("dtype", ["uint8", "<u2", ">u2", ">f4", "int64", "float16"])
@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 4), (4, 20, 30), (20, 30, 16), (1, 20, 30)])
def test_npy(shape, dtype, tmp_path):
    array = values(*shape, dtype=dtype)
    np.save(tmp_path / "a.npy", array)
    assert image_size(tmp_path / "a.npy") == (30, 20)
    wanted = np.moveaxis(array, 0, -1) if shape[0] < 20 else np.atleast_3d(array)
    read = read_array(tmp_path / "a.npy")
    assert read.dtype.isnative and np.array_equal(read, wanted)


@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 are invalid
def test_arrays_are_turned_upright_as_pillow_does(orientation, tmp_path):
    array = values(20, 30, dtype="uint8")
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(array).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as file:
        wanted = np.asarray(ImageOps.exif_transpose(file))
    assert np.array_equal(upright(array[..., None], orientation)[..., 0], wanted)
    write_tiff(tmp_path / "a.tif", array.astype(np.uint16), extratags=[(274, 3, 1, orientation, True)])
    assert np.array_equal(read_array(tmp_path / "a.tif")[..., 0], wanted)
    assert image_size(tmp_path / "a.tif") == wanted.shape[::-1]
    Image.fromarray(array.astype(np.uint16)).save(tmp_path / "b.png", exif=exif)
    assert np.array_equal(read_array(tmp_path / "b.png")[..., 0], wanted)


@pytest.mark.parametrize("shape", [(3, 200, 3), (40, 50, 60), (20,), (2, 3, 20, 30), (0, 20), (20, 30, 0)])
def test_ambiguous_npy_is_refused(shape, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.float32))
    with pytest.raises(DataError, match=r"Cannot read the image .*a\.npy \((its shape|it has|mmap|.*empty)"):
        image_size(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([values(20, 30), values(20, 31)], "its pages are not channels"),
        ([values(20, 30), values(20, 30, dtype="float32")], "its pages are not channels"),
        ([values(20, 30, 3, dtype="uint8")] * 2, "its pages are not channels"),
        ([values(20, 30)] * 17, "more than 16 pages"),
        ([values(20, 30, 17)], "more than 16 channels"),
    ],
)
def test_ambiguous_tiff_is_refused(arrays, message, tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for array in arrays:
            tiff.write(array, photometric="minisblack", planarconfig="contig" if array.ndim == 3 else None)
    with pytest.raises(DataError, match=rf"a\.tif \(.*{message}"):
        image_size(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiff(compression, tmp_path):
    array = values(20, 30)
    Image.fromarray(array).save(tmp_path / "a.tif", compression=compression)
    assert np.array_equal(read_array(tmp_path / "a.tif")[..., 0], array)


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("whole", [False, True])
def test_pickles_are_never_loaded(whole, tmp_path):
    bad = tmp_path / "bad.npy"
    if whole:
        bad.write_bytes(pickle.dumps(Attack(tmp_path / "ran")))
    else:
        np.save(bad, np.array([[Attack(tmp_path / "ran")]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"Cannot read the image .*bad\.npy"):
        image_size(bad)
    with pytest.raises((ValueError, OSError)):
        read_array(bad)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("side", [10_000, 100_000])  # Pillow warns of the first and refuses the second
@pytest.mark.parametrize("kind", ["png", "deep.png", "npy", "tif"])
def test_a_few_bytes_cannot_claim_gigabytes(kind, side, tmp_path):
    bomb = tmp_path / f"bomb.{kind}"
    if kind == "npy":
        with bomb.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (side, side)}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(10**10 if side == 10_000 else None)  # sparse: as if all of it were there
    elif kind == "tif":
        write_tiff(bomb, values(20, 30))
        with tifffile.TiffFile(bomb, mode="r+b") as tiff:
            for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
                tiff.pages[0].tags[tag].overwrite(side)
    else:
        write_png(bomb, values(20, 30, 1), (side, side))
        data = bytearray(bomb.read_bytes())
        if kind == "png":  # 8 bits
            data[24] = 8
            data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        bomb.write_bytes(data)
    for read in (image_size, read_image):
        with pytest.raises(DataError, match=r"bomb"):
            read(bomb)
    with pytest.raises((ValueError, OSError, Image.DecompressionBombError, Image.DecompressionBombWarning)):
        read_array(bomb)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.npy"])
def test_truncated_files_are_errors(name, tmp_path):
    path = tmp_path / name
    if name == "a.png":
        write_png(path, values(200, 300, 3))
    elif name == "a.tif":
        write_tiff(path, values(200, 300))
    else:
        np.save(path, values(200, 300))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises((ValueError, OSError, RuntimeError)):
        read_array(path)
