"""Pairs of images, side by side in one file or by equal names in two folders: the data of pix2pix."""

import logging
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from data.base_dataset import BaseDataset, Sample, create_reader, create_transform, good_pairs
from data.check import Check
from data.image_file import image_size
from data.image_folder import DataError, domain_images, list_images, missing_folder, nearest_fix, relative_name

log = logging.getLogger(__name__)


class AlignedDataset(BaseDataset):
    """DATAROOT/{phase}: images whose left half is A and whose right half is the B that belongs to it.

    Without that folder, DATAROOT/{phase}A and DATAROOT/{phase}B: images of the same name, whatever the suffix, are a
    pair, and A and B may differ in channels and depth.

    A and B get the same crop and the same flip. With --direction BtoA, A is the right half, or from {phase}B.
    """

    def __init__(self, opt: Any):
        super().__init__(opt)
        self.side_by_side = Path(opt.dataroot, opt.phase).is_dir()
        first, second = self.domains
        if self.side_by_side:
            channels = max(opt.input_nc, opt.output_nc)
            if opt.input_nc != opt.output_nc and {opt.input_nc, opt.output_nc} != {1, 3}:
                raise DataError(
                    f"{Path(opt.dataroot, opt.phase)} holds A and B side by side, with the same channels, but input_nc "
                    f"is {opt.input_nc} and output_nc is {opt.output_nc}. Put A into a folder {opt.phase}A and B into "
                    f"{opt.phase}B, under the same names, and remove {opt.phase}."
                )
            if opt.label_A is not None or opt.label_B is not None:
                raise DataError(
                    f"{Path(opt.dataroot, opt.phase)} holds A and B side by side, as label maps cannot. Put A into a "
                    f"folder {opt.phase}A and B into {opt.phase}B, under the same names, and remove {opt.phase}."
                )
            paths = domain_images(opt.dataroot, opt.phase, "", opt.max_dataset_size, opt.slice_axis)
            self.read_A = create_reader(opt, channels, first, "input_nc", "output_nc")
            self.read_B = create_reader(opt, channels, second, "input_nc", "output_nc")
            self.transform_A, self.transform_B = (create_transform(opt, n) for n in (opt.input_nc, opt.output_nc))
            self.A_paths = self.B_paths = self.usable(paths, Check(self.read_A, self.transform_A, half_size))
            self.sizes = {"A": self.transform_A.output_sizes(self.A_paths, half_size)}
        else:
            folders = {letter: Path(opt.dataroot, f"{opt.phase}{letter}") for letter in "AB"}
            if not all(folder.is_dir() for folder in folders.values()):
                raise missing_pairs(Path(opt.dataroot), opt.phase)
            pairs = named_pairs(folders[first], folders[second], opt.slice_axis)
            del pairs[int(min(opt.max_dataset_size, sys.maxsize)) :]
            A_paths, B_paths = [A for A, _ in pairs], [B for _, B in pairs]
            self.read_A = create_reader(opt, opt.input_nc, first, "input_nc", paths=A_paths)
            self.read_B = create_reader(opt, opt.output_nc, second, "output_nc", paths=B_paths)
            self.transform_A = create_transform(opt, self.read_A.channels)
            self.transform_B = create_transform(opt, self.read_B.channels)
            good = {*self.usable(A_paths, Check(self.read_A, self.transform_A))}
            good |= {*self.usable(B_paths, Check(self.read_B, self.transform_B))}
            pairs = good_pairs(pairs, good)
            self.A_paths, self.B_paths = [A for A, _ in pairs], [B for _, B in pairs]
            if (self.transform_A.crops and opt.preprocess != "resize_and_crop") or opt.center_crop:
                for pair in pairs:
                    check_equal_sizes(*pair)
            self.sizes = {
                "A": self.transform_A.output_sizes(self.A_paths),
                "B": self.transform_B.output_sizes(self.B_paths),
            }
        self.formats = {"A": self.read_A.format(self.A_paths[0]), "B": self.read_B.format(self.B_paths[0])}

    def read(self, index: int) -> list[Image.Image | Tensor]:
        """A and B of a pair."""
        A_path, B_path = self.A_paths[index], self.B_paths[index]
        if not self.side_by_side:
            return [self.read_A(A_path), self.read_B(B_path)]
        of_A = halves(self.read_A(A_path), A_path)
        of_B = of_A if self.read_A == self.read_B else halves(self.read_B(B_path), B_path)
        return [halves_of["AB".index(letter)] for halves_of, letter in zip((of_A, of_B), self.domains, strict=True)]

    def __getitem__(self, at: tuple[int, int]) -> Sample:
        epoch, index = at
        A, B = self.read(index)
        # two generators in the same state: A and B get the same crop and the same flip
        return {
            "A": self.transform_A(A, self.generator(epoch, index)),
            "B": self.transform_B(B, self.generator(epoch, index)),
            "A_paths": str(self.A_paths[index]),
            "B_paths": str(self.B_paths[index]),
        }


def named_pairs(first: Path, second: Path, slice_axis: int) -> list[tuple[Path, Path]]:
    """The images of two folders that have the same name, whatever their suffix. A warning counts the others.

    Raises:
        DataError: there are none, or one folder has two images of one name.
    """
    named: list[dict[str, Path]] = [{}, {}]
    for names, folder in zip(named, (first, second), strict=True):
        for path in list_images(folder, slice_axis=slice_axis):
            if (other := names.setdefault(relative_name(path, folder), path)) != path:
                raise DataError(f"{other} and {path} have one name: remove the one without a partner.")
    common = [name for name in named[0] if name in named[1]]
    if not common:
        raise DataError(
            f"No image of {first} has the name of one of {second}: pairs need equal names. If there are no pairs, use "
            "--model cycle_gan."
        )
    both = set(common)
    if alone := [path for names in named for name, path in names.items() if name not in both]:
        log.warning("%d images without a partner are left out, such as %s", len(alone), alone[0])
    return [(named[0][name], named[1][name]) for name in common]


def check_equal_sizes(A: Path, B: Path) -> None:
    """Raise a DataError if a pair differs in size, so that the same crop would show different parts."""
    if (size_A := image_size(A)) != (size_B := image_size(B)):
        sizes = ["{}x{}".format(*size) for size in (size_A, size_B)]
        raise DataError(
            f"{A} has {sizes[0]} and {B} has {sizes[1]} pixels: crops of a pair show the same part only if both have "
            "one size.",
            remedy={"preprocess": "resize_and_crop", "center_crop": 0},
        )


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
    expected = {
        phase: "images of A and B side by side, A on the left",
        f"{phase}A": "or images of A",
        f"{phase}B": "and images of B, by the same names",
    }
    return missing_folder(dataroot, phase, expected, *nearest_fix(dataroot, phase))
