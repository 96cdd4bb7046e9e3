"""Put the first results of a test on one sheet: python -m scripts.sheet results/demo/test_latest sheet.png."""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid

from data.image_file import read_image
from options import values
from options.parser import script_parser
from util.command import run_command
from util.images import save_image, to_tensor

GAP = 2  # px between images
LABELS = ["real_A", "real", "fake_B", "fake_B_rgb", "fake", "real_B", "real_B_rgb", "fake_A", "sample"]


def main(argv: list[str] | None = None) -> int:
    """Write the sheet: a row for each label, a column for each image. Returns the exit status."""
    args = parse(argv)
    folder = args.results / "images"
    labels = args.labels or [label for label in LABELS if any(folder.rglob(f"*_{label}.png"))] or LABELS
    names = result_names(folder, labels[0], args.count)
    images = [load(folder / f"{name}_{label}.png", args.scale) for label in labels for name in names]
    if sizes := sorted({f"{image.shape[2]}x{image.shape[1]}" for image in images})[1:]:
        raise ValueError(f"images of one sheet need one size, and {folder} has {', '.join(sizes)} px too")
    grid = make_grid(torch.stack(images), nrow=len(names), padding=GAP, pad_value=1)
    save_image(grid, args.target)
    print(f"{args.target}: {len(names)} columns, rows {', '.join(labels)}")
    return 0


def result_names(folder: Path, label: str, count: int) -> list[str]:
    """The names of the first images of a label that test.py wrote into `folder`. ValueError if there is none."""
    paths = sorted(folder.rglob(f"*_{label}.png"))
    names = [path.relative_to(folder).as_posix().removesuffix(f"_{label}.png") for path in paths]
    if not names:
        raise ValueError(f"{folder} has no image of the label {label}: is {folder.parent} a folder of test.py?")
    return names[:count]


def load(path: Path, scale: int) -> Tensor:
    """An image, (3, H, W) in [-1, 1], with every pixel `scale` px wide."""
    image = to_tensor(read_image(path))
    return image.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    example = "results/demo/test_latest sheet.png --labels real_A fake_B --count 8 --scale 2"
    parser = script_parser("python -m scripts.sheet", __doc__, example)
    add = parser.add_argument
    add("results", type=Path, help="folder that test.py wrote")
    add("target", type=Path, metavar="OUT", help="the image file to write")
    text = f"rows, top to bottom (default: those of {' '.join(LABELS)} that there are)"
    add("--labels", nargs="+", metavar="LABEL", help=text)
    add("--count", type=values.positive_int, default=10, help="images, in the order of their names (default: 10)")
    add("--scale", type=values.positive_int, default=1, help="enlarge pixels to so many px (default: 1)")
    add("--verbose", action="store_true", help="print tracebacks of errors")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command(main, arguments=()))
