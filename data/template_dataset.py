"""A data set to start your own from: copy this file to data/NAME_dataset.py, name the class NAMEDataset.

Then `--dataset_mode NAME` finds it. This one makes pairs from one folder: B is an image, A the same image in coarse
pixels, so that a model can learn to sharpen.
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
        """Flags of your own, and with parser.set_defaults other defaults for the shared ones."""
        parser.add_argument("--coarse", type=values.positive_int, default=4, help="side of A's coarse pixels, in px")
        return parser

    def __init__(self, opt: Any):
        """Find the files, keep what __getitem__ needs: this is the only place that reads `opt`."""
        super().__init__(opt)
        if opt.direction == "BtoA":
            raise DataError("--direction BtoA: --dataset_mode template goes from coarse to sharp only: leave it out.")
        self.coarse: int = opt.coarse
        self.transform_A = create_transform(opt, opt.input_nc)
        self.transform_B = create_transform(opt, opt.output_nc)
        paths = any_images(opt.dataroot, opt.phase, "A", opt.max_dataset_size)
        # Those that the flags --skip_bad_images and --dry_run find no fault with.
        self.A_paths = self.B_paths = self.usable(paths, Check(read_image, self.transform_B))
        # Reads the headers where the flags call for it: an image that is too small is reported before training starts.
        self.sizes = {"A": self.transform_A.output_sizes(self.A_paths)}

    def __getitem__(self, at: tuple[int, int]) -> Sample:
        """Sample `index` of `epoch`. Take every random decision from self.generator: then a run can be repeated."""
        epoch, index = at
        path = self.A_paths[index]
        image = read_image(path)
        coarse = image.reduce(self.coarse).resize(image.size, Image.Resampling.NEAREST)
        # Two generators in the same state: A and B get the same crop and the same flip.
        return {
            "A": self.transform_A(coarse, self.generator(epoch, index)),
            "B": self.transform_B(image, self.generator(epoch, index)),
            "A_paths": str(path),
            "B_paths": str(path),
        }
