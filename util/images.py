"""Tensors in [-1, 1] to images and files: as 8-bit images, or in the pixel format of the input files."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from util import label_maps
from util.files import atomic

MAX_CHANNELS = 16  # of an image file
COMPRESSION = 1  # of PNG: takes a quarter of the time of Pillow's default, for 10% more bytes
JPEG_QUALITY = 95
FORMATS_FILE = "formats.json"  # of a run: the formats of its two domains
LOSSLESS = (".png", ".tif", ".tiff", ".npy")  # of label maps
WITH_ALPHA = (2, 4)  # channels of gray and color with opacity


@dataclass(frozen=True)
class PixelFormat:
    """The pixels of the files of a domain.

    Attributes:
        dtype: of the values.
        value_range: the values that become -1 and 1 in a tensor.
        alpha: the last of 2 or 4 channels is opacity.
        classes: of label maps, which are a plane for each class in a tensor, as in `util.label_maps`; else empty.
    """

    dtype: str = "uint8"
    value_range: tuple[float, float] = (0.0, 255.0)
    alpha: bool = False
    classes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, array: np.ndarray, value_range: tuple[float, float] | None = None, *, alpha: bool = False
    ) -> "PixelFormat":
        """The format of `array`. `value_range` applies to files of more than 8 bits; None infers it from the dtype.

        Raises:
            ValueError: there are non-finite values, or the range cannot be inferred.
        """
        dtype, low, high = array.dtype.name, array.min(), array.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("holds non-finite values (NaN or infinity): replace them.")
        if dtype == "uint8":
            return cls(alpha=alpha)
        if value_range is None:
            value_range = (0.0, 65535.0) if dtype == "uint16" else (0.0, 1.0)
            if dtype != "uint16" and not (array.dtype.kind == "f" and low >= 0 and high <= 1):
                raise ValueError(
                    f"holds {dtype} values from {low:g} to {high:g}, and value_range is not set. It has to name the "
                    "two values that become -1 and 1."
                )
        return cls(dtype, value_range, alpha)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "PixelFormat":
        """The format whose `asdict` was saved as JSON. Raises LookupError, TypeError or ValueError if it is none."""
        low, high = saved["value_range"]
        classes = label_maps.checked(saved.get("classes", ()))
        return cls(np.dtype(saved["dtype"]).name, (low, high), saved["alpha"], classes)

    def __str__(self) -> str:
        if self.classes:
            return f"the {len(self.classes)} classes {' '.join(self.classes)}"
        low, high = self.value_range
        opacity = " with opacity" if self.alpha else ""
        return f"8 bits{opacity}" if self.is_8bit else f"{self.dtype}{opacity} from {low:g} to {high:g}"

    @property
    def is_8bit(self) -> bool:
        """Whether values are 0 to 255."""
        return self.dtype == "uint8" and not self.classes

    @property
    def has_range(self) -> bool:
        """Whether a range of values can be chosen: not for 8 bits and label maps."""
        return self.dtype != "uint8" and not self.classes

    def with_range(self, value_range: tuple[float, float] | None) -> "PixelFormat":
        """This format with another range of values, in float32 if its dtype cannot hold them; None changes nothing."""
        if value_range is None or value_range == self.value_range:
            return self
        dtype = np.dtype(self.dtype)
        limits = np.iinfo(dtype) if dtype.kind in "ui" else np.finfo(dtype)
        fits = not self.is_8bit and limits.min <= value_range[0] and value_range[1] <= limits.max
        return replace(self, dtype=self.dtype if fits else "float32", value_range=value_range)

    def of_result(self, target: "PixelFormat | None", value_range: tuple[float, float] | None = None) -> "PixelFormat":
        """The format of a result that is made from a file in this format.

        Args:
            target: the format of the domain of the result; None if it is not known: then it is this one.
            value_range: of deep results, if `target` is None; None for that of this format.
        """
        if target is not None or self.classes:
            return target or PixelFormat()
        return self if self.is_8bit else self.with_range(value_range)

    def to_tensor(self, array: np.ndarray, palette: label_maps.Palette | None = None) -> Tensor:
        """(H, W, C) in this format as float32 (C, H, W) in [-1, 1]; values outside the range are clipped.

        Args:
            array: values; of a label map also indices of `palette`, or colors.

        Raises:
            ValueError: a label map holds another class.
        """
        if self.classes:
            return label_maps.one_hot(label_maps.to_numbers(array, self.classes, palette), len(self.classes))
        low, high = self.value_range
        scaled = ((array.astype(np.float64) - low) / (high - low) * 2 - 1).clip(-1, 1)
        return torch.from_numpy(scaled.astype(np.float32)).permute(2, 0, 1).contiguous()

    def to_array(self, tensor: Tensor) -> np.ndarray:
        """(C, H, W) in [-1, 1] as (H, W, C) in this format; integers are rounded."""
        if self.classes:
            return label_maps.to_values(tensor.argmax(0).cpu().numpy(), self.classes)
        if self.is_8bit:
            return to_bytes(tensor).permute(1, 2, 0).cpu().numpy()
        low, high = self.value_range
        unit = (tensor.detach().cpu().double().clamp(-1, 1) + 1) / 2
        values = (unit * (high - low) + low).permute(1, 2, 0).numpy()
        dtype = np.dtype(self.dtype)
        if dtype.kind in "ui":
            values = values.round().clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
        return values.astype(dtype)


def write_formats(run_dir: Path, formats: Mapping[str, PixelFormat]) -> None:
    """Write the formats of the domains "A" and "B" of a run, as `read_formats` reads them."""
    with atomic(run_dir / FORMATS_FILE) as path:
        path.write_text(json.dumps({domain: asdict(fmt) for domain, fmt in formats.items()}, indent=2) + "\n")


def read_formats(run_dir: Path) -> dict[str, PixelFormat]:
    """The formats of the domains "A" and "B" of a run: those of the folders A and B, whatever the direction.

    Empty if none are saved, as with runs whose data has 8 bits only.

    Raises:
        ValueError: the file is damaged.
    """
    path = run_dir / FORMATS_FILE
    if not path.is_file():
        return {}
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        return {domain: PixelFormat.from_dict(fmt) for domain, fmt in saved.items()}
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): restore or remove it") from error


def check_finite(result: Tensor, *sources: str) -> None:
    """Raise ValueError if values of the result for `sources` are NaN or infinite, which no 8-bit file would show."""
    if not result.isfinite().all():
        problem = "the result is not finite (NaN or infinity): the weights are damaged or overflow, as in fp16"
        raise ValueError(f"{', '.join(sources)}: {problem}" if sources else problem)


def to_bytes(tensor: Tensor) -> Tensor:
    """Values in [-1, 1] as uint8; values outside are clamped."""
    return tensor.detach().float().add(1).mul(127.5).round().clamp(0, 255).byte()


def to_image(tensor: Tensor, *, alpha: bool = False) -> Image.Image:
    """The 8-bit image of `tensor`, (C, H, W) or (1, C, H, W) in [-1, 1]; values outside are clamped.

    One channel is gray and three are color; with `alpha`, two are gray and four color with opacity. Else, of two
    channels, the image shows the first in gray; of more, the first three in color.

    Raises:
        ValueError: the tensor has another shape.
    """
    from torchvision.transforms.v2 import functional as F  # slow to import, and --help does without

    shape = tuple(tensor.shape)
    if len(shape) == 4 and shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim != 3:
        raise ValueError(f"an image is (C, H, W) or (1, C, H, W), not {shape}")
    if not (alpha and len(tensor) in WITH_ALPHA):
        tensor = tensor[: 1 if len(tensor) < 3 else 3]
    return F.to_pil_image(to_bytes(tensor).cpu())


def to_images(tensors: Tensor) -> list[Image.Image]:
    """The images of `tensors`, (B, C, H, W) in [-1, 1], as `to_image` makes them: a batch takes a tenth of the time."""
    tensors = tensors[:, : 1 if tensors.shape[1] < 3 else 3]
    pixels = to_bytes(tensors).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image) for image in pixels]


def save_image(tensor: Tensor, path: str | Path, fmt: PixelFormat | None = None) -> None:
    """Write `tensor` to a file of the kind that the suffix of `path` names. Creates missing folders.

    Args:
        tensor: (C, H, W) or (1, C, H, W) in [-1, 1].
        fmt: None for the 8-bit image of `to_image`, else the format to write, with all channels. TIFF and .npy hold
            every format, PNG label maps, one channel of uint16 and 8 bits with opacity, and every suffix 8-bit gray and
            color.

    Raises:
        ValueError: files of this suffix do not support the format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if fmt is not None and fmt.classes:
        if path.suffix.lower() not in LOSSLESS:
            raise ValueError(f"{path}: label maps are written as {', '.join(LOSSLESS)}")
        if path.suffix.lower() != ".npy":
            save_file(to_label_map(tensor[0] if tensor.ndim == 4 else tensor, fmt), path)
            return
    if fmt is None or (fmt.is_8bit and tensor.shape[-3] in (1, 3) and path.suffix.lower() != ".npy"):
        save_file(to_image(tensor), path)
    else:
        write_array(fmt.to_array(tensor[0] if tensor.ndim == 4 else tensor), path, alpha=fmt.alpha)


def write_array(array: np.ndarray, path: Path, *, alpha: bool = False) -> None:
    """Write `array`, (H, W, C), to a file of the kind that the suffix of `path` names.

    TIFF and .npy hold every dtype and number of channels; a TIFF has one page per channel unless these are 3, or 2 or 4
    of which the last is opacity (`alpha`). PNG holds one channel of uint16, or 1 to 4 of uint8. Every other suffix
    holds 1 or 3 channels of uint8.

    Raises:
        ValueError: files of this suffix do not support the dtype or the number of channels.
    """
    suffix, (height, _, channels) = path.suffix.lower(), array.shape
    plain = array[..., 0] if channels == 1 else array
    png_channels = {"uint8": 4, "uint16": 1}.get(array.dtype.name, 0)
    if suffix == ".npy":
        # the reader takes the axis of at most MAX_CHANNELS for the channels
        channels_first = channels > 1 and height <= MAX_CHANNELS
        np.save(path, array.transpose(2, 0, 1) if channels_first else plain, allow_pickle=False)
    elif (array.dtype == np.uint8 and channels in (1, 3)) or (suffix == ".png" and channels <= png_channels):
        save_file(Image.fromarray(plain), path)
    elif suffix in (".tif", ".tiff"):
        import tifffile  # slow to import, and --help does without

        if channels == 3 or (alpha and channels in WITH_ALPHA):
            opacity: dict[str, object] = {} if channels == 3 else {"extrasamples": ["unassalpha"]}
            photometric = "rgb" if channels > 2 else "minisblack"
            tifffile.imwrite(
                path,
                array,
                photometric=photometric,
                planarconfig="contig",
                metadata=None,
                **opacity,  # type: ignore[arg-type]
            )
        else:
            tifffile.imwrite(path, array.transpose(2, 0, 1), photometric="minisblack", metadata=None)
    else:
        raise ValueError(
            f"{path}: {suffix or 'this'} cannot hold {channels} channels of {array.dtype}: use .tif or .npy"
        )


def save_file(image: Image.Image, path: Path) -> None:
    """Write an image with Pillow: JPEG in high quality with color in full resolution (4:4:4), PNG fast."""
    image.save(path, compress_level=COMPRESSION, quality=JPEG_QUALITY, subsampling=0)


def to_label_map(planes: Tensor, fmt: PixelFormat) -> Image.Image:
    """The label map of planes (C, H, W): with the palette of its classes, or gray or color if files have none."""
    return label_maps.to_image(fmt.to_array(planes), fmt.classes)


def in_color(images: Mapping[str, Tensor], formats: Mapping[str, PixelFormat]) -> dict[str, Tensor]:
    """Images to show, by label: the label maps among them in the colors of their classes.

    Args:
        images: (..., C, H, W) in [-1, 1], by label.
        formats: of some of them, by label.
    """
    classes = {label: formats[label].classes for label in images if label in formats}
    return {
        label: label_maps.in_color(image, classes[label]) if classes.get(label) else image
        for label, image in images.items()
    }


def label_formats(real: Mapping[str, PixelFormat], made: Mapping[str, PixelFormat]) -> dict[str, PixelFormat]:
    """The format of each image by its label, given those of real images and of results of "A" and "B"."""
    formats = {f"real_{side}": fmt for side, fmt in real.items()} | {"real": real.get("A", PixelFormat())}
    formats |= {f"{kind}_{side}": fmt for kind in ("fake", "rec", "idt") for side, fmt in made.items()}
    return formats | {"fake": made.get("B", PixelFormat()), "sample": made.get("A", PixelFormat())}


def save_result(tensor: Tensor, stem: str | Path, fmt: PixelFormat) -> Path | None:
    """Write `tensor` as {stem}.tif in `fmt` if the image of `to_image` would lose depth or channels.

    Returns:
        The file, or None if the image is complete.
    """
    if is_viewable(tensor, fmt):
        return None
    path = Path(f"{stem}.tif")
    save_image(tensor, path, fmt)
    return path


def is_viewable(tensor: Tensor, fmt: PixelFormat) -> bool:
    """Whether the image of a page is complete: 8-bit gray or color, or also with opacity if the format has it.

    Label maps are complete if they have colors: then the image is the label map.
    """
    if fmt.classes:
        return "#" in fmt.classes[0]
    return fmt.is_8bit and tensor.shape[-3] in ((1, *WITH_ALPHA, 3) if fmt.alpha else (1, 3))


def to_tensor(image: Image.Image) -> Tensor:
    """A gray or color image of 8 bits as (C, H, W) in [-1, 1]."""
    from torchvision.transforms.v2 import functional as F  # slow to import, and --help does without

    return F.pil_to_tensor(image) / 127.5 - 1


def grid(images: Tensor, columns: int = 0) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] in rows of `columns`, by default as square as possible: (3, H', W')."""
    from torchvision.utils import make_grid  # slow to import

    return make_grid(images, nrow=columns or math.ceil(math.sqrt(len(images))), pad_value=1)
