"""Reading image files of every kind, and the errors about them."""

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from data import decoders
from data.image_file import ImageReader, image_size, read_image
from data.image_folder import DataError
from tests.conftest import draw_shapes
from tests.test_arrays import values, write_png, write_tiff
from util.images import PixelFormat


def saved(image, path, **keywords):
    image.save(path, **keywords)
    return read_image(path)


def test_odd_images_come_out_as_sensible_rgb(tmp_path):
    image = draw_shapes("a")
    flat = Image.new("RGB", (8, 8), (200, 100, 50))
    assert saved(image.quantize(256), tmp_path / "palette.png").getpixel((3, 3)) == image.getpixel((3, 3))
    assert saved(Image.new("1", (8, 8), 1), tmp_path / "bits.png").getpixel((0, 0)) == (255, 255, 255)
    assert saved(image.convert("L"), tmp_path / "gray.png").tobytes() == image.convert("L").convert("RGB").tobytes()
    assert saved(image.convert("RGBA"), tmp_path / "opaque.png").tobytes() == image.tobytes()
    assert saved(Image.new("RGBA", (8, 8), (9, 9, 9, 0)), tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    assert saved(Image.new("LA", (8, 8), (0, 255)), tmp_path / "la.png").getpixel((0, 0)) == (0, 0, 0)
    cmyk = saved(flat.convert("CMYK"), tmp_path / "cmyk.jpg", quality=95).getpixel((4, 4))
    assert all(abs(got - wanted) < 6 for got, wanted in zip(cmyk, (200, 100, 50), strict=True))


def test_photos_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    image = draw_shapes("a", (40, 20))
    upright = saved(image, tmp_path / "a.png", exif=exif)
    assert upright.size == image_size(tmp_path / "a.png") == (20, 40)
    assert upright.tobytes() == image.transpose(Image.Transpose.ROTATE_270).tobytes()


def deep_files(folder):
    """A file of every kind whose depth read_image would have to reduce."""
    Image.new("I;16", (20, 20), 999).save(folder / "gray.png")
    write_png(folder / "color.png", values(20, 20, 3))
    for name in ("gray.ppm", "color.ppm"):
        header = f"P{5 if name == 'gray.ppm' else 6} 20 20 65535\n".encode()
        (folder / name).write_bytes(header + values(20, 20, 3).tobytes())
    (folder / "plain.ppm").write_text("P3 2 2 1023\n" + "1000 " * 12)
    tifffile.imwrite(folder / "color.tif", values(20, 20, 3), photometric="rgb")
    np.save(folder / "gray.npy", values(20, 20))
    return sorted(folder.iterdir())


def test_more_than_8_bits_are_never_reduced(tmp_path):
    for path in deep_files(tmp_path):
        with pytest.raises(DataError, match=rf"{path.name} (has more than 8 bits|is not an 8-bit)"):
            read_image(path)
        if path.suffix == ".ppm":
            with pytest.raises(DataError, match=rf"{path.name} has more than 8 bits.*convert it to PNG or TIFF"):
                ImageReader()(path)
        else:
            assert ImageReader().format(path).dtype == "uint16"


@pytest.fixture(params=["torchcodec", "Pillow"])
def jpeg_decoder(request, monkeypatch):
    """The library that decodes JPEG files in this test."""
    if request.param == "Pillow":
        monkeypatch.setattr(decoders, "torchcodec", None)
    elif decoders.torchcodec is None:
        pytest.skip("needs torchcodec")


@pytest.mark.usefixtures("jpeg_decoder")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_8_bit_images_are_read_as_by_pillow(mode, channels, tmp_path):
    reader, image = ImageReader(channels=channels), draw_shapes("a").convert(mode)
    image.save(tmp_path / "a.tif")
    if mode in ("L", "RGB", "CMYK"):
        image.save(tmp_path / "a.jpg", progressive=True)
    for path in tmp_path.iterdir():
        wanted = read_image(path).convert("L" if channels == 1 else "RGB")
        assert torch.equal(reader(path), pil_to_tensor(wanted))
        assert reader.format(path) == PixelFormat("uint8", (0, 255))


@pytest.mark.usefixtures("jpeg_decoder")
@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 are invalid
def test_jpegs_are_turned_as_by_pillow(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    draw_shapes("a", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    read = ImageReader()(tmp_path / "a.jpg")
    assert torch.equal(read, pil_to_tensor(read_image(tmp_path / "a.jpg")))
    assert image_size(tmp_path / "a.jpg") == (read.shape[2], read.shape[1])


def test_transparency_is_a_channel_for_2_or_4_channels(tmp_path):
    image = Image.fromarray(values(20, 30, 4, dtype="uint8"))
    image.save(tmp_path / "a.png")
    read = ImageReader(channels=4)(tmp_path / "a.png")
    assert torch.equal(read.add(1).mul(127.5).round().byte(), torch.tensor(np.asarray(image)).permute(2, 0, 1))
    image.convert("LA").save(tmp_path / "b.png")
    assert ImageReader(channels=2)(tmp_path / "b.png").shape == (2, 20, 30)
    image.quantize(8).save(tmp_path / "c.png")  # the palette holds transparent colors
    assert ImageReader(channels=4)(tmp_path / "c.png").shape == (4, 20, 30)


@pytest.mark.parametrize(("found", "wanted"), [(5, 3), (5, 1), (2, 1), (4, 3), (3, 4), (1, 2), (16, 15)])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_other_channels_are_named(found, wanted, dtype, tmp_path):
    np.save(tmp_path / "a.npy", values(20, 30, found, dtype=dtype))
    with pytest.raises(DataError, match=rf"a\.npy has {found} channels, but the network takes {wanted}\.") as caught:
        ImageReader(channels=wanted, arguments=("output_nc",))(tmp_path / "a.npy")
    assert caught.value.remedy == {"output_nc": found}


@pytest.mark.parametrize(
    ("array", "given", "dtype", "value_range"),
    [
        (np.array([[0, 255]], "uint8"), None, "uint8", (0, 255)),
        (np.array([[0, 255]], "uint8"), (0, 100), "uint8", (0, 255)),
        (np.array([[0, 9]], "uint16"), None, "uint16", (0, 65535)),
        (np.array([[0, 9]], "uint16"), (0, 4095), "uint16", (0, 4095)),
        (np.array([[0, 1]], "float16"), None, "float16", (0, 1)),
        (np.array([[0.5, 0.25]], "float64"), None, "float64", (0, 1)),
        (np.array([[-1000, 3000]], "int16"), (-1000, 3000), "int16", (-1000, 3000)),
    ],
)
def test_the_range_is_the_given_one_or_follows_from_the_dtype(array, given, dtype, value_range, tmp_path):
    tiled = np.tile(array, (20, 10))
    write_tiff(tmp_path / "a.tif", np.stack([tiled] * 2), planarconfig="separate")
    reader = ImageReader(channels=2, value_range=given)
    assert reader.format(tmp_path / "a.tif") == PixelFormat(dtype, value_range)
    low, high = value_range
    wanted = torch.tensor(((tiled.astype(float) - low) / (high - low) * 2 - 1).astype(np.float32))
    assert torch.equal(reader(tmp_path / "a.tif"), torch.stack([wanted] * 2))


def test_values_outside_the_range_are_clipped(tmp_path):
    np.save(tmp_path / "a.npy", np.tile(np.array([-2000, -1000, 1000, 3000, 9999], "int16"), (20, 4)))
    read = ImageReader(channels=1, value_range=(-1000, 3000))(tmp_path / "a.npy")
    assert read[0, 0, :5].tolist() == [-1, -1, 0, 1, 1]


@pytest.mark.parametrize(
    ("numbers", "dtype", "message"),
    [
        ([0, 1.5], "float32", r"holds float32 values from 0 to 1\.5, and value_range is not set\."),
        ([-0.5, 1], "float64", r"holds float64 values from -0\.5 to 1, "),
        ([-1000, 3000], "int16", r"holds int16 values from -1000 to 3000, "),
        ([0, 1], "int64", r"holds int64 values from 0 to 1, "),
        ([0, np.nan], "float32", r"holds non-finite values"),
        ([0, np.inf], "float16", r"holds non-finite values"),
    ],
)
def test_an_unknown_range_is_an_error(numbers, dtype, message, tmp_path):
    np.save(tmp_path / "a.npy", np.tile(np.array(numbers, dtype), (20, 10)))
    with pytest.raises(DataError, match=rf"a\.npy {message}"):
        ImageReader(channels=1)(tmp_path / "a.npy")


def test_a_file_that_is_not_an_image_is_named(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"Cannot read the image .*text\.png"):
            read(tmp_path / "text.png")
