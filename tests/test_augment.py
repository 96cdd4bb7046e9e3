"""Differentiable augmentation against values computed by hand."""

import pytest
import torch

from models import augment
from models.augment import AUGMENTATIONS, DiffAugment


def images(batch: int = 2, channels: int = 3, size: tuple[int, int] = (16, 8)) -> torch.Tensor:
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_color_by_hand(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, device: torch.tensor([0.7, 0.25, 0.9]).view(3, 1, 1, 1, 1))
    x = torch.tensor([0.0, 0.3, 0.6, -0.4]).view(1, 2, 1, 2)  # pixel 1: (0.0, 0.6), pixel 2: (0.3, -0.4)
    # brightness + 0.2: (0.2, 0.8), (0.5, -0.2); saturation x 0.5 about 0.5 and 0.15: (0.35, 0.65), (0.325, -0.025);
    # contrast x 1.4 about 0.325
    expected = torch.tensor([0.36, 0.325, 0.78, -0.165]).view(1, 2, 1, 2)
    torch.testing.assert_close(augment.color(x), expected)


def test_saturation_does_not_change_gray_images():
    torch.manual_seed(0)
    x = images(channels=1)
    changed = augment.color(x)
    ratio = (changed - changed.mean((1, 2, 3), keepdim=True)) / (x - x.mean((1, 2, 3), keepdim=True))
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(ratio), rtol=1e-3, atol=1e-3)


def test_translation_shifts_by_whole_pixels_up_to_an_eighth():
    x, seen = images(batch=1), set()
    for seed in range(60):
        torch.manual_seed(seed)
        out = augment.translation(x)[0]
        matches = [
            (down, right)
            for down in (-2, -1, 0, 1, 2)
            for right in (-1, 0, 1)
            if torch.equal(out, shifted(x[0], down, right))
        ]
        assert len(matches) == 1
        seen.update(matches)
    assert len(seen) == 15


def shifted(x: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """x (C, H, W) shifted, with zeros in uncovered pixels."""
    out = torch.zeros_like(x)
    height, width = x.shape[1:]
    out[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = x[
        :, max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
    ]
    return out


def test_cutout_sets_one_rectangle_to_0():
    x = images(batch=64)
    torch.manual_seed(0)
    holes = augment.cutout(x) == 0
    assert torch.equal(cutout_again(x, holes), x * ~holes)
    sizes = set()
    for hole in holes[:, 0]:
        rows, columns = hole.any(1), hole.any(0)
        assert torch.equal(hole, rows[:, None] & columns[None])
        sizes.add((int(rows.sum()), int(columns.sum())))
    assert max(sizes) == (8, 4)
    assert all(4 <= rows <= 8 and 2 <= columns <= 4 for rows, columns in sizes)


def cutout_again(x: torch.Tensor, holes: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    out = augment.cutout(x)
    assert (out[holes] == 0).all()
    return out


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_gradients_pass_and_images_differ(name):
    torch.manual_seed(1)
    x = images(batch=1).expand(8, -1, -1, -1).clone().requires_grad_()
    out = DiffAugment([name])(x)
    assert out.shape == x.shape
    assert any(not torch.equal(out[0], other) for other in out[1:])
    out.sum().backward()
    assert x.grad.abs().sum() > 0


def test_unknown_augmentations_are_refused():
    assert torch.equal(DiffAugment([])(images()), images())
    with pytest.raises(ValueError, match="policy='rotation': choose from color, translation, cutout"):
        DiffAugment(["color", "rotation"])
