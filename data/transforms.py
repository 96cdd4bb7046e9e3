"""From an image to the tensor a network sees: resize, crop, flip, normalize, in upstream's five modes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from data.image_file import image_sizes
from data.image_folder import DataError
from options.choices import PREPROCESS
from util.images import MAX_CHANNELS
from util.label_maps import MAX_CLASSES, NUMBERS, one_hot

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow converts color to gray


def whole(size: tuple[int, int], path: Path) -> tuple[int, int]:
    """The size of the whole file."""
    return size


@dataclass(frozen=True, kw_only=True)
class Transform:
    """8-bit image, or tensor (C, H, W) of uint8, or in [-1, 1] -> float32 tensor (channels, H, W) in [-1, 1].

    A tensor (1, H, W) of NUMBERS is a label map. It is resized without blending, and becomes a plane for each class: 1
    where a pixel is of the class, else -1.

    Args:
        center_crop: crop the center first: a square of this many pixels, "max" for the largest square, 0 for no crop.
            (160, then resize, is usual for CelebA's faces.)
        preprocess: resize_and_crop (to load_size x load_size, then a crop_size square), crop (the crop alone),
            scale_width (width to load_size, height in proportion), scale_width_and_crop (but at least crop_size, for
            the crop), none.
        load_size: side in pixels; resizing is bicubic, of label maps nearest.
        crop_size: side in pixels.
        flip: flip half of the images horizontally.
        channels: 1 to 16. Gray (1) and color (3) are converted into each other. Of label maps, the classes.
        multiple: scale_width and none round sides to multiples of it. A generator that halves its input twice returns
            the size it gets for multiples of 4; 1 does not round.

    Raises:
        DataError: an argument is invalid, or the crop is larger than the image.
    """

    center_crop: int | str = 0
    preprocess: str = "resize_and_crop"
    load_size: int = 286
    crop_size: int = 256
    flip: bool = True
    channels: int = 3
    multiple: int = 4

    def __post_init__(self) -> None:
        if self.preprocess not in PREPROCESS:
            raise DataError(f"preprocess={self.preprocess}: choose from {', '.join(PREPROCESS)}.")
        if not 1 <= self.channels <= MAX_CLASSES:
            raise DataError(
                f"channels={self.channels} (input_nc, output_nc): images have 1 to {MAX_CHANNELS}, label maps 2 to "
                f"{MAX_CLASSES}."
            )
        if min(self.load_size, self.crop_size) < 1:
            raise DataError(f"load_size={self.load_size} and crop_size={self.crop_size} have to be at least 1 pixel.")
        if self.preprocess in ("resize_and_crop", "scale_width_and_crop") and self.load_size < self.crop_size:
            raise DataError(
                f"crop_size={self.crop_size} does not fit in load_size={self.load_size}.",
                remedy={"load_size": self.crop_size},
            )

    def __call__(self, image: Image.Image | Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Transform an image; `generator` draws crop position and flip. None crops the center and does not flip."""
        from torchvision.transforms.v2 import functional as F  # slow to import, and --help does without

        # torch resizes several times faster than Pillow
        x = F.pil_to_tensor(image) if isinstance(image, Image.Image) else image
        is_labels = x.dtype == NUMBERS
        x = x if is_labels else self.with_channels(x)
        height, width = F.get_size(x)
        if self.center_crop:
            width = height = self.center((width, height))
            x = F.center_crop(x, [height])
        size = self.resized((width, height))
        if size != (width, height):
            mode = F.InterpolationMode.NEAREST_EXACT if is_labels else F.InterpolationMode.BICUBIC
            x = F.resize(x, size[::-1], mode, antialias=True)
        if self.crops:
            left, top = self.crop_position(size, generator)
            x = F.crop(x, top, left, self.crop_size, self.crop_size)
        if self.flip and generator is not None and torch.rand((), generator=generator) < 0.5:
            x = F.horizontal_flip(x)
        if is_labels:
            return one_hot(x[0], self.channels)
        if x.dtype == torch.uint8:
            # in place: allocating memory takes several times longer than the arithmetic
            return x.to(torch.float32, memory_format=torch.contiguous_format).div_(255).mul_(2).sub_(1)
        return x.clamp(-1, 1)  # bicubic interpolation overshoots

    def with_channels(self, image: Tensor) -> Tensor:
        """`image` with `channels` channels, converted between gray and color if needed. Raises DataError."""
        from torchvision.transforms.v2 import functional as F  # slow to import

        found = len(image)
        if found == self.channels:
            return image
        if {found, self.channels} != {1, 3}:
            raise DataError(f"channels={self.channels} does not fit an image of {found} channels.")
        if self.channels == 3:
            return image.expand(3, -1, -1)
        if image.dtype == torch.uint8:
            return F.pil_to_tensor(F.to_pil_image(image).convert("L"))
        return torch.einsum("c,chw->hw", torch.tensor(LUMA), image)[None]

    def center(self, size: tuple[int, int]) -> int:
        """Side of the center crop from an image of `size` (width, height), in pixels."""
        return min(size) if self.center_crop == "max" else int(self.center_crop)

    @property
    def crops(self) -> bool:
        return self.preprocess.endswith("crop")

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) before the crop, for an image of `size` (width, height), in pixels."""
        width, height = size
        if self.preprocess == "resize_and_crop":
            return self.load_size, self.load_size
        if self.preprocess.startswith("scale_width"):
            least = self.crop_size if self.crops else 1  # upstream's least is always crop_size, which distorts
            size = self.load_size, max(int(self.load_size * height / width), least)
        if self.preprocess in ("scale_width", "none"):
            return round(size[0] / self.multiple) * self.multiple, round(size[1] / self.multiple) * self.multiple
        return size

    def crop_position(self, size: tuple[int, int], generator: torch.Generator | None) -> tuple[int, int]:
        """(left, top) of the crop in an image of `size`: uniform over all positions inside it, or the center."""
        spare = [side - self.crop_size for side in size]
        if min(spare) < 0:
            raise DataError(f"crop_size={self.crop_size} does not fit in an image of {size[0]}x{size[1]} pixels.")
        if generator is None:
            return spare[0] // 2, spare[1] // 2
        left, top = (int(torch.randint(room + 1, (), generator=generator)) for room in spare)
        return left, top

    def output_sizes(
        self, paths: list[Path], part: Callable[[tuple[int, int], Path], tuple[int, int]] = whole
    ) -> dict[tuple[int, int], Path]:
        """Every output size (width, height), each with one of its files. Reads headers, and only if sizes can differ.

        Args:
            paths: the files.
            part: (width, height) and path of a file -> (width, height) of the part that is transformed.

        Raises:
            DataError: an image is too small for this transform; names the file, its size and the argument.
        """
        always_fits = self.center_crop in (0, "max") and self.preprocess in ("resize_and_crop", "scale_width_and_crop")
        if always_fits:
            return {(self.crop_size, self.crop_size): paths[0]}
        outputs: dict[tuple[int, int], Path] = {}
        for size, path in image_sizes(paths).items():
            outputs.setdefault(self.output_size(part(size, path), path), path)
        return outputs

    def output_size(self, size: tuple[int, int], path: Path) -> tuple[int, int]:
        """(width, height) of the output for an image of `size`. A DataError names `path` if the image is too small."""
        if self.center_crop:
            if min(size) < self.center(size):
                raise DataError(
                    f"{path} is {size[0]}x{size[1]} pixels, too small for center_crop={self.center_crop}: use a smaller"
                    " one, or remove the file.",
                    remedy={"center_crop": "max"},
                )
            size = self.center(size), self.center(size)
        if min(self.resized(size)) < (self.crop_size if self.crops else 1):
            raise DataError(
                f"{path} is {size[0]}x{size[1]} pixels, too small for preprocess={self.preprocess}"
                f"{f' with crop_size={self.crop_size}: use a smaller one, or' if self.crops else ':'} remove the file.",
                remedy={"preprocess": "resize_and_crop"},
            )
        return (self.crop_size, self.crop_size) if self.crops else self.resized(size)
