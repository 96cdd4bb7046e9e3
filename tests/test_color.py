"""RGB, Lab, and colorization in Lab."""

import itertools

import pytest
import torch

from data import create_dataset
from data.image_folder import DataError, list_images
from models import create_model
from options.train_options import TrainOptions
from tests.helpers import build_training_model
from util.color import join_lab, lab_to_rgb, rgb_to_lab, split_lab

# sRGB -> CIE Lab for D65, 2 degrees
KNOWN = {
    (255, 0, 0): (53.241, 80.092, 67.203),
    (0, 255, 0): (87.735, -86.183, 83.180),
    (0, 0, 255): (32.296, 79.186, -107.857),
    (255, 255, 0): (97.140, -21.555, 94.478),
    (255, 255, 255): (100, 0, 0),
    (128, 128, 128): (53.585, 0, 0),
    (10, 10, 10): (2.742, 0, 0),
    (0, 0, 0): (0, 0, 0),
}


def options(dataroot, *flags):
    sizes = ["--load_size", "36", "--crop_size", "32", "--netG", "resnet_6blocks", "--ngf", "8", "--ndf", "8"]
    return TrainOptions().parse(["--dataroot", str(dataroot), *sizes, "--device", "cpu", *flags])


def test_known_colors():
    rgb = torch.tensor(list(KNOWN)).T[:, :, None] / 255
    expected = torch.tensor(list(KNOWN.values())).T[:, :, None]
    torch.testing.assert_close(rgb_to_lab(rgb), expected, atol=6e-3, rtol=0)


def test_every_color_comes_back():
    levels = torch.tensor(list(itertools.product(range(0, 256, 5), repeat=3)), dtype=torch.float32)
    images = (levels / 127.5 - 1).view(52, 52, 52, 3).permute(0, 3, 1, 2)
    L, ab = split_lab(images)
    assert L.shape == (52, 1, 52, 52) and ab.shape == (52, 2, 52, 52)
    assert L.min() >= -1 and L.max() < 1.00001 and ab.abs().max() <= 1
    assert (join_lab(L, ab) - images).abs().max() < 1e-4


def test_colors_outside_rgb_are_clamped():
    generator = torch.Generator().manual_seed(0)
    lab = torch.rand(3, 50, 50, generator=generator) * torch.tensor([100, 300, 300]).view(3, 1, 1)
    rgb = lab_to_rgb(lab - torch.tensor([0, 150, 150]).view(3, 1, 1))
    assert torch.isfinite(rgb).all()
    assert [rgb.min().item(), rgb.max().item()] == pytest.approx([0, 1], abs=1e-6)


def test_a_sample_is_the_lab_of_the_image(paired_data):
    flags = ["--preprocess", "none", "--no_flip"]
    sample = create_dataset(options(paired_data, "--dataset_mode", "colorization", *flags)).dataset[1, 0]
    single = options(paired_data / "train", "--dataset_mode", "single", *flags)
    image = create_dataset(single).dataset[1, 0]["A"]
    assert sample["A"].shape == (1, 36, 80) and sample["B"].shape == (2, 36, 80)
    torch.testing.assert_close(join_lab(sample["A"], sample["B"]), image, atol=1e-4, rtol=0)
    lab = rgb_to_lab((image + 1) / 2)
    torch.testing.assert_close(sample["A"] * 50 + 50, lab[:1])
    torch.testing.assert_close(sample["B"] * 110, lab[1:])


def test_any_folder_will_do(tiny_data, paired_data):
    for dataroot, paths in ((paired_data, list_images(paired_data / "train")), (tiny_data, list_images(tiny_data))):
        assert create_dataset(options(dataroot, "--dataset_mode", "colorization")).dataset.A_paths == paths


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--direction", "BtoA"], "--direction BtoA: .*Omit the flag"), (["--input_nc", "3"], "not --input_nc 3")],
)
def test_lab_has_its_own_direction_and_channels(tiny_data, flags, message):
    with pytest.raises(DataError, match=message):
        create_dataset(options(tiny_data, "--dataset_mode", "colorization", *flags))


def test_colorization_shows_rgb_and_learns_ab(paired_data):
    opt = options(paired_data, "--model", "colorization")
    model = build_training_model(opt)
    batch = next(iter(create_dataset(opt)))
    assert {label: image.shape[1] for label, image in model(batch).items()} == {
        "real_A": 1, "fake_B_rgb": 3, "real_B_rgb": 3,
    }  # fmt: skip
    assert model.translate(batch)["fake_B"].shape[1] == 2
    first, images = model.step(batch)
    torch.testing.assert_close(split_lab(model.preview(images)["real_B_rgb"])[1], batch["B"], atol=1e-3, rtol=0)
    for _ in range(10):
        last, _ = model.step(batch)
    assert last["G_L1"] < first["G_L1"]


def test_colorization_needs_lab(tiny_data):
    with pytest.raises(ValueError, match="--dataset_mode colorization, which sets both"):
        create_model(options(tiny_data, "--model", "colorization", "--dataset_mode", "unaligned"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_conversions_compute_in_float32_under_autocast(dtype):
    generator = torch.Generator().manual_seed(0)
    rgb = (torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1).to(dtype)
    L, ab = split_lab(rgb.float())
    expected = join_lab(L.to(dtype).float(), ab.to(dtype).float())
    with torch.autocast("cpu", torch.bfloat16):
        made = split_lab(rgb), join_lab(L.to(dtype), ab.to(dtype))
    torch.testing.assert_close(made, ((L, ab), expected))
