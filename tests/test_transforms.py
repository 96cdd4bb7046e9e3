"""Images to tensors: sizes, pixels, crops and flips."""

from functools import partial

import pytest
import torch
from PIL import Image

from data.image_file import read_image
from data.image_folder import DataError
from data.transforms import Transform
from options.choices import PREPROCESS
from tests.conftest import draw_shapes


def expected_size(preprocess, width, height):
    return {
        "resize_and_crop": (24, 24),
        "crop": (24, 24),
        "scale_width": (28, 4 * round(28 * height // width / 4)),
        "scale_width_and_crop": (24, 24),
        "none": (4 * round(width / 4), 4 * round(height / 4)),
    }[preprocess]


@pytest.mark.parametrize("size", [(40, 36), (31, 57), (64, 25), (28, 28)])
@pytest.mark.parametrize("preprocess", PREPROCESS)
def test_output_sizes(preprocess, size, tmp_path):
    draw_shapes("a", size).save(tmp_path / "a.png")
    transform = Transform(preprocess=preprocess, load_size=28, crop_size=24)
    width, height = expected_size(preprocess, *size)
    assert transform(read_image(tmp_path / "a.png")).shape == (3, height, width)
    assert transform.output_sizes([tmp_path / "a.png"]) == {(width, height): tmp_path / "a.png"}


def pixels(image, channels=3):
    """The tensor of an image, by plain arithmetic: upstream's ToTensor and Normalize(0.5, 0.5)."""
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return values.view(image.height, image.width, channels).permute(2, 0, 1).float().div(255).sub(0.5).div(0.5)


def close(made, expected):
    """Whether all pixels are equal, except for a gray level here and there."""
    levels = (made - expected).abs() * 127.5
    return made.shape == expected.shape and levels.max() < 2.01 and levels.mean() < 0.1


def test_pixels_are_pillows_bicubic():
    image = draw_shapes("a")
    resized = image.resize((28, 28), Image.Resampling.BICUBIC)
    sized = partial(Transform, load_size=28, crop_size=24)
    assert close(sized()(image), pixels(resized.crop((2, 2, 26, 26))))
    assert torch.equal(Transform(preprocess="crop", crop_size=24)(image), pixels(image.crop((8, 6, 32, 30))))
    scaled = image.resize((28, 24), Image.Resampling.BICUBIC)
    assert close(sized(preprocess="scale_width")(image), pixels(scaled))
    crop = image.resize((28, 25), Image.Resampling.BICUBIC).crop((2, 0, 26, 24))
    assert close(sized(preprocess="scale_width_and_crop")(image), pixels(crop))
    assert torch.equal(Transform(preprocess="none")(image), pixels(image))
    gray = image.convert("L").resize((28, 28), Image.Resampling.BICUBIC).crop((2, 2, 26, 26))
    assert close(sized(channels=1)(image), pixels(gray, channels=1))


@pytest.mark.parametrize("size", [(600, 600), (500, 375), (100, 80)])
def test_resized_images_are_pillows_within_a_gray_level(size):
    noise = Image.effect_noise(size, 100)
    image = Image.merge("RGB", (noise, draw_shapes("b", size).getchannel(1), noise.rotate(90).resize(size)))
    expected = pixels(image.resize((286, 286), Image.Resampling.BICUBIC))
    made = Transform(load_size=286, crop_size=286, flip=False)(image)
    assert close(made, expected)
    left = Transform(load_size=286, crop_size=286)(image, torch.Generator().manual_seed(5))
    assert torch.equal(left, made) or torch.equal(left, made.flip(2))


def test_crops_are_anywhere_and_half_of_them_flipped():
    image = Image.frombytes("L", (6, 5), bytes(range(30))).convert("RGB")  # each value is its position
    transform, generator = Transform(preprocess="crop", crop_size=4), torch.Generator().manual_seed(0)
    corners, flipped = set(), 0
    for _ in range(400):
        crop = transform(image, generator).add(1).mul(127.5).round()[0]
        flipped += int(crop[0, 0] > crop[0, 3])
        corners.add(int(crop.min()))
    assert corners == {0, 1, 2, 6, 7, 8}
    assert 160 < flipped < 240


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(40, 36), (31, 57), (64, 25), (28, 28)])
@pytest.mark.parametrize("preprocess", PREPROCESS)
def test_tensors_get_the_crops_sizes_and_flips_of_images(preprocess, size, channels):
    image = draw_shapes("a", size)
    tensor = pixels(image)
    transform = Transform(preprocess=preprocess, load_size=28, crop_size=24, channels=channels)
    for seed in range(6):
        of_image, of_tensor = (transform(x, torch.Generator().manual_seed(seed)) for x in (image, tensor))
        assert of_tensor.shape == of_image.shape and of_tensor.dtype == torch.float32
        assert of_tensor.min() >= -1 and of_tensor.max() <= 1
        assert (of_tensor - of_image).abs().max() < 2.1 / 127.5  # Pillow rounds to 8 bits after each of its two passes


def test_channels_of_tensors():
    def shown(found, wanted):
        return Transform(preprocess="none", channels=wanted)(torch.linspace(-1, 1, found * 32).view(found, 4, 8))

    assert all(torch.equal(gray, shown(1, 1)[0]) for gray in shown(1, 3))
    white = Transform(preprocess="none", channels=1)(torch.ones(3, 4, 4))
    assert torch.allclose(white, torch.ones(1, 4, 4), atol=1e-6)
    assert shown(16, 16).shape == (16, 4, 8)
    with pytest.raises(DataError, match=r"^channels=3 does not fit an image of 5 channels\.$"):
        shown(5, 3)
    with pytest.raises(DataError, match=r"^channels=5 does not fit an image of 3 channels\.$"):
        Transform(channels=5)(draw_shapes("a"))


@pytest.mark.parametrize(("preprocess", "expected"), [("none", (31, 57)), ("scale_width", (30, 55))])
def test_multiple_1_does_not_round_sizes(preprocess, expected, tmp_path):
    draw_shapes("a", (31, 57)).save(tmp_path / "a.png")
    transform = Transform(preprocess=preprocess, load_size=30, crop_size=24, multiple=1)
    assert transform(read_image(tmp_path / "a.png")).shape == (3, *expected[::-1])
    assert transform.output_sizes([tmp_path / "a.png"]) == {expected: tmp_path / "a.png"}


def test_no_flip():
    image, generator = draw_shapes("a"), torch.Generator().manual_seed(0)
    transform = Transform(preprocess="none", flip=False)
    assert all(torch.equal(transform(image, generator), transform(image)) for _ in range(20))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preprocess": "resize"}, "preprocess=resize: choose from resize_and_crop, crop,"),
        ({"channels": 65}, "channels=65 .* 1 to 16, label maps 2 to 64"),
        ({"load_size": 16, "crop_size": 24}, "crop_size=24 does not fit in load_size=16"),
        ({"crop_size": 0}, "crop_size=0 have to be at least 1 pixel"),
    ],
)
def test_invalid_arguments_are_named(settings, message):
    with pytest.raises(DataError, match=message):
        Transform(**settings)


def test_the_center_is_cropped_first(tmp_path):
    image = draw_shapes("a", (40, 36))
    celeba = Transform(center_crop=20, load_size=16, crop_size=16, flip=False)
    expected = image.crop((10, 8, 30, 28)).resize((16, 16), Image.Resampling.BICUBIC)
    assert close(celeba(image), pixels(expected))
    square = Transform(center_crop="max", load_size=16, crop_size=16, flip=False)
    expected = image.crop((2, 0, 38, 36)).resize((16, 16), Image.Resampling.BICUBIC)
    assert close(square(image), pixels(expected))
    image.save(tmp_path / "a.png")
    alone = Transform(center_crop="max", preprocess="none")
    assert alone.output_sizes([tmp_path / "a.png"]) == {(36, 36): tmp_path / "a.png"}
    assert alone(image).shape == (3, 36, 36)
    with pytest.raises(DataError, match=r"a.png is 40x36 pixels, too small for center_crop=37"):
        Transform(center_crop=37, load_size=16, crop_size=16).output_sizes([tmp_path / "a.png"])
