"""Score translated satellite photos against the true maps: python -m scripts.score_earth results/demo/test_latest."""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from data.image_file import read_image
from training.metrics import mean_absolute_error, ssim
from util.command import run_command
from util.paths import BUNDLED

REFERENCES = {
    "the photo left as it is": (80.1, 0.267, 0.859),
    "upstream, 9.8 minutes": (47.8, 0.202, 0.584),
}


def load(path: Path) -> Tensor:
    """The image in a file: (1, 3, H, W), integers 0..255."""
    return F.pil_to_tensor(read_image(path).convert("RGB")).unsqueeze(0).int()


def water(images: Tensor) -> Tensor:
    """Mask of water, (B, H, W) of bool, in maps (B, 3, H, W) of integers 0..255: pixels clearly more blue than red."""
    return images[:, 2] - images[:, 0] > 15


def score(fakes: Tensor, truth: Tensor) -> tuple[float, float, float]:
    """(L1 in gray levels 0..255, SSIM, IoU of water over all pixels) of (B, 3, H, W) maps of integers 0..255."""
    overlap, union = (water(fakes) & water(truth)).sum(), (water(fakes) | water(truth)).sum()
    fakes, truth = fakes / 127.5 - 1, truth / 127.5 - 1
    return (
        mean_absolute_error(fakes, truth).mean().item(),
        ssim(fakes, truth).mean().item(),
        (overlap / union).item(),
    )


def main(argv: list[str] | None = None) -> int:
    """Print a table of the scores beside known ones. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("results", type=Path, help="folder that test.py wrote: results/NAME/test_latest")
    folder = parser.parse_args(argv).results
    maps = sorted((BUNDLED / "earth" / "testB").glob("*.jpg"))
    fakes = [folder / "images" / f"{path.stem}_fake_B.png" for path in maps]
    missing = [str(path) for path in fakes if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"missing: {missing[0]}{more}. Is {folder} a test of datasets/earth?")
    made, truth = [load(path) for path in fakes], [load(path) for path in maps]
    for path, image, true_path, true in zip(fakes, made, maps, truth, strict=True):
        if image.shape != true.shape:
            sizes = [f"{width}x{height}" for width, height in (image.shape[:1:-1], true.shape[:1:-1])]
            raise ValueError(
                f"{path} is {sizes[0]} pixels, but the true map {true_path} is {sizes[1]}: test at that size"
            )
    figures = score(torch.cat(made), torch.cat(truth))
    print(f"fake_B against the true map, {len(maps)} images      L1 (0..255)   SSIM   water IoU")
    for name, (l1, similarity, iou) in {**REFERENCES, folder.parent.name + ", this run": figures}.items():
        print(f"{name:<44} {l1:10.1f} {similarity:8.3f} {iou:9.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, arguments=()))
