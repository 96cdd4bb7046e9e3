"""What every data set shares: samples that depend on (seed, epoch, index) alone."""

import hashlib
from abc import ABC, abstractmethod
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from data.check import Check, leave_out_bad
from data.image_file import ImageReader
from data.transforms import Transform
from options import values
from util.images import PixelFormat

Sample = dict[str, Any]


class BaseDataset(Dataset[Sample], ABC):
    """A map-style data set indexed by `dataset[epoch, index]`.

    A sample holds tensors "A" and "B", (C, H, W) in [-1, 1], and the files "A_paths" and "B_paths" they come from.
    A new data set is data/X_dataset.py with a class XDataset, chosen by `--dataset_mode X`; start from TemplateDataset.
    """

    def __init__(self, opt: Any):
        self.seed: int = opt.seed
        self.A_paths: list[Path] = []
        self.B_paths: list[Path] = []
        # For each of "A", "B": every (width, height) it comes out with, and one file that does.
        self.sizes: dict[str, dict[tuple[int, int], Path]] = {}
        # For each of "A", "B": the depth and range of its first file, which results are written with.
        self.formats: dict[str, PixelFormat] = {}
        self.skip_bad_images: bool = opt.skip_bad_images
        self.checks: list[tuple[list[Path], Check]] = []  # all files, good or bad, and how each is checked

    unused_flags: tuple[str, ...] = ()  # shared flags that this dataset does not read; the parser refuses them

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """Add the data set's own flags and defaults."""
        return parser

    def __len__(self) -> int:
        """The number of samples in an epoch: by default, one for each file of A."""
        return len(self.A_paths)

    @abstractmethod
    def __getitem__(self, at: tuple[int, int]) -> Sample: ...

    def usable(self, paths: list[Path], check: Check) -> list[Path]:
        """`paths`, with --skip_bad_images without those that `check` finds fault with. To call for every file."""
        self.checks.append((paths, check))
        return leave_out_bad(paths, check) if self.skip_bad_images else paths

    def generator(self, epoch: int, index: int) -> torch.Generator:
        """Random numbers for one sample: always the same for the same (seed, epoch, index), in whichever process."""
        digest = hashlib.blake2b(repr((self.seed, epoch, index)).encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest))


def create_reader(opt: Any, channels: int, flag: str) -> ImageReader:
    """The reader of files for `channels` channels, as `flag` ("--input_nc" or "--output_nc") says."""
    return ImageReader(channels=channels, value_range=values.bounds(opt.value_range), flag=flag)


def create_transform(opt: Any, channels: int) -> Transform:
    """The transform that the flags ask for. In testing sizes are not rounded: the translator pads and crops back."""
    return Transform(
        center_crop=opt.center_crop,
        preprocess=opt.preprocess,
        load_size=opt.load_size,
        crop_size=opt.crop_size,
        flip=not opt.no_flip,
        channels=channels,
        multiple=4 if opt.is_train else 1,
    )
