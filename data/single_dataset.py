"""One folder of images."""

from typing import Any

from data.base_dataset import BaseDataset, Sample, create_reader, create_transform
from data.check import Check
from data.classes import class_of, number_classes
from data.image_folder import any_folder, any_images


class SingleDataset(BaseDataset):
    """All images of DATAROOT/{phase}A if that folder exists ({phase}B with --direction BtoA), else below DATAROOT.

    With --class_of, a flag of sagan, a sample has the number of its class too, as "class".
    """

    def __init__(self, opt: Any):
        super().__init__(opt)
        domain = self.domains[0]
        paths = any_images(opt.dataroot, opt.phase, domain, opt.max_dataset_size, opt.slice_axis)
        self.read = create_reader(opt, opt.input_nc, domain, "input_nc", paths=paths)
        self.transform = create_transform(opt, self.read.channels)
        self.A_paths = self.usable(paths, Check(self.read, self.transform))
        self.formats = {"A": self.read.format(self.A_paths[0])}
        self.sizes = {"A": self.transform.output_sizes(self.A_paths)}
        self.labels: list[int] = []
        if "class_of" in opt.as_dict() and opt.class_of:
            root = any_folder(opt.dataroot, opt.phase, domain)
            found = [class_of(path, root, opt.class_of) for path in self.A_paths]
            self.class_names, self.labels = number_classes(found, opt.class_names)

    def __getitem__(self, at: tuple[int, int]) -> Sample:
        epoch, index = at
        path = self.A_paths[index]
        sample = {"A": self.transform(self.read(path), self.generator(epoch, index)), "A_paths": str(path)}
        return sample | ({"class": self.labels[index]} if self.labels else {})
