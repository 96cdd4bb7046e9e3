"""Two folders of images without pairs: the data of CycleGAN."""

from typing import Any

import torch

from data.base_dataset import BaseDataset, Sample, create_reader, create_transform, good_pairs
from data.check import Check
from data.image_folder import domain_images


class UnalignedDataset(BaseDataset):
    """DATAROOT/{phase}A and DATAROOT/{phase}B; as long as the larger of the two.

    In training, every A gets a random B. With --serial_batches, and so in testing, it gets the B at the same index,
    which has the same name if both folders hold the same names. With --direction BtoA, A is read from {phase}B.
    """

    def __init__(self, opt: Any):
        super().__init__(opt)
        first, second = self.domains
        A_paths = domain_images(opt.dataroot, opt.phase, first, opt.max_dataset_size, opt.slice_axis)
        B_paths = domain_images(opt.dataroot, opt.phase, second, opt.max_dataset_size, opt.slice_axis)
        self.read_A = create_reader(opt, opt.input_nc, first, "input_nc", paths=A_paths)
        self.read_B = create_reader(opt, opt.output_nc, second, "output_nc", paths=B_paths)
        self.transform_A = create_transform(opt, self.read_A.channels)
        self.transform_B = create_transform(opt, self.read_B.channels)
        self.A_paths = self.usable(A_paths, Check(self.read_A, self.transform_A))
        self.B_paths = self.usable(B_paths, Check(self.read_B, self.transform_B))
        self.serial: bool = opt.serial_batches
        if self.serial and [path.name for path in A_paths] == [path.name for path in B_paths]:
            good = {*self.A_paths, *self.B_paths}
            pairs = good_pairs(zip(A_paths, B_paths, strict=True), good)
            self.A_paths, self.B_paths = [A for A, _ in pairs], [B for _, B in pairs]
        self.formats = {"A": self.read_A.format(self.A_paths[0]), "B": self.read_B.format(self.B_paths[0])}
        self.sizes = {
            "A": self.transform_A.output_sizes(self.A_paths),
            "B": self.transform_B.output_sizes(self.B_paths),
        }

    def __len__(self) -> int:
        """The size of the larger domain."""
        return max(len(self.A_paths), len(self.B_paths))

    def __getitem__(self, at: tuple[int, int]) -> Sample:
        epoch, index = at
        generator = self.generator(epoch, index)
        partner = index if self.serial else int(torch.randint(len(self.B_paths), (), generator=generator))
        # in serial order the two may be a pair: a second generator in the same state gives both the same crop and flip
        B_generator = self.generator(epoch, index) if self.serial else generator
        A_path = self.A_paths[index % len(self.A_paths)]
        B_path = self.B_paths[partner % len(self.B_paths)]
        return {
            "A": self.transform_A(self.read_A(A_path), generator),
            "B": self.transform_B(self.read_B(B_path), B_generator),
            "A_paths": str(A_path),
            "B_paths": str(B_path),
        }
