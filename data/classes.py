"""The classes of images, by the names of their folders or files, and of the pixels of label maps."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from data.arrays import read_label_map
from data.image_file import for_each, naming, reading
from data.image_folder import DataError, MissingLibrary, common_folder
from util.label_maps import MAX_CLASSES, find_classes, misfits, order

FOLDER = "folder"


def class_of(path: Path, root: Path, rule: str) -> str:
    """The name of the class of an image.

    Args:
        path: of the image, below `root`.
        root: the folder of all images.
        rule: "folder", for the first folder below `root`; or a regular expression with one group, to be found in the
            file name without its suffix.

    Raises:
        DataError: the image lies in no such folder, or the expression is not in its name.
    """
    if rule == FOLDER:
        parts = path.relative_to(root).parts
        if len(parts) < 2:
            raise DataError(
                f"class_of=folder: {path} lies in no folder of a class. Expected: {root / 'CLASS' / path.name}",
                remedy={"class_of": ""},
            )
        return parts[0]
    found = re.search(rule, path.stem)
    if found is None or not found[1]:
        raise DataError(f"class_of={rule}: {path} has no class in its name.", remedy={"class_of": ""})
    return found[1]


def sample_name(seed: int, name: str = "") -> str:
    """The name of the file of a sample, without a suffix: seed0007, or seed0007_cat for the class cat."""
    return f"seed{seed:04d}" + (f"_{name.replace('.', '-')}" if name else "")


def class_of_made(path: Path, root: Path, rule: str, names: Sequence[str]) -> str:
    """The class of a generated image: that of a sample by its `sample_name`, or else `class_of`.

    Args:
        path, root, rule: see `class_of`.
        names: all classes.

    Raises:
        DataError: it is none of `names`, or the name of the file has none.
    """
    sample = re.fullmatch(r"seed\d{4,}_(.+)", path.stem)
    name = sample[1] if sample else class_of(path, root, rule)
    for known in names:
        if name in (known, known.replace(".", "-")):
            return known
    raise DataError(f"{path} is of the class {name!r}. The real images are of {', '.join(names)}.")


def number_classes(found: Sequence[str], names: Sequence[str]) -> tuple[list[str], list[int]]:
    """Number the classes of images.

    Args:
        found: the class of each image.
        names: all classes in order; if empty, those found, sorted.

    Returns:
        All classes in order, and for each image the number of its class.

    Raises:
        DataError: there is a single class, or one that is not in `names`.
    """
    names = list(names) or sorted(set(found))
    if unknown := sorted(set(found) - set(names)):
        raise DataError(
            f"there are images of the class {unknown[0]!r}, which is none of class_names={' '.join(names)}."
        )
    if len(names) < 2:
        raise DataError(f"all images are of the class {names[0]!r}.", remedy={"class_of": ""})
    numbers = {name: number for number, name in enumerate(names)}
    return names, [numbers[name] for name in found]


def choose_classes(chosen: str, names: Sequence[str]) -> list[int]:
    """The numbers of the classes in a text such as "3,7" or "cat,dog", by name or else by number; all if it is empty.

    Raises:
        DataError: there is no such class.
    """
    numbers = {str(number): number for number in range(len(names))}
    numbers |= {name: number for number, name in enumerate(names)}
    words = [word.strip() for word in chosen.split(",")] if chosen else list(names)
    if unknown := [word for word in words if word not in numbers]:
        raise DataError(f"classes={chosen}: there is no class {unknown[0]!r}. Choose from {', '.join(names)}.")
    return [numbers[word] for word in words]


def classes_in(paths: Sequence[Path], *, skip_bad: bool = False) -> tuple[str, ...]:
    """The classes of all label maps, in their order.

    Args:
        paths: the files.
        skip_bad: pass over files that cannot be used.

    Raises:
        DataError: these do not look like label maps, or show a class in different ways.
    """
    first: dict[str, Path] = {}  # class -> a file that has it
    for path, found in zip(paths, for_each(partial(classes_of, skip_bad=skip_bad), paths, "classes"), strict=True):
        for name in found:
            first.setdefault(name, path)
    if not 2 <= len(first) <= MAX_CLASSES:
        raise DataError(
            f"{common_folder(paths)}: the number of classes in its images is {len(first)}, so they do not look like "
            f"label maps, which have 2 to {MAX_CLASSES}."
        )
    classes = order(first)
    if unfit := misfits(classes):
        name, other = unfit
        raise DataError(
            f"{first[name]} shows a class as {name}, and {first[other]} one as {other}: save all label maps with one "
            "palette, all as values or all as RGB."
        )
    return tuple(classes)


def classes_of(path: Path, *, skip_bad: bool = False) -> list[str]:
    """The classes in a label map; none if it cannot be used and `skip_bad` says to pass over it. Raises DataError."""
    try:
        with reading(path):
            array, palette = read_label_map(path)
        with naming(path):
            return find_classes(array, palette)
    except DataError as error:
        if skip_bad and not isinstance(error, MissingLibrary):
            return []
        raise
