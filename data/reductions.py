"""What is lost between the files of a dataset and the network, one line each: for train.py, test.py and --dry_run."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.arrays import frame_count, has_alpha, read_array
from data.base_dataset import BaseDataset
from data.check import Check, Decoded, size_of
from data.image_file import ImageReader, for_each, reading
from data.image_folder import DataError, common_folder, left_out
from util.images import WITH_ALPHA, PixelFormat

LOOKED_AT = 40  # files of a domain, at most
FEW_COLORS = 64  # an image with at most so many may be a label map
RATIO = 1.02  # aspect ratios that change by less are not reported
FULL = 0.5  # share of a range of values that is not reported


def reductions(dataset: BaseDataset, root: Path, *, train: bool, most: int = LOOKED_AT) -> list[str]:
    """A line for each kind of loss: files left out, aspect ratio, crops, opacity, values, colors, classes, frames.

    Args:
        dataset: as created. Files of it that cannot be read are passed over.
        root: the folder of the dataset.
        train: every sample gets a crop of its own.
        most: files of each domain to look at, evenly spread.
    """
    lines: list[str] = []
    for paths, check in dataset.checks:
        folder = domain_folder(paths, root)
        found = [*files_left_out(folder), *of_files(paths, check, train=train, most=most)]
        lines += (f"{folder.absolute().name}: {line}" for line in found)
    return lines


def domain_folder(paths: Sequence[Path], root: Path) -> Path:
    """The folder directly in `root` that holds all files, or `root`; for files elsewhere, the folder they share."""
    shared = common_folder(paths)
    if not shared.is_relative_to(root):
        return shared
    parts = shared.relative_to(root).parts
    return root / parts[0] if parts else root


def files_left_out(folder: Path) -> list[str]:
    """A line that counts the files in `folder` whose suffix is not that of an image, if there are any."""
    kinds = left_out(folder)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return [f"left out, since they are not images that can be read: {counted}"] if kinds else []


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a file loses.

    Attributes:
        size: of the part that is transformed, (width, height) in pixels.
        transparent: opacity is dropped.
        frames: in the file; the first is used.
        span: the smallest and largest value of a deep file.
        fmt: the format of a deep file.
        colors: of an image with few that is resized: their number before and after, and how many no longer occur.
        classes: of a label map that no longer occur.
    """

    size: tuple[int, int]
    transparent: bool
    frames: int
    span: tuple[float, float] | None
    fmt: PixelFormat | None
    colors: tuple[int, int, int] | None
    classes: tuple[str, ...]


def look_at(path: Path, check: Check) -> Look | None:
    """Look at a file; None if it cannot be read, which is reported elsewhere."""
    try:
        image = check(path)
        size = check.part(size_of(image), path)
        with reading(path):
            fmt = check.read.format(path) if isinstance(check.read, ImageReader) else None
            classes = fmt.classes if fmt else ()
            transparent = not classes and drops_opacity(path, check)
            frames = frame_count(path)
            deep = read_array(path) if fmt and fmt.has_range else None
    except DataError:
        return None
    span = None if deep is None else (float(deep.min()), float(deep.max()))
    resizes = check.transform.resized(size) != size
    colors = lost_colors(image, check) if deep is None and resizes and not classes else None
    gone = lost_classes(image, check, classes) if classes else ()
    return Look(size=size, transparent=transparent, frames=frames, span=span, fmt=fmt, colors=colors, classes=gone)


def drops_opacity(path: Path, check: Check) -> bool:
    """Whether a file has transparent parts that the network does not see."""
    return check.transform.channels not in WITH_ALPHA and has_alpha(path) and is_transparent(read_array(path))


def is_transparent(array: np.ndarray) -> bool:
    """Whether (H, W, C) with opacity in the last channel has a pixel that is not opaque."""
    return bool(array[..., -1].min() < (np.iinfo(array.dtype).max if array.dtype.kind in "ui" else 1))


def lost_classes(image: Decoded, check: Check, classes: Sequence[str]) -> tuple[str, ...]:
    """The classes of a label map, (1, H, W) of their numbers, that no longer occur after its transform."""
    assert isinstance(image, Tensor)
    kept = {number for number, plane in enumerate(check.transform(image)) if plane.amax() > 0}
    return tuple(classes[number] for number in image.unique().tolist() if number not in kept)


def lost_colors(image: Decoded, check: Check) -> tuple[int, int, int] | None:
    """The colors of an image before and after its transform, and how many no longer occur; None if they are many."""
    from torchvision.transforms.v2 import functional as F  # slow to import, and --help does without

    pixels = image if isinstance(image, Tensor) else F.pil_to_tensor(image)
    before = distinct(pixels)
    if not 1 < len(before) <= FEW_COLORS:
        return None
    after = distinct(check.transform(image).add(1).mul(127.5).round().byte())
    same = check.transform.channels == len(pixels)
    return len(before), len(after), len(before - after) if same else 0


def distinct(pixels: Tensor) -> set[tuple[int, ...]]:
    """The colors of (C, H, W) of uint8."""
    return {tuple(color) for color in torch.unique(pixels.flatten(1), dim=1).T.tolist()}


def of_files(paths: Sequence[Path], check: Check, *, train: bool, most: int = LOOKED_AT) -> list[str]:
    """The lines about the files of a domain; see `reductions`."""
    places = np.linspace(0, len(paths) - 1, min(most, len(paths))).round().astype(int)
    found = for_each(partial(look_at, check=check), [paths[i] for i in places], "looking at images")
    looks = [look for look in found if look is not None]
    if not looks:
        return []
    among = f" of {len(looks):,}" if len(looks) == len(paths) else f" of {len(looks):,} looked at"
    lines = of_sizes([look.size for look in looks], check, among, train=train)
    if count := sum(look.transparent for look in looks):
        lines.append(f"{count}{among} images have transparent parts, which become white: 4 channels keep them")
    if deep := [look for look in looks if look.span and look.fmt]:
        lines += of_values(deep)
    if few := [look.colors for look in looks if look.colors]:
        before, after, lost = max(few, key=lambda colors: colors[2])
        gone = f", and {lost} of them no longer occur" if lost else ""
        text = f"{len(few)}{among} images have few colors, as label maps do, and resizing blends them"
        lines.append(f"{text}: {before} become {after}{gone}; label_A and label_B keep classes")
    if lacking := [look.classes for look in looks if look.classes]:
        name, count = Counter(name for classes in lacking for name in classes).most_common(1)[0]
        text = (
            f"{len(lacking)}{among} label maps lose classes by resizing and cropping, {max(map(len, lacking))} or less"
        )
        lines.append(f"{text}: {count} lose {name}")
    if count := sum(look.frames > 1 for look in looks):
        lines.append(f"{count}{among} files have several frames or pages, of which the first is used")
    return lines


def of_sizes(sizes: Sequence[tuple[int, int]], check: Check, among: str, *, train: bool) -> list[str]:
    """The lines about aspect ratios and crops, for images of these sizes (width, height)."""
    transform, changed, centered, cropped = check.transform, [], [0.0], [0.0]
    for width, height in sizes:
        if transform.center_crop:
            side = transform.center((width, height))
            centered.append(1 - side * side / (width * height))
            width = height = side
        resized = transform.resized((width, height))
        ratio = resized[0] * height / (resized[1] * width)
        if max(ratio, 1 / ratio) > RATIO:
            changed.append((max(ratio, 1 / ratio), f"{width}x{height} becomes {resized[0]}x{resized[1]}"))
        if transform.crops:
            cropped.append(1 - transform.crop_size**2 / math.prod(resized))
    lines = []
    if changed:
        factor, example = max(changed)
        lines.append(f"the aspect ratio of {len(changed)}{among} images changes {factor:.2f} times or less: {example}")
    if max(centered) > 0:
        lines.append(f"center_crop={transform.center_crop} removes {max(centered):.0%} of an image or less")
    if max(cropped) > 0:
        where = "another part of it each time" if train else "the same part each time"
        lines.append(f"crop_size={transform.crop_size} removes {max(cropped):.0%} of an image or less, {where}")
    return lines


def of_values(looks: Sequence[Look]) -> list[str]:
    """The line about the values of deep files, if some are outside the assumed range or use little of it."""
    spans, formats = [look.span for look in looks if look.span], [look.fmt for look in looks if look.fmt]
    least, most = min(low for low, _ in spans), max(high for _, high in spans)
    low, high = formats[0].value_range
    text = f"values are {least:g} to {most:g}, and {low:g} to {high:g} become -1 to 1"
    if least < low or most > high:
        return [f"{text}: values outside are clipped"]
    if (share := (most - least) / (high - low)) < FULL:
        return [f"{text}: {share:.0%} of the range is used; value_range={least:g},{most:g} would use all of it"]
    return []


def of_results(formats: Mapping[str, PixelFormat]) -> str:
    """A line that says how images of each domain are written, by the letter of the domain; 8 bits if empty."""
    if len(set(formats.values())) < 2:
        return f"results have {next(iter(formats.values()), PixelFormat())}"
    return f"results have {', '.join(f'{fmt} in {domain}' for domain, fmt in sorted(formats.items()))}"
