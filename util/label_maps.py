"""Label maps: images whose pixels are classes, given by their values, by a palette, or by colors.

A class is a text that says how files show it: the value "7", "7#ff0000" with its color in a palette, or the color
"#ff0000" of RGB images. All classes of a domain are alike, and their order numbers them.
"""

import colorsys
import itertools
import re
from collections.abc import Collection, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MAX_CLASSES = 64  # images with more are hardly label maps
NUMBERS = torch.int16  # the dtype of tensors of class numbers, and of nothing else
CLASS = re.compile(r"(\d{1,5})?(#[0-9a-f]{6})?")
GOLDEN = 0.618  # hues at this distance differ for many classes

Palette = list[str]  # "#ff0000" for each index


def checked(classes: Sequence[str]) -> tuple[str, ...]:
    """A list of classes. Raises ValueError if it is none."""
    for name in classes:
        found = CLASS.fullmatch(name)
        if found is None or not name or int(found[1] or 0) >= (2**8 if found[2] else 2**16):
            raise ValueError(f"{name!r} is no class: a value such as 7, a color such as #ff0000, or 7#ff0000")
    if unfit := misfits(order(set(classes))):
        raise ValueError(f"{unfit[0]} and {unfit[1]} cannot be classes of the same label maps")
    return tuple(classes)


def misfits(classes: Sequence[str]) -> tuple[str, str] | None:
    """Two of the classes, in `order`, that are shown in different ways, or have one value; None if there are none."""
    for pair in itertools.pairwise(classes):  # those of one value are neighbors
        (value, mark, _), (after, mark_after, _) = (name.partition("#") for name in pair)
        if (bool(value), mark) != (bool(after), mark_after) or (value and value == after):
            return pair
    return None


def pixels(image: Image.Image) -> tuple[np.ndarray, Palette | None]:
    """The values of an image, (H, W, C): of a palette image its indices, and its palette.

    Raises:
        ValueError: there are transparent pixels.
    """
    if image.mode == "P":
        flat = image.getpalette("RGB") or []
        flat += [0] * (768 - len(flat))
        return np.asarray(image)[..., None], ["#{:02x}{:02x}{:02x}".format(*flat[i : i + 3]) for i in range(0, 768, 3)]
    array = np.atleast_3d(np.asarray(image.convert("L") if image.mode == "1" else image))
    if image.mode in ("LA", "RGBA"):
        if array[..., -1].min() < 255:
            raise ValueError("has transparent pixels, which are of no class")
        array = array[..., :-1]
    return array, None


def keys(array: np.ndarray) -> np.ndarray:
    """A number for each value or color of (H, W, 1 or 3): (H, W) of int64.

    Raises:
        ValueError: these are no label maps.
    """
    channels, dtype = array.shape[2], array.dtype
    if channels not in (1, 3) or (channels == 3 and dtype != np.uint8):
        raise ValueError(f"is no label map: it has {channels} channels of {dtype}, not one, or RGB in 8 bits")
    with np.errstate(invalid="ignore"):  # of NaN
        wide = array.astype(np.int64)
    if not np.array_equal(wide, array) or wide.min() < 0 or wide.max() >= 2**16:
        raise ValueError("is no label map: not all of its values are whole numbers from 0 to 65535")
    return wide[..., 0] if channels == 1 else wide @ np.array([2**16, 2**8, 1])


def names(found: np.ndarray, channels: int, palette: Palette | None) -> list[str]:
    """The classes of `keys`."""
    if channels == 3:
        return [f"#{key:06x}" for key in found]
    return [f"{key}{palette[key] if palette else ''}" for key in found]


def find_classes(array: np.ndarray, palette: Palette | None) -> list[str]:
    """The classes that occur in (H, W, C).

    Raises:
        ValueError: there are too many, or these are no label maps.
    """
    found = np.unique(keys(array))
    if len(found) > MAX_CLASSES:
        raise ValueError(
            f"does not look like a label map: it has {len(found)} values, and label maps have {MAX_CLASSES} or less. "
            "JPEG and smooth resizing blend classes"
        )
    return names(found, array.shape[2], palette)


def order(classes: Collection[str]) -> list[str]:
    """Classes in the order of their values or colors."""
    return sorted(classes, key=lambda name: (len(name.partition("#")[0]), name))


def to_numbers(array: np.ndarray, classes: Sequence[str], palette: Palette | None = None) -> Tensor:
    """The numbers of the classes in (H, W, C): (H, W) of NUMBERS.

    Raises:
        ValueError: there is a class that is none of `classes`, or a palette shows a class in another color.
    """
    own, channels = keys(array), array.shape[2]
    if (channels == 3) != classes[0].startswith("#"):
        raise ValueError(f"has {channels} channels, but the label maps of training show classes as {classes[0]}")
    known = [int(name[1:], 16) if channels == 3 else int(name.partition("#")[0]) for name in classes]
    ranks = np.argsort(known)
    places = ranks[np.searchsorted(known, own, sorter=ranks).clip(max=len(known) - 1)]
    unknown = own[np.array(known)[places] != own]
    present = names(np.unique(unknown), channels, palette)
    if palette and "#" in classes[0]:
        used = np.flatnonzero(np.bincount(places.ravel(), minlength=len(known))).tolist()
        present += names(np.array([known[i] for i in used if palette[known[i]] not in classes[i]]), channels, palette)
    if present:
        raise ValueError(f"holds the class {present[0]}, which is none of training: {' '.join(classes)}")
    return torch.from_numpy(places.astype(np.int16))


def to_values(numbers: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Numbers of classes (H, W) as the values or colors of files: (H, W, 1) of uint8 or uint16, or (H, W, 3)."""
    if classes[0].startswith("#"):
        return colors(classes)[numbers]
    values = np.array([int(name.partition("#")[0]) for name in classes])
    return values.astype(np.uint8 if values.max() < 256 else np.uint16)[numbers][..., None]


def to_image(values: np.ndarray, classes: Sequence[str]) -> Image.Image:
    """The result of `to_values` as an image, with the palette of the classes if they have one."""
    image = Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)
    if "#" in classes[0][1:]:
        palette = np.zeros((256, 3), np.uint8)
        palette[to_values(np.arange(len(classes))[None], classes).ravel()] = colors(classes)
        image.putpalette(palette.tobytes())
    return image


def colors(classes: Sequence[str]) -> np.ndarray:
    """The colors of classes, (N, 3) of uint8: their own, or else distinct ones."""
    if "#" in classes[0]:
        return np.array([list(bytes.fromhex(name.partition("#")[2])) for name in classes], np.uint8)
    made = [colorsys.hsv_to_rgb(number * GOLDEN % 1, 0.8, 0.95) for number in range(len(classes))]
    return (np.array(made) * 255).astype(np.uint8)


def one_hot(numbers: Tensor, count: int) -> Tensor:
    """Numbers (H, W) as planes (count, H, W): 1 where a pixel is of the class, else -1."""
    return (numbers == torch.arange(count)[:, None, None]).float() * 2 - 1


def in_color(planes: Tensor, classes: Sequence[str]) -> Tensor:
    """Planes (..., C, H, W) in the colors of the classes with the largest values: (..., 3, H, W) in [-1, 1]."""
    shown = torch.from_numpy(colors(classes)).to(planes.device, torch.float32) / 127.5 - 1
    return shown[planes.argmax(-3)].movedim(-1, -3)
