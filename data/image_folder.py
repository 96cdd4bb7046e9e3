"""Find the images of a folder; every error names the folder and what to do about it."""

import difflib
import math
import os
from collections.abc import Sequence
from pathlib import Path

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".tif", ".tiff", ".npy")


class DataError(ValueError):
    """A mistake in the user's data, or in a flag about it; the message is complete and meant for the user.

    mend: the flag that mends it, with its value if it takes one, where there is such a flag.
    """

    def __init__(self, message: str, *, mend: Sequence[str] = ()):
        # A DataLoader worker re-raises with its whole traceback as the message: keep only the part for people.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].rstrip())
        self.mend = tuple(mend)

    @property
    def message(self) -> str:
        """The text. An error with this attribute spares a DataLoader a reference cycle that delays its end by 5 s."""
        return str(self)


class MissingLibrary(DataError):
    """A file needs a library that is not installed; the file is not bad, so --skip_bad_images does not skip it."""

    @classmethod
    def of(cls, path: Path, what: str, verb: str = "read") -> "MissingLibrary":
        """The error for `path`, which is `what` and which imagecodecs alone can `verb`."""
        return cls(f'Cannot {verb} {path}: {what} needs imagecodecs. Install it: pip install ".[formats]"')


def list_images(folder: Path, limit: float = math.inf) -> list[Path]:
    """All images below `folder`, sorted by their path relative to it; at most `limit`, cut after sorting.

    Sub-folders and symbolic links are followed, save those that lead back up; hidden files and folders are left out.
    """
    paths = []
    above = {Path(folder): {_identity(folder)}} if folder.is_dir() else {}  # of each folder: itself and its parents
    for parent, folders, names in os.walk(folder, followlinks=True):
        visited = above.pop(Path(parent))
        children = {name: _identity(Path(parent, name)) for name in folders if not name.startswith(".")}
        folders[:] = [name for name, child in children.items() if child not in visited]
        above |= {Path(parent, name): visited | {children[name]} for name in folders}
        paths += [Path(parent, name) for name in names if is_image(name)]
    paths.sort(key=lambda path: path.relative_to(folder).as_posix())
    return paths[: int(min(limit, len(paths)))]


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def domain_images(dataroot: str | Path, phase: str, domain: str, limit: float = math.inf) -> list[Path]:
    """The images of `dataroot/{phase}{domain}`, for example trainA.

    Raises:
        DataError: the folder is missing (shows the expected and the found tree, and the likely mistake) or empty.
    """
    folder = Path(dataroot, f"{phase}{domain}")
    if not folder.is_dir():
        raise missing_domain(Path(dataroot), phase, domain)
    return _not_empty(folder, list_images(folder, limit))


def any_images(dataroot: str | Path, phase: str, domain: str, limit: float = math.inf) -> list[Path]:
    """The images of `dataroot/{phase}{domain}` where that folder exists, else all images below `dataroot`.

    So a folder made for two domains serves one-domain work as it is.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    folder = Path(dataroot, f"{phase}{domain}")
    if not folder.is_dir():
        folder = Path(dataroot)
    if not folder.is_dir():
        raise DataError(f"--dataroot {dataroot}: no such folder.\nFound:\n{tree(nearest_folder(folder))}")
    return _not_empty(folder, list_images(folder, limit))


def _not_empty(folder: Path, paths: list[Path]) -> list[Path]:
    if not paths:
        raise DataError(f"No image in {folder}: --dataroot needs files that end in {' '.join(EXTENSIONS)}.")
    return paths


def missing_domain(dataroot: Path, phase: str, domain: str) -> DataError:
    """The error for a missing `dataroot/{phase}{domain}`: expected tree, found tree, likely mistake."""
    expected = [f"{dataroot}{os.sep}"] + [f"  {phase}{letter}{os.sep}  images of domain {letter}" for letter in "AB"]
    lines = [
        f"--dataroot {dataroot}: there is no folder {phase}{domain} in it.",
        "Expected:",
        *expected,
        "Found:",
        tree(nearest_folder(dataroot)),
    ]
    hint, mend = nearest_fix(dataroot, phase, domain)
    return DataError("\n".join([*lines, hint]), mend=mend)


def nearest_folder(path: Path) -> Path:
    """`path`, or the closest of its parents that exists."""
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), Path.cwd())


def nearest_fix(dataroot: Path, phase: str, domain: str = "") -> tuple[str, tuple[str, ...]]:
    """Where a folder like {phase}{domain} lies instead (one level up, nested, in other letters, as train/A), or ''.

    And the flag that leads there, unless the folder has to be renamed.
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
            return f"Did you mean --dataroot {folder}?", ("--dataroot", str(folder))
    for folder in candidates:
        for child in subfolders(folder, 2):
            spelled = "".join(child.relative_to(folder).parts)
            if spelled.lower() in (name.lower(), f"{phase}_{domain}".lower(), f"{phase}-{domain}".lower()):
                return f"Rename {child} to {folder / name}, then use --dataroot {folder}.", ()
    return "", ()


def subfolders(folder: Path, depth: int, most: int = 100) -> list[Path]:
    """Visible folders at most `depth` levels below `folder`, nearest first, no more than about `most`."""
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
        return []  # only looked at to give a hint; the folder that is really needed reports its own error


def tree(folder: Path, most: int = 12) -> str:
    """`folder` and its sub-folders, one a line, with the number of images right in each."""
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
