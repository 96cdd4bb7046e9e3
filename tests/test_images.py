"""Tensors in [-1, 1] to images and files."""

import pytest
import torch
from PIL import Image

from data.transforms import Transform
from util.images import save_image, to_image


def test_every_grey_level_survives_the_way_there_and_back():
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


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 5, 7), (5, 7)])
def test_other_shapes_are_named(shape):
    with pytest.raises(ValueError, match="1 or 3 channels, not "):
        to_image(torch.zeros(shape))


def test_save_makes_folders_and_keeps_the_colours_in_order(tmp_path):
    orange = torch.tensor([1.0, 0.0, -1.0]).view(3, 1, 1).expand(3, 4, 6)
    save_image(orange, tmp_path / "a" / "b" / "orange.png")
    with Image.open(tmp_path / "a" / "b" / "orange.png") as image:
        assert image.size == (6, 4)
        assert image.getpixel((2, 3)) == (255, 128, 0)
