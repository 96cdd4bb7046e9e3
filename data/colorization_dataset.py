"""Color images, split into lightness and color."""

from argparse import ArgumentParser
from typing import Any

from data.base_dataset import BaseDataset, Sample, create_transform
from data.check import Check
from data.image_file import read_image
from data.image_folder import DataError, any_images
from util.color import split_lab


class ColorizationDataset(BaseDataset):
    """All images of DATAROOT/{phase} if that folder exists, else all below DATAROOT.

    In CIE Lab, A is L, (1, H, W), and B is ab, (2, H, W), both scaled to [-1, 1] as `split_lab` does.
    """

    unused_flags = ("label_A", "label_B")

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """One channel in, two out."""
        parser.set_defaults(input_nc=1, output_nc=2)
        return parser

    def __init__(self, opt: Any):
        super().__init__(opt)
        if opt.direction == "BtoA":
            raise DataError("--direction BtoA: --dataset_mode colorization goes from L to ab only. Omit the flag.")
        if (opt.input_nc, opt.output_nc) != (1, 2):
            raise DataError(
                f"--dataset_mode colorization has 1 channel in A (L) and 2 in B (ab), not --input_nc {opt.input_nc} "
                f"and --output_nc {opt.output_nc}. Omit these flags."
            )
        self.transform = create_transform(opt, 3)
        paths = any_images(opt.dataroot, opt.phase, "", opt.max_dataset_size, opt.slice_axis)
        self.A_paths = self.B_paths = self.usable(paths, Check(read_image, self.transform))
        self.sizes = {"A": self.transform.output_sizes(self.A_paths)}

    def __getitem__(self, at: tuple[int, int]) -> Sample:
        epoch, index = at
        path = self.A_paths[index]
        L, ab = split_lab(self.transform(read_image(path), self.generator(epoch, index)))
        return {"A": L, "B": ab, "A_paths": str(path), "B_paths": str(path)}
