"""Find the images of a folder; every error names the folder and what to do about it."""

import difflib
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch.utils.data import get_worker_info

from data.scans import LAST, LIBRARIES, READABLE, slices_of
from util.errors import RemediedError

# suffixes of files that can be written; all can be read
WRITABLE = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".tif", ".tiff", ".npy")
HEIF = (".heic", ".heif")  # which pillow-heif reads
# and those that can be read only: of animations, the first frame
MORE = (".jfif", ".pgm", ".webp", ".gif", ".jp2", ".avif")
EXTENSIONS = (*WRITABLE, *MORE, *(HEIF if find_spec("pillow_heif") else ()), *READABLE)
EXTRAS = dict.fromkeys(HEIF, "formats") | dict.fromkeys(LIBRARIES, "medical")  # suffix -> what to install

REMEDY_NOTE = "\nremedy: "


class DataError(RemediedError):
    """A mistake in the user's data, or in a setting about it.

    A DataLoader raises the error of a worker again with the printed traceback as the message. An error in a worker
    prints its remedy there too, and the constructor takes message and remedy out of such a text.
    """

    def __init__(self, message: str, *, remedy: Mapping[str, Any] | None = None):
        name = f"\n{type(self).__module__}.{type(self).__qualname__}: "
        if message.startswith("Caught ") and name in message:
            message, _, note = message.rpartition(name)[2].rstrip().partition(REMEDY_NOTE)
            remedy = json.loads(note) if note else None
        super().__init__(message, remedy=remedy)
        if self.remedy and get_worker_info() is not None:
            self.add_note(REMEDY_NOTE.lstrip() + json.dumps(self.remedy))

    @property
    def message(self) -> str:
        """The text. An error with this attribute spares a DataLoader a reference cycle that delays its end by 5 s."""
        return str(self)


class MissingLibrary(DataError):
    """A file needs a library that is not installed. The file is not bad, so skip_bad_images does not skip it."""

    @classmethod
    def of(cls, path: Path, what: str, verb: str = "read") -> "MissingLibrary":
        """The error for `path`, which is `what` and which imagecodecs alone can `verb`."""
        return cls(f'Cannot {verb} {path}: {what} needs imagecodecs. Install it: pip install ".[formats]"')


def list_images(folder: Path, limit: float = math.inf, slice_axis: int = LAST) -> list[Path]:
    """All images below `folder`, sorted by their path relative to it; at most `limit`, cut after sorting.

    A volume is listed as its slices along `slice_axis`, a DICOM file of several frames as these, see `data.scans`.

    Follows subfolders and symbolic links, except links to a parent folder. Skips hidden files and folders.
    """
    paths = [part for path in list_files(folder) if is_image(path.name) for part in slices_of(path, slice_axis)]
    return paths[: int(min(limit, len(paths)))]


def left_out(folder: Path) -> dict[str, int]:
    """The suffixes of the visible files below `folder` that are no images that can be read, and how many there are."""
    kinds = Counter(described_suffix(path) for path in list_files(folder) if not is_image(path.name))
    return dict(kinds.most_common())


def described_suffix(path: Path) -> str:
    """The suffix of a file that is left out, with the extra that would read it."""
    known = [suffix for suffix in EXTRAS if path.name.lower().endswith(suffix)]
    if not known:
        return path.suffix.lower() or "without a suffix"
    return f'{known[-1]} (to read them: pip install ".[{EXTRAS[known[-1]]}]")'


def list_files(folder: Path) -> list[Path]:
    """All visible files below `folder`; see `list_images`. DataError if a folder cannot be read."""

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: {error.strerror}. Its images would be left out.") from error

    if not folder.is_dir():
        return []
    paths = []
    above = {Path(folder): {_identity(folder)}}  # each folder -> itself and its parents
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        visited = above.pop(Path(parent))
        children = {name: _identity(Path(parent, name)) for name in folders if not name.startswith(".")}
        folders[:] = [name for name, child in children.items() if child not in visited]
        above |= {Path(parent, name): visited | {children[name]} for name in folders}
        paths += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(paths, key=lambda path: path.relative_to(folder).as_posix())


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def domain_images(
    dataroot: str | Path, phase: str, domain: str, limit: float = math.inf, slice_axis: int = LAST
) -> list[Path]:
    """The images of `dataroot/{phase}{domain}`, for example trainA.

    Raises:
        DataError: the folder is missing (shows the expected and the found tree, and the likely mistake) or empty.
    """
    folder = Path(dataroot, f"{phase}{domain}")
    if not folder.is_dir():
        raise missing_domain(Path(dataroot), phase, domain)
    return _not_empty(folder, list_images(folder, limit, slice_axis))


def any_images(
    dataroot: str | Path, phase: str, domain: str, limit: float = math.inf, slice_axis: int = LAST
) -> list[Path]:
    """The images of `dataroot/{phase}{domain}` if that folder exists, else all images below `dataroot`.

    A dataset of one domain can therefore read a folder made for two.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    folder = any_folder(dataroot, phase, domain)
    if not folder.is_dir():
        raise DataError(f"dataroot={dataroot}: no such folder.\nFound:\n{tree(nearest_folder(folder))}")
    return _not_empty(folder, list_images(folder, limit, slice_axis))


def any_folder(dataroot: str | Path, phase: str, domain: str) -> Path:
    """The folder whose images `any_images` lists."""
    folder = Path(dataroot, f"{phase}{domain}")
    return folder if folder.is_dir() else Path(dataroot)


def _not_empty(folder: Path, paths: list[Path]) -> list[Path]:
    if not paths:
        found = ", ".join(f"{count} {kind}" for kind, count in left_out(folder).items())
        there = f", which holds {found}" if found else ""
        raise DataError(f"No image in {folder}{there}: the names of image files end in {' '.join(EXTENSIONS)}.")
    return paths


def missing_domain(dataroot: Path, phase: str, domain: str) -> DataError:
    """The error for a missing `dataroot/{phase}{domain}`: expected tree, found tree, likely mistake."""
    expected = {f"{phase}{letter}": f"images of domain {letter}" for letter in "AB"}
    hint, remedy = nearest_fix(dataroot, phase, domain)
    return missing_folder(dataroot, f"{phase}{domain}", expected, hint, remedy)


def missing_folder(
    dataroot: Path, name: str, expected: Mapping[str, str], hint: str, remedy: Mapping[str, Any] | None = None
) -> DataError:
    """The error for a missing `dataroot/name`: expected tree (folder -> what it holds), found tree, a hint."""
    lines = [
        f"dataroot={dataroot}: there is no folder {name} in it.",
        "Expected:",
        f"{dataroot}{os.sep}",
        *(f"  {folder}{os.sep}  {text}" for folder, text in expected.items()),
        "Found:",
        tree(nearest_folder(dataroot)),
    ]
    return DataError("\n".join([*lines, *([hint] if hint else [])]), remedy=remedy)


def common_folder(paths: Sequence[Path]) -> Path:
    """The innermost folder that holds all files; the current one if there are none."""
    return Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()


def relative_name(path: str | Path, root: Path) -> str:
    """The name of a file below `root`, without suffix."""
    return Path(path).relative_to(root).with_suffix("").as_posix()


def nearest_folder(path: Path) -> Path:
    """`path`, or the closest of its parents that exists."""
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), Path.cwd())


def nearest_fix(dataroot: Path, phase: str, domain: str = "") -> tuple[str, dict[str, str]]:
    """Find a folder like {phase}{domain} nearby: one level up, nested, in other letters, or as train/A.

    Returns:
        A hint, empty if there is no such folder, and the remedy, empty if the folder has to be renamed.
    """
    name = phase + domain
    around = nearest_folder(dataroot)
    if around == dataroot:
        candidates = [around, around.parent, *subfolders(around, 2)]
    else:
        beside = {folder.name: folder for folder in subfolders(around, 1)}
        candidates = [around, *(beside[near] for near in difflib.get_close_matches(dataroot.name, beside))]
    for folder in candidates:
        if (folder / name).is_dir():
            return f"There is a folder {name} in {folder}.", {"dataroot": str(folder)}
    for folder in candidates:
        for child in subfolders(folder, 2):
            spelled = "".join(child.relative_to(folder).parts)
            if spelled.lower() in (name.lower(), f"{phase}_{domain}".lower(), f"{phase}-{domain}".lower()):
                return f"Rename {child} to {folder / name}, then use dataroot={folder}.", {}
    return "", {}


def subfolders(folder: Path, depth: int, most: int = 100) -> list[Path]:
    """Visible folders at most `depth` levels below `folder`, nearest first, at most `most`."""
    found: list[Path] = []
    level = [folder]
    for _ in range(depth):
        level = [child for parent in level[:most] for child in _children(parent)[:most]]
        found += level
    return found[:most]


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    except PermissionError:
        return []  # only a hint needs this folder; the folder that is missing reports its own error


def tree(folder: Path, most: int = 12) -> str:
    """`folder` and its subfolders, one per line, with the number of images directly in each."""
    children = _children(folder)
    lines = [f"{folder}{os.sep}  {_count(folder)}"]
    lines += [f"  {child.name}{os.sep}  {_count(child)}" for child in children[:most]]
    if len(children) > most:
        lines.append(f"  ... and {len(children) - most} more folders")
    return "\n".join(lines)


def _count(folder: Path) -> str:
    try:
        number = sum(is_image(path.name) for path in folder.iterdir())
    except PermissionError:
        return "(not readable)"
    return f"{number} image{'' if number == 1 else 's'}"
