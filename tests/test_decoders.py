"""Optional libraries: without torchcodec and imagecodecs, files are read to the same pixels or refused by name."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import train as training
from data import create_dataset, decoders
from data.arrays import read_array
from data.check import skip_bad
from data.image_file import ImageReader, read_image
from data.image_folder import MissingLibrary
from tests.conftest import COMBINE, draw_shapes
from tests.test_arrays import values, write_png
from tests.test_cli import ONE_THREAD, ROOT, TINY
from tests.test_data import opt_train
from tests.without import digest, outcome

INSTALL = 'needs imagecodecs. Install it: pip install ".[formats]"'
NEEDS_BOTH = pytest.mark.skipif(None in (decoders.torchcodec, decoders.imagecodecs), reason="needs both libraries")


def read_without(missing: str, folder: Path, *python_path: Path) -> tuple[dict[str, str], str]:
    """The outcome of each file of `folder` in a process without the packages `missing`; and its stderr."""
    command = [sys.executable, "-m", "tests.without", missing, str(folder)]
    env = ONE_THREAD | {"PYTHONPATH": os.pathsep.join(map(str, python_path))}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return dict(line.split(" ", 1) for line in done.stdout.splitlines()), done.stderr


def write_jpegs(folder: Path) -> dict[str, str]:
    """JPEG files of several kinds; returns the digest of the pixels that Pillow reads from each."""
    noise = Image.fromarray(values(33, 51, 3, dtype="uint8")).resize((203, 131))
    kinds: dict[str, dict[str, Any]] = {
        "420": {}, "444": {"subsampling": 0, "quality": 95}, "progressive": {"progressive": True},
        "coarse": {"quality": 20, "subsampling": 1}, "restarts": {"optimize": True, "restart_marker_rows": 1},
    }  # fmt: skip
    for name, keywords in kinds.items():
        noise.save(folder / f"{name}.jpg", **keywords)
    noise.convert("L").save(folder / "gray.jpg")
    noise.convert("CMYK").save(folder / "cmyk.jpg")
    return {path.name: digest(np.asarray(read_image(path))) for path in folder.glob("*.jpg")}


def write_arrays(folder: Path) -> dict[str, str]:
    """Files of more than 8 bits; returns the digest of the pixels of each."""
    arrays = {}
    for channels, name in enumerate(("gray.png", "gray_alpha.png", "color.png", "color_alpha.png"), 1):
        arrays[name] = values(20, 30, channels)
        write_png(folder / name, arrays[name])
    for name, pixels in (("gray_key.png", arrays["gray.png"]), ("color_key.png", arrays["color.png"])):
        write_png(folder / name, pixels, key=pixels[0, 0])
        alpha = np.where((pixels == pixels[0, 0]).all(-1, keepdims=True), 0, 65535).astype(np.uint16)
        arrays[name] = np.concatenate([pixels, alpha], axis=-1)
    gray, floats = values(20, 30), values(20, 30, dtype="float32")
    Image.fromarray(gray).save(folder / "zlib.tif", compression="tiff_adobe_deflate")
    Image.fromarray(gray).save(folder / "lzw.tif", compression="tiff_lzw")
    Image.fromarray(floats).save(folder / "float.tif", compression="tiff_adobe_deflate", tiffinfo={317: 3})
    tifffile.imwrite(folder / "plain.tif", floats)
    for name, array in (("zlib.tif", gray), ("lzw.tif", gray), ("float.tif", floats), ("plain.tif", floats)):
        arrays[name] = array[..., None]
    return {name: digest(array) for name, array in arrays.items()}


@pytest.mark.parametrize("missing", ["torchcodec,imagecodecs", "imagecodecs"])
def test_files_are_read_to_the_same_pixels_or_refused(missing, tmp_path):
    wanted = write_jpegs(tmp_path) | write_arrays(tmp_path)
    if decoders.imagecodecs is None or "imagecodecs" in missing:
        kinds = {
            "color_key.png": (key := "a PNG with 16 bits per channel and color or transparency"),
            "gray_key.png": key,
            "lzw.tif": "a TIFF with 16 bits per sample and the encoding LZW",
            "float.tif": "a TIFF with 32 bits per sample and the encoding ADOBE_DEFLATE FLOATINGPOINT",
        }
        if decoders.torchcodec is None or "torchcodec" in missing:
            kinds |= dict.fromkeys(("gray_alpha.png", "color.png", "color_alpha.png"), key)
        wanted |= {name: f"Cannot read {tmp_path / name}: {kind} {INSTALL}" for name, kind in kinds.items()}
    outcomes, stderr = read_without(missing, tmp_path)
    assert outcomes == wanted
    assert "torchcodec" not in stderr  # a missing torchcodec is not a fault


@NEEDS_BOTH
def test_both_libraries_read_everything(tmp_path, monkeypatch):
    wanted = write_jpegs(tmp_path) | write_arrays(tmp_path)
    assert {path.name: outcome(path) for path in tmp_path.iterdir()} == wanted
    decoded = []
    real = decoders.torchcodec.decode_jpeg
    monkeypatch.setattr(decoders.torchcodec, "decode_jpeg", lambda encoded: decoded.append(1) or real(encoded))
    outcome(tmp_path / "420.jpg")
    assert decoded  # else the comparison above was of Pillow with itself


def write_package(folder: Path, files: dict[str, str]) -> None:
    """A package torchcodec in `folder`."""
    (folder / "torchcodec").mkdir()
    for name, content in files.items():
        (folder / "torchcodec" / name).write_text(content)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"__init__.py": "raise OSError('libnvrtc.so.13: not found')"}, "OSError: libnvrtc.so.13: not found"),
        ({"__init__.py": "raise RuntimeError('Could not load.\\n1. FFmpeg')"}, "RuntimeError: Could not load."),
        (
            {"__init__.py": "", "decoders.py": "class VideoDecoder: ..."},
            "ImportError: cannot import name 'decode_jpeg' from 'torchcodec.decoders'",
        ),
    ],
    ids=["missing library", "other torch", "too old"],
)
def test_a_torchcodec_that_does_not_load_is_one_warning(files, reason, tmp_path, monkeypatch, caplog):
    write_package(tmp_path, files)
    monkeypatch.syspath_prepend(tmp_path)
    with patch.dict(sys.modules):
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchcodec"]:
            del sys.modules[name]
        assert decoders.load_torchcodec() is None
    (message,) = caplog.messages
    assert message.startswith(f"torchcodec does not load ({reason}") and "\n" not in message
    assert message.endswith(f"Install the torchcodec that fits torch {torch.__version__}, or uninstall it.")


def test_pillow_takes_over_from_a_torchcodec_that_does_not_load(tmp_path):
    (tmp_path / "images").mkdir()
    wanted = write_jpegs(tmp_path / "images")
    write_package(tmp_path, {"__init__.py": "raise OSError('not found')"})
    outcomes, stderr = read_without("", tmp_path / "images", tmp_path)
    assert outcomes == wanted
    assert stderr.count("torchcodec does not load") == 1  # though several threads read


@pytest.fixture
def without_libraries(monkeypatch):
    """As if neither library were installed."""
    monkeypatch.setattr(decoders, "torchcodec", None)
    monkeypatch.setattr(decoders, "imagecodecs", None)


@pytest.fixture
def mixed_data(tmp_path):
    """Two files for training, of which the second has 16 bits and three channels."""
    (tmp_path / "data").mkdir()
    draw_shapes("a").save(tmp_path / "data" / "a.png")
    write_png(tmp_path / "data" / "b.png", values(36, 40, 3))
    return tmp_path / "data"


@pytest.mark.usefixtures("without_libraries")
class TestWithoutLibraries:
    def test_skip_bad_images_does_not_skip_what_a_library_would_read(self, mixed_data):
        with pytest.raises(MissingLibrary, match=re.escape(INSTALL)):
            skip_bad(sorted(mixed_data.iterdir()), ImageReader())
        flags = ["--dataset_mode", "single", "--skip_bad_images"]
        with pytest.raises(MissingLibrary, match=re.escape(INSTALL)):
            create_dataset(opt_train(mixed_data, *flags))

    def test_a_damaged_file_is_still_skipped(self, mixed_data, capsys):
        for compression, number in (("tiff_lzw", 5), ("tiff_adobe_deflate", 8)):
            path = mixed_data / f"{compression}.tif"
            Image.fromarray(values(36, 40)).save(path, compression=compression)
            with tifffile.TiffFile(path, mode="r+") as tiff:
                assert tiff.pages.first.tags["Compression"].value == number
                tiff.pages.first.tags["Compression"].overwrite(54321)  # an unknown compression
        (mixed_data / "b.png").unlink()
        assert skip_bad(sorted(mixed_data.iterdir()), ImageReader())[0] == [mixed_data / "a.png"]
        assert "2 of 3 images are skipped" in capsys.readouterr().out

    def test_the_error_of_a_worker_is_one_line(self, mixed_data):
        loader = create_dataset(opt_train(mixed_data, "--dataset_mode", "single", "--num_threads", "1"))
        with pytest.raises(MissingLibrary) as raised:
            list(loader)
        assert str(raised.value).startswith(f"Cannot read {mixed_data / 'b.png'}: ")
        assert str(raised.value).endswith(INSTALL)

    def test_dry_run_is_not_ready(self, mixed_data, tmp_path, capsys):
        for domain in "AB":
            shutil.copytree(mixed_data, tmp_path / "domains" / f"train{domain}")
        flags = ["--dataroot", str(tmp_path / "domains"), *TINY, "--dry_run"]
        assert training.main([*flags, "--checkpoints_dir", str(tmp_path / "checkpoints")]) == 2
        out = capsys.readouterr().out
        assert f"Not ready:\n  Cannot read {tmp_path / 'domains' / 'trainA' / 'b.png'}" in out and INSTALL in out
        assert out.endswith("No flag fixes this.\n")

    def test_combine_writes_what_pillow_supports_and_refuses_the_rest(self, tmp_path):
        for channels, dtype in ((1, "uint16"), (1, "uint8"), (2, "uint8"), (4, "uint8")):
            array = values(20, 30, channels, dtype=dtype)
            COMBINE["write"](array, tmp_path / "a.png")
            assert np.array_equal(read_array(tmp_path / "a.png"), array)
        message = f"Cannot write {tmp_path / 'b.png'}: a PNG with 3 channels of 16 bits {INSTALL}"
        with pytest.raises(MissingLibrary, match=f"^{re.escape(message)}$"):
            COMBINE["write"](values(20, 30, 3), tmp_path / "b.png")
        write_png(tmp_path / "c.png", values(20, 30, 3))
        with pytest.raises(MissingLibrary, match=re.escape(f"Cannot read {tmp_path / 'c.png'}: ")):
            COMBINE["read"](tmp_path / "c.png")
