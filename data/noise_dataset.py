"""Noise instead of images: the input of sagan in testing."""

import math
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from data.base_dataset import BaseDataset, Sample
from data.classes import choose_classes, sample_name
from data.image_folder import DataError
from options import values

DEFAULT_COUNT = 64


class NoiseDataset(BaseDataset):
    """A vector z of --z_dim random numbers for each of --seeds, by default the seeds 0 to --num_test - 1.

    If the run has classes, there is a sample of each seed and each of --classes, and z ends with the one-hot class.
    """

    unused_flags = (
        "seed", "dataroot", "preprocess", "center_crop", "value_range", "value_range_A", "value_range_B", "load_size",
        "no_flip", "serial_batches", "max_dataset_size", "skip_bad_images", "metrics", "metrics_features",
        "metrics_weights", "content", "label_dir", "label_A", "label_B",
    )  # fmt: skip

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """Add the flags for seeds and truncation."""
        if not is_train:
            add = parser.add_argument_group("noise").add_argument
            text = f"seeds, as 0-63 or 3,8,20-29; default: from 0, enough for --num_test images, or {DEFAULT_COUNT}"
            add("--seeds", type=values.seeds, help=text)
            text = "limit |z| to this value: smaller is more typical and less varied; 0 = no limit"
            add("--truncation", type=values.non_negative_float, default=0.0, help=text)
        return parser

    def __init__(self, opt: Any):
        super().__init__(opt)
        if opt.is_train:
            raise DataError("--dataset_mode noise has no images to train on. Choose another one.")
        if "z_dim" not in opt.as_dict():
            raise DataError(
                f"--dataset_mode noise is for models that turn noise into images, not for --model {opt.model}."
            )
        count = DEFAULT_COUNT if opt.num_test == math.inf else opt.num_test
        self.class_names = opt.class_names
        if opt.classes and not self.class_names:
            raise DataError(f"classes={opt.classes}: the run was trained without classes. Omit them.")
        self.classes = choose_classes(opt.classes, self.class_names)
        seeds = list(range(math.ceil(count / max(len(self.classes), 1)))) if opt.seeds is None else opt.seeds
        self.z_dim, self.truncation = opt.z_dim, opt.truncation
        self.samples = [(seed, number) for seed in seeds for number in self.classes or [-1]]
        self.A_paths = [
            Path(sample_name(seed, self.class_names[number] if self.classes else "")) for seed, number in self.samples
        ]

    def __getitem__(self, at: tuple[int, int]) -> Sample:
        _, index = at
        seed, number = self.samples[index]
        generator = torch.Generator().manual_seed(seed)
        z = truncate(torch.randn(self.z_dim, generator=generator), self.truncation)
        if self.classes:
            z = torch.cat([z, one_hot(torch.tensor(number), len(self.class_names)).to(z.dtype)])
        return {"z": z, "A_paths": str(self.A_paths[index])}


def truncate(z: Tensor, limit: float) -> Tensor:
    """Map samples of N(0, 1) to the normal distribution truncated to [-limit, limit]; 0 changes nothing.

    The map is monotonic, so a seed shows the same subject at every limit. The paper redraws values outside instead.

    Reference: the truncation trick of Brock et al. 2019, arXiv:1809.11096
    """
    if not limit:
        return z
    low = torch.special.ndtr(torch.tensor(-limit, dtype=torch.float64))
    return torch.special.ndtri(low + torch.special.ndtr(z.double()) * (1 - 2 * low)).to(z.dtype)
