"""Tensors in [-1, 1] to images and files: as 8-bit images, or in the pixel format of the input files."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MAX_CHANNELS = 16  # of an image file
COMPRESSION = 1  # of PNG: takes a quarter of the time of Pillow's default, for 10% more bytes
JPEG_QUALITY = 95


@dataclass(frozen=True)
class PixelFormat:
    """The dtype of a file's pixels, and the values that become -1 and 1 in a tensor."""

    dtype: str = "uint8"
    value_range: tuple[float, float] = (0.0, 255.0)

    @classmethod
    def of(cls, array: np.ndarray, value_range: tuple[float, float] | None = None) -> "PixelFormat":
        """The format of `array`. `value_range` applies to files of more than 8 bits; None infers it from the dtype.

        Raises:
            ValueError: there are non-finite values, or the range cannot be inferred.
        """
        dtype, low, high = array.dtype.name, array.min(), array.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("holds non-finite values (NaN or infinity): replace them.")
        if dtype == "uint8":
            return cls()
        if value_range is None:
            value_range = (0.0, 65535.0) if dtype == "uint16" else (0.0, 1.0)
            if dtype != "uint16" and not (array.dtype.kind == "f" and low >= 0 and high <= 1):
                raise ValueError(
                    f"holds {dtype} values from {low:g} to {high:g}, and value_range is not set. It has to name the "
                    "two values that become -1 and 1."
                )
        return cls(dtype, value_range)

    def to_tensor(self, array: np.ndarray) -> Tensor:
        """(H, W, C) in this format as float32 (C, H, W) in [-1, 1]; values outside the range are clipped."""
        low, high = self.value_range
        scaled = ((array.astype(np.float64) - low) / (high - low) * 2 - 1).clip(-1, 1)
        return torch.from_numpy(scaled.astype(np.float32)).permute(2, 0, 1).contiguous()

    def to_array(self, tensor: Tensor) -> np.ndarray:
        """(C, H, W) in [-1, 1] as (H, W, C) in this format; integers are rounded."""
        low, high = self.value_range
        unit = (tensor.detach().cpu().double().clamp(-1, 1) + 1) / 2
        values = (unit * (high - low) + low).permute(1, 2, 0).numpy()
        dtype = np.dtype(self.dtype)
        if dtype.kind in "ui":
            values = values.round().clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
        return values.astype(dtype)


def to_image(tensor: Tensor) -> Image.Image:
    """The 8-bit image of `tensor`, (C, H, W) or (1, C, H, W) in [-1, 1]; values outside are clamped.

    One channel is gray and three are color. Of two channels, the image shows the first in gray; of more, the first
    three in color.

    Raises:
        ValueError: the tensor has another shape.
    """
    from torchvision.transforms.v2 import functional as F  # slow to import, and --help does without

    shape = tuple(tensor.shape)
    if len(shape) == 4 and shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim != 3:
        raise ValueError(f"an image is (C, H, W) or (1, C, H, W), not {shape}")
    tensor = tensor[: 1 if tensor.shape[0] < 3 else 3]
    return F.to_pil_image(tensor.detach().cpu().float().add(1).mul(127.5).round().clamp(0, 255).byte())


def to_images(tensors: Tensor) -> list[Image.Image]:
    """The images of `tensors`, (B, C, H, W) in [-1, 1], as `to_image` makes them: a batch takes a tenth of the time."""
    tensors = tensors[:, : 1 if tensors.shape[1] < 3 else 3]
    pixels = tensors.detach().float().add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image) for image in pixels]


def save_image(tensor: Tensor, path: str | Path, fmt: PixelFormat | None = None) -> None:
    """Write `tensor` to a file of the kind that the suffix of `path` names. Creates missing folders.

    Args:
        tensor: (C, H, W) or (1, C, H, W) in [-1, 1].
        fmt: None for the 8-bit image of `to_image`, else the format to write, with all channels. TIFF and .npy hold
            every format, PNG one channel of uint16, and every suffix 8-bit gray and color.

    Raises:
        ValueError: files of this suffix do not support the format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if fmt is None or (is_viewable(tensor, fmt) and path.suffix.lower() != ".npy"):
        save_file(to_image(tensor), path)
    else:
        write_array(fmt.to_array(tensor[0] if tensor.ndim == 4 else tensor), path)


def write_array(array: np.ndarray, path: Path) -> None:
    """Write `array`, (H, W, C), to a file of the kind that the suffix of `path` names.

    TIFF and .npy hold every dtype and number of channels; a TIFF has one page per channel unless these are 3. PNG holds
    one channel of uint16, or 1 to 4 of uint8. Every other suffix holds 1 or 3 channels of uint8.

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

        if channels == 3:
            tifffile.imwrite(path, array, photometric="rgb", planarconfig="contig", metadata=None)
        else:
            tifffile.imwrite(path, array.transpose(2, 0, 1), photometric="minisblack", metadata=None)
    else:
        raise ValueError(
            f"{path}: {suffix or 'this'} cannot hold {channels} channels of {array.dtype}: use .tif or .npy"
        )


def save_file(image: Image.Image, path: Path) -> None:
    """Write an image with Pillow: JPEG in high quality with color in full resolution (4:4:4), PNG fast."""
    image.save(path, compress_level=COMPRESSION, quality=JPEG_QUALITY, subsampling=0)


def save_result(tensor: Tensor, stem: str | Path, fmt: PixelFormat) -> Path | None:
    """Write `tensor` as {stem}.tif in `fmt` if the 8-bit image of `to_image` would lose depth or channels.

    Returns:
        The file, or None if the 8-bit image is complete.
    """
    if is_viewable(tensor, fmt):
        return None
    path = Path(f"{stem}.tif")
    save_image(tensor, path, fmt)
    return path


def is_viewable(tensor: Tensor, fmt: PixelFormat) -> bool:
    """Whether the 8-bit image of `to_image` is complete: 8-bit gray or color."""
    return fmt == PixelFormat() and tensor.shape[-3] in (1, 3)


def to_tensor(image: Image.Image) -> Tensor:
    """A gray or color image of 8 bits as (C, H, W) in [-1, 1]."""
    from torchvision.transforms.v2 import functional as F  # slow to import, and --help does without

    return F.pil_to_tensor(image) / 127.5 - 1


def grid(images: Tensor, columns: int = 0) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] in rows of `columns`, by default as square as possible: (3, H', W')."""
    from torchvision.utils import make_grid  # slow to import

    return make_grid(images, nrow=columns or math.ceil(math.sqrt(len(images))), pad_value=1)
