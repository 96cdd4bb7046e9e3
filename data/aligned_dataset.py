"""Pairs of images side by side in one file: the data of pix2pix."""

import shlex
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from data.base_dataset import BaseDataset, Sample, create_reader, create_transform
from data.check import Check
from data.image_folder import DataError, domain_images, missing_folder, nearest_fix

MAKE_PAIRS = "python datasets/combine_A_and_B.py --fold_A {A} --fold_B {B} --fold_AB {AB}"


class AlignedDataset(BaseDataset):
    """DATAROOT/{phase}: images whose left half is A and whose right half is the B that belongs to it.

    Both halves get the same crop and the same flip. With --direction BtoA, A is the right half.
    """

    def __init__(self, opt: Any):
        super().__init__(opt)
        if not Path(opt.dataroot, opt.phase).is_dir():
            raise missing_pairs(Path(opt.dataroot), opt.phase)
        paths = domain_images(opt.dataroot, opt.phase, "", opt.max_dataset_size)
        self.read = create_reader(opt, max(opt.input_nc, opt.output_nc), "input_nc", "output_nc")
        self.transform_A = create_transform(opt, opt.input_nc)
        self.transform_B = create_transform(opt, opt.output_nc)
        self.A_paths = self.B_paths = self.usable(paths, Check(self.read, self.transform_A, half_size))
        self.formats = dict.fromkeys("AB", self.read.format(self.A_paths[0]))
        self.sizes = {"A": self.transform_A.output_sizes(self.A_paths, half_size)}
        self.reverse: bool = opt.direction == "BtoA"

    def __getitem__(self, at: tuple[int, int]) -> Sample:
        epoch, index = at
        path = self.A_paths[index]
        A, B = halves(self.read(path), path)
        if self.reverse:
            A, B = B, A
        # two generators in the same state: A and B get the same crop and the same flip
        return {
            "A": self.transform_A(A, self.generator(epoch, index)),
            "B": self.transform_B(B, self.generator(epoch, index)),
            "A_paths": str(path),
            "B_paths": str(path),
        }


def halves(image: Image.Image | Tensor, path: Path) -> tuple[Image.Image | Tensor, Image.Image | Tensor]:
    """The left and the right half of an image. A DataError names the file if the width is odd."""
    from torchvision.transforms.v2 import functional as F  # slow to import, and --help does without

    height, width = F.get_size(image)
    width, height = half_size((width, height), path)
    return F.crop(image, 0, 0, height, width), F.crop(image, 0, width, height, width)


def half_size(size: tuple[int, int], path: Path) -> tuple[int, int]:
    """(width, height) of each half of an image of `size`, in pixels. DataError if the width is odd."""
    width, height = size
    if width % 2:
        raise DataError(
            f"{path} is {width} pixels wide, an odd number, so it does not hold A and B side by side: remove it, or "
            "make it again with datasets/combine_A_and_B.py.",
            remedy={"skip_bad_images": True},
        )
    return width // 2, height


def missing_pairs(dataroot: Path, phase: str) -> DataError:
    """The error for a missing `dataroot/{phase}`: expected tree, found tree, and the way from one to the other."""
    expected = {phase: "images of A and B side by side, A on the left"}
    A, B = dataroot / f"{phase}A", dataroot / f"{phase}B"
    if A.is_dir() and B.is_dir():
        places = {name: shlex.quote(str(path)) for name, path in {"A": A, "B": B, "AB": dataroot / phase}.items()}
        hint = (
            f"If {A.name} and {B.name} hold pairs with equal names, put them side by side:\n"
            f"  {MAKE_PAIRS.format(**places)}\nIf there are no pairs, use --model cycle_gan."
        )
        return missing_folder(dataroot, phase, expected, hint)
    return missing_folder(dataroot, phase, expected, *nearest_fix(dataroot, phase))
