"""Read images as if packages were not installed: python -m tests.without torchcodec,imagecodecs FOLDER.

Prints the name of each file and the digest of its pixels, or the error about a missing library.
"""

import hashlib
import sys
from pathlib import Path


class Missing:
    """Makes imports of the packages fail: a finder for sys.meta_path."""

    def __init__(self, packages: str):
        self.packages = packages.split(",")

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


if __name__ == "__main__":
    sys.meta_path.insert(0, Missing(sys.argv[1]))  # before tifffile, which imports imagecodecs

from data.arrays import array_kind, read_array  # noqa: E402
from data.image_file import ImageReader, for_each  # noqa: E402
from data.image_folder import MissingLibrary  # noqa: E402


def digest(array) -> str:
    return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"


def outcome(path: Path) -> str:
    """The digest of the pixels (H, W, C) in a file, or the error."""
    try:
        if array_kind(path):
            return digest(read_array(path))
        return digest(ImageReader()(path).permute(1, 2, 0).numpy())
    except MissingLibrary as error:
        return str(error)


if __name__ == "__main__":
    paths = sorted(Path(sys.argv[2]).iterdir())
    for path, line in zip(paths, for_each(outcome, paths, "reading"), strict=True):
        print(path.name, line)
