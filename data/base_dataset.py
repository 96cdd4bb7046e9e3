"""The base class of all datasets: a sample is a function of (seed, epoch, index)."""

import hashlib
from abc import ABC, abstractmethod
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from data.check import Check, skip_bad
from data.classes import classes_in
from data.image_file import ImageReader
from data.image_folder import DataError
from data.transforms import Transform
from options import values
from util.images import PixelFormat
from util.label_maps import checked

Sample = dict[str, Any]


class BaseDataset(Dataset[Sample], ABC):
    """A map-style dataset indexed by `dataset[epoch, index]`.

    A sample holds tensors "A" and "B", (C, H, W) in [-1, 1], and the files "A_paths" and "B_paths" they come from.
    `--dataset_mode X` chooses the class XDataset of data/X_dataset.py. For a new dataset, copy TemplateDataset.
    """

    def __init__(self, opt: Any):
        self.seed: int = opt.seed
        self.A_paths: list[Path] = []
        self.B_paths: list[Path] = []
        # domain, "A" or "B" -> every (width, height) of its samples -> one file that has it
        self.sizes: dict[str, dict[tuple[int, int], Path]] = {}
        # "A", "B" -> the format of its first file, in which results are written; empty if files have 8 bits
        self.formats: dict[str, PixelFormat] = {}
        # the letters of the folders, halves or value ranges that become A and B
        self.domains: tuple[str, str] = ("B", "A") if opt.direction == "BtoA" else ("A", "B")
        self.class_names: list[str] = []  # of the classes of samples, by number; empty if there are none
        self.skip_bad_images: bool = opt.skip_bad_images
        self.skipped: list[str] = []  # why each file is left out that cannot be used
        self.checks: list[tuple[list[Path], Check]] = []  # all files, good or bad, and their check

    unused_flags: tuple[str, ...] = ()  # shared flags that this dataset does not read; the parser refuses them

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """Add flags and defaults of this dataset."""
        return parser

    @property
    def domain_formats(self) -> dict[str, PixelFormat]:
        """The formats by the letters of the folders, whatever the direction."""
        letters = dict(zip("AB", self.domains, strict=True))
        return {letters[side]: fmt for side, fmt in sorted(self.formats.items())}

    @property
    def distinct_sizes(self) -> set[tuple[int, int]]:
        """Every (width, height) of a sample."""
        return {size for sizes in self.sizes.values() for size in sizes}

    def __len__(self) -> int:
        """The number of samples in an epoch: by default the number of files of A."""
        return len(self.A_paths)

    @abstractmethod
    def __getitem__(self, at: tuple[int, int]) -> Sample: ...

    def usable(self, paths: list[Path], check: Check) -> list[Path]:
        """Register `paths` for the dry run. With --skip_bad_images, return only those that `check` accepts.

        A dataset calls it once for each of its lists of files.
        """
        self.checks.append((paths, check))
        if not self.skip_bad_images:
            return paths
        good, bad = skip_bad(paths, check)
        self.skipped += bad
        return good

    def generator(self, epoch: int, index: int) -> torch.Generator:
        """A random number generator for one sample; its seed is a function of (seed, epoch, index)."""
        digest = hashlib.blake2b(repr((self.seed, epoch, index)).encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest))


def good_pairs(pairs: Iterable[tuple[Path, Path]], good: set[Path]) -> list[tuple[Path, Path]]:
    """The pairs whose files are both `good`.

    Raises:
        DataError: there is none.
    """
    if found := [pair for pair in pairs if good.issuperset(pair)]:
        return found
    raise DataError("No pair of images is left, since of each at least one is skipped.")


def create_reader(opt: Any, channels: int, domain: str, *arguments: str, paths: Sequence[Path] = ()) -> ImageReader:
    """The reader of the files of a domain, the folder or half "A" or "B".

    Args:
        channels: of the network, set by `arguments` ("input_nc", "output_nc" or both).
        paths: the files, which may then be label maps. Those have a channel for each class that is found in them.

    Raises:
        DataError: files are no label maps, or the network takes another number of classes.
    """
    value_range, labels = (opt.value_range_A, opt.label_A) if domain == "A" else (opt.value_range_B, opt.label_B)
    if labels is None or not paths:
        return ImageReader(channels=channels, value_range=values.bounds(value_range), arguments=arguments)
    if not (labels or opt.is_train):
        raise DataError(f"--label_{domain}: this run has no classes. Name those of its training: --label_{domain} 0 1")
    try:
        classes = checked(labels)
    except ValueError as error:
        raise DataError(f"--label_{domain}: {error}") from error
    classes = classes or classes_in(paths, skip_bad=opt.skip_bad_images)
    for argument in arguments:
        if channels != len(classes) and (opt.given(argument) or not opt.is_train):
            text = f"the label maps of {domain} have {len(classes)} classes, but the network takes {channels} channels"
            raise DataError(f"{text}: {' '.join(classes)}.", remedy={argument: len(classes)})
    return ImageReader(channels=len(classes), classes=classes)


def create_transform(opt: Any, channels: int) -> Transform:
    """The transform that the flags describe. Testing does not round sizes: AnySize pads and crops."""
    return Transform(
        center_crop=opt.center_crop,
        preprocess=opt.preprocess,
        load_size=opt.load_size,
        crop_size=opt.crop_size,
        flip=not opt.no_flip,
        channels=channels,
        multiple=4 if opt.is_train else 1,
    )
