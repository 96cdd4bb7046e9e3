"""A dataset to start your own from: copy this file to data/NAME_dataset.py, name the class NAMEDataset.

Then `--dataset_mode NAME` finds it. This one makes pairs from one folder for a model that learns to sharpen: B is an
image, and A is the same image in coarse pixels.
"""

from argparse import ArgumentParser
from typing import Any

from PIL import Image

from data.base_dataset import BaseDataset, Sample, create_transform
from data.check import Check
from data.image_file import read_image
from data.image_folder import DataError, any_images
from options import values


class TemplateDataset(BaseDataset):
    """Images below DATAROOT (or of DATAROOT/{phase}A), each with a copy of itself in coarse pixels."""

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """Add your own flags. parser.set_defaults changes the defaults of shared flags."""
        parser.add_argument("--coarse", type=values.positive_int, default=4, help="side of A's coarse pixels, in px")
        return parser

    def __init__(self, opt: Any):
        """Find the files and keep what __getitem__ needs. Only the constructor reads `opt`."""
        super().__init__(opt)
        if opt.direction == "BtoA":
            raise DataError("--direction BtoA: --dataset_mode template goes from coarse to sharp only. Omit the flag.")
        self.coarse: int = opt.coarse
        self.transform_A = create_transform(opt, opt.input_nc)
        self.transform_B = create_transform(opt, opt.output_nc)
        paths = any_images(opt.dataroot, opt.phase, "A", opt.max_dataset_size, opt.slice_axis)
        # registers the files for --dry_run; --skip_bad_images removes those that do not pass the check
        self.A_paths = self.B_paths = self.usable(paths, Check(read_image, self.transform_B))
        # reads headers only if sizes can differ; an image that is too small is an error before training starts
        self.sizes = {"A": self.transform_A.output_sizes(self.A_paths)}

    def __getitem__(self, at: tuple[int, int]) -> Sample:
        """Sample `index` of `epoch`. Draw every random number from self.generator, so that a run is repeatable."""
        epoch, index = at
        path = self.A_paths[index]
        image = read_image(path)
        coarse = image.reduce(self.coarse).resize(image.size, Image.Resampling.NEAREST)
        # two generators in the same state: A and B get the same crop and the same flip
        return {
            "A": self.transform_A(coarse, self.generator(epoch, index)),
            "B": self.transform_B(image, self.generator(epoch, index)),
            "A_paths": str(path),
            "B_paths": str(path),
        }
