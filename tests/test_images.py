"""Tensors in [-1, 1] to images and files."""

import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import get_sampling

from data.arrays import read_array
from data.image_file import ImageReader
from data.transforms import Transform
from tests.test_arrays import values
from util.images import PixelFormat, save_image, save_result, to_image, to_images, write_array

FORMATS = [
    PixelFormat(),
    PixelFormat("uint16", (0, 65535)),
    PixelFormat("uint16", (0, 4095)),
    PixelFormat("int16", (-32768, 32767)),
    PixelFormat("float16", (0, 1)),
    PixelFormat("float32", (-1000, 3000.5)),
    PixelFormat("float64", (0, 1)),
]


def test_every_gray_level_survives_a_round_trip():
    levels = Image.frombytes("L", (16, 16), bytes(range(256)))
    tensor = Transform(preprocess="none", channels=1)(levels.convert("RGB"))
    assert tensor.min() == -1 and tensor.max() == 1
    assert to_image(tensor).tobytes() == bytes(range(256))


def test_values_are_rounded_to_the_nearest_level_and_clamped():
    levels = torch.tensor([[[-5.0, -1 + 1.4 / 127.5, -1 + 1.6 / 127.5, 5.0]]])
    assert list(to_image(levels).tobytes()) == [0, 1, 2, 255]


@pytest.mark.parametrize(("shape", "mode"), [((3, 5, 7), "RGB"), ((1, 3, 5, 7), "RGB"), ((1, 5, 7), "L")])
def test_shapes(shape, mode):
    image = to_image(torch.zeros(shape, dtype=torch.bfloat16, requires_grad=True))
    assert (image.mode, image.size) == (mode, (7, 5))


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (5, 7)])
def test_other_shapes_are_named(shape):
    with pytest.raises(ValueError, match=r"or \(1, C, H, W\), not "):
        to_image(torch.zeros(shape))


def test_the_view_of_other_channels():
    tensor = torch.linspace(-1, 1, 16).view(16, 1, 1).expand(16, 4, 6)
    assert torch.equal(to_image_tensor(tensor[:2]), to_image_tensor(tensor[:1]))
    for channels in (4, 5, 16):
        assert torch.equal(to_image_tensor(tensor[:channels]), to_image_tensor(tensor[:3]))


def to_image_tensor(tensor):
    return Transform(preprocess="none", channels=3 if len(tensor) > 2 else 1)(to_image(tensor))


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("suffix", [".tif", ".npy"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 16])
def test_files_hold_what_was_read(channels, suffix, fmt, tmp_path):
    low, high = fmt.value_range
    array = (values(20, 30, channels, dtype="float64") * (high - low) + low).astype(fmt.dtype)
    tensor = fmt.to_tensor(array)
    assert tensor.dtype == torch.float32 and tensor.shape == (channels, 20, 30)
    save_image(tensor, tmp_path / f"a{suffix}", fmt)
    read = read_array(tmp_path / f"a{suffix}")
    assert read.dtype == fmt.dtype
    # A tensor holds 24 bits, a float16 11.
    bound = {"float16": 2**-11, "float32": (high - low) * 2**-23, "float64": 2**-23}.get(fmt.dtype, 0)
    assert abs(read.astype(float) - array).max() <= bound
    reader = ImageReader(channels=channels, value_range=None if fmt == PixelFormat() else fmt.value_range)
    assert reader.format(tmp_path / f"a{suffix}") == fmt


def test_a_png_of_16_bits(tmp_path):
    fmt, array = PixelFormat("uint16", (0, 65535)), values(20, 30, 1)
    save_image(fmt.to_tensor(array)[None], tmp_path / "a.png", fmt)
    assert (read_array(tmp_path / "a.png") == array).all()


@pytest.mark.parametrize("fmt", [None, PixelFormat()], ids=["view", "format"])
def test_jpegs_have_high_quality_and_color_in_full_resolution(fmt, tmp_path):
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    save_image(image, tmp_path / "a.jpg", fmt)
    with Image.open(tmp_path / "a.jpg") as made:
        assert get_sampling(made) == 0  # 4:4:4
        assert (Transform(preprocess="none")(made) - image).abs().mean() < 0.03  # 0.12 with quality 75, 0.36 with 4:2:0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(6, 20), (20, 6), (16, 17)])
def test_a_low_or_narrow_npy_is_read_back(size, channels, tmp_path):
    array = values(*size, channels, dtype="float32")
    write_array(array, tmp_path / "a.npy")
    assert (read_array(tmp_path / "a.npy") == array).all()


@pytest.mark.parametrize(
    ("name", "channels", "fmt", "message"),
    [
        ("a.jpg", 1, FORMATS[1], r"a\.jpg: \.jpg cannot hold 1 channels of uint16: use \.tif or \.npy"),
        ("a.png", 3, FORMATS[1], "3 channels of uint16"),
        ("a.png", 1, FORMATS[5], "1 channels of float32"),
        ("a.png", 5, FORMATS[0], "5 channels of uint8"),
    ],
)
def test_files_that_cannot_hold_the_format_are_named(name, channels, fmt, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_image(torch.zeros(channels, 4, 4), tmp_path / name, fmt)


def test_results_need_no_second_file_if_the_view_is_complete(tmp_path):
    for channels in (1, 3):
        assert save_result(torch.zeros(channels, 4, 4), tmp_path / "a.b", PixelFormat()) is None
    assert list(tmp_path.iterdir()) == []
    assert save_result(torch.zeros(5, 4, 4), tmp_path / "a.b", PixelFormat()) == tmp_path / "a.b.tif"
    assert save_result(torch.zeros(3, 4, 4), tmp_path / "c", FORMATS[1]) == tmp_path / "c.tif"


def test_save_makes_folders_and_keeps_the_order_of_colors(tmp_path):
    orange = torch.tensor([1.0, 0.0, -1.0]).view(3, 1, 1).expand(3, 4, 6)
    save_image(orange, tmp_path / "a" / "b" / "orange.png")
    with Image.open(tmp_path / "a" / "b" / "orange.png") as image:
        assert image.size == (6, 4)
        assert image.getpixel((2, 3)) == (255, 128, 0)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_batch_gives_the_same_images_as_its_parts(channels):
    batch = torch.randn(3, channels, 5, 7, generator=torch.Generator().manual_seed(0))
    for image, tensor in zip(to_images(batch), batch, strict=True):
        assert (image.mode, image.tobytes()) == (to_image(tensor).mode, to_image(tensor).tobytes())
