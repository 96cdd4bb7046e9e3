"""Label maps: classes of pixels in files, and a small segmenter that finds them in translations."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from data.image_file import reading
from data.image_folder import list_images
from training.metrics import overlap
from util.errors import RemediedError

WINDOW = 5  # px, whose mean and deviation describe the surroundings of a pixel
NOISE = 1e-3  # variance added to each feature: one of a single value would decide alone
LEARNED = 50  # images that a segmenter learns from, at most


@dataclass(frozen=True)
class Segmenter:
    """Finds the class of a pixel by its color and the mean and deviation of the colors around it.

    Each class is a normal distribution of these features. It is learned from few images in a moment, so it tells
    apart what differs in color or texture, and nothing else.

    Attributes:
        means: (classes, D).
        precisions: inverse covariances (classes, D, D).
    """

    means: Tensor
    precisions: Tensor

    @classmethod
    def learn(cls, pairs: Iterable[tuple[Tensor, Tensor]], classes: int) -> Self:
        """Learn from images (C, H, W) in [-1, 1] and their classes (H, W), numbers below `classes`.

        Raises:
            ValueError: a class has no pixel.
        """
        count, total, squares = (torch.zeros((), dtype=torch.float64) for _ in range(3))
        for image, labels in pairs:
            x = features(image[None])[0].flatten(1).T.double()
            member = torch.nn.functional.one_hot(labels.flatten(), classes).double()
            count = count + member.sum(0)
            total = total + member.T @ x
            squares = squares + torch.einsum("nk,nd,ne->kde", member, x, x)
        if not count.all():
            raise ValueError(f"no pixel of domain B has class number {int((count == 0).nonzero()[0])} of {classes}")
        means = total / count[:, None]
        covariances = squares / count[:, None, None] - torch.einsum("kd,ke->kde", means, means)
        return cls(means, torch.linalg.inv(covariances + NOISE * torch.eye(means.shape[1], dtype=torch.float64)))

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> the numbers of the classes of their pixels (B, H, W)."""
        x = features(images.cpu()).double().movedim(1, -1)
        scores = []
        for mean, precision in zip(self.means, self.precisions, strict=True):
            distance = torch.einsum("bhwd,de,bhwe->bhw", x - mean, precision, x - mean)
            scores.append(torch.linalg.slogdet(precision).logabsdet - distance)
        return torch.stack(scores).argmax(0)


def features(images: Tensor) -> Tensor:
    """Images (B, C, H, W) -> their values, and mean and deviation around each pixel: (B, 3 C, H, W)."""
    images = images.float()
    mean, square = (avg_pool2d(x, WINDOW, 1, WINDOW // 2, count_include_pad=False) for x in (images, images**2))
    return torch.cat([images, mean, (square - mean**2).clamp(min=0).sqrt()], 1)


@dataclass
class LabelMaps:
    """Files of label maps: images of one channel whose values are classes, by the names of the images they belong to.

    Args:
        folders: domain, A and B -> folder.

    Raises:
        ValueError: a folder has no images.
    """

    folders: dict[str, Path]
    files: dict[str, dict[str, Path]] = field(init=False)

    def __post_init__(self) -> None:
        self.files = {}
        for domain, folder in self.folders.items():
            self.files[domain] = {path.stem: path for path in list_images(folder)}
            if not self.files[domain]:
                raise RemediedError(f"label_dir {domain}={folder}: there are no images in this folder.")

    def file(self, domain: str, name: str) -> Path:
        """The label map of an image. Raises ValueError if there is none."""
        if name not in self.files[domain]:
            raise RemediedError(f"label_dir {domain}={self.folders[domain]} has no label map named {name}.")
        return self.files[domain][name]

    def read(self, domain: str, names: Sequence[str], size: tuple[int, int]) -> Tensor:
        """Label maps, resized to (height, width) without mixing values: (B, height, width) of uint8.

        Args:
            domain: A or B.
            names: of the images, without folder and suffix.
            size: (height, width) in pixels.

        Raises:
            ValueError: a label map is missing or is no image of one channel of 8 bits.
        """
        maps = []
        for name in names:
            file = self.file(domain, name)
            with reading(file), Image.open(file) as image:
                mode, gray = image.mode, image.convert("L") if image.mode == "1" else image
                pixels = gray.resize(size[::-1], Image.Resampling.NEAREST).tobytes()
            if mode not in ("L", "P", "1"):
                raise RemediedError(f"{file} is {mode}, but a label map has one channel of 8 bits.")
            maps.append(torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(size))
        return torch.stack(maps)


@dataclass(frozen=True)
class Labels:
    """Classes of pixels: where they are in A, by label maps, and in translations to B, by a segmenter.

    Attributes:
        maps: the label maps of A.
        values: of the classes in label maps.
        segmenter: finds the number of a class in `values`.
    """

    maps: LabelMaps
    values: Sequence[int]
    segmenter: Segmenter

    @classmethod
    def learn(cls, maps: LabelMaps, images: Iterable[tuple[str, Tensor]]) -> Self:
        """Learn the classes in the label maps of B.

        Args:
            maps: label maps of A and B.
            images: of B, (C, H, W) in [-1, 1], with their names; a few are enough.

        Raises:
            ValueError: a label map is missing, or no image of one channel of 8 bits.
        """
        pairs = []
        for name, image in itertools.islice(images, LEARNED):
            height, width = image.shape[1:]
            pairs.append((image, maps.read("B", [name], (height, width))[0]))
        values = torch.cat([labels.flatten() for _, labels in pairs]).unique()
        numbered = ((image, torch.searchsorted(values, labels)) for image, labels in pairs)
        return cls(maps, values.tolist(), Segmenter.learn(numbered, len(values)))

    def names(self) -> list[str]:
        """The figures, one for each class."""
        return [f"iou_{value}" for value in self.values]

    def overlaps(self, fakes: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """For each class, pixels in both and in either one, of fakes (B, C, H, W) and label maps (B, H, W): (B, 2)."""
        found = self.segmenter(fakes)
        classes = zip(self.names(), self.values, strict=True)
        return {name: overlap(found == number, labels == value) for number, (name, value) in enumerate(classes)}
